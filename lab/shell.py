# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running the host's tools: argument lists in, text out, one sentence when they fail."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """What went wrong, as one sentence for the person at the shell."""


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    what: str | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a tool and return its stdout; a failure names `what` was tried and the tool's last words."""
    argv = [str(part) for part in command]
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,
            env=os.environ | (environment or {}),
            pass_fds=pass_fds,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed; `python3 -m lab deps` lists what the lab needs") from None
    if done.returncode:
        raise LabError(f"{what or ' '.join(argv)} failed: {last_words(done.stderr or done.stdout)}")
    return done.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether a tool exits with 0; its words do not matter."""
    return subprocess.run([str(part) for part in command], capture_output=True, check=False).returncode == 0


def last_words(text: str) -> str:
    """A tool's complaint on one line: its first errors where it marks them so, else its last lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(E|error|fatal)\b", line, re.IGNORECASE)]
    return " / ".join(errors[:2] or lines[-3:]) or "it said nothing"


def say(text: str) -> None:
    print(f"lab: {text}", flush=True)
