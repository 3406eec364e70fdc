# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who runs a job: one ansible-playbook on one machine, named so that a later run can see whether it is gone."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str:
    """Return the name of that process: boot, process namespace, pid and start time, which never come together twice."""
    return "/".join([*_namespace(), str(pid), _start_time(pid) or "gone"])


def is_gone(identity: str) -> bool:
    """Whether the process of that name is proven gone; False when this machine, or this container, cannot know."""
    parts = identity.split("/")
    if len(parts) != 4 or parts[:2] != _namespace() or not parts[2].isdigit():
        return False
    started = _start_time(int(parts[2]))
    return not _exists(int(parts[2])) if started is None else started != parts[3]


def _namespace() -> list[str]:
    boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return [boot, str((_PROC / "self/ns/pid").stat().st_ino)]


def _start_time(pid: int) -> str | None:
    """Return field 22 of proc_pid_stat(5); None when there is no such process, or /proc hides it from us."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return stat.rpartition(")")[2].split()[19]


def _exists(pid: int) -> bool:
    """Whether there is such a process, also one of another user that /proc hides from us (hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parent() -> str:
    """Return the name of the ansible-playbook whose worker this is."""
    return identity(os.getppid())
