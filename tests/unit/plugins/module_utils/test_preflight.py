# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import preflight
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("seconds", "state"),
    [(0, "ok"), (-29, "ok"), (31, "warning"), (-299, "warning"), (301, "failed"), (-3600, "failed")],
)
def test_a_clock_may_be_off_a_little(seconds, state):
    assert preflight.skew("clock", "the node's", seconds).state == state


def test_it_is_said_which_clock_is_ahead():
    assert preflight.skew("clock", "the node's", 3600).seen == "3600 s ahead of the node's"
    assert preflight.skew("clock", "the node's", -3600).seen == "3600 s behind the node's"


@pytest.mark.parametrize(("left", "state"), [(10, "ok"), (9, "failed"), (0, "failed")])
def test_space_is_wanted_in_percent(left, state):
    check = preflight.free("space", "/backup", left * GIB, 100 * GIB, 10)
    assert check.state == state
    assert check.seen.startswith(f"{left} ")


def test_an_empty_file_system_is_no_division_by_zero():
    assert preflight.free("space", "/backup", 0, 0, 10).state == "failed"


def test_a_look_that_fails_is_a_check_that_failed():
    def look():
        raise SendenseError("there is none")

    assert preflight.attempt("tool", look, "get one") == [preflight.failed("tool", "there is none", "get one")]
    assert preflight.attempt("tool", lambda: preflight.ok("tool", "1.0"), "") == [preflight.ok("tool", "1.0")]


def test_a_report_tells_the_worst_first_and_all_of_it():
    checks = [
        preflight.ok("a", "is a|b"),
        preflight.warning("b", "soon", "renew"),
        preflight.failed("c", "is\ngone", "bring it back"),
    ]
    found = preflight.summary({"hub1": preflight.told(checks)}, {"made": "today"})
    assert (found["state"], found["count"]) == ("failed", {"ok": 1, "warning": 1, "failed": 1})
    assert found["lines"] == ["WARNING hub1: b: soon; renew", "FAILED hub1: c: is\ngone; bring it back"]
    text = found["markdown"]
    assert (
        text.index("| hub1 | c | is gone | bring it back |")
        < text.index("| hub1 | b |")
        < text.index(r"| hub1 | a | is a\|b |  |")
    )
    assert "- made: today" in text
    assert preflight.summary({"hub1": preflight.told(checks[:1])}, {})["state"] == "ok"


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (2048, "2 KiB"), (3 * GIB, "3 GiB"), (10 << 40, "10.0 TiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_are_said_as_a_person_does(number, words):
    assert preflight.size(number) == words
