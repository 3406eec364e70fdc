# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy itself: our engine beside nbdcopy, from the same nbdkit into the same qemu-nbd, all in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas
from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import REQUEST, STATUS
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource

from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.processes import (
    OURS,
    ROOT,
    Cost,
    cost,
    counts_instructions,
    export,
    python,
    scratch,
    serving,
    source,
    version,
)

rows = Rows()
MIB = 1 << 20
SIZE = 2048 * MIB
RUNS = 5
SETTINGS = [  # of nbdcopy; the one that is fastest here is what we are held against
    ["--connections=1", "--threads=1", f"--request-size={MIB}"],
    ["--connections=2", "--threads=2", f"--request-size={MIB}", "--requests=16"],
    ["--connections=4", f"--request-size={MIB}"],
    ["--connections=4"],
]


@rows.row("s", "≤ 1.05")
def copy_wall_vs_nbdcopy() -> Measured:
    ours, other = race(digests=False)
    return Measured([each.seconds for each in ours], [each.seconds for each in other], f"{SIZE // MIB} MiB: {rival()}")


@rows.row("instructions" if counts_instructions() else "CPU-s", "≤ 1.2")
def copy_cpu_vs_nbdcopy() -> Measured:
    ours, other = race(digests=False)
    return Measured([each.cpu for each in ours], [each.cpu for each in other], f"{SIZE // MIB} MiB: {rival()}")


@rows.row("s", "≤ 1.25")
def copy_digest_wall_vs_nbdcopy() -> Measured:
    ours, other = race(digests=True)
    slow_ours, slow_other = held_back()
    slow = f"at 150 MB/s {slow_ours:.2f} s against {slow_other:.2f} s for {SIZE // 2 // MIB} MiB"
    return Measured(
        [each.seconds for each in ours],
        [each.seconds for each in other],
        f"{SIZE // MIB} MiB: {rival()}, without digests; {slow}",
    )


@cache
def race(*, digests: bool) -> tuple[list[Cost], list[Cost]]:
    """Return what RUNS copies by us cost, and as many by nbdcopy, in turns."""
    with scratch() as folder:
        random_file(folder / "source.raw", SIZE)
        settings = best_settings(folder)
        path, command = source(folder, "file", folder / "source.raw")
        with serving(path, *command) as uri:
            costs = [
                lambda: into_fresh(folder, SIZE, lambda target: ours(folder, uri, target, digests=digests)),
                lambda: into_fresh(folder, SIZE, lambda target: nbdcopy(uri, target, settings)),
            ]
            found: list[list[Cost]] = [[], []]
            for _run in range(RUNS):
                for kept, turn in zip(found, costs, strict=True):
                    kept.append(turn())
    return found[0], found[1]


def into_fresh(folder: Path, size: int, copy: Callable[[str], Cost]) -> Cost:
    """Return what *copy* costs, given the URI of a fresh export."""
    with export(folder / "target.qcow2", size) as target:
        return copy(target)


def ours(folder: Path, source_uri: str, target_uri: str, *, digests: bool) -> Cost:
    """Copy with our engine."""
    leaves = ["--leaves", folder / "leaves"] if digests else []
    return cost([python(), ROOT / "tests/bench/copy_once.py", source_uri, target_uri, *leaves], OURS)


def nbdcopy(source_uri: str, target_uri: str, settings: list[str]) -> Cost:
    """Copy with nbdcopy."""
    return cost(["nbdcopy", "--flush", *settings, source_uri, target_uri])


_best: dict[str, list[str]] = {}


def best_settings(folder: Path) -> list[str]:
    """Return the settings with which nbdcopy is fastest on this machine; found once."""
    if not _best:
        path, command = source(folder, "file", folder / "source.raw")
        with serving(path, *command) as uri:
            seconds = interleaved(
                2,
                *(
                    lambda each=each: into_fresh(folder, SIZE, lambda target: nbdcopy(uri, target, each)).seconds
                    for each in SETTINGS
                ),
            )
        _best["nbdcopy"] = SETTINGS[min(range(len(SETTINGS)), key=lambda number: min(seconds[number]))]
    return _best["nbdcopy"]


def rival() -> str:
    """Return what the other is, with versions."""
    return (
        f"nbdcopy {version(['nbdcopy', '--version'])} {' '.join(_best.get('nbdcopy', []))}, its best here, from nbdkit "
        f"{version(['nbdkit', '--version'])} file into qemu-nbd {version(['qemu-nbd', '--version'])}"
    )


def held_back() -> tuple[float, float]:
    """Return the seconds of one copy with digests, and of one by nbdcopy, from a source that gives 150 MB/s."""
    with scratch() as folder:
        random_file(folder / "source.raw", SIZE // 2)
        path, command = source(folder, "--filter=rate", "file", folder / "source.raw", "rate=1200M")
        with serving(path, *command) as uri:
            one = into_fresh(folder, SIZE // 2, lambda target: ours(folder, uri, target, digests=True))
            other = into_fresh(folder, SIZE // 2, lambda target: nbdcopy(uri, target, _best["nbdcopy"]))
    return one.seconds, other.seconds


def random_file(path: Path, size: int) -> None:
    """Make a file that nothing can compress."""
    with path.open("wb") as file:
        for _piece in range(size // MIB):
            file.write(os.urandom(MIB))


@rows.row("MiB", "≤ 256")
def copy_rss_mib_8_disks() -> Measured:
    with scratch() as folder:
        random_file(folder / "source.raw", 256 * MIB)
        return Measured([memory(folder, [None] * 8, 256 * MIB)], note="the copy of 8 disks with its eight nbdkits")


@rows.row("MiB", "≤ 256")
def copy_rss_mib_million_extents() -> Measured:
    cell, count = 1 << 16, 10**6
    size = 2 * cell * count
    with scratch() as folder:
        (folder / "source.raw").touch()
        os.truncate(folder / "source.raw", size)
        areas = Areas((2 * cell * number, cell) for number in range(count))
        return Measured(
            [memory(folder, [areas], size)],
            note=f"one disk of {size >> 30} GiB with its nbdkit; every second 64 KiB is an extent",
        )


def memory(folder: Path, areas: list[Areas | None], size: int) -> float:
    """Return the MiB that the copy of as many disks as *areas* takes at most: the very program that runs in the unit."""
    address = HttpsSource(f"file://{folder}/source.raw", str(folder / "cookie"), None, validate_certs=True)
    (folder / "cookie").write_text("none")
    with ExitStack() as exports:
        targets = [exports.enter_context(export(folder / f"{key}.qcow2", size)) for key in range(len(areas))]
        disks = [
            Disk(key, size, address, target, ranges)
            for key, (target, ranges) in enumerate(zip(targets, areas, strict=True))
        ]
        work = folder / "work"
        work.mkdir()
        (work / REQUEST).write_text(json.dumps(runner.request(disks, work)))
        found = cost([python(), "-m", runner.__name__, work / REQUEST], OURS)
        status = json.loads((work / STATUS).read_text())
        assert status["state"] == "done", status["error"]
        return found.peak
