# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
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


_HIDDEN = """
import os, subprocess, sys
from pathlib import Path
from ansible_collections.sendense.backup.plugins.plugin_utils import controller

subprocess.run(["mount", "-t", "proc", "-o", f"hidepid={sys.argv[1]}", "proc", "/proc"], check=True)
process = subprocess.Popen(["sleep", "60"])
name = controller.identity(process.pid)

def ask():
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    print(os.access(f"/proc/{process.pid}/stat", os.R_OK), controller.is_gone(name), flush=True)
    os._exit(0)

ask()
process.kill()
process.wait()
ask()
"""


@pytest.mark.parametrize("hidepid", ["1", "2"])
def test_a_run_of_another_user_that_proc_hides_is_not_gone_before_it_has_ended(hidepid):
    own_processes = ["unshare", "--mount", "--pid", "--fork"]  # a /proc of its own belongs to these
    if os.geteuid() != 0 or subprocess.run([*own_processes, "true"], check=False).returncode:
        pytest.skip("only root can hide processes, where namespaces are to be had")
    told = subprocess.run(
        [*own_processes, sys.executable, "-c", _HIDDEN, hidepid],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.stdout.splitlines(), told.stderr) == (["False False", "False True"], "")


def test_playbooks_ask_by_this_name():
    assert Plugin().tests() == {"gone_controller": controller.is_gone}
