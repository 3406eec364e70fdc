# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Moves the bytes of one disk from an NBD source to an NBD target, asynchronously and through reused buffers.

Only whole cells of the digest grid that are not zero are written: the target is a fresh image, which reads as zero
where nothing was written. What the source delivers is digested before it is written, so that a change on the way to the
image shows when the image is read again.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, ZERO, LeafFile, leaves
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, pieces
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import REQUEST, STALLED, libnbd

DEPTH = 16  # buffers of REQUEST bytes: 16 MiB a disk, enough in flight for 1 Gbit/s at 100 ms
_LOOK_EVERY = 1.0  # seconds, when nothing moves, until the word to stop is heard


@dataclass
class Progress:
    """What was moved so far, in bytes, and where the time went, in seconds."""

    read: int = 0
    written: int = 0
    zeroed: int = 0  # read as zero and therefore not written
    waited_source: float = 0.0  # only reads were in flight
    waited_target: float = 0.0  # only writes were in flight
    waited_both: float = 0.0

    def report(self) -> dict[str, int | float]:
        """Return the counters as they go into a status file."""
        return {name: round(value, 2) for name, value in asdict(self).items()}


class _Slot:
    """One buffer on its way: being read, then being written in one or more runs of cells."""

    def __init__(self) -> None:
        self.room = bytearray(REQUEST)
        self.offset = 0
        self.view = memoryview(self.room)
        self.writes = 0


class Copy:
    """The copy of one disk; ``run`` does it, ``progress`` can be read from another thread meanwhile."""

    def __init__(self, source: Any, target: Any, keep: LeafFile, stop: Callable[[], bool]) -> None:
        self.progress = Progress()
        self._source, self._target, self._keep, self._stop = source, target, keep, stop
        self._free = [_Slot() for _each in range(DEPTH)]
        self._arrived: list[_Slot] = []
        self._reading = 0
        self._writing = 0
        self._failed: list[str] = []
        self._moved = time.monotonic()

    def run(self, ranges: Iterable[Range]) -> None:
        """Copy *ranges*, which lie on the digest grid, and flush. Raises SendenseError at the first failure."""
        todo = pieces(ranges, REQUEST)
        try:
            while self._fill(todo) or self._reading or self._writing:
                self._step()
                while self._arrived:
                    self._pass_on(self._arrived.pop())
            self._writing += 1
            self._target.aio_flush(self._when_flushed)
            while self._writing:
                self._step()
        except libnbd.Error as error:
            raise SendenseError(self._whose_fault(error.string)) from None

    def _step(self) -> None:
        """Wait until something moved; raise SendenseError when that was a failure, here or at another disk."""
        self._wait()
        if self._failed:
            raise SendenseError(self._whose_fault(self._failed[0]))
        if self._stop():
            raise SendenseError("stopped, because another disk of this VM failed")

    def _when_flushed(self, error: Any) -> int:
        self._writing -= 1
        if error.value:
            self._failed.append(f"the export failed to flush: {os.strerror(error.value)}")
        return 1

    def _fill(self, todo: Iterator[Range]) -> bool:
        """Start reads while there are buffers; return whether one was started."""
        started = False
        while self._free and (piece := next(todo, None)):
            slot = self._free.pop()
            slot.offset, slot.view = piece[0], memoryview(slot.room)[: piece[1]]
            self._reading += 1
            self._source.aio_pread(libnbd.Buffer.from_buffer(slot.view), slot.offset, self._when_read(slot))
            started = True
        return started

    def _when_read(self, slot: _Slot) -> Callable[[Any], int]:
        def completed(error: Any) -> int:
            self._reading -= 1
            if error.value:
                self._failed.append(
                    f"the source failed to read {len(slot.view)} bytes at {slot.offset} ({os.strerror(error.value)})"
                )
            self._arrived.append(slot)
            return 1

        return completed

    def _pass_on(self, slot: _Slot) -> None:
        """Digest what arrived and start writing its cells that are not zero."""
        found = leaves(slot.view)
        self._keep.put(slot.offset, found)
        self.progress.read += len(slot.view)
        for start, length in _runs(found, len(slot.view)):
            slot.writes += 1
            self._writing += 1
            self.progress.written += length
            data = libnbd.Buffer.from_buffer(slot.view[start : start + length])
            self._target.aio_pwrite(data, slot.offset + start, self._when_written(slot))
        if not slot.writes:
            self.progress.zeroed += len(slot.view)
            self._free.append(slot)

    def _when_written(self, slot: _Slot) -> Callable[[Any], int]:
        def completed(error: Any) -> int:
            self._writing -= 1
            slot.writes -= 1
            if error.value:
                self._failed.append(f"the export failed to write at {slot.offset} ({os.strerror(error.value)})")
            if not slot.writes:
                self._free.append(slot)
            return 1

        return completed

    def _wait(self) -> None:
        """Let both sides move once, if they do so soon, and note for whom we waited."""
        poll = select.poll()
        ends = {}
        for handle in (self._source, self._target):
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & libnbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & libnbd.AIO_DIRECTION_WRITE else 0
            )
            ends[handle.aio_get_fd()] = handle
            poll.register(handle.aio_get_fd(), events)
        began = time.monotonic()
        ready = poll.poll(min(_LOOK_EVERY, STALLED) * 1000)
        waited = time.monotonic() - began
        if ready:
            self._moved = began + waited
        elif began + waited - self._moved > STALLED:
            raise SendenseError(self._whose_fault(f"nothing moved for {STALLED:.0f} s"))
        if not self._writing:
            self.progress.waited_source += waited
        elif not self._reading:
            self.progress.waited_target += waited
        else:
            self.progress.waited_both += waited
        for descriptor, events in ready:
            handle = ends[descriptor]
            if events & ~select.POLLOUT and handle.aio_get_direction() & libnbd.AIO_DIRECTION_READ:
                handle.aio_notify_read()
            elif events & select.POLLOUT and handle.aio_get_direction() & libnbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()

    def _whose_fault(self, words: str) -> str:
        if self._target.aio_is_dead() or self._target.aio_is_closed():
            return f"the export hung up ({words})"
        if self._source.aio_is_dead() or self._source.aio_is_closed():
            return f"the source hung up ({words})"
        return words


def _runs(found: bytes, length: int) -> Iterator[Range]:
    """Yield the runs of cells that are not zero, as ranges within a buffer of *length* bytes."""
    start = None
    for number in range(0, len(found), 32):
        offset = number // 32 * CELL
        if found[number : number + 32] != ZERO:
            start = offset if start is None else start
        elif start is not None:
            yield start, offset - start
            start = None
    if start is not None:
        yield start, length - start
