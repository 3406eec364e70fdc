# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Arithmetic on byte ranges of a disk. Pure: a range is ``(offset, length)`` in bytes, lists are what they say they are."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

Range = tuple[int, int]

_CHANCE = random.SystemRandom()


class Areas(Collection[Range]):
    """Ranges as they came, in 16 bytes each where a list of tuples takes 120: a fragmented disk has a million."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._numbers = array("Q")  # offset and length in turn
        for each in ranges:
            self._numbers.extend(each)

    @classmethod
    def unpacked(cls, data: bytes) -> Areas:
        """Return what ``packed`` made bytes of, on the same machine."""
        found = cls()
        found._numbers.frombytes(data)
        return found

    def packed(self) -> bytes:
        """Return the ranges as bytes: offset and length in turn, 64 bits each, in the order of this machine."""
        return self._numbers.tobytes()

    @cached_property
    def total(self) -> int:
        """The number of bytes in all ranges."""
        return sum(self._numbers[1::2])

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __iter__(self) -> Iterator[Range]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, strict=True)

    def __contains__(self, wanted: object) -> bool:
        return any(each == wanted for each in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Areas) and self._numbers == other._numbers

    def __hash__(self) -> int:
        return hash(self.packed())

    def __repr__(self) -> str:
        return f"<{len(self)} areas, {self.total} bytes>"


def normalise(ranges: Iterable[Range], capacity: int, cell: int = 1) -> list[Range]:
    """Return *ranges* widened outward to multiples of *cell*, clipped to *capacity*, sorted and merged."""
    return list(widened(sorted(ranges), capacity, cell))


def widened(ranges: Iterable[Range], capacity: int, cell: int = 1) -> Iterator[Range]:
    """Yield *ranges*, which ascend by offset, as ``normalise`` returns them, and keep none of them."""
    begin, end = 0, -1  # of what is not yet yielded
    for offset, length in ranges:
        first = offset // cell * cell
        last = min(-(-(offset + length) // cell) * cell, capacity)
        if length <= 0 or last <= first:
            continue
        if first <= end:
            end = max(end, last)
            continue
        if end > begin:
            yield begin, end - begin
        begin, end = first, last
    if end > begin:
        yield begin, end - begin


def pieces(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Yield *ranges* cut at multiples of *size*, so that no piece is longer than that."""
    for begin, length in ranges:
        position, end = begin, begin + length
        while position < end:
            cut = min(end, (position // size + 1) * size)
            yield position, cut - position
            position = cut


def gaps(ranges: Iterable[Range], capacity: int) -> Iterator[Range]:
    """Yield what of *capacity* bytes normalised *ranges* leave out."""
    position = 0
    for offset, length in ranges:
        if offset > position:
            yield position, offset - position
        position = offset + length
    if capacity > position:
        yield position, capacity - position


def without(ranges: Iterable[Range], others: Iterable[Range]) -> Iterator[Range]:
    """Yield what of *ranges* lies in none of *others*; both are normalised."""
    left = iter(others)
    other = next(left, None)
    for offset, length in ranges:
        position, end = offset, offset + length
        while other and sum(other) <= position:
            other = next(left, None)
        while other and other[0] < end:
            if other[0] > position:
                yield position, other[0] - position
            position = sum(other)
            if position >= end:
                break
            other = next(left, None)
        if position < end:
            yield position, end - position


def samples(ranges: Collection[Range], count: int, cell: int) -> list[Range]:
    """Return up to *count* cells of *ranges*, which lie on the grid of *cell*: one from each of as many equal parts, by chance."""
    size = total(ranges)
    wanted = iter(sorted({int((number + _CHANCE.random()) * size / count) for number in range(count if size else 0)}))
    found: list[Range] = []
    before, position = 0, next(wanted, size)
    for offset, length in ranges:
        while position < before + length:
            begin = offset + (position - before) // cell * cell
            found.append((begin, min(cell, offset + length - begin)))
            position = next(wanted, size)
        before += length
    return sorted(set(found))


def total(ranges: Iterable[Range]) -> int:
    """Return the number of bytes in *ranges*."""
    return ranges.total if isinstance(ranges, Areas) else sum(length for _offset, length in ranges)
