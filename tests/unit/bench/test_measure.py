# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from tests.bench.measure import BenchError, Measured, Result, Row, Rows, choose, interleaved, run


def row(name="one", measure=lambda: Measured([1.0])):
    return Row(name, "s", "≤ 1.05", measure)


def test_a_function_becomes_the_row_of_its_name():
    rows = Rows()

    @rows.row("s", "≤ 2")
    def copy_wall():
        return Measured([1.0])

    assert [(each.name, each.unit, each.aim) for each in rows.found] == [("copy_wall", "s", "≤ 2")]


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        pytest.param("", ["one", "two", "three"], id="nothing named is everything"),
        pytest.param("three,one", ["one", "three"], id="the bench keeps its order"),
        pytest.param(" two , ", ["two"], id="spaces and a last comma do not matter"),
    ],
)
def test_rows_are_chosen_by_name(only, chosen):
    assert [each.name for each in choose([row("one"), row("two"), row("three")], only)] == chosen


def test_a_name_that_is_no_row_is_refused_with_those_there_are():
    with pytest.raises(BenchError, match="there is no row four; the rows are one, two"):
        choose([row("two"), row("one")], "one,four")


def test_the_ratio_is_that_of_the_medians():
    found = Result(row(), Measured([9.0, 1.0, 2.0], [4.0, 5.0, 1.0], "than nbdcopy")).json()
    assert found == {
        "name": "one", "ours": 2.0, "other": 4.0, "ratio": 0.5, "unit": "s", "runs": 3, "note": "than nbdcopy",
    }  # fmt: skip


def test_without_another_ours_counts():
    found = Result(row(), Measured([240.123456])).json()
    assert (found["ours"], found["other"], found["ratio"]) == (240.1, None, None)


def test_nothing_is_divided_by_nothing():
    assert Result(row(), Measured([2.0], [0.0])).json()["ratio"] is None


def test_a_row_that_fails_has_the_reason_and_no_figures():
    def fail():
        raise BenchError("the lab is\n not up")

    found = run(row(measure=fail)).json()
    assert (found["ours"], found["other"], found["ratio"], found["runs"]) == (None, None, None, 0)
    assert found["note"] == "not measured: the lab is not up"


def test_the_table_shows_how_far_the_figures_lie_apart():
    line = Result(row(), Measured([1.0, 1.1, 0.9], [2.0])).line()
    assert line.split()[:6] == ["one", "1", "±", "10%", "2", "0.5"]


def test_turns_are_taken_in_turn():
    order = []

    def turn(name):
        order.append(name)
        return len(order)

    assert interleaved(2, lambda: turn("ours"), lambda: turn("other")) == [[1, 3], [2, 4]]
    assert order == ["ours", "other", "ours", "other"]
