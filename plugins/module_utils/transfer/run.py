# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy of all disks of a VM, as the unit ``sendense-copy-<job>`` runs it: request in, status file out.

Started as ``python3 -m …transfer.run REQUEST``. The status file is written whole each time, so whoever reads it sees
one moment. The process ends with 0 once the state is ``done`` or ``failed``: that is said in the file, and any other end
of the unit is a crash. The same request goes on where an earlier start of the unit ended.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import STALLED
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk, DiskRun, Interrupted
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import STOPPED, depth
from ansible_collections.sendense.backup.plugins.module_utils.transfer.limit import Limit
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import source as source_of
from ansible_collections.sendense.backup.plugins.module_utils.transfer.status import Status

_EVERY = 1.0  # seconds between two status files


def copy(
    disks: list[Disk],
    folder: Path,
    work: Path,
    rate: int = 0,
    *,
    stall: float = STALLED,
    public: Path | None = None,
    told: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Copy *disks* in parallel, keeping the status file in *folder* fresh, and *public*; return the last status.

    With a *rate* they read at most that many bytes per second, together. *told* is how much an earlier start was said to
    have ``read`` of what was ``planned``, by disk.
    Leaves and journals lie in *work*: 32 bytes per 64 KiB of data are too much for the memory behind /run, and they
    outlive a reboot there.
    """
    stop = threading.Event()
    limit = Limit(rate) if rate else None
    buffers = depth(len(disks))
    runs = [DiskRun(disk, folder, work, stop, limit=limit, buffers=buffers, stall=stall) for disk in disks]
    status = Status(folder, public)
    for disk, each in zip(disks, runs, strict=True):
        each.told |= (told or {}).get(str(disk.key), {})
        each.start()
    while any(each.is_alive() for each in runs):
        status.write(_seen(runs, "running"))
        deadline = time.monotonic() + _EVERY
        for each in runs:
            each.join(max(0.0, deadline - time.monotonic()))
    if len(runs) > 1 and not any(each.failure for each in runs):
        for each in runs:
            each.prove()
    failed = any(each.failure for each in runs)
    return status.write(_seen(runs, "failed" if failed else "done"))


def _seen(runs: Sequence[DiskRun], state: str) -> dict[str, Any]:
    """Return what is known now."""
    # those that only stopped because another one failed would hide the one that did
    failures = sorted((each.failure for each in runs if each.failure), key=lambda failure: STOPPED in str(failure))
    return {
        "state": state,
        "error": str(failures[0]) if failures else "",
        "resumable": all(isinstance(why, Interrupted) or STOPPED in str(why) for why in failures),
        "disks": [each.report() for each in runs],
    }


def request(disks: list[Disk], work: Path, rate: int = 0) -> dict[str, Any]:
    """Return the content of a request file; the areas go into files of their own in *work*."""
    fields = []
    for disk in disks:
        areas = None if disk.areas is None else work / f"disk-{disk.key}.areas"
        if areas and disk.areas is not None:
            jobs.write_private(areas, disk.areas.packed())
        fields.append(asdict(replace(disk, areas=None)) | {"areas": areas and str(areas)})
    return {"work": str(work), "rate": rate, "disks": fields, "stall": STALLED, "public": "", "told": {}}


def parse(content: dict[str, Any]) -> list[Disk]:
    """Return the disks of a request file's content."""
    return [
        Disk(
            key=disk["key"],
            capacity=disk["capacity"],
            source=source_of(disk["source"]),
            target=disk["target"],
            areas=None if disk["areas"] is None else Areas.unpacked(Path(disk["areas"]).read_bytes()),
            fresh=disk["fresh"],
            also=tuple(disk["also"]),
            identity=disk["identity"],
            algorithm=disk["algorithm"],
        )
        for disk in content["disks"]
    ]


def main(path: str) -> None:
    """Do what the request at *path* says."""
    file = Path(path)
    content = json.loads(file.read_text(encoding="utf-8"))
    public = Path(content["public"]) if content["public"] else None
    copy(
        parse(content),
        file.parent,
        Path(content["work"]),
        content["rate"],
        stall=content["stall"],
        public=public,
        told=content["told"],
    )


if __name__ == "__main__":
    main(sys.argv[1])
