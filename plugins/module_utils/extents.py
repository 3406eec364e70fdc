# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Arithmetic on byte ranges of a disk. Pure: a range is ``(offset, length)`` in bytes, lists are what they say they are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

Range = tuple[int, int]

_CHANCE = random.SystemRandom()


def normalise(ranges: Iterable[Range], capacity: int, cell: int = 1) -> list[Range]:
    """Return *ranges* widened outward to multiples of *cell*, clipped to *capacity*, sorted and merged."""
    merged: list[Range] = []
    for offset, length in sorted(ranges):
        begin = offset // cell * cell
        end = min(-(-(offset + length) // cell) * cell, capacity)
        if length <= 0 or end <= begin:
            continue
        if merged and begin <= sum(merged[-1]):
            begin, last_end = merged[-1][0], sum(merged[-1])
            merged[-1] = (begin, max(end, last_end) - begin)
        else:
            merged.append((begin, end - begin))
    return merged


def pieces(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Yield *ranges* cut at multiples of *size*, so that no piece is longer than that."""
    for begin, length in ranges:
        position, end = begin, begin + length
        while position < end:
            cut = min(end, (position // size + 1) * size)
            yield position, cut - position
            position = cut


def gaps(ranges: Iterable[Range], capacity: int) -> list[Range]:
    """Return what of *capacity* bytes normalised *ranges* leave out."""
    found, position = [], 0
    for offset, length in [*ranges, (capacity, 0)]:
        if offset > position:
            found.append((position, offset - position))
        position = offset + length
    return found


def samples(ranges: list[Range], count: int, cell: int) -> list[Range]:
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
    return sum(length for _offset, length in ranges)
