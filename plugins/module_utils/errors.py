# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors whose text is the sentence an operator reads. Only a module's ``main`` turns them into a result."""

from __future__ import annotations

from typing import Any


class SendenseError(Exception):
    """A step failed; the message says what, on which VM or disk, the tool's own last words and what to do."""


class Refused(SendenseError):
    """The wish is not granted, because granting it would lose data or touch what is not ours."""


class Busy(Refused):
    """What is wished is held by others, and may be had once they have ended; who can wait asks again."""


FAILURES = (SendenseError, OSError)  # what a module's main turns into its message


def sentence(why: Exception) -> str:
    """Return a failure as the operator reads it: our own sentence, or what the system said and of which file."""
    if isinstance(why, OSError) and why.strerror:
        return f"{why.strerror}: {why.filename}" if why.filename else why.strerror
    return str(why)


def failure(why: Exception) -> dict[str, Any]:
    """Return a failure as a module's result: its sentence, and whether asking again later may help."""
    return {"msg": sentence(why), "busy": isinstance(why, Busy)}
