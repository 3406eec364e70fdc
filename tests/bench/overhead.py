# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run costs beside the bytes: tasks' worth of time, and calls to vCenter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import median

from tests.bench.measure import Measured, Rows
from tests.bench.processes import version
from tests.bench.site import Task, site

rows = Rows()
RUNS = 3
ONE_DISK, THREE_DISKS = "thin1", "bench1"  # nothing is in them
NOOP = "A task that does nothing"


@dataclass(frozen=True)
class Run:
    """One backup and the no-op tasks after it, in one run of ansible-playbook."""

    seconds: float  # from the first task of the backup to the end of its last
    noop: float  # seconds of one no-op task, from its beginning to that of the next
    soap: int
    logins: int
    tasks: list[Task]


@cache
def run(vm: str, number: int) -> Run:
    """Return the figures of that run; *number* tells one from the next."""
    here = site()
    with here.knobs(cbt_bytes=1 << 50):  # how often vCenter divides its answer is not what is asked here
        here.reset_stats()
        tasks = here.play("tests/bench/overhead.yml", "-e", f"vm_name={vm}")
        counted = here.ask("/stats")
    here.forget(vm)
    noops = [each for each in tasks if each.task == NOOP]
    others = [each for each in tasks if each.task != NOOP]
    return Run(
        seconds=max(each.ended for each in others) - min(each.began for each in others),
        noop=median(later.began - one.began for one, later in pairwise(noops[1:])),
        soap=sum(counted["soap"].values()),
        logins=counted["logins"],
        tasks=others,
    )


def runs(vm: str) -> list[Run]:
    """Return the runs of a VM; those of both VMs are made in turns."""
    return [run(each, number) for number in range(RUNS) for each in (ONE_DISK, THREE_DISKS) if each == vm]


def ansible() -> str:
    """Return which Ansible it is."""
    return f"ansible-core {version(['ansible', '--version'])}"


@rows.row("s", "≤ 16")
def overhead_tasks_1_disk() -> Measured:
    found = runs(ONE_DISK)
    return Measured(
        [each.seconds for each in found],
        [each.noop for each in found],
        f"one ping delegated to the node after the backup, in the same run, warm; {ansible()}; "
        f"{len(found[0].tasks)} tasks, {sum(each.delegate is not None for each in found[0].tasks)} of them delegated",
    )


@rows.row("s", "≤ 1.5")
def overhead_tasks_per_extra_disk() -> Measured:
    one, three = runs(ONE_DISK), runs(THREE_DISKS)
    extra = [(more.seconds - less.seconds) / 2 for more, less in zip(three, one, strict=True)]
    return Measured(extra, [each.noop for each in three], f"one ping as above; (3 disks - 1 disk) / 2; {ansible()}")


@rows.row("calls", "≤ 40")
def soap_calls_per_backup() -> Measured:
    return Measured([each.soap for each in runs(ONE_DISK)], note="a VM with one disk")


@rows.row("logins", "≤ 2")
def logins_per_backup() -> Measured:
    return Measured([each.logins for each in runs(ONE_DISK)], note="a VM with one disk")
