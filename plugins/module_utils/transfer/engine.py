# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moves the bytes of one disk from an NBD source to an NBD target, asynchronously and through reused buffers.

Whole cells of the digest grid that are zero are not written to a *fresh* target, an image that reads as zero where
nothing was written; any other target gets them as zeroes, which the server may store as it likes. What the source delivers
is digested, in a thread beside the one that moves it, before it is written: so a change on the way to the image shows when
the image is read again.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, ZERO, LeafFile, leaves
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, normalise, pieces
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import REQUEST, STALLED, libnbd
from ansible_collections.sendense.backup.plugins.module_utils.transfer.limit import Limit

DEPTH = 16  # buffers of REQUEST bytes: 16 MiB a disk, enough in flight for 1 Gbit/s at 100 ms
FEWEST = 4  # buffers with which a disk still moves at full speed where latency is low
BUDGET = 48  # buffers of all disks of a copy
STOPPED = "stopped, because another disk of this VM failed"
FLUSH_SECONDS = 2.0  # how often what was written is made safe, if anybody wants to know
FLUSH_BYTES = 1 << 30

_HOLE = 256 << 20  # bytes of one request for zeroes
_HOLES = 4  # such requests in flight
_LOOK_EVERY = 1.0  # seconds, when nothing moves, until the word to stop is heard
_BLANK = memoryview(bytes(CELL))
_HUNG_UP = select.POLLHUP | select.POLLERR


