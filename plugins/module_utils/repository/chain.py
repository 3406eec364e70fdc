# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images behind a disk of a restore point: its own, and those that it stands on, down to the full one.

An image is opened only if its header says what the manifest says, so that none leads a reader to another file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, manifest
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository


def open_point(repository: Repository, instance_uuid: str, point: str) -> dict[str, Any]:
    """Return the manifest of a published point. Raises SendenseError when there is no such point or it is damaged."""
    folder = repository.published_folder(instance_uuid, point)
    if not folder.is_dir():
        raise SendenseError(f"there is no restore point {point} of VM {instance_uuid} in {repository.path}")
    return manifest.load(folder)


def layers(repository: Repository, instance_uuid: str, point: str, key: int) -> list[Path]:
    """Return the images of a disk, newest first, the last of them without a backing file.

    Raises SendenseError naming point and disk when one is missing or its header does not say what its manifest says.
    """
    found: list[Path] = []
    seen: set[str] = set()
    child: Mapping[str, Any] | None = None
    wanted: str | None = point
    while wanted is not None:
        if wanted in seen:
            raise SendenseError(f"restore point {point}: it stands on itself through {wanted}")
        seen.add(wanted)
        try:
            disk = _disk(open_point(repository, instance_uuid, wanted), key)
            if child and child["provisioned"] != disk["provisioned"]:
                raise SendenseError(
                    f"it has {disk['provisioned']} bytes where the disk that stands on it has {child['provisioned']}"
                )
            parent = disk.get("parent") if disk["type"] != "full" else None
            path = repository.published_folder(instance_uuid, wanted) / manifest.image_file(key)
            _agree(path, disk, parent)
        except SendenseError as why:
            needed = "" if wanted == point else f" (which restore point {point} stands on)"
            raise SendenseError(f"restore point {wanted}{needed}, disk {key}: {why}") from None
        found.append(path)
        child, wanted = disk, parent
    return found


def _disk(point: Mapping[str, Any], key: int) -> Mapping[str, Any]:
    disk: Mapping[str, Any] | None = next((each for each in point["disks"] if each["key"] == key), None)
    if disk is None:
        there = ", ".join(str(each["key"]) for each in point["disks"])
        raise Refused(f"the point has no such disk, only {there}")
    if disk["type"] != "full" and not disk.get("parent"):
        raise SendenseError("its manifest does not say what it stands on")
    return disk


def _agree(path: Path, disk: Mapping[str, Any], parent: str | None) -> None:
    """Raise SendenseError unless the header of the image says what the manifest says of the disk."""
    desired = image.Image(disk["provisioned"], f"../{parent}/{path.name}" if parent else None)
    if path.is_symlink() or not path.is_file():
        raise SendenseError(f"{path} is not there as a plain file")
    current = image.read(path)
    if current != desired:
        raise SendenseError(f"{path} is {current} where its manifest says {desired}; it is not read")
