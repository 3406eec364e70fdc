# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.commands import CommandFailed, last_words, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError


def test_what_a_program_prints_is_returned():
    assert run(["printf", "one\ntwo"]) == "one\ntwo"


def test_a_failure_carries_the_last_words_of_the_program():
    with pytest.raises(CommandFailed, match=r"^sh failed: b / c / d$") as failed:
        run(["sh", "-c", "echo a; for word in a b c '' d; do echo $word >&2; done; exit 7"])
    assert failed.value.returncode == 7


def test_a_program_that_complains_on_standard_output_is_heard_too():
    with pytest.raises(CommandFailed, match=r"^sh failed: out$"):
        run(["sh", "-c", "echo out; exit 1"])


def test_a_silent_failure_has_at_least_its_code():
    with pytest.raises(CommandFailed, match=r"^false failed: exit code 1, no output$"):
        run(["false"])


def test_a_missing_program_says_what_to_do():
    with pytest.raises(SendenseError, match=r"^no-such-program is not installed on this host; run the provision"):
        run(["no-such-program"])


def test_a_program_that_hangs_is_given_up():
    with pytest.raises(SendenseError, match=r"^sleep did not end within 0 s: sleep 30$"):
        run(["sleep", "30"], timeout=0.1)


def test_output_that_is_no_text_does_no_harm():
    assert run(["printf", r"\377x"]) == "�x"


def test_last_words_are_one_line():
    assert last_words("a\n\n  b  \nc\nd\n") == "b / c / d"
    assert last_words("a\nb", 1) == "b"
    assert last_words("again\nagain\nb\n") == "again / b"
    assert not last_words(" \n")
