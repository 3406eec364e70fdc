# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing files as root into folders that another user owns: whole or not at all, and never through a link."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused

Owner = tuple[int, int]  # uid, gid


def write(path: Path, content: bytes, *, mode: int, owner: Owner | None = None, durable: bool = False) -> None:
    """Write *content* to *path* with that mode and owner (None: ours), replacing what was there in one step.

    With *durable* it is on stable storage afterwards. What lies at the scratch name is removed, never written through:
    the folder may belong to a user who would have root write elsewhere.
    """
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if owner:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
    scratch.replace(path)
    if durable:
        sync(path.parent)


def give(path: Path, owner: Owner) -> None:
    """Give *path* to *owner*; of a link the link itself, never what it points to."""
    os.chown(path, *owner, follow_symlinks=False)


def owner(name: str) -> Owner:
    """Return who the user *name* of this host is. Raises Refused when there is no such user."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise Refused(f"there is no user {name} on this host") from None
    return user.pw_uid, user.pw_gid


def sync(path: Path) -> None:
    """Have a file or a folder on stable storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
