# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy of one disk, from whatever its journal says is missing to the tree of its digests.

A source that fails in mid-copy is opened anew; when vCenter has ended the session, whoever follows the copy is asked to
renew it, for no password lies here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.digests import (
    ALGORITHM,
    CELL,
    ZERO,
    LeafFile,
    Tree,
    is_zero,
    tree,
)
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import (
    Areas,
    Range,
    gaps,
    samples,
    total,
    widened,
    without,
)
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import (
    ALLOCATION,
    STALLED,
    connect,
    data_ranges,
    handshake,
    libnbd,
    read_ranges,
)
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import STOPPED, Copy, Progress
from ansible_collections.sendense.backup.plugins.module_utils.transfer.journal import Journal
from ansible_collections.sendense.backup.plugins.module_utils.transfer.limit import Limit
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import OPENING, Reader, Source, served

SAMPLES = 64  # cells of 64 KiB
SOURCES = 4  # connections to a source that takes several: nbdkit's retry filter does the requests of each one by one
PAUSES = (2.0, 5.0)  # seconds before a source that fails, without having given anything, is opened anew
RENEWAL = 900.0  # seconds that a copy waits for a new session with vCenter
WAITS = ("waited_source", "waited_target", "waited_both", "waited_digest", "waited_limit")
_RECENT = 30  # of the last looks the rate is


class Interrupted(SendenseError):
    """The copy cannot go on now, but what it has copied is safe: it goes on from there once its way is free again."""


class _SourceFailed(SendenseError):
    """The source failed; its kind is that of Reader.kind."""

    def __init__(self, why: str, kind: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True)
class Disk:
    """One disk to copy: where it is read, where it goes, and which ranges, ascending, hold data.

    Without *areas* the source is asked for its holes. A target that is not *fresh* gets zeroes where the source has none.
    """

    key: int
    capacity: int  # bytes
    source: Source
    target: str  # NBD URI
    areas: Areas | None
    fresh: bool = True
    also: Sequence[str] = ()  # further NBD URIs of the target
    identity: str = ""  # of the start of the export and of the snapshot: for these a journal is good; empty: none is
    algorithm: str = ALGORITHM  # of the digests


