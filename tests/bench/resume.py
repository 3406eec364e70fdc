# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A copy that is killed at half and started again: what travels then, beside what was missing."""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import REQUEST, STATUS
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource

from tests.bench.copying import MIB, random_file
from tests.bench.measure import BenchError, Measured, Rows
from tests.bench.processes import OURS, export, python, scratch, serving

rows = Rows()
SIZE = 2048 * MIB
RATE = 50_000_000  # bytes per second, as of the disks of the row backup_wall_vs_by_hand
RUNS = 3
_WRITE = re.compile(r" Write id=\d+ offset=\w+ count=(\w+)")


@rows.row("bytes", "≤ 1.1")
def resume_bytes_vs_missing() -> Measured:
    found = [_resumed() for _run in range(RUNS)]
    return Measured(
        [moved for moved, _missing in found],
        [missing for _moved, missing in found],
        f"what the export had not taken when the copy was killed at half of {SIZE // MIB} MiB, at {RATE // 1_000_000} MB/s",
    )


def _resumed() -> tuple[int, int]:
    """Return the bytes that the second of two copies writes, as a server before the export counts them, and those missing."""
    with scratch() as folder, export(folder / "target.qcow2", SIZE) as target:
        random_file(folder / "source.raw", SIZE)
        first = _start(folder, target, RATE)
        try:
            while (read := _read(folder)) * 2 < SIZE:
                if first.poll() is not None:
                    raise BenchError("the copy ended before it was at half")
                time.sleep(0.02)
        finally:
            first.kill()
            first.wait()
        (folder / STATUS).unlink()
        front, log = folder / "front.sock", folder / "writes.log"
        command = [
            "nbdkit",
            "--foreground",
            "--exit-with-parent",
            "--unix",
            front,
            "--filter=log",
            "nbd",
            f"uri={target}",
        ]
        with serving(front, *command, f"logfile={log}") as uri:
            second = _start(folder, uri)
            if second.wait() or _status(folder)["state"] != "done":
                raise BenchError(f"the copy did not go on: {_status(folder).get('error')}")
        moved = sum(int(count, 16) for count in _WRITE.findall(log.read_text()))
    return moved, SIZE - read


def _start(folder: Path, target: str, rate: int = 0) -> subprocess.Popen[bytes]:
    """Start the very program that runs in the unit, which goes on from the journal in *folder*."""
    (folder / "cookie").write_text("none")
    source = HttpsSource(f"file://{folder}/source.raw", str(folder / "cookie"), None, validate_certs=True)
    disk = Disk(0, SIZE, source, target, None, identity="one start of one export")
    (folder / REQUEST).write_text(json.dumps(runner.request([disk], folder, rate)))
    return subprocess.Popen([python(), "-m", runner.__name__, str(folder / REQUEST)], env=OURS)


def _status(folder: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        return dict(json.loads((folder / STATUS).read_text()))
    return {"disks": []}


def _read(folder: Path) -> int:
    return sum(int(disk["read"]) for disk in _status(folder)["disks"])
