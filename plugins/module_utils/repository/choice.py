# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which restore point an operator means: the VM by a name or by its instance uuid, the point by its id or as the latest.

The repository alone is asked, so that this works where neither vCenter nor the VM is there any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import chain, evidence, manifest
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository, is_uuid

LATEST = "latest"


def find_vm(repository: Repository, wanted: str) -> str:
    """Return the instance uuid of the VM that *wanted* means: that very uuid, its inventory path, or its name.

    Raises Refused when the repository knows none or several, and lists those then.
    """
    known = repository.vms()
    if is_uuid(wanted.lower()):
        if wanted.lower() in known:
            return wanted.lower()
        raise Refused(f"the repository {repository.path} holds nothing of a VM {wanted}")
    seen = {uuid: _last_seen(repository, uuid) for uuid in known}
    for key in ("inventory_path", "name"):
        found = [uuid for uuid, vm in seen.items() if vm.get(key) == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            told = "; ".join(f"{uuid} ({seen[uuid].get('inventory_path', '')})" for uuid in found)
            raise Refused(f"{len(found)} VMs of the repository are named {wanted}: {told}; say which by its uuid")
    names = sorted({str(vm["name"]) for vm in seen.values() if vm.get("name")})
    there = f"it knows {', '.join(names[:20])}{' and others' if len(names) > 20 else ''}" if names else "it is empty"
    raise Refused(f"the repository {repository.path} knows no VM named {wanted}; {there}")


def _last_seen(repository: Repository, uuid: str) -> dict[str, Any]:
    """Return what is known of a VM from its last backup; where vm.json is missing or damaged, its newest manifest tells."""
    try:
        found = json.loads((repository.vm_folder(uuid) / "vm.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = next((each.get("vm") for each in reversed(repository.points(uuid)) if not each["error"]), {})
    return found if isinstance(found, dict) else {}


def find_point(repository: Repository, uuid: str, wanted: str, keys: Iterable[int] = ()) -> dict[str, Any]:
    """Return the manifest of the point that *wanted* means, with its ``path``, ``passed_over`` and ``distrusted`` added.

    ``latest`` is the newest point of which everything is there that the disks *keys* (none: all of them) stand on, and in
    which no verification found damage; newer ones that fail this are passed over, and told. One that is named is
    returned all the same, with the damage as ``distrusted``. Raises SendenseError for a point that is not there, not whole,
    or lacks one of *keys*.
    """
    points = repository.points(uuid)
    if not points:
        raise SendenseError(f"the repository {repository.path} holds no restore point of VM {uuid}")
    if wanted != LATEST:
        if not (named := [each for each in points if each["point"] == wanted]):
            there = ", ".join(each["point"] for each in points[-10:])
            raise SendenseError(f"VM {uuid} has no restore point {wanted}; the newest are {there}")
        doubt = evidence.distrusted(repository, uuid, wanted)
        return whole(repository, uuid, named[0], keys) | {"passed_over": [], "distrusted": doubt}
    passed_over: list[str] = []
    for each in reversed(points):
        try:
            found = whole(repository, uuid, each, keys)
            if doubt := evidence.distrusted(repository, uuid, each["point"]):
                raise SendenseError(f"restore point {each['point']} is damaged: {doubt}")
            return found | {"passed_over": passed_over, "distrusted": ""}
        except Refused:
            raise  # a wish for a disk that is not there is not met by an older point
        except SendenseError as why:
            passed_over.append(str(why))
    raise SendenseError(f"no restore point of VM {uuid} is whole: {'; '.join(passed_over)}")


def whole(repository: Repository, uuid: str, point: dict[str, Any], keys: Iterable[int] = ()) -> dict[str, Any]:
    """Return *point*, one of ``Repository.points``. Raises SendenseError unless all is there that its disks stand on.

    Raises Refused when it lacks one of the disks *keys*.
    """
    if point["error"]:
        raise SendenseError(f"restore point {point['point']}: {point['error']}")
    there = {disk["key"] for disk in point["disks"]}
    if lacking := [str(key) for key in keys if key not in there]:
        told = ", ".join(f"{disk['key']} ({disk.get('label', '')})" for disk in point["disks"])
        raise Refused(f"restore point {point['point']} has no disk {', '.join(lacking)}, only {told}")
    for key in sorted(set(keys) or there):
        for path in chain.layers(repository, uuid, point["point"], key):
            _whole_file(path)
    return point


def _whole_file(image: Path) -> None:
    """Raise SendenseError when the image is shorter or longer than its own manifest says, as one that was cut off is."""
    said = manifest.load(image.parent).get("files", {}).get(image.name)
    if said and image.stat().st_size != said["size"]:
        raise SendenseError(
            f"restore point {image.parent.name}: {image} has {image.stat().st_size} bytes where its manifest says {said['size']}"
        )
