# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import unprivileged


def fail(why):
    raise why


def test_what_is_returned_and_raised_crosses_over():
    assert unprivileged.run("nobody", lambda: {"a": [1, "Ü"]}) == {"a": [1, "Ü"]}
    with pytest.raises(Refused, match="no such path"):
        unprivileged.run("nobody", lambda: fail(Refused("no such path")))
    with pytest.raises(SendenseError, match="^No such file or directory: /nowhere$"):
        unprivileged.run("nobody", lambda: Path("/nowhere").read_text())


def test_what_is_done_is_not_done_as_root(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    seen = unprivileged.run("nobody", lambda: [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()])
    if os.geteuid():
        assert seen[0] == os.getuid()
        return
    assert 0 not in (*seen[:3], *seen[3])
    with pytest.raises(SendenseError, match="Permission denied"):
        unprivileged.run("nobody", (tmp_path / "secret").read_text)
    with pytest.raises(SendenseError, match="Operation not permitted"):
        unprivileged.run("nobody", lambda: os.setuid(0))
    with pytest.raises(Refused, match="there is no user no-such-user on this host"):
        unprivileged.run("no-such-user", os.getuid)


def test_a_process_that_dies_is_said_so():
    with pytest.raises(SendenseError, match="ended with signal 9, without an answer"):
        unprivileged.run("nobody", lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_it_ends_with_us(tmp_path):
    words = (
        "import os, sys, time; from ansible_collections.sendense.backup.plugins.module_utils.repository import unprivileged\n"
        "unprivileged.run('nobody', lambda: (print(os.getpid(), flush=True), time.sleep(600)))"
    )
    path = next(each for each in sys.path if each.endswith("collections"))
    process = subprocess.Popen(
        [sys.executable, "-c", words], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
