# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.transfer.journal import Journal
from hypothesis import given
from hypothesis import strategies as st

SIZE = 100 << 20
THIS, OTHER = "5f3c snapshot-2 [ds] a.vmdk", "77aa snapshot-2 [ds] a.vmdk"


@pytest.fixture
def journal(tmp_path):
    """Return ``journal(identity=THIS, size=SIZE) -> Journal``, each opened where the last one was closed."""
    opened = []

    def open_it(identity=THIS, size=SIZE):
        for each in opened:
            each.close()
        opened[:] = [Journal(tmp_path / "disk-2000.journal", identity, size)]
        return opened[0]

    yield open_it
    for each in opened:
        each.close()


def test_what_entered_is_there_again_merged_and_in_order(journal):
    first = journal()
    assert (list(first.done()), first.why) == ([], "there is no journal")
    first.add([(2 << 20, 1 << 20), (1 << 20, 1 << 20)])
    first.add([(10 << 20, 5)])
    again = journal()
    assert (list(again.done()), again.why) == ([(1 << 20, 2 << 20), (10 << 20, 5)], "")
    again.add([(0, 1 << 20)])
    assert list(journal().done()) == [(0, 3 << 20), (10 << 20, 5)]


@pytest.mark.parametrize(
    ("identity", "size"), [(OTHER, SIZE), (THIS, SIZE + 512)], ids=["another export or snapshot", "another size"]
)
def test_what_was_written_to_something_else_is_not_believed(journal, identity, size):
    journal().add([(0, 1 << 20)])
    changed = journal(identity, size)
    assert (list(changed.done()), changed.why) == ([], "its export, its snapshot or its digest is another one now")
    assert not list(journal().done()), "nor does it come back"


def test_without_a_known_start_of_the_export_nothing_is_believed(journal):
    journal("").add([(0, 1 << 20)])
    assert not list(journal("").done())


@given(cut=st.integers(min_value=1, max_value=60), torn=st.binary(max_size=45))
def test_a_torn_tail_is_cut_off_and_written_over(tmp_path_factory, cut, torn):
    path = tmp_path_factory.mktemp("journal") / "disk-2000.journal"
    ranges = [(number << 20, 1 << 19) for number in range(5)]
    first = Journal(path, THIS, SIZE)
    for each in ranges:
        first.add([each])
    first.close()
    path.write_bytes(path.read_bytes()[:-cut] + torn)
    again = Journal(path, THIS, SIZE)
    whole = len(ranges) - -(-cut // 20)
    assert set(again.done()) <= set(ranges)
    assert list(again.done())[:whole] == ranges[:whole]
    again.add([(50 << 20, 1)])
    again.close()
    assert (50 << 20, 1) in list(Journal(path, THIS, SIZE).done())


def test_a_damaged_header_is_said(journal, tmp_path):
    journal().add([(0, 1 << 20)])
    path = tmp_path / "disk-2000.journal"
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert journal().why == "its journal is damaged"


@pytest.mark.parametrize("record", [(SIZE, 1), (0, 0), (0, SIZE + 1)])
def test_a_range_that_cannot_be_ends_the_reading(journal, record):
    begun = journal()
    begun._append(b"".join(map(_summed, (record, (0, 512)))))
    assert not list(journal().done())


def _summed(record):
    from ansible_collections.sendense.backup.plugins.module_utils.transfer import journal as module

    return module._summed(module._RECORD.pack(*record))
