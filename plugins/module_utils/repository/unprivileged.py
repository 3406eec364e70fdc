# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work that the service user does in a process of its own, which ends when we do."""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.files import owner

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  # prctl(2)


def run(user: str, work: Callable[[], Any]) -> Any:
    """Return what *work* returns, as JSON carries it, done as *user*; as ourselves where we are not root.

    What it raises is raised here. Raises SendenseError when its process ends without an answer.
    """
    if os.geteuid() == 0:
        owner(user)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(writer, user, work)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    _pid, status = os.waitpid(child, 0)
    try:
        answer = json.loads(said)
    except ValueError:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.waitstatus_to_exitcode(status)}"
        raise SendenseError(f"reading the guest's disks ended with {how}, without an answer") from None
    if "failure" in answer:
        raise (Refused if answer["refused"] else SendenseError)(answer["failure"])
    return answer["result"]


def _work(writer: int, user: str, work: Callable[[], Any]) -> NoReturn:
    answer: dict[str, Any]
    code = 1
    try:
        _become(user)
        try:
            answer = {"result": work()}
        except FAILURES as why:
            answer = {"failure": sentence(why), "refused": isinstance(why, Refused)}
        with os.fdopen(writer, "wb") as stream:
            stream.write(json.dumps(answer).encode())
        code = 0
    except BaseException as why:  # nothing of the parent's stack may go on here
        sys.stderr.write(f"{why}\n")
    finally:
        os._exit(code)


def _become(user: str) -> None:
    """Drop what root may do, for good; afterwards, or it would be forgotten, ask to end with our parent."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    if os.geteuid() == 0:
        found = pwd.getpwnam(user)
        os.initgroups(user, found.pw_gid)
        os.setgid(found.pw_gid)
        os.setuid(found.pw_uid)
        os.environ.update(HOME=found.pw_dir, USER=user, LOGNAME=user)
    os.chdir("/")
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(_PR_SET_DUMPABLE, 1)  # or /dev/fd would stay root's
    if os.getppid() != parent:
        os._exit(1)
