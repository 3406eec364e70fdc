# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy of all disks of a VM, as the unit ``sendense-copy-<job>`` runs it: request in, status file out.

Started as ``python3 -m …transfer.run REQUEST``. The status file is written whole each time, so whoever reads it sees
one moment. The process ends with 0 once the state is ``done`` or ``failed``: that is said in the file, and any other end
of the unit is a crash.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, LeafFile, Tree, is_zero, tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, gaps, normalise, samples, total
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect, read_ranges
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import Copy, Progress
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource, served

REQUEST = "request.json"
STATUS = "status.json"
SAMPLES = 64  # cells of 64 KiB
_EVERY = 1.0  # seconds between two status files


@dataclass(frozen=True)
class Disk:
    """One disk to copy: where it is read, where it goes, and which ranges hold data (None: nobody knows, read all)."""

    key: int
    capacity: int  # bytes
    source: HttpsSource
    target: str  # NBD URI
    areas: list[Range] | None


class _DiskRun(threading.Thread):
    """One disk being copied; at its end it holds a tree or a failure."""

    def __init__(self, disk: Disk, folder: Path, work: Path, stop: threading.Event) -> None:
        super().__init__(name=f"disk-{disk.key}")
        self._disk, self._folder, self._work, self._stop_all = disk, folder, work, stop
        self._ranges = normalise([(0, disk.capacity)] if disk.areas is None else disk.areas, disk.capacity, CELL)
        self._began = time.monotonic()
        self._seconds: float | None = None
        self.progress = Progress()
        self.tree: Tree | None = None
        self.failure = ""
        self._map = "none" if disk.areas is None else "used"

    def run(self) -> None:
        try:
            self.tree = self._copy()
        except SendenseError as why:
            self.failure = f"disk {self._disk.key}: {why}"
        except Exception as why:  # a defect of ours must fail the disk, not leave a silent thread
            self.failure = f"disk {self._disk.key}: {type(why).__name__}: {why}"
            raise
        finally:
            self._seconds = time.monotonic() - self._began
            if self.failure:
                self._stop_all.set()

    def _copy(self) -> Tree:
        disk = self._disk
        leaf_file = self._work / f"disk-{disk.key}.leaves"
        with contextlib.ExitStack() as stack:
            stack.callback(leaf_file.unlink, missing_ok=True)
            keep = stack.enter_context(contextlib.closing(LeafFile(leaf_file)))
            reader = stack.enter_context(served(disk.source, self._folder / f"{disk.key}.sock"))
            try:
                source = stack.enter_context(connect(reader.uri))
                target = stack.enter_context(connect(disk.target))
                _same_size(disk, source.get_size(), target.get_size())
                self._doubt(source)
                copy = Copy(source, target, keep, self._stop_all.is_set)
                self.progress = copy.progress
                copy.run(self._ranges)
            except SendenseError as why:
                words = reader.words()
                raise SendenseError(f"{why}; nbdkit said: {words}" if words else str(why)) from None
            return tree(keep, disk.capacity)

    def _doubt(self, source: Any) -> None:
        """Sample what vCenter calls unallocated: not every version and datastore tells all. Any data there: read everything."""
        blank = gaps(self._ranges, self._disk.capacity)
        if any(not is_zero(cell) for _offset, cell in read_ranges(source, samples(blank, SAMPLES, CELL))):
            self._map = "refuted"
            self._ranges = [(0, self._disk.capacity)]

    def report(self) -> dict[str, Any]:
        """Return what is known of this disk now, as it stands in the status file."""
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return {
            "key": self._disk.key,
            "provisioned": self._disk.capacity,
            "allocated": None if self._disk.areas is None else total(self._disk.areas),
            "map": self._map,
            "planned": total(self._ranges),
            "seconds": round(seconds, 2),
            **self.progress.report(),
            "tree": asdict(self.tree) if self.tree else None,
        }


def _same_size(disk: Disk, source: int, target: int) -> None:
    for name, size in (("source", source), ("export", target)):
        if size != disk.capacity:
            raise SendenseError(
                f"the {name} has {size} bytes where the snapshot says {disk.capacity}; nothing was copied"
            )


def copy(disks: list[Disk], folder: Path, work: Path) -> dict[str, Any]:
    """Copy *disks* in parallel, keeping the status file in *folder* fresh; return the last status.

    Leaves lie in *work* meanwhile: 32 bytes per 64 KiB of data are too much for the memory behind /run.
    """
    stop = threading.Event()
    runs = [_DiskRun(disk, folder, work, stop) for disk in disks]
    for each in runs:
        each.start()
    while any(each.is_alive() for each in runs):
        _write_status(folder, runs, "running")
        deadline = time.monotonic() + _EVERY
        for each in runs:
            each.join(max(0.0, deadline - time.monotonic()))
    failed = any(each.failure for each in runs)
    return _write_status(folder, runs, "failed" if failed else "done")


def _write_status(folder: Path, runs: list[_DiskRun], state: str) -> dict[str, Any]:
    # those that only stopped because another one failed would hide the one that did
    failures = sorted(
        (each.failure for each in runs if each.failure), key=lambda failure: "stopped, because" in failure
    )
    status = {"state": state, "error": failures[0] if failures else "", "disks": [each.report() for each in runs]}
    jobs.write_private(folder / STATUS, json.dumps(status))
    return status


def parse(request: dict[str, Any]) -> list[Disk]:
    """Return the disks of a request file's content."""
    return [
        Disk(
            key=disk["key"],
            capacity=disk["capacity"],
            source=HttpsSource(**disk["source"]),
            target=disk["target"],
            areas=None if disk["areas"] is None else [tuple(area) for area in disk["areas"]],
        )
        for disk in request["disks"]
    ]


def main(path: str) -> None:
    """Do what the request at *path* says."""
    request = Path(path)
    content = json.loads(request.read_text(encoding="utf-8"))
    copy(parse(content), request.parent, Path(content["work"]))


if __name__ == "__main__":
    main(sys.argv[1])
