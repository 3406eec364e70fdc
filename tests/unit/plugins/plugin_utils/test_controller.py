# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
import sys

import pytest
from ansible_collections.sendense.backup.plugins.plugin_utils import controller
from ansible_collections.sendense.backup.plugins.test.gone_controller import TestModule as Plugin


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as found:
        yield found
        found.kill()


def test_a_run_that_lives_is_not_gone(process):
    assert not controller.is_gone(controller.identity(process.pid))
    assert not controller.is_gone(controller.parent())


def test_a_run_that_ended_is_gone(process):
    identity = controller.identity(process.pid)
    process.kill()
    process.wait()
    assert controller.is_gone(identity)


def test_another_process_with_the_same_pid_is_not_the_run(process):
    *where, pid, start = controller.identity(process.pid).split("/")
    assert controller.is_gone("/".join([*where, pid, str(int(start) - 1)]))


def test_a_run_that_was_gone_when_it_was_named_is_gone(process):
    process.kill()
    process.wait()
    assert controller.is_gone(controller.identity(process.pid))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda boot, space, pid, start: ["other-boot", space, pid, start], id="another machine or boot"),
        pytest.param(lambda boot, space, pid, start: [boot, "1", pid, start], id="another container"),
        pytest.param(lambda boot, space, pid, start: [boot, space, "x", start], id="no pid"),
        pytest.param(lambda boot, space, pid, start: [boot, space, pid], id="a part is missing"),
        pytest.param(lambda *_parts: [""], id="nobody was named"),
    ],
)
def test_what_cannot_be_known_from_here_is_not_taken_as_gone(process, change):
    identity = controller.identity(process.pid)
    process.kill()
    process.wait()
    assert controller.is_gone(identity)
    assert not controller.is_gone("/".join(change(*identity.split("/"))))


def test_a_process_whose_name_has_spaces_and_brackets_is_read(tmp_path):
    odd = tmp_path / "a) b (c"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as process:
        try:
            assert not controller.is_gone(controller.identity(process.pid))
            assert controller.identity(process.pid).split("/")[3].isdigit()
        finally:
            process.kill()


def test_playbooks_ask_by_this_name():
    assert Plugin().tests() == {"gone_controller": controller.is_gone}
