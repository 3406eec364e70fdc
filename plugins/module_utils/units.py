# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transient systemd units: how everything of a job that must outlive a task is started, watched and ended.

A unit is known by the name that we gave it, never by a pid; systemd.exec(5) and systemd.service(5) are the source for
the properties read here.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.commands import CommandFailed, last_words, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

SLICE = "sendense.slice"  # roles hub and node say what it may use
_SHOWN = ("ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus")
_CLD_KILLED = ("2", "3")  # ExecMainCode: CLD_KILLED, CLD_DUMPED of wait(2)


@dataclass(frozen=True)
class Unit:
    """One unit as systemd sees it now."""

    name: str
    active: str  # active, activating, deactivating, inactive or failed
    result: str  # success, exit-code, signal, timeout, …
    code: str
    status: str

    @property
    def running(self) -> bool:
        """Whether its program is there, about to be, or not gone yet."""
        return self.active in ("active", "activating", "reloading", "deactivating")

    @property
    def death(self) -> str:
        """How it ended, in words; empty when it runs or ended cleanly."""
        if self.running or self.result == "success":
            return ""
        if self.code in _CLD_KILLED:
            return f"killed by {_signal(int(self.status))}"
        if self.result == "timeout":
            return "did not stop in time and was killed"
        return f"ended with exit code {self.status}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal has no name
        return f"signal {number}"


def start(name: str, command: Sequence[str], *properties: str) -> None:
    """Start *command* as the transient unit *name*, as the service user, once its program is executed.

    Each of *properties* is a ``Name=value`` of systemd-run's ``--property``. Raises SendenseError when systemd refuses.
    """
    always = (f"Slice={SLICE}", f"User={jobs.USER}", f"Group={jobs.USER}", "UMask=0077")
    options = [f"--property={each}" for each in (*always, *properties)]
    try:
        run(["systemd-run", "--quiet", f"--unit={name}", "--service-type=exec", *options, "--", *command])
    except CommandFailed as failed:
        forget(name)
        raise SendenseError(f"systemd did not start {name}: {failed}") from None


def read(name: str) -> Unit:
    """Return the unit of that name; one that systemd does not know is inactive with result success."""
    shown = run(["systemctl", "show", f"--property={','.join(_SHOWN)}", f"{name}.service"])
    value = dict(line.partition("=")[::2] for line in shown.splitlines())
    return Unit(
        name=name,
        active=value["ActiveState"],
        result=value["Result"],
        code=value["ExecMainCode"],
        status=value["ExecMainStatus"],
    )


def invocation(name: str) -> str:
    """Return systemd's id of this start of the unit, 32 hex digits (systemd.exec(5)); empty when it knows none."""
    shown = run(["systemctl", "show", "--property=InvocationID", f"{name}.service"])
    return dict(line.partition("=")[::2] for line in shown.splitlines()).get("InvocationID", "")


def names(job: str, kind: str = "*") -> list[str]:
    """Return the units of *job* that systemd knows, running or failed: ``sendense-<kind>-<job>`` and those below it."""
    jobs.point_id(job)
    listed = _listed(f"sendense-{kind}-{job}.service", f"sendense-{kind}-{job}-*.service")
    return [name for name in listed if jobs.of_unit(name) == job]  # a job may be named as another one is, and more


def by_job() -> dict[str, list[str]]:
    """Return the units that systemd knows of all jobs, running or failed, by job."""
    found: dict[str, list[str]] = {}
    for name in _listed("sendense-*-*.service"):
        if job := jobs.of_unit(name):
            found.setdefault(job, []).append(name)
    return found


def _listed(*patterns: str) -> list[str]:
    listed = run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", *patterns])
    return sorted(re.sub(r"\.service$", "", line.split()[0]) for line in listed.splitlines() if line.strip())


def any_running(job: str, kind: str = "*") -> bool:
    """Whether a unit of *job*, of that kind, runs on this host."""
    return any(read(name).running for name in names(job, kind))


def stop(name: str) -> Unit:
    """Stop the unit (SIGTERM, then what its TimeoutStopSec says), make systemd forget it and return how it ended."""
    if read(name).running:
        run(["systemctl", "stop", f"{name}.service"], timeout=None)
    ended = read(name)
    forget(name)
    return ended


def forget(name: str) -> None:
    """Drop a failed unit from systemd's memory, so that its name is free; nothing happens to one that runs."""
    try:
        run(["systemctl", "reset-failed", f"{name}.service"])
    except CommandFailed:
        return  # systemd had forgotten it already


def words(name: str) -> str:
    """Return the last words of the unit's program, from the journal, as one line; empty when it said nothing.

    The journal knows the unit of every line, but not always the invocation of a program that ended at once; so what an
    earlier run of the same name said is left out by its time.
    """
    run(["journalctl", "--sync"])
    began = run(
        ["systemctl", "show", "--timestamp=us+utc", "--property=InactiveExitTimestamp", "--value", f"{name}.service"]
    )
    since = [f"--since={began.strip()}"] if began.strip() else []
    said = run(["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=8", *since, "_TRANSPORT=stdout",
                f"_SYSTEMD_UNIT={name}.service"])  # fmt: skip
    return last_words(said)