def depth(disks: int) -> int:
    """Return how many buffers each of so many disks gets, so that all of them stay within memory."""
    return max(FEWEST, min(DEPTH, BUDGET // max(disks, 1)))


@dataclass
class Progress:
    """What was moved so far, in bytes, and where the time went, in seconds."""

    fetched: int = 0  # what the source has given
    read: int = 0  # and of that what is where it belongs: the target has taken it, or it is zero
    written: int = 0
    zeroed: int = 0  # read as zero and therefore not written
    waited_source: float = 0.0  # only reads were in flight
    waited_target: float = 0.0  # only writes were in flight
    waited_both: float = 0.0
    waited_digest: float = 0.0  # nothing was in flight: all buffers were being digested
    waited_limit: float = 0.0  # nothing was in flight: the rate limit forbade it

    def report(self) -> dict[str, int | float]:
        """Return the counters as they go into a status file."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


class _Slot:
    """One buffer on its way: being read, digested, then written in one or more runs of cells."""

    def __init__(self) -> None:
        self.room = bytearray(REQUEST)
        self._whole = memoryview(self.room), libnbd.Buffer.from_buffer(self.room)
        self.view, self.data = self._whole
        self.offset = 0
        self.zeroed = 0  # bytes of what was read
        self.writes = 0

    def take(self, piece: Range) -> None:
        """Let the buffer be that of *piece*."""
        self.offset, length = piece
        self.view, self.data = self._whole if length == REQUEST else self.part(0, length)

    def part(self, start: int, length: int) -> tuple[memoryview, Any]:
        """Return a part of the buffer, as Python sees it and as libnbd does."""
        if length == len(self.view):
            return self.view, self.data
        view = self._whole[0][start : start + length]
        return view, libnbd.Buffer.from_buffer(view)

    def blank(self) -> list[bool]:
        """Return which cells of what was read are zero."""
        length = len(self.view)
        return [self.room.startswith(_BLANK[: min(CELL, length - start)], start) for start in range(0, length, CELL)]


class _Digester:
    """The thread that digests what was read; it tells by the event *descriptor* that there is something to take back."""

    def __init__(self, keep: LeafFile) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.busy = 0
        self._keep = keep
        self._todo: SimpleQueue[_Slot | None] = SimpleQueue()
        self._done: deque[tuple[_Slot, bytes | Exception]] = deque()
        self._thread = threading.Thread(target=self._work, name="digester", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while slot := self._todo.get():
            found: bytes | Exception
            try:
                found = leaves(slot.view, self._keep.algorithm)
                self._keep.put(slot.offset, found)
            except Exception as why:  # the copy must fail, not wait for ever
                found = why
            self._done.append((slot, found))
            os.eventfd_write(self.descriptor, 1)

    def give(self, slot: _Slot) -> None:
        """Have what *slot* holds digested; it must not change meanwhile."""
        self.busy += 1
        self._todo.put(slot)

    def take(self) -> Iterator[tuple[_Slot, list[bool]]]:
        """Yield what is digested, with which of its cells are zero. Raises SendenseError when the leaves cannot be kept."""
        while self._done:
            slot, found = self._done.popleft()
            self.busy -= 1
            if isinstance(found, Exception):
                raise SendenseError(f"the digests cannot be kept: {found}") from found
            yield slot, [found[start : start + 32] == ZERO for start in range(0, len(found), 32)]

    def close(self) -> None:
        """End the thread."""
        self._todo.put(None)
        self._thread.join()
        os.close(self.descriptor)


class _Ears:
    """Waits until one of several libnbd handles, or a digester, can go on; no system call but the one that waits."""

    def __init__(self, handles: Iterable[Any], event: int | None) -> None:
        self._poll = select.poll()
        self._handles = [(handle.aio_get_fd(), handle) for handle in handles]
        self._events = dict.fromkeys((descriptor for descriptor, _handle in self._handles), 0)
        self._event = event
        for descriptor in self._events:
            self._poll.register(descriptor, 0)
        if event is not None:
            self._poll.register(event, select.POLLIN)

    def wait(self, seconds: float) -> dict[int, int]:
        """Return what happened on which descriptor within so many seconds."""
        for descriptor, handle in self._handles:
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & libnbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & libnbd.AIO_DIRECTION_WRITE else 0
            )
            if events != self._events[descriptor]:
                self._poll.modify(descriptor, events)
                self._events[descriptor] = events
        return dict(self._poll.poll(max(0, seconds) * 1000))

    def tell(self, happened: dict[int, int]) -> bool:
        """Let the handles go on to which something happened; their callbacks run. Return whether one of them is dead.

        It would wake every later wait, and with nothing to send on it nobody else would notice.
        """
        dead = False
        for descriptor, handle in self._handles:
            events = happened.get(descriptor, 0)
            if events & ~select.POLLOUT and handle.aio_get_direction() & libnbd.AIO_DIRECTION_READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and handle.aio_get_direction() & libnbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()
            if events & _HUNG_UP:
                dead |= handle.aio_is_dead() or handle.aio_is_closed()
        if self._event in happened:
            os.eventfd_read(self._event)
        return dead


class Copy:
    """The copy of one disk; ``run`` does it, ``progress`` can be read from another thread meanwhile.

    Without a file to *keep* leaves in, nothing is digested. *done* is told, in the thread of ``run``, which ranges are
    safe: their leaves are kept, and the target has flushed since they were written. *also* are further connections to the
    same target, *beside* such to the same source. A target that is not *fresh* gets zeroes where the source reads as zero.
    """

    def __init__(
        self,
        source: Any,
        target: Any,
        keep: LeafFile | None,
        stop: Callable[[], bool],
        done: Callable[[list[Range]], None] | None = None,
        *,
        also: Sequence[Any] = (),
        beside: Sequence[Any] = (),
        fresh: bool = True,
        limit: Limit | None = None,
        buffers: int = DEPTH,
        stall: float | None = None,
    ) -> None:
        self.progress = Progress()
        self._sources, self._targets, self._keep, self._stop = [source, *beside], [target, *also], keep, stop
        self._done, self._fresh, self._limit = done, fresh, limit
        self._stall = STALLED if stall is None else stall
        self._size = source.get_size()
        self._free = [_Slot() for _each in range(buffers)]
        self._arrived: deque[_Slot] = deque()
        self._reading = 0
        self._writing = 0
        self._zeroing = 0  # of those that are being written
        self._turns = {"source": 0, "target": 0}
        self._failed: list[str] = []
        self._settled: list[Range] = []  # written, but not flushed since
        self._flushed_at = time.monotonic()
        self._safe: list[Range] | None = None  # what the flush that is under way will have made safe
        self._flushing = 0
        self._moved = time.monotonic()

    def run(self, ranges: Iterable[Range], holes: Iterable[Range] = ()) -> None:
        """Copy *ranges*, which lie on the digest grid, and flush. Raises SendenseError at the first failure.

        *holes* are known to be zero in the source: they are not read.
        """
        digester = _Digester(self._keep) if self._keep else None
        try:
            self._ears = _Ears([*self._sources, *self._targets], digester.descriptor if digester else None)
            self._move(pieces(ranges, REQUEST), iter(()) if self._fresh else pieces(holes, _HOLE), digester)
            while self._safe is not None:
                self._step(None)
            self._flush()
            while self._safe is not None:
                self._step(None)
        except libnbd.Error as error:
            raise SendenseError(self._whose_fault(error.string)) from None
        finally:
            if digester:
                digester.close()

    def _move(self, reads: Iterator[Range], holes: Iterator[Range], digester: _Digester | None) -> None:
        """Copy all that is to be read and zero all *holes*."""
        while self._fill(reads) or self._punch(holes) or self._reading or self._writing or (digester and digester.busy):
            self._step(digester)
            while self._arrived:
                slot = self._arrived.popleft()
                if digester:
                    digester.give(slot)
                else:
                    self._pass_on(slot, slot.blank())
            if digester:
                for slot, blank in digester.take():
                    self._pass_on(slot, blank)
            if self._done and self._safe is None and self._settled and self._is_due():
                self._flush()

    def _step(self, digester: _Digester | None) -> None:
        """Wait until something moved; raise SendenseError when that was a failure, here or at another disk."""
        self._wait(digester)
        if self._failed:
            raise SendenseError(self._whose_fault(self._failed[0]))
        if self._stop():
            raise SendenseError(STOPPED)
        if self._safe is not None and not self._flushing:
            safe, self._safe = self._safe, None
            if self._done and safe:
                self._done(normalise(safe, self._size))

    def _fill(self, reads: Iterator[Range]) -> bool:
        """Start reads while there are buffers; return whether one is, or is to be, started."""
        while self._free:
            if self._limit and self._limit.wait():
                return True
            if not (piece := next(reads, None)):
                return False
            if self._limit:
                self._limit.take(piece[1])
            slot = self._free.pop()
            slot.take(piece)
            self._reading += 1
            self._next("source", self._sources).aio_pread(slot.data, slot.offset, self._when_read(slot))
        return True

    def _punch(self, holes: Iterator[Range]) -> bool:
        """Start zeroing holes; return whether one is to be zeroed."""
        while self._zeroing < _HOLES:
            if not (hole := next(holes, None)):
                return False
            self._zero(hole, None)
        return True

    def _when_read(self, slot: _Slot) -> Callable[[Any], int]:
        def completed(error: Any) -> int:
            self._reading -= 1
            if error.value:
                self._failed.append(
                    f"the source failed to read {len(slot.view)} bytes at {slot.offset} ({os.strerror(error.value)})"
                )
            else:
                self.progress.fetched += len(slot.view)
            self._arrived.append(slot)
            return 1

        return completed

    def _pass_on(self, slot: _Slot, blank: list[bool]) -> None:
        """Start writing the cells of what was read that are not zero."""
        length = len(slot.view)
        slot.zeroed = 0
        slot.writes = 1  # our own hold on it, while writes are being started: they may end at once
        for start, size, zero in _runs(blank, length):
            if not zero:
                slot.writes += 1
                self._writing += 1
                data = slot.part(start, size)[1]
                self._next("target", self._targets).aio_pwrite(data, slot.offset + start, self._when_written(slot))
                continue
            slot.zeroed += size
            if not self._fresh:
                slot.writes += 1
                self._zero((slot.offset + start, size), slot)
        self._release(slot)

    def _next(self, which: str, connections: Sequence[Any]) -> Any:
        """Return the one of the *connections* whose turn it is."""
        self._turns[which] = (self._turns[which] + 1) % len(connections)
        return connections[self._turns[which]]

    def _zero(self, hole: Range, slot: _Slot | None) -> None:
        """Start writing zeroes; they may end up as a hole of the image."""
        self._writing += 1
        self._zeroing += 1

        def completed(error: Any) -> int:
            self._writing -= 1
            self._zeroing -= 1
            self._wrote(error, hole[0])
            if slot:
                self._release(slot)
            elif self._done:
                self._settled.append(hole)
            return 1

        self._next("target", self._targets).aio_zero(hole[1], hole[0], completed)

    def _when_written(self, slot: _Slot) -> Callable[[Any], int]:
        def completed(error: Any) -> int:
            self._writing -= 1
            self._wrote(error, slot.offset)
            self._release(slot)
            return 1

        return completed

    def _wrote(self, error: Any, offset: int) -> None:
        if error.value:
            self._failed.append(f"the export failed to write at {offset} ({os.strerror(error.value)})")

    def _release(self, slot: _Slot) -> None:
        """Let the buffer be used again once nothing needs it; what it held has then arrived."""
        slot.writes -= 1
        if not slot.writes:
            self.progress.read += len(slot.view)
            self.progress.written += len(slot.view) - slot.zeroed
            self.progress.zeroed += slot.zeroed
            if self._done:
                self._settled.append((slot.offset, len(slot.view)))
            self._free.append(slot)

    def _is_due(self) -> bool:
        """Whether what was written since the last flush is to be made safe."""
        return time.monotonic() - self._flushed_at > FLUSH_SECONDS or len(self._settled) * REQUEST >= FLUSH_BYTES

    def _flush(self) -> None:
        """Start a flush on every connection, which makes safe what is settled now."""
        self._safe, self._settled = self._settled, []
        self._flushed_at = time.monotonic()
        for target in self._targets:
            self._flushing += 1
            target.aio_flush(self._when_flushed)

    def _when_flushed(self, error: Any) -> int:
        self._flushing -= 1
        if error.value:
            self._failed.append(f"the export failed to flush: {os.strerror(error.value)}")
        return 1

    def _wait(self, digester: _Digester | None) -> None:
        """Let everything move once, if it does so soon, and note for whom we waited."""
        held = self._limit.wait() if self._limit and self._free else 0.0
        began = time.monotonic()
        happened = self._ears.wait(min(_LOOK_EVERY, self._stall, held or _LOOK_EVERY))
        waited = time.monotonic() - began
        owed = self._reading or self._writing or self._flushing
        if happened or not owed:
            self._moved = began + waited
        elif began + waited - self._moved > self._stall:
            raise SendenseError(self._whose_fault(f"nothing moved for {self._stall:.0f} s"))
        self._note(waited, digesting=bool(digester and digester.busy))
        if self._ears.tell(happened) and not self._failed:
            raise SendenseError(self._whose_fault("the connection was closed"))

    def _note(self, waited: float, *, digesting: bool) -> None:
        """Note for whom we waited."""
        progress, writing = self.progress, self._writing or self._flushing
        if self._reading and writing:
            progress.waited_both += waited
        elif self._reading:
            progress.waited_source += waited
        elif writing:
            progress.waited_target += waited
        elif digesting:
            progress.waited_digest += waited
        else:
            progress.waited_limit += waited

    def _whose_fault(self, words: str) -> str:
        if any(target.aio_is_dead() or target.aio_is_closed() for target in self._targets):
            return f"the export hung up ({words})"
        if any(source.aio_is_dead() or source.aio_is_closed() for source in self._sources):
            return f"the source hung up ({words})"
        return words


def _runs(blank: list[bool], length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the runs of cells that are alike in being *blank*: start and size in a buffer of *length* bytes, and which."""
    start = 0
    for number in range(1, len(blank) + 1):
        if number == len(blank) or blank[number] != blank[number - 1]:
            end = min(number * CELL, length)
            yield start, end - start, blank[number - 1]
            start = end
