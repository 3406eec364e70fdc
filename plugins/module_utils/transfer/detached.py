# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program of ours as a unit of its own on the node, so that it outlives the task, the connection and the controller.

It is given a request file and keeps a status file, both in a folder of its own in the job's folder in /run.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import CommandFailed
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

REQUEST = "request.json"
STATUS = "status.json"
_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Detached:
    """What a program is called: by its units, by Python, and in sentences."""

    kind: str  # of the unit sendense-<kind>-<job>
    module: str  # that runs as python3 -m MODULE REQUEST
    noun: str  # e.g. "the copy"

    def unit_name(self, job: str) -> str:
        """Return the unit of the job's program."""
        return f"sendense-{self.kind}-{job}"

    def folder(self, job: str) -> Path:
        """Return the folder in /run that is the program's own: request, status, code, secrets and sockets."""
        return jobs.folder(job) / self.kind

    def make_folder(self, job: str) -> Path:
        """Make that folder and return it."""
        jobs.make_folder(job)
        path = self.folder(job)
        path.mkdir(mode=0o700, exist_ok=True)
        jobs.own(path)
        return path

    def make_work(self, job: str) -> Path:
        """Make the job's folder for what is too large for /run, or outlives a reboot, and return it."""
        path = jobs.WORK / job
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        jobs.own(path)
        return path

    def started(self, job: str) -> bool:
        """Whether the program was started, however it fares."""
        return (self.folder(job) / REQUEST).exists()

    def start(self, job: str, request: Mapping[str, Any], writable: Sequence[Path]) -> None:
        """Start the program, anew if it has ended, with nothing but its own folder and *writable* to write to.

        Raises SendenseError when systemd refuses; it is not started then.
        """
        here = self.make_folder(job)
        units.forget(self.unit_name(job))
        (here / STATUS).unlink(missing_ok=True)
        code, path = _code(here), here / REQUEST
        jobs.write_private(path, json.dumps(request))
        try:
            units.start(
                self.unit_name(job),
                [sys.executable, "-m", self.module, str(path)],
                f"Description=Sendense {self.kind} of job {job}",
                f"Environment=PYTHONPATH={code}",
                "Environment=PYTHONDONTWRITEBYTECODE=1",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                f"ReadWritePaths={' '.join(map(str, (here, *writable)))}",
                "ProtectHome=yes",
                "PrivateTmp=yes",
                "TimeoutStopSec=10s",
            )
        except SendenseError:
            path.unlink()
            raise

    def status(self, job: str) -> dict[str, Any]:
        """Return the last status of the program: ``running``, ``done``, or ``failed`` with an error.

        ``resumable`` is true of one that ended without a word of its own: it may be started again.
        """
        unit = units.read(self.unit_name(job))  # before the file: one that ends in between has written its last status
        try:
            found: dict[str, Any] = json.loads((self.folder(job) / STATUS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = {"state": "running", "error": "", "disks": []}
        if found["state"] == "running" and not unit.running:
            said = units.words(unit.name)
            death = unit.death or "ended without a result"
            error = f"{self.noun} {death}" + (f"; its last words: {said}" if said else "")
            found |= {"state": "failed", "error": error, "resumable": True}
        return found

    def follow(self, job: str, seconds: float) -> dict[str, Any]:
        """Return the status once the program has ended, or after that many seconds."""
        deadline = time.monotonic() + seconds
        while (found := self.status(job))["state"] == "running" and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)
        return found

    def halt(self, job: str) -> bool:
        """Stop the program; return whether there was a unit."""
        names = units.names(job, self.kind)
        for name in names:
            try:
                units.stop(name)
            except CommandFailed:
                if units.read(name).running:
                    raise  # otherwise it ended by itself between the look and the word
        return bool(names)

    def leftovers(self, job: str) -> list[Path]:
        """Return what the program keeps on this node."""
        return [path for path in (self.folder(job), jobs.WORK / job, jobs.progress_file(job)) if path.exists()]

    def clear(self, job: str) -> bool:
        """Remove what the program kept; return whether there was anything."""
        found = self.leftovers(job)
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        jobs.leave_folder(job)
        return bool(found)

    def present(self, job: str) -> bool:
        """Whether anything of the program is on this node: its unit, running or dead, or what it keeps."""
        return bool(units.names(job, self.kind) or self.leftovers(job))


def _code(here: Path) -> Path:
    """Return where the unit finds this code: a copy of the zip that the task runs from, which goes when the task ends."""
    archive, in_archive, _inside = __file__.partition(".zip/")
    if not in_archive:
        return Path(__file__).parents[6]  # a checkout or an installed collection
    copied = here / "code.zip"
    jobs.write_private(copied, Path(f"{archive}.zip").read_bytes())
    return copied
