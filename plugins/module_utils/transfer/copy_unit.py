# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy as a unit of its own on the node: what is special about it among detached programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import STALLED
from ansible_collections.sendense.backup.plugins.module_utils.transfer import client
from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import REQUEST, STATUS, Detached
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk

COPY = Detached("copy", runner.__name__, "the copy")
CLIENT = Detached("copy", client.__name__, "the client")  # known by the same unit and files, whichever was started
KEPT = "kept.json"  # in the job's work folder


def keep(job: str, name: str, secret: str) -> str:
    """Keep a secret, cookie or password, where nbdkit reads it and return that file's path."""
    path = COPY.make_folder(job) / name
    jobs.write_private(path, secret)
    return str(path)


def start(
    job: str, disks: list[Disk], rate: int = 0, *, stall: float = STALLED, kept: dict[str, Any] | None = None
) -> None:
    """Start the copy of *disks* where its journals end, at most *rate* bytes per second if that is not 0.

    Nothing moving for *stall* seconds fails a disk. What is *kept* with the copy can be had again for as long as it is
    there. Raises SendenseError when systemd refuses.
    """
    work, shown = _prepare(job, kept)
    known = COPY.status(job)["disks"] if (COPY.folder(job) / STATUS).exists() else []
    told = {str(disk["key"]): {name: disk[name] for name in ("read", "planned")} for disk in known}
    request = runner.request(disks, work, rate) | {"public": str(shown), "stall": stall, "told": told}
    COPY.start(job, request, [work, shown.parent])


def start_client(wish: client.Wish, kept: dict[str, Any]) -> None:
    """Start the program that copies by itself. Raises SendenseError when an export is out of its reach, or systemd refuses."""
    client.check(wish)
    work, shown = _prepare(wish.job, kept)
    CLIENT.start(wish.job, client.request(wish, shown), [work, shown.parent, client.LOGS])


def _prepare(job: str, kept: dict[str, Any] | None) -> tuple[Path, Path]:
    """Return the job's work folder, with what is to be *kept*, and the file for what anybody may read."""
    work, shown = COPY.make_work(job), jobs.progress_file(job)
    shown.parent.mkdir(mode=0o755, exist_ok=True)
    jobs.own(shown.parent)
    if kept is not None:
        keep_with(job, kept)
    return work, shown


def keep_with(job: str, what: dict[str, Any]) -> None:
    """Keep *what* with the job's copy, through a reboot too, in place of what was kept."""
    jobs.write_private(jobs.WORK / job / KEPT, json.dumps(what))


def kept(job: str) -> dict[str, Any]:
    """Return what was kept with the job's copy; nothing when nothing was."""
    with suppress(FileNotFoundError, ValueError):
        found: dict[str, Any] = json.loads((jobs.WORK / job / KEPT).read_text(encoding="utf-8"))
        return found
    return {}


def wants(job: str) -> str:
    """Return what the job's copy waits for: somebody to log in to vCenter again (``session``), or to ask it (``word``)."""
    return next((str(disk["wants"]) for disk in COPY.status(job)["disks"] if disk.get("wants")), "")


def is_of(job: str, identities: Mapping[int, str], algorithm: str) -> bool:
    """Whether the job's copy was started for disks of these identities, to be digested by that algorithm.

    Else it writes, or wrote, to what is there no more, or is not what is wished.
    """
    said = json.loads((COPY.folder(job) / REQUEST).read_text(encoding="utf-8"))
    wished = {key: (identity, algorithm) for key, identity in identities.items()}
    return {disk["key"]: (disk["identity"], disk.get("algorithm")) for disk in said["disks"]} == wished


def stop(job: str) -> bool:
    """Stop the job's copy and remove what it kept; return whether there was anything."""
    found = COPY.present(job)
    COPY.halt(job)
    COPY.clear(job)
    return found
