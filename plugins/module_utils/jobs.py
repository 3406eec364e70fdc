# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a job is: its id, and the folder in /run that holds what it needs while it lives."""

from __future__ import annotations

import pwd
import re
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused

RUN = Path("/run/sendense")
PROGRESS = "progress"  # folder in RUN: how far each copy is, for a monitor
WORK = Path("/var/lib/sendense/jobs")  # on the node, for what is too large for /run
USER = "sendense"  # the user that units run as, on hub and node; roles hub and node make it

_JOB = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?-[0-9a-f]{8}-([0-9]{8}T[0-9]{6}Z)")


def slug(name: str) -> str:
    """Return *name* as at most 32 characters of ``a-z0-9-``; ``vm`` when nothing of it can be spelt so."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:32].strip("-") or "vm"


def job_id(name: str, instance_uuid: str, now: datetime | None = None) -> str:
    """Return the id of a job that starts *now* (default: this second, UTC) for the VM of that name and uuid."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    return f"{slug(name)}-{instance_uuid[:8].lower()}-{moment}"


def point_id(job: str) -> str:
    """Return the restore point a job makes: its start, ``yyyymmddThhmmssZ``. Raises Refused for what is no job id."""
    match = _JOB.fullmatch(job)
    if not match:
        raise Refused(f"'{job}' is not a job id; one looks like pgtest1-5029f3ab-20261123T140102Z")
    return match.group(1)


def is_job(name: str) -> bool:
    """Whether *name* is the id of a job."""
    return bool(_JOB.fullmatch(name))


def of_unit(unit: str) -> str:
    """Return the job that the name of a systemd unit tells (``sendense-export-<job>-2000``); empty when it tells none."""
    found = re.fullmatch(rf"sendense-[a-z]+-({_JOB.pattern})(?:-.*)?", unit)
    return found[1] if found else ""


def started(job: str) -> datetime:
    """Return when *job* began, as its id tells; Refused for what is no job id."""
    return datetime.strptime(point_id(job), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def vm_part(job: str) -> str:
    """Return the first eight digits of the instance uuid of the VM that *job* is for."""
    return job.rsplit("-", 2)[1]


def export_name(job: str, rank: int) -> str:
    """Return the NBD export name of the disk with that rank (0 first, in order of device key) in *job*."""
    return f"{job}-disk{rank}"


def folder(job: str) -> Path:
    """Return the job's folder in /run, whether it is there or not."""
    point_id(job)
    return RUN / job


def progress_file(job: str) -> Path:
    """Return the file that tells anybody on the node how far the job's copy is."""
    point_id(job)
    return RUN / PROGRESS / f"{job}.json"


def make_folder(job: str) -> Path:
    """Make the job's folder (0700, owned by the service user where there is one) and return it."""
    path = folder(job)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    own(path)
    return path


def own(path: Path) -> None:
    """Give *path* to the service user, so that units which run as it can use it; a no-op where there is no such user."""
    if owner := _service_user():
        files.give(path, owner)


def _service_user() -> files.Owner | None:
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


def write_private(path: Path, content: str | bytes) -> None:
    """Write *content* to *path*, 0600 and owned by the service user, whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    files.write(path, data, mode=0o600, owner=_service_user())


def leave_folder(job: str) -> None:
    """Remove the job's folder once nothing is left in it; the last one to leave does so."""
    path = folder(job)
    for scratch in path.glob(".*.new"):  # of a writer that was killed
        scratch.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()
