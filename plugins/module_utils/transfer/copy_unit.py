# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy as a unit of its own on the node, so that it outlives the task, the connection and the controller."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner

KIND = "copy"
_LOOK_EVERY = 0.2  # seconds


def unit_name(job: str) -> str:
    """Return the unit of the job's copy."""
    return f"sendense-{KIND}-{job}"


def folder(job: str) -> Path:
    """Return the folder in /run that is the copy's own: request, status, code, cookie and the sockets of its sources."""
    return jobs.folder(job) / KIND


def keep_cookie(job: str, cookie: str) -> str:
    """Keep the session cookie where nbdkit reads it and return that file's path."""
    path = _made(job) / "cookie"
    jobs.write_private(path, cookie)
    return str(path)


def _made(job: str) -> Path:
    jobs.make_folder(job)
    path = folder(job)
    path.mkdir(mode=0o700, exist_ok=True)
    jobs.own(path)
    return path


def started(job: str) -> bool:
    """Whether the job's copy was started, however it fares."""
    return (folder(job) / runner.REQUEST).exists()


def start(job: str, disks: list[runner.Disk]) -> None:
    """Start the copy of *disks*. Raises SendenseError when systemd refuses; nothing of the copy is left then."""
    here, work = _made(job), jobs.WORK / job
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    jobs.own(work)
    code = _code(here)
    request = here / runner.REQUEST
    jobs.write_private(request, json.dumps({"work": str(work), "disks": [asdict(disk) for disk in disks]}))
    try:
        units.start(
            unit_name(job),
            [sys.executable, "-m", runner.__name__, str(request)],
            f"Description=Sendense copy of job {job}",
            f"Environment=PYTHONPATH={code}",
            "Environment=PYTHONDONTWRITEBYTECODE=1",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            f"ReadWritePaths={here} {work}",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "TimeoutStopSec=10s",
        )
    except SendenseError:
        stop(job)
        raise


def _code(here: Path) -> Path:
    """Return where the unit finds this code: a copy of the zip that the task runs from, which goes when the task ends."""
    archive, in_archive, _inside = __file__.partition(".zip/")
    if not in_archive:
        return Path(__file__).parents[6]  # a checkout or an installed collection
    copied = here / "code.zip"
    jobs.write_private(copied, Path(f"{archive}.zip").read_bytes())
    return copied


def status(job: str) -> dict[str, Any]:
    """Return the last status of the job's copy: ``running``, ``done``, or ``failed`` with an error."""
    unit = units.read(unit_name(job))  # before the file: a copy that ends in between has written its last status
    try:
        found: dict[str, Any] = json.loads((folder(job) / runner.STATUS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {"state": "running", "error": "", "disks": []}
    if found["state"] == "running" and not unit.running:
        said = units.words(unit.name)
        death = unit.death or "ended without a result"
        found |= {"state": "failed", "error": f"the copy {death}" + (f"; its last words: {said}" if said else "")}
    return found


def follow(job: str, seconds: float) -> dict[str, Any]:
    """Return the status once the copy has ended, or after that many seconds."""
    deadline = time.monotonic() + seconds
    while (found := status(job))["state"] == "running" and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
    return found


def tools() -> dict[str, str]:
    """Return the versions of what reads and moves the data on this node."""
    return {"nbdkit": run(["nbdkit", "--version"]).strip()}


def leftovers(job: str) -> list[Path]:
    """Return the folders that the job's copy keeps on this node."""
    return [path for path in (folder(job), jobs.WORK / job) if path.exists()]


def present(job: str) -> bool:
    """Whether anything of the job's copy is there: its unit, running or dead, or what it keeps."""
    return bool(units.names(job, KIND) or leftovers(job))


def stop(job: str) -> bool:
    """Stop the job's copy and remove what it kept; return whether there was anything."""
    found = present(job)
    for name in units.names(job, KIND):
        units.stop(name)
    for path in leftovers(job):
        shutil.rmtree(path)
    jobs.leave_folder(job)
    return found
