# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading a closed image once, past the page cache, for two digests: that of the file, and those of its disk's cells.

qemu-img tells where in the file the clusters of the disk lie, so a cell is digested as it passes, in the order of the
file. That reads every byte once, where an NBD server beside a digest of the file would read all data twice.
"""

from __future__ import annotations

import json
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from struct import Struct

from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.commands import run
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, ZERO, Leaf
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect, read_ranges
from ansible_collections.sendense.backup.plugins.module_utils.repository import proof

_BLOCK = 4 << 20  # bytes of a read; a multiple of a cell, so that none is cut
_AHEAD = 3  # blocks that are read before the digests need them
_RECORD = Struct(">QB32s")  # as in digests.py


@dataclass(frozen=True)
class Extent:
    """A range of the disk as its image holds it."""

    offset: int  # bytes, of the disk
    length: int
    data: bool  # it may be other than zero
    own: bool  # it is this image that says so, none that it stands on
    position: int  # bytes, of the file; negative where it does not lie there as it is
    inline: bool  # whether its cells lie in this file as they are


@dataclass
class Scanned:
    """What a file came to."""

    sha256: str
    bad: list[int] = field(default_factory=list)  # numbers of the cells that are not as recorded


class Records:
    """The leaves of a ``.digests`` file, by cell; nothing of it is kept in memory."""

    def __init__(self, path: Path, capacity: int) -> None:
        """Open the file. Raises SendenseError for what is no digest file of a disk of *capacity* bytes, or is cut short."""
        with path.open("rb") as file:
            header = file.readline(4096)
            self._start = len(header)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if header else b""
        try:
            said = json.loads(header)
            known = (said["format"], said["cell"]) == (digests.FORMAT, CELL)
            self.algorithm: str = said["algorithm"]
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise SendenseError(f"{path} is not a digest file of format {digests.FORMAT}")
        digests.check_known(path, self.algorithm)
        if said.get("capacity") != capacity:
            raise SendenseError(f"{path} is of a disk of {said.get('capacity')} bytes, not {capacity}")
        self._count, rest = divmod(len(self._map) - self._start, _RECORD.size)
        if rest:
            raise SendenseError(f"{path} is cut short")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Leaf]:
        return (self._record(rank) for rank in range(self._count))

    def _record(self, rank: int) -> Leaf:
        number, kind, leaf = _RECORD.unpack_from(self._map, self._start + rank * _RECORD.size)
        return number, leaf if kind else ZERO

    def between(self, first: int, after: int) -> Iterator[Leaf]:
        """Yield the leaves of the cells from *first* on, before *after*."""
        rank = bisect_left(range(self._count), first, key=lambda each: self._record(each)[0])
        while rank < self._count and (found := self._record(rank))[0] < after:
            yield found
            rank += 1


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read from the disk and not from the page cache's memory of it."""
    found = sha256()
    for view, _position in _blocks(path):
        found.update(view)
    return found.hexdigest()


def extents(path: Path) -> list[Extent]:
    """Return the map of an image, in order of the disk, as qemu-img sees it. Raises SendenseError when it cannot."""
    found = []
    for each in json.loads(run(["qemu-img", "map", "--output=json", "-f", "qcow2", str(path)], timeout=None)):
        data, own, position = not each["zero"], each["depth"] == 0, each.get("offset", -1)
        inline = data and own and position > 0 and position % CELL == 0 and each["start"] % CELL == 0
        found.append(Extent(each["start"], each["length"], data, own, position, inline))
    return found


def image(path: Path, found: list[Extent], records: Records | None, *, full: bool) -> Scanned:
    """Return the digest of an image and its cells that are not as recorded; with *full* an unlisted cell has to be zero.

    Without *records* the file alone is digested.
    """
    whole, result = sha256(), Scanned("")
    own = sorted((each for each in found if each.inline), key=lambda each: each.position)
    cells = _Cells(own if records is not None else [], records, full=full)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:  # a digest lets go of the interpreter's lock
        waiting: list[tuple[Future[None], Future[None]]] = []
        for view, position in _blocks(path, _AHEAD + 1):
            waiting.append((one.submit(whole.update, view), other.submit(cells.pass_by, view, position)))
            if len(waiting) > _AHEAD:
                for future in waiting.pop(0):
                    future.result()
        for pair in waiting:
            for future in pair:
                future.result()
    result.sha256 = whole.hexdigest()
    if records is not None:
        bad = {*cells.bad, *_not_here(path, found, records, full=full), *_unsorted(records)}
        result.bad = sorted(bad)
    return result


