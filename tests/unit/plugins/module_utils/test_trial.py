# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from uuid import uuid4

from ansible_collections.sendense.backup.plugins.module_utils import extents, trial
from hypothesis import given
from hypothesis import strategies as st


@given(st.uuids().map(str))
def test_what_is_written_are_whole_sectors_apart_the_first_and_the_last_among_them(seed):
    pieces = trial.pieces(seed)
    assert pieces == extents.normalise(pieces, trial.CAPACITY)
    assert all(offset % 512 == length % 512 == 0 for offset, length in pieces)
    assert pieces[0][0] == 0
    assert sum(pieces[-1]) == trial.CAPACITY
    assert 1 << 20 < extents.total(pieces) < trial.CAPACITY / 2


def test_a_trial_has_its_own_content_and_always_the_same():
    one, other = str(uuid4()), str(uuid4())
    assert list(trial.content(one)) == list(trial.content(one))
    assert [(at, len(data)) for at, data in trial.content(one)] == trial.pieces(one)
    assert next(trial.content(one)) != next(trial.content(other))
