# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Space of a repository: what a job will write is reserved before it begins, so that jobs that begin together all end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Lease, Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import LOCK, Draft, Repository
from ansible_collections.sendense.backup.plugins.module_utils.shares import SPACE


def need(disks: Iterable[Mapping[str, Any]]) -> int:
    """Return how many bytes a full point of *disks*, as vm_info tells of them, takes at most.

    More than what is allocated on the datastore is never data. Beside the data there are the tables of the images (10
    bytes for each 64 KiB), the digests (41) and the manifest.
    """
    data = [
        disk["capacity"] if disk.get("allocated") is None else min(disk["capacity"], disk["allocated"])
        for disk in disks
    ]
    return sum(each + each // 1024 + (1 << 20) for each in data)


def check(repository: Repository, draft: Draft, leases: Leases) -> None:
    """Raise Refused when the file system cannot hold what *draft* needs.

    What other living jobs have reserved and not yet written is theirs, and some percent stay free.
    """
    found = os.statvfs(repository.path)
    room = sum(_written(repository, draft.instance_uuid, job) for job in draft.dead)  # it is taken away before
    free, total = found.f_bavail * found.f_frsize + room, found.f_blocks * found.f_frsize
    keep = total * draft.min_free // 100
    lacking = draft.need - _written(repository, draft.instance_uuid, draft.job) + keep - free
    shares = leases.shares(_thing(repository), but=draft.job)
    others = {lease.owner: _outstanding(repository, lease, leases) for lease in shares if lease.job not in draft.dead}
    if lacking + sum(others.values()) <= 0:
        return
    facts = (
        f"it needs up to {_words(draft.need)}, {_words(free)} of {_words(total)} are free, "
        f"and {draft.min_free} % ({_words(keep)}) are to stay free"
    )
    if lacking > 0:
        raise Refused(f"the repository {repository.path} is too small for this backup: {facts}; make room there")
    told = ", ".join(f"{_words(each)} by {owner}" for owner, each in others.items() if each)
    raise Refused(
        f"the repository {repository.path} is too small for this backup beside those that run: {facts}, while of the free "
        f"space {told} are reserved; make room there, or run again once they have ended"
    )


def reserve(repository: Repository, draft: Draft, leases: Leases) -> None:
    """Reserve what *draft* needs until the job's leases are released. Raises Refused as check does, in the same step."""
    with leases.locked():
        check(repository, draft, leases)
        leases.put(Lease(_thing(repository), draft.job, amount=draft.need))


def _thing(repository: Repository) -> str:
    return f"{SPACE}{repository.path.stat().st_dev}"


def _outstanding(repository: Repository, lease: Lease, leases: Leases) -> int:
    """Return how much of what is reserved has not been written yet: what has been is not free any more."""
    locks = [each.thing for each in leases.of(lease.job) if each.thing.startswith(LOCK)]
    written = sum(_written(repository, lock.removeprefix(LOCK), lease.job) for lock in locks)
    return max(0, (lease.amount or 0) - written)


def _written(repository: Repository, instance_uuid: str, job: str) -> int:
    """Return how many bytes of the disk the point of *job* takes, published by now or not; 0 for one that is not here."""
    for folder in (repository.partial_folder(instance_uuid, job), repository.point_folder(instance_uuid, job)):
        with suppress(FileNotFoundError, NotADirectoryError):
            return sum(map(_blocks, folder.iterdir()))
    return 0


def _blocks(path: Path) -> int:
    with suppress(FileNotFoundError):  # job.json goes while a point is published
        return path.lstat().st_blocks * 512
    return 0


def _words(size: int) -> str:
    """Return a size in bytes as people say it."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size / unit:.1f} {name}"
