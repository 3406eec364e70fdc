# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from itertools import pairwise

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.extents import (
    Areas,
    gaps,
    normalise,
    pieces,
    samples,
    total,
    without,
)
from hypothesis import given
from hypothesis import strategies as st

CAPACITY = 300
ranges = st.lists(st.tuples(st.integers(0, CAPACITY + 20), st.integers(0, 90)), max_size=12)


def covered(found):
    return {byte for offset, length in found for byte in range(offset, offset + length)}


@given(ranges, st.sampled_from([1, 2, 7, 64]))
def test_normalise_covers_every_cell_that_is_touched_and_no_other(given_ranges, cell):
    touched = {byte // cell for byte in covered(given_ranges)}
    expected = {byte for byte in range(CAPACITY) if byte // cell in touched}
    assert covered(normalise(given_ranges, CAPACITY, cell)) == expected


@given(ranges, st.sampled_from([1, 2, 7, 64]))
def test_normalised_ranges_ascend_with_a_gap_between_them(given_ranges, cell):
    found = normalise(given_ranges, CAPACITY, cell)
    assert all(length > 0 for _offset, length in found)
    assert all(sum(one) < other[0] for one, other in pairwise(found))


@given(ranges, st.integers(1, 100))
def test_pieces_are_the_same_bytes_cut_at_multiples(given_ranges, size):
    whole = normalise(given_ranges, CAPACITY)
    cut = list(pieces(whole, size))
    assert [byte for one in cut for byte in sorted(covered([one]))] == sorted(covered(whole))
    assert all(offset // size == (offset + length - 1) // size for offset, length in cut)
    assert total(cut) == total(whole) == len(covered(whole))


@given(ranges)
def test_gaps_are_what_the_ranges_leave_out(given_ranges):
    used = normalise(given_ranges, CAPACITY)
    assert covered(gaps(used, CAPACITY)) == set(range(CAPACITY)) - covered(used)


@given(ranges, ranges)
def test_without_leaves_what_is_in_none_of_the_others(given_ranges, others):
    mine, theirs = normalise(given_ranges, CAPACITY), normalise(others, CAPACITY)
    found = list(without(mine, theirs))
    assert covered(found) == covered(mine) - covered(theirs)
    assert found == sorted(found)


@given(ranges)
def test_areas_are_the_ranges_they_were_made_of(given_ranges):
    areas = Areas(given_ranges)
    assert list(areas) == given_ranges
    assert len(areas) == len(given_ranges)
    assert total(areas) == total(given_ranges)
    assert Areas.unpacked(areas.packed()) == areas
    assert (areas == Areas([*given_ranges, (0, 1)])) is False
    assert all(each in areas for each in given_ranges)
    assert (CAPACITY * 2, 1) not in areas


def test_a_million_areas_take_16_bytes_each():
    areas = Areas((number << 17, 1 << 16) for number in range(10**6))
    assert total(areas) == 10**6 << 16
    assert len(areas.packed()) == 16 * 10**6


@given(ranges, st.integers(1, 20), st.sampled_from([1, 8, 64]))
def test_samples_are_cells_of_the_ranges_spread_over_all_of_them(given_ranges, count, cell):
    blank = Areas(gaps(normalise(given_ranges, CAPACITY, cell), CAPACITY))
    found = samples(blank, count, cell)
    assert covered(found) <= covered(blank)
    assert all(offset % cell == 0 and length <= cell for offset, length in found)
    assert len(found) <= count
    assert bool(found) == bool(blank)
    if count >= total(blank):
        assert covered(samples(blank, total(blank) or 1, 1)) == covered(blank), (
            "as many samples as bytes are all of them"
        )


@pytest.mark.parametrize(
    ("given_ranges", "expected"),
    [
        pytest.param([(0, 1)], [(0, 65536)], id="one byte becomes its cell"),
        pytest.param([(65535, 2)], [(0, 131072)], id="two bytes over a border become two cells"),
        pytest.param([(131072, 1536)], [(131072, 1536)], id="the short last cell ends with the disk"),
        pytest.param([(131072, 70000)], [(131072, 1536)], id="what lies beyond the disk is clipped"),
        pytest.param([(65536, 65536), (0, 65536)], [(0, 131072)], id="neighbours in any order are one"),
        pytest.param([(5, 0)], [], id="an empty range is nothing"),
    ],
)
def test_the_grid_of_64_kib(given_ranges, expected):
    assert normalise(given_ranges, 131072 + 1536, 65536) == expected
