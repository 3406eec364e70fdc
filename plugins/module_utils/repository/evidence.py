# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What verifications found, kept beside a restore point in ``<point>.verified``: the point itself is never touched.

The folder holds the newest result of each level, ``<level>.json``, and for level boot ``boot.png``. It is nobody's work and
no point; whoever removes the point removes it too.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository
from ansible_collections.sendense.backup.plugins.module_utils.repository.verification import LEVELS

SUFFIX = ".verified"
SCREENSHOT = "boot.png"
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Result = dict[str, Any]  # level, date, ok, msg, findings, boot, seconds


def folder(repository: Repository, instance_uuid: str, point: str) -> Path:
    """Return where the results of a point lie."""
    found = repository.published_folder(instance_uuid, point)
    return found.with_name(found.name + SUFFIX)


def now() -> str:
    """Return this second as results tell it."""
    return datetime.now(UTC).strftime(_TIME)


def keep(
    repository: Repository, instance_uuid: str, point: str, result: Mapping[str, Any], screenshot: bytes = b""
) -> None:
    """Keep a result, and its picture, in the place of the earlier ones of its level."""
    path = folder(repository, instance_uuid, point)
    found = repository.path.stat()
    owner = found.st_uid, found.st_gid
    if not path.is_dir():
        path.mkdir(mode=0o750)
        files.give(path, owner)
    if screenshot:
        files.write(path / SCREENSHOT, screenshot, mode=0o640, owner=owner)
    text = manifest.text(result).encode()
    files.write(path / f"{result['level']}.json", text, mode=0o640, owner=owner, durable=True)


def results(repository: Repository, instance_uuid: str, point: str) -> list[Result]:
    """Return the kept results of a point, oldest first; one that cannot be read counts as none."""
    return _read(folder(repository, instance_uuid, point))


def every(repository: Repository, instance_uuid: str) -> dict[str, list[Result]]:
    """Return the kept results of all points of a VM that have any, by point."""
    kept = repository.vm_folder(instance_uuid).glob(f"*{SUFFIX}")
    return {path.name.removesuffix(SUFFIX): _read(path) for path in kept}


def _read(path: Path) -> list[Result]:
    found = []
    for level in LEVELS:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            result = json.loads((path / f"{level}.json").read_text(encoding="utf-8"))
            datetime.strptime(result["date"], _TIME)
            if result["level"] == level and isinstance(result["ok"], bool):
                found.append(result)
    return sorted(found, key=lambda result: (result["date"], LEVELS.index(result["level"])))


def fresh(found: list[Result], level: str, days: float) -> Result | None:
    """Return a good result of *level*, or of one beyond, that is younger than *days* and that no later one contradicts."""
    since = (datetime.now(UTC) - timedelta(days=days)).strftime(_TIME)
    for result in reversed(found):
        if not result["ok"]:
            return None
        if LEVELS.index(result["level"]) >= LEVELS.index(level) and result["date"] > since:
            return result
    return None


def distrusted(repository: Repository, instance_uuid: str, point: str) -> str:
    """Return why a point is not to be believed, so that it becomes no parent and is not the last one kept; empty if it is.

    That is damage which a verification found and no later one of at least its level could not find any more. A point that
    was never verified is believed: it was proven when it was published. One that is whole and does not boot is, too.
    """
    return doubt(results(repository, instance_uuid, point))


def doubt(found: list[Result]) -> str:
    """Return why a point with these results, oldest first, is not to be believed, or an empty string."""
    for rank, result in enumerate(found):
        later = [each for each in found[rank + 1 :] if LEVELS.index(each["level"]) >= LEVELS.index(result["level"])]
        if result.get("findings") and all(each.get("findings") for each in later):
            return f"level {result['level']} on {result['date']}: {result.get('msg', 'damaged')}"
    return ""


def remove(repository: Repository, instance_uuid: str, point: str) -> None:
    """Remove the results of a point that is removed itself."""
    path = folder(repository, instance_uuid, point)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
