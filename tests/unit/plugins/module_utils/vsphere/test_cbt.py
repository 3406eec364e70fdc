# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import normalise
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.cbt import areas
from hypothesis import given
from hypothesis import strategies as st

CAPACITY = 10_000


def window(start, length, *found):
    return SimpleNamespace(
        startOffset=start, length=length, changedArea=[SimpleNamespace(start=at, length=long) for at, long in found]
    )


def server(allocated, sizes):
    """Answer like a server that knows *allocated* and takes windows of these sizes, the last one again and again."""
    left = list(sizes)

    def query(offset):
        size = left.pop(0) if len(left) > 1 else left[0]
        end = min(offset + size, CAPACITY)
        inside = [(max(at, offset), min(at + long, end)) for at, long in allocated]
        return window(offset, end - offset, *((at, stop - at) for at, stop in inside if stop > at))

    return query


ranges = st.lists(st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 3_000)), max_size=20)
sizes = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=8)


@given(ranges, sizes)
def test_the_windows_together_tell_all_that_is_allocated(allocated, sizes):
    if sizes[-1] < 100:
        sizes.append(100)
    assert normalise(areas(server(allocated, sizes), CAPACITY), CAPACITY) == normalise(allocated, CAPACITY)


def test_an_empty_window_is_not_the_end():
    answers = {0: window(0, 4_000), 4_000: window(4_000, 6_000, (9_000, 500))}
    assert list(areas(answers.__getitem__, CAPACITY)) == [(9_000, 500)]


def test_areas_may_overlap_and_exceed_the_disk():
    found = areas(lambda _offset: window(0, CAPACITY, (9_000, 5_000), (100, 50), (120, 100)), CAPACITY)
    assert normalise(found, CAPACITY) == [(100, 120), (9_000, 1_000)]


def test_a_window_without_a_list_is_empty():
    found = areas(lambda _offset: SimpleNamespace(startOffset=0, length=CAPACITY, changedArea=None), CAPACITY)
    assert list(found) == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(window(0, 0), id="a window that leads nowhere"),
        pytest.param(window(0, -1), id="a window of negative length"),
        pytest.param(window(512, CAPACITY), id="a window that begins elsewhere"),
        pytest.param(window(0, CAPACITY, (100, -1)), id="an area of negative length"),
        pytest.param(window(0, CAPACITY, (-1, 100)), id="an area before the disk"),
    ],
)
def test_nonsense_is_an_error_and_not_an_endless_loop(answer):
    with pytest.raises(SendenseError, match="change tracking"):
        list(areas(lambda _offset: answer, CAPACITY))