class DiskRun(threading.Thread):
    """One disk being copied; at its end it holds a tree or a failure."""

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        work: Path,
        stop: threading.Event,
        *,
        limit: Limit | None,
        buffers: int,
        stall: float,
    ) -> None:
        super().__init__(name=f"disk-{disk.key}")
        self._disk, self._folder, self._work, self._stop_all = disk, folder, work, stop
        self._limit, self._buffers, self._stall = limit, buffers, stall
        self._ranges = self._on_grid([(0, disk.capacity)] if disk.areas is None else disk.areas)
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._begun = False  # whether something was read, now or by an earlier start
        self._doubted = False
        self._map = "none" if disk.areas is None else "used"
        self._safe = Progress()  # what lay in the journal when this attempt began
        self._noted = 0  # bytes that entered it since
        self._past = Progress()  # what earlier attempts of this unit fetched, and where their time went
        self._moved, self._moved_at, self._moved_waits = (0, 0), self._began, (0.0, 0.0)
        self.told = {"read": 0, "planned": 0}  # bytes, as was last said of it: a copy that begins again never goes back
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)], maxlen=_RECENT)
        self.resumed = 0  # bytes that an earlier start of the unit had copied
        self.anew = ""  # why what an earlier start had copied is not believed
        self.wants = ""  # "session" while it waits for one
        self.progress = Progress()
        self.tree: Tree | None = None
        self.failure: SendenseError | None = None

    def run(self) -> None:
        try:
            self.tree = self._copy()
        except SendenseError as why:
            self.failure = type(why)(f"disk {self._disk.key}: {why}")
        except Exception as why:  # a defect of ours must fail the disk, not leave a silent thread
            self.failure = SendenseError(f"disk {self._disk.key}: {type(why).__name__}: {why}")
            raise
        finally:
            self._seconds = time.monotonic() - self._began
            if self.failure:
                self._stop_all.set()

    def _copy(self) -> Tree:
        disk = self._disk
        leaf_file, journal_file = (self._work / f"disk-{disk.key}.{kind}" for kind in ("leaves", "journal"))
        if not leaf_file.exists():
            journal_file.unlink(missing_ok=True)
        with contextlib.ExitStack() as stack:
            first = not journal_file.exists()
            journal = stack.enter_context(contextlib.closing(Journal(journal_file, _identity(disk), disk.capacity)))
            leaves = LeafFile(leaf_file, disk.algorithm, keep=not journal.why)
            keep = stack.enter_context(contextlib.closing(leaves))
            self.anew = "" if first else journal.why
            self._begun = not journal.why
            failures = 0
            while True:
                try:
                    self._attempt(journal, keep)
                    return tree(keep, disk.capacity, disk.algorithm)
                except _SourceFailed as why:
                    failures = 1 if self._noted else failures + 1  # what is read again and again is no progress
                    self._leave_behind()
                    self._try_again(why, failures)

    def _attempt(self, journal: Journal, keep: LeafFile) -> None:
        """Copy what is missing. Raises _SourceFailed, Interrupted when the export is out of reach, or what is final."""
        disk, began = self._disk, time.monotonic()
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(served(disk.source, self._folder / f"{disk.key}.sock"))
            try:
                source = stack.enter_context(connect(reader.uri, OPENING, contexts=(ALLOCATION,)))
                more = SOURCES - 1 if source.can_multi_conn() else 0
                beside = [stack.enter_context(connect(reader.uri, OPENING)) for _each in range(more)]
            except SendenseError as why:
                raise _failed(reader, why) from None
            try:
                target = stack.enter_context(connect(disk.target))
                also = [stack.enter_context(connect(uri)) for uri in disk.also if target.can_multi_conn()]
            except SendenseError as why:
                raise Interrupted(str(why)) from None
            _check(disk, source, target)
            done = journal.done()
            try:
                self._doubt(source, done)
                copy = Copy(
                    source,
                    target,
                    keep,
                    self._halted,
                    lambda ranges: self._note(journal, keep, ranges),
                    also=also,
                    beside=beside,
                    fresh=disk.fresh,
                    limit=self._limit,
                    buffers=self._buffers,
                    stall=max(STALLED, 2 * self._stall),  # _halted is first, and says more
                )
                self._take_up(copy, done, keep)
                copy.progress.waited_source = time.monotonic() - began  # to open, map and sample it is to wait for it
                copy.run(without(self._ranges, done), self._holes())
            except SendenseError as why:
                if any(each.aio_is_dead() or each.aio_is_closed() for each in (target, *also)):
                    raise Interrupted(str(why)) from None
                if str(why).startswith("the source"):
                    raise _failed(reader, why) from None
                raise SendenseError(reader.explain(str(why))) from None

    def _take_up(self, copy: Copy, done: Areas, keep: LeafFile) -> None:
        """Begin to count at what is safe already."""
        safe = total(self._ranges) - total(without(self._ranges, done))
        written = _written(keep, done, self._disk.capacity) if safe else 0
        if not self._past.fetched:
            self.resumed = safe
        self._safe, self._noted = Progress(read=safe, written=written, zeroed=max(0, safe - written)), 0
        self.progress, self._moved_at, self._moved_waits = copy.progress, time.monotonic(), (0.0, 0.0)

    def _note(self, journal: Journal, keep: LeafFile, ranges: list[Range]) -> None:
        """Note what a flush of the export has made safe; its leaves are first."""
        keep.sync()
        journal.add(ranges)
        self._noted += total(ranges)

    def _leave_behind(self) -> None:
        """Keep what an attempt that failed has fetched, and where its time went."""
        for name in ("fetched", *WAITS):
            setattr(self._past, name, getattr(self._past, name) + getattr(self.progress, name))
        self.progress = Progress()
        self._safe.read, self._noted = self._safe.read + self._noted, 0

    def _try_again(self, why: _SourceFailed, failures: int) -> None:
        """Return once the source is to be opened anew; raise what is final."""
        if why.kind == "session" and failures <= len(PAUSES) + 1:
            self._await_session(str(why))
            return
        self._begun = self._begun or self._past.fetched > 0
        if why.kind != "passing" or not self._begun or failures > len(PAUSES):
            raise SendenseError(str(why))
        sys.stderr.write(f"disk {self._disk.key}: {why}; it is opened anew\n")
        if self._stop_all.wait(PAUSES[failures - 1]):
            raise SendenseError(STOPPED)

    def _await_session(self, why: str) -> None:
        """Return once somebody has put another cookie where the source reads it."""
        stale, deadline = self._disk.source.secret(), time.monotonic() + RENEWAL
        self.wants = "session"
        try:
            while self._disk.source.secret() == stale:
                if time.monotonic() > deadline:
                    raise Interrupted(f"{why}; no run was there to log in again within {RENEWAL:.0f} s")
                if self._stop_all.wait(0.5):
                    raise SendenseError(STOPPED)
        finally:
            self.wants = ""

    def _halted(self) -> bool:
        """Whether the copy is to stop, because of another disk. Raises SendenseError when nothing has moved for too long."""
        moved, now = (self.progress.fetched, self.progress.written), time.monotonic()
        waited = self.progress.waited_source, self.progress.waited_target
        if moved != self._moved:
            self._moved, self._moved_at, self._moved_waits = moved, now, waited
        elif now - self._moved_at > self._stall:
            source, target = (after - before for after, before in zip(waited, self._moved_waits, strict=True))
            whom = "the source gives nothing" if source >= target else "the export takes nothing"
            raise SendenseError(
                f"nothing has moved for {self._stall:.0f} s (backup_stall): {whom}; look at the load of vCenter, the ESXi "
                "host, the hub and the network, and run the backup again"
            )
        return self._stop_all.is_set()

    def _on_grid(self, ranges: Iterable[Range]) -> Areas:
        return Areas(widened(ranges, self._disk.capacity, CELL))

    def _ask(self, source: Any) -> None:
        """Ask the source for its holes, where nobody else knows what holds data; they need not be read."""
        if self._disk.areas is None and source.can_meta_context(ALLOCATION):
            self._ranges = self._on_grid(data_ranges(source))
            if total(self._ranges) < self._disk.capacity:
                self._map = "source"

    def _holes(self) -> Iterator[Range]:
        """Return what is zero because the source says so; between the areas that changed nobody knows."""
        return iter(()) if self._disk.areas is not None else gaps(self._ranges, self._disk.capacity)

    def _doubt(self, source: Any, done: Areas) -> None:
        """Sample what is called unallocated: not every version and datastore tells all. Any data there: read everything.

        That an earlier start has copied some of it says the same: it had found data there.
        """
        if self._doubted:
            return
        try:
            self._ask(source)
            blank = Areas(gaps(self._ranges, self._disk.capacity))
            refuted = any(without(done, self._ranges)) or any(
                not is_zero(cell) for _offset, cell in read_ranges(source, samples(blank, SAMPLES, CELL))
            )
        except (SendenseError, libnbd.Error) as why:
            raise SendenseError(f"the source failed: {why}") from None
        if refuted:
            self._map = "refuted"
            self._ranges = Areas([(0, self._disk.capacity)])
        self._doubted = True

    def prove(self) -> None:
        """Fail the disk if its export is gone: it may have died after it had taken all, while others were being copied."""
        try:
            handshake(self._disk.target)
        except SendenseError as why:
            self.failure = Interrupted(f"disk {self._disk.key}: {why}")

    def report(self) -> dict[str, Any]:
        """Return what is known of this disk now, as it stands in the status file."""
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        planned, counted = total(self._ranges), self.progress.report()
        if not self._doubted:  # what the source calls holes is not known yet, but an earlier start may have told
            planned = self.told["planned"] or planned
        for name in ("read", "written", "zeroed"):
            counted[name] += getattr(self._safe, name)
        for name in WAITS:
            counted[name] = round(counted[name] + getattr(self._past, name), 2)
        fetched = self._past.fetched + self.progress.fetched
        counted["read"] = read = min(planned, max(self.told["read"], int(counted["read"])))
        self.told = {"read": read, "planned": planned}
        self._recent.append((seconds, fetched))
        (then, had), left = self._recent[0], planned - read
        rate = (fetched - had) / (seconds - then) if seconds > then else 0.0
        return {
            "key": self._disk.key,
            "provisioned": self._disk.capacity,
            "allocated": None if self._disk.areas is None else total(self._disk.areas),
            "map": self._map,
            "planned": planned,
            "seconds": round(seconds, 2),
            **counted,
            "resumed": self.resumed,
            "fetched": fetched,
            "safe": self._safe.read + self._noted,
            "anew": self.anew,
            "percent": round(read * 100 / planned, 1) if planned else 100.0,
            "rate": round(rate),
            "eta": round(left / rate) if rate else None,
            "wants": self.wants,
            "tree": asdict(self.tree) if self.tree else None,
        }


