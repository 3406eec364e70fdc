# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Processes of the bench: servers that stand while a figure is taken, programs whose cost is the figure."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.bench.measure import BenchError

ROOT = Path(__file__).parents[2]
READY_WITHIN = 10.0  # seconds
OURS = {**os.environ, "PYTHONPATH": str(ROOT / "collections")}
"""The environment in which the collection is found."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder in memory, so that no disk has a say in the figures."""
    with tempfile.TemporaryDirectory(prefix="sendense-bench-", dir="/dev/shm") as folder:
        yield Path(folder)


@contextmanager
def serving(path: Path, *command: str | Path) -> Iterator[str]:
    """Yield the NBD URI behind the socket *path*, on which *command* serves meanwhile; it is stopped cleanly."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _await(path, process)
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.communicate()


def _await(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if path.exists() and probe.connect_ex(str(path)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise BenchError(f"{process.args[0]} did not serve: {process.communicate()[1].strip()}")
        time.sleep(0.02)


def source(folder: Path, *arguments: str | Path) -> tuple[Path, list[str | Path]]:
    """Return socket and command of an nbdkit that reads, for ``serving``."""
    path = folder / "source.sock"
    return path, ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", "--unix", path, *arguments]


@contextmanager
def export(image: Path, size: int) -> Iterator[str]:
    """Yield the NBD URI of a fresh qcow2 image of *size* bytes, served as the hub serves one; both go at the end."""
    say(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)])
    path = image.with_suffix(".sock")
    try:
        with serving(
            path, "qemu-nbd", "--format=qcow2", f"--socket={path}", "--shared=8", "--persistent", image
        ) as uri:
            yield uri
    finally:
        image.unlink()


def say(command: Sequence[str | Path], **options: object) -> str:
    """Run a program and return what it said; raise BenchError with its last words when it fails."""
    argv = [str(word) for word in command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise BenchError(f"{Path(argv[0]).name} failed: {' / '.join(said)}")
    return str(done.stdout)


@dataclass(frozen=True)
class Cost:
    """What a program took, its children included."""

    seconds: float  # wall
    cpu: float  # user-space instructions, or CPU-seconds where the machine does not count them
    peak: float  # MiB of memory at most, summed over its processes


def cost(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> Cost:
    """Run a program and return its cost; raise BenchError with its last words when it fails."""
    counted = tempfile.NamedTemporaryFile(prefix="sendense-bench-perf-")  # noqa: SIM115
    perf = ["perf", "stat", "-x,", "-e", "instructions:u", "-o", counted.name, "--"] if counts_instructions() else []
    with counted, tempfile.TemporaryFile("w+") as said:
        before, began = os.times(), time.monotonic()
        process = subprocess.Popen([*perf, *map(str, command)], env=environment, stdout=said, stderr=said)
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for pid in _family(process.pid):
                peaks[pid] = _most_memory(pid) or peaks.get(pid, 0)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        seconds, after = time.monotonic() - began, os.times()
        if process.returncode:
            said.seek(0)
            raise BenchError(f"{command[0]} failed: {' / '.join(said.read().strip().splitlines()[-3:])}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        if perf:
            peaks.pop(process.pid, None)
            cpu = float(re.search(r"^(\d+),.*instructions", Path(counted.name).read_text(), re.MULTILINE)[1])
    return Cost(seconds, cpu, sum(peaks.values()) / 1024)


@cache
def counts_instructions() -> bool:
    """Whether this machine lets perf count instructions."""
    try:
        done = subprocess.run(
            ["perf", "stat", "-x,", "-e", "instructions:u", "true"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0 and re.match(r"\d+,", done.stderr) is not None


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):  # it may have ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _most_memory(pid: int) -> int:
    """Return the KiB that a process has had in memory at most; 0 when it is gone."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1])
    return 0


def version(command: Sequence[str], pattern: str = r"\d+(\.\d+)+") -> str:
    """Return the version that a program says it has."""
    found = re.search(pattern, say(command))
    return found[0] if found else "of unknown version"


def python() -> str:
    """Return the interpreter that has Debian's libnbd."""
    return sys.executable
