# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Busy, Refused, failure, sentence


@pytest.mark.parametrize(
    ("why", "words"),
    [
        pytest.param(Refused("it would lose data"), "it would lose data", id="our own words"),
        pytest.param(OSError(30, "Read-only file system", "/r/x"), "Read-only file system: /r/x", id="of a file"),
        pytest.param(OSError(28, "No space left on device"), "No space left on device", id="of no file"),
        pytest.param(OSError("odd"), "odd", id="of no kind"),
    ],
)
def test_a_failure_is_one_sentence(why, words):
    assert isinstance(why, FAILURES)
    assert sentence(why) == words


def test_what_may_be_had_later_is_told_apart():
    assert failure(Busy("leased")) == {"msg": "leased", "busy": True}
    assert failure(Refused("never")) == {"msg": "never", "busy": False}
