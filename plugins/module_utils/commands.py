# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a program and have what it said when it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

Command = list[str]


class CommandFailed(SendenseError):
    """A program ended with a code other than 0; the message is its name and its last words, ``said`` is all of them."""

    def __init__(self, command: Sequence[str], returncode: int, stderr: str) -> None:
        self.returncode, self.said = returncode, stderr
        super().__init__(f"{command[0]} failed: {last_words(stderr) or f'exit code {returncode}, no output'}")


def last_words(text: str, lines: int = 3) -> str:
    """Return the last *lines* of a program's output as one line, without those that are empty or told already."""
    return " / ".join(list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))[-lines:])


def run(command: Sequence[str], timeout: float | None = 60) -> str:
    """Run *command* and return its standard output.

    Raises CommandFailed for an exit code other than 0, SendenseError when it is missing or takes longer than
    *timeout* seconds (None: no limit).
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False)
    except FileNotFoundError:
        raise SendenseError(f"{command[0]} is not installed on this host; run the provision playbook") from None
    except subprocess.TimeoutExpired:
        raise SendenseError(f"{command[0]} did not end within {timeout:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        raise CommandFailed(command, done.returncode, done.stderr or done.stdout)
    return done.stdout
