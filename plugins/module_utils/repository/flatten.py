# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of a restore point as files that stand alone: raw, qcow2 or VMDK, each proven before its folder has its name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, CommandFailed, run
from ansible_collections.sendense.backup.plugins.module_utils.digests import ALGORITHM
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import chain, delivery, manifest, proof
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository

_OPTIONS = {
    # --parallel writes out of order, which a stream cannot be
    "raw": ["-W"],
    "qcow2": ["-W", "-o", "compat=1.1,lazy_refcounts=off"],
    "vmdk": ["-o", "subformat=streamOptimized"],
}
FORMATS = sorted(_OPTIONS)


@dataclass(frozen=True)
class Disk:
    """One disk to be written."""

    key: int
    capacity: int  # bytes
    root: str  # of its Merkle tree, as the manifest says
    image: Path
    need: int  # bytes that its file takes at most
    algorithm: str = ALGORITHM

    def file(self, image_format: str) -> str:
        """Return the name of its file."""
        return f"disk-{self.key}.{image_format}"


def disks(repository: Repository, uuid: str, point: Mapping[str, Any], keys: Iterable[int]) -> list[Disk]:
    """Return the disks *keys* of a point (none: all of them). Raises SendenseError when one lacks what it stands on."""
    wanted = set(keys) or {disk["key"] for disk in point["disks"]}
    return [
        _disk(chain.layers(repository, uuid, point["point"], disk["key"]), disk)
        for disk in sorted(point["disks"], key=lambda disk: int(disk["key"]))
        if disk["key"] in wanted
    ]


def _disk(layers: list[Path], disk: Mapping[str, Any]) -> Disk:
    data = min(disk["provisioned"], sum(path.stat().st_size for path in layers))
    need = data + data // 1024 + (1 << 20)  # beside the data there are tables
    return Disk(disk["key"], disk["provisioned"], disk["root"], layers[0], need, manifest.algorithm(disk))


def wish(
    uuid: str,
    point: Mapping[str, Any],
    disks: Iterable[Disk],
    image_format: str,
    folder: Path,
    *,
    owner: files.Owner | None = None,
) -> delivery.Delivery:
    """Return the folder that is to hold *disks* of a point in that format."""
    listed = list(disks)
    what = {
        "kind": "disks",
        "vm": uuid,
        "point": point["point"],
        "format": image_format,
        "disks": {str(disk.key): disk.root for disk in listed},
    }
    return delivery.Delivery(folder, what, sum(disk.need for disk in listed), owner)


def make(
    wished: delivery.Delivery, disks: Iterable[Disk], image_format: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write *disks* into the folder and return its record, to which *about* is added.

    Raises SendenseError naming the disk that cannot be written, or does not hold then what the point holds.
    """
    with delivery.making(wished) as record:
        record.update(about)
        record["disks"] = []
        for disk in disks:
            try:
                record["disks"].append(_write(disk, wished.partial / disk.file(image_format), image_format))
            except SendenseError as why:
                raise SendenseError(f"disk {disk.key}: {why}") from None
    return record


def _write(disk: Disk, path: Path, image_format: str) -> dict[str, Any]:
    began = time.monotonic()
    try:
        run(convert(disk.image, path, image_format), timeout=None)
    except CommandFailed as failed:
        raise SendenseError(f"it cannot be written to {path.parent}: {failed}") from None
    path.chmod(0o600)
    files.sync(path)
    written = time.monotonic()
    found = proof.root(path, disk.capacity, image_format, disk.algorithm)
    if found != disk.root:
        raise SendenseError(
            f"{disk.image} does not hold what the manifest says (root {found} instead of {disk.root}); the point is "
            "damaged, and nothing of it was kept: restore another one, and have this one verified"
        )
    return {
        "key": disk.key,
        "file": path.name,
        "capacity": disk.capacity,
        "root": found,
        "stored": path.stat().st_blocks * 512,
        "seconds_written": round(written - began, 2),
        "seconds_proven": round(time.monotonic() - written, 2),
    }


def convert(image: Path, path: Path, image_format: str) -> Command:
    """Return the command that writes what *image*, a QCOW2 image, reads as to *path*; it ends when we do."""
    options = _OPTIONS[image_format]
    return [
        *proof.DIES_WITH_US,
        "qemu-img",
        "convert",
        "-f",
        "qcow2",
        "-O",
        image_format,
        *options,
        str(image),
        str(path),
    ]