class _Cells:
    """Holds the cells that pass by in a file against their records."""

    def __init__(self, own: list[Extent], records: Records | None, *, full: bool) -> None:
        self._own, self._records, self._full = own, records, full
        self._next = 0
        self.bad: list[int] = []

    def pass_by(self, view: memoryview, position: int) -> None:
        """Look at what lies in the file from *position* on."""
        end = position + len(view)
        while self._next < len(self._own) and self._own[self._next].position < end:
            extent = self._own[self._next]
            begin = max(extent.position, position)
            stop = min(extent.position + extent.length, end)
            if stop > begin and self._records is not None:
                offset = extent.offset + begin - extent.position
                leaves = digests.leaves(view[begin - position : stop - position], self._records.algorithm)
                self.bad += _differ(offset // CELL, leaves, self._records, full=self._full)
            if extent.position + extent.length > end:
                return
            self._next += 1


def _differ(first: int, leaves: bytes, records: Records, *, full: bool) -> Iterator[int]:
    """Yield the cells from *first* on whose *leaves* are not as recorded."""
    after = first + len(leaves) // 32
    listed = dict(records.between(first, after))
    for number in range(first, after):
        leaf = leaves[(number - first) * 32 : (number - first + 1) * 32]
        if leaf != listed.get(number, ZERO if full else b""):
            yield number


def _not_here(path: Path, found: list[Extent], records: Records, *, full: bool) -> list[int]:
    """Return the cells that are wrong without lying in the file as they are.

    Recorded as data and read as zero, or as what an older point has; and, read through qemu-nbd, compressed ones and those
    off the grid, which no image of ours has, but one that somebody converted.
    """
    bad: list[int] = []
    for each in found:
        first, after = each.offset // CELL, -(-(each.offset + each.length) // CELL)
        if not each.data:
            bad += (number for number, leaf in records.between(first, after) if leaf != ZERO)
        elif not each.own:
            bad += (number for number, _leaf in records.between(first, after))
        elif not each.inline:
            bad += _through_qemu(path, first, after, records, full=full)
    return bad


def _through_qemu(path: Path, first: int, after: int, records: Records, *, full: bool) -> list[int]:
    bad: list[int] = []
    with proof.served(path) as uri, connect(uri) as handle:
        begin = first * CELL
        for offset, view in read_ranges(handle, [(begin, min(after * CELL, handle.get_size()) - begin)]):
            bad += _differ(offset // CELL, digests.leaves(view, records.algorithm), records, full=full)
    return bad


def _unsorted(records: Records) -> Iterator[int]:
    """Yield the cells whose records are not where they belong, so that a search would miss them."""
    last = -1
    for number, _leaf in records:
        if number <= last:
            yield number
        last = max(number, last)


def _blocks(path: Path, buffers: int = 1) -> Iterator[tuple[memoryview, int]]:
    """Yield the content of a file, and where it begins, by direct I/O.

    A block is good until as many as there are *buffers* less one more have been asked for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW)
    try:
        spare = [mmap.mmap(-1, _BLOCK) for _each in range(buffers + 1)]  # page-aligned, as direct I/O wants it
        position, size = 0, os.fstat(descriptor).st_size
        while position < size:
            count = os.preadv(descriptor, [spare[0]], position)
            if count < min(_BLOCK, size - position):
                raise SendenseError(f"{path} gave {count} bytes at {position}, where it has {size}")
            yield memoryview(spare[0])[:count], position
            spare.append(spare.pop(0))
            position += count
    finally:
        os.close(descriptor)
