# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A folder with what was restored: it is there whole, or not at all.

It is made as ``<folder>.partial`` and renamed when all in it is on stable storage. Its ``restored.json`` says what it is
from the first moment, so that what an interrupted restore left is known for that, and removed by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused

RECORD = "restored.json"
KEEP_FREE = 1  # percent of the file system that a restore leaves, so that it does not stop whatever else lives there


@dataclass(frozen=True)
class Delivery:
    """What is to be in which folder; ``wish`` is plain JSON, and equal wishes have equal outcomes."""

    folder: Path
    wish: Mapping[str, Any]
    need: int = 0  # bytes that it takes at most
    owner: files.Owner | None = None  # whose it is in the end; None: ours

    @property
    def partial(self) -> Path:
        """Where it is made."""
        return self.folder.with_name(self.folder.name + ".partial")


def done(delivery: Delivery, repository: Path) -> dict[str, Any] | None:
    """Return what is recorded of the folder when it holds what is wished already, None when it is to be made.

    What is there is believed by the size and time of each file, and not read again. Raises Refused, before anything is
    made, for a folder of something else, for one that may not be made there, and when there is no room.
    """
    folder = delivery.folder
    if not folder.is_absolute() or ".." in folder.parts:
        raise Refused(f"{folder} is not an absolute path; say where on the hub the restore is to lie")
    if os.path.lexists(folder):
        return _kept(delivery)
    if repository.resolve() in (folder.parent.resolve(), *folder.parent.resolve().parents):
        raise Refused(f"{folder} lies within the repository, which holds restore points only; choose another place")
    if not folder.parent.is_dir():
        raise Refused(f"there is no folder {folder.parent} on this hub; make it, or choose another place")
    _check_room(delivery)
    if delivery.partial.exists():
        with _locked(delivery.partial):
            _check_ours(delivery.partial)
    return None


def _kept(delivery: Delivery) -> dict[str, Any]:
    folder = delivery.folder
    record = _record(folder)
    if record is None or not record.get("complete"):  # a partial folder may have been renamed by hand
        raise Refused(
            f"{folder} is there already and is no whole restore of ours; choose another place, or move it away"
        )
    if record["wish"] != delivery.wish:
        other = ", ".join(
            f"{key} {record['wish'].get(key)}" for key in delivery.wish if record["wish"].get(key) != delivery.wish[key]
        )
        raise Refused(f"{folder} holds another restore already ({other}); choose another place, or move it away")
    if changed := [name for name, seen in record["files"].items() if _seen(folder / name) != seen]:
        raise Refused(
            f"{folder} was restored before, and {', '.join(changed[:5])} changed since; choose another place, or move it away"
        )
    return record


def _check_room(delivery: Delivery) -> None:
    found = os.statvfs(delivery.folder.parent)
    if found.f_flag & os.ST_RDONLY:
        raise Refused(f"{delivery.folder.parent} cannot be written to: its file system is read-only")
    free = found.f_bavail * found.f_frsize - found.f_blocks * found.f_frsize * KEEP_FREE // 100
    if delivery.partial.exists():  # it goes before
        free += sum(path.lstat().st_blocks * 512 for path in delivery.partial.rglob("*"))
    if delivery.need > free:
        raise Refused(
            f"{delivery.folder.parent} has no room for this restore: it needs up to {delivery.need >> 20} MiB, and "
            f"{max(0, free) >> 20} MiB are free beside the {KEEP_FREE} % that stay; make room, or choose another place"
        )


@contextmanager
def making(delivery: Delivery) -> Iterator[dict[str, Any]]:
    """Yield the record, to be completed, while the caller fills ``delivery.partial``; then the folder gets its name.

    ``files`` of the record is filled in from what lies there. Whatever fails, nothing is left. Raises Busy while another
    run makes the same folder, Refused when what lies at the partial's place is not of a restore.
    """
    partial, record = delivery.partial, {"format": 1, "wish": dict(delivery.wish)}
    partial.mkdir(mode=0o700, exist_ok=True)
    with _locked(partial):
        _check_ours(partial)
        _write(partial, {**record, "complete": False})
        try:
            for path in partial.iterdir():  # of a run that was interrupted
                if path.name != RECORD:
                    _remove(path)
            yield record
            listed = sorted(path for path in partial.rglob("*") if path.name != RECORD)
            record["files"] = {str(path.relative_to(partial)): _seen(path) for path in listed if not path.is_dir()}
            for path in listed:
                if not path.is_symlink():
                    files.sync(path)
            _write(partial, {**record, "complete": True})
            if owner := delivery.owner:
                for path in (*partial.rglob("*"), partial):
                    files.give(path, owner)
            files.sync(partial)
            if os.path.lexists(delivery.folder):
                raise Refused(f"{delivery.folder} has come into being meanwhile; it is not overwritten")
            partial.rename(delivery.folder)
        except BaseException:
            _remove(partial)
            raise
    files.sync(delivery.folder.parent)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold a partial folder; the kernel lets it go when its maker dies, however that comes."""
    busy = (
        f"{partial} is being made by another restore, which is at work now; wait for its end, or choose another place"
    )
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(busy) from None
        if not partial.exists() or not os.path.samestat(partial.lstat(), os.fstat(descriptor)):
            raise Busy(busy)  # it was renamed or removed between the two
        yield
    finally:
        os.close(descriptor)


def _check_ours(partial: Path) -> None:
    """Raise Refused unless *partial* is empty or says that a restore made it."""
    if _record(partial) is None and any(partial.iterdir()):
        raise Refused(f"{partial} is there already, and no restore made it; move it away and run again")


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found["wish"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    files.write(folder / RECORD, text.encode(), mode=0o600, durable=True)


def _seen(path: Path) -> list[int] | None:
    """Return size and time (nanoseconds) of a file, by which it is known again; None when it is not there."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