def _identity(disk: Disk) -> str:
    """Return for what the disk's journal is good; leaves by another algorithm are worth nothing."""
    return disk.identity and f"{disk.identity} by {disk.algorithm}"


def _failed(reader: Reader, why: SendenseError) -> _SourceFailed:
    said = reader.explain(str(why))
    return _SourceFailed(said, reader.kind())


def _written(keep: Iterable[tuple[int, bytes]], done: Iterable[Range], capacity: int) -> int:
    """Return how many bytes of *done*, which lie on the grid, hold data, as their leaves tell."""
    written, left = 0, iter(done)
    offset, length = next(left, (capacity, 0))
    for number, leaf in keep:
        while offset + length <= number * CELL and offset < capacity:
            offset, length = next(left, (capacity, 0))
        if leaf != ZERO and offset <= number * CELL < offset + length:
            written += min(CELL, capacity - number * CELL)
    return written


def _check(disk: Disk, source: Any, target: Any) -> None:
    """Raise SendenseError for a source or an export that cannot be those of this disk."""
    if target.is_read_only():
        raise SendenseError("the export is read-only; nothing was copied")
    for name, size in (("source", source.get_size()), ("export", target.get_size())):
        if size != disk.capacity:
            raise SendenseError(
                f"the {name} has {size} bytes where the snapshot says {disk.capacity}; nothing was copied"
            )
