# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that outlive the command which starts them, each in a cgroup of its own.

The record is written by the started process itself before it becomes the wanted program, and the cgroup's name follows
from the lab's id: whenever this command is killed, what it started can be found again and ended whole.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.instance import Lab, read_json
from lab.shell import LabError, run, succeeds

LAUNCH = Path(__file__).with_name("launch")


@dataclass(frozen=True)
class Process:
    """One long-running program of a lab, known by its name whether it runs or not."""

    lab: Lab
    name: str

    @property
    def unit(self) -> str:
        return f"sendense-lab-{self.lab.id}-{self.name}"

    @property
    def record(self) -> Path:
        return self.lab.state / "run" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.lab.state / "log" / f"{self.name}.log"

    def alive(self) -> bool:
        known = read_json(self.record)
        if not known or known["boot"] != boot_id():
            return False
        return bool(start_time(known["pid"]) == known["started"])

    def start(
        self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, again: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start the program apart from this session; with `again` it is started anew whenever it ends with that status."""
        self.stop()
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        joined, prefix = "", []
        if host_has_systemd():
            prefix = [
                "systemd-run",
                "--scope",
                "--quiet",
                "--collect",
                f"--unit={self.unit}",
                f"--description={self.name} of the lab in {self.lab.checkout}",
                "--property=Delegate=yes",
                "--",
            ]
        else:
            cgroup = cgroup2_root() / self.unit
            cgroup.mkdir(exist_ok=True)
            joined = str(cgroup / "cgroup.procs")
        launcher = [str(LAUNCH), joined, str(self.record), "" if again is None else str(again)]
        with self.log.open("wb") as log:
            started = subprocess.Popen(
                [*prefix, *launcher, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        wait_until(lambda: self.record.exists() or started.poll() is not None, 10, f"{self.name} did not start in 10 s")
        return started

    def stop(self) -> None:
        """End the program and everything it started, at once, and forget it."""
        end_cgroup(self.unit)
        if self.alive():
            os.kill(read_json(self.record)["pid"], 9)
            wait_until(lambda: not self.alive(), 10, f"{self.name} did not end after SIGKILL")
        self.record.unlink(missing_ok=True)

    def said(self) -> str:
        """The end of the program's log."""
        try:
            return self.log.read_bytes()[-2000:].decode(errors="replace")
        except FileNotFoundError:
            return ""


def host_has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """The start of a process in clock ticks since boot (proc(5), stat field 22); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Ask every few milliseconds until the condition holds; raise the sentence when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(otherwise)
        time.sleep(0.02)


def mounts(kind: str | None = None) -> list[Path]:
    """The mount points of this host, in mount order, of one filesystem type if given."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if kind is None or right.split()[0] == kind:
            found.append(Path(left.split()[4].replace("\\040", " ")))
    return found


def cgroup2_root() -> Path:
    roots = mounts("cgroup2")
    if not roots:
        raise LabError("this host has no cgroup2 hierarchy mounted, which the lab's machines need")
    return roots[0]


def cgroups(prefix: str) -> Iterator[Path]:
    """The cgroups whose name begins so, in every hierarchy: nspawn mirrors a machine's cgroup into the v1 ones."""
    for root in [*mounts("cgroup2"), *mounts("cgroup")]:
        for folder in (root, root / "system.slice"):
            yield from folder.glob(f"{prefix}*")


def end_cgroup(unit: str) -> None:
    """Kill what is in the cgroup of this name and remove it, and the scope that systemd keeps of it."""
    found = [cgroup for cgroup in cgroups(unit) if cgroup.name in (unit, f"{unit}.scope")]
    for cgroup in found:
        kill = cgroup / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
        wait_until(partial(empty, cgroup), 20, f"processes of {unit} did not end after SIGKILL")
    if host_has_systemd():
        succeeds(["systemctl", "stop", f"{unit}.scope"])
        succeeds(["systemctl", "reset-failed", f"{unit}.scope"])
    for cgroup in found:
        wait_until(partial(removed, cgroup), 10, f"the cgroup {cgroup} cannot be removed")


def empty(cgroup: Path) -> bool:
    """Whether no process is left in a cgroup and those below it."""
    for folder, _, _ in os.walk(cgroup):
        try:
            if (Path(folder) / "cgroup.procs").read_text():
                return False
        except OSError:
            continue
    return True


def removed(cgroup: Path) -> bool:
    """Remove an empty cgroup and those below it; False while the kernel still holds one."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def unmount_below(folder: Path) -> None:
    """Unmount what is mounted at or below a folder, the innermost first."""
    for point in reversed([point for point in mounts() if point == folder or folder in point.parents]):
        run(["umount", point])
