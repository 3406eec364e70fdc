# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.transfer.limit import Limit
from hypothesis import given, settings
from hypothesis import strategies as st


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def taken(rate, size, seconds, late):
    """Return the bytes that somebody takes in so many seconds who wakes up *late* each time."""
    clock = Clock()
    limit, sum_of_all, turn = Limit(rate, clock), 0, 0
    while clock.now < 1000 + seconds:
        if wait := limit.wait():
            clock.now += wait + late[turn % len(late)]
            turn += 1
            continue
        limit.take(size)
        sum_of_all += size
    return sum_of_all


@settings(max_examples=40)
@given(
    st.integers(1 << 20, 1 << 26), st.integers(1 << 17, 1 << 20), st.lists(st.floats(0, 0.01), min_size=1, max_size=9)
)
def test_over_30_seconds_it_holds_within_5_percent_however_late_one_wakes(rate, size, late):
    assert taken(rate, size, 30, late) == pytest.approx(rate * 30, rel=0.05)


def test_a_pause_is_not_made_good():
    clock = Clock()
    limit = Limit(1000, clock)
    limit.take(1000)
    assert limit.wait() == pytest.approx(1)
    clock.now += 3600
    limit.take(1000)
    limit.take(1000)
    assert limit.wait() == pytest.approx(1.5), "but for half a second"


def test_nothing_is_waited_for_at_first():
    assert Limit(1).wait() == 0
