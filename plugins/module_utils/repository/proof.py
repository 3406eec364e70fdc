# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proof that an image holds what the source delivered: it is read again, past the page cache, and digested."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.commands import last_words
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, Leaf, Tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import normalise
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import (
    ALLOCATION,
    await_handshake,
    connect,
    data_ranges,
    read_ranges,
    unix_uri,
)

_READY_WITHIN = 10.0  # seconds
DIES_WITH_US = ["setpriv", "--pdeathsig=TERM", "--"]  # util-linux; else a killed task would leave a qemu-nbd for ever


def compare(path: Path, capacity: int, delivered: Tree | None, keep: Path) -> Tree:
    """Read the image, write its digests to *keep*, hold them against those of what was delivered, and return them.

    Where nobody knows what was delivered, they only say what there is. Raises SendenseError with the ranges that differ.
    """
    with served(path) as uri, connect(uri, contexts=(ALLOCATION,)) as handle:
        _check_size(path, handle, capacity)
        by = delivered.algorithm if delivered else digests.ALGORITHM
        found = digests.tree(digests.write(keep, capacity, _leaves(handle, capacity, by), by), capacity, by)
    if delivered and found.root != delivered.root:
        where = ", ".join(f"{offset}-{offset + length - 1}" for offset, length in _some(found, delivered, capacity))
        raise SendenseError(
            f"{path} does not hold what the source delivered; it differs within bytes {where or 'unknown'}"
        )
    return found


def root(path: Path, capacity: int, image_format: str, algorithm: str = digests.ALGORITHM) -> str:
    """Return the Merkle root of what an image of any format holds, read again from the disk.

    Where its file system has no direct I/O, the page cache is told to forget it first. Raises SendenseError when its size
    is not *capacity*.
    """
    try:
        can_prove(path)
        cache = "none"
    except OSError:
        cache = "writeback"
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with served(path, image_format, cache) as uri, connect(uri, contexts=(ALLOCATION,)) as handle:
        _check_size(path, handle, capacity)
        return digests.tree(_leaves(handle, capacity, algorithm), capacity, algorithm).root


def _check_size(path: Path, handle: Any, capacity: int) -> None:
    if handle.get_size() != capacity:
        raise SendenseError(f"{path} has {handle.get_size()} bytes where the disk has {capacity}")


def _some(found: Tree, delivered: Tree, capacity: int) -> list[tuple[int, int]]:
    return normalise(digests.differences(found, delivered, capacity), capacity)[:8]


def _leaves(handle: Any, capacity: int, algorithm: str) -> Iterator[Leaf]:
    """Yield the leaves of the cells that may hold data, in order."""
    for offset, view in read_ranges(handle, normalise(data_ranges(handle), capacity, CELL)):
        found = digests.leaves(view, algorithm)
        for start in range(0, len(found), 32):
            yield offset // CELL + start // 32, found[start : start + 32]


@contextmanager
def served(path: Path, image_format: str = "qcow2", cache: str = "none") -> Iterator[str]:
    """Serve the image read-only on a private socket, read by direct I/O unless said otherwise, and yield the URI."""
    with tempfile.TemporaryDirectory(prefix="sendense-proof-") as folder:
        socket = Path(folder) / "sock"
        command = [
            *DIES_WITH_US,
            "qemu-nbd",
            f"--format={image_format}",
            "--read-only",
            f"--cache={cache}",
            "--persistent",
            f"--socket={socket}",
            str(path),
        ]
        uri = unix_uri(str(socket), "")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                await_handshake(uri, lambda: _complaint(server, path), _READY_WITHIN)
                yield uri
            finally:
                server.terminate()


def can_prove(path: Path) -> None:
    """Raise OSError when the file system of *path* does not offer the direct I/O by which an image is read again."""
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))


def _complaint(server: subprocess.Popen[str], path: Path) -> str:
    if server.poll() is None:
        return ""
    said = last_words(server.stderr.read()) if server.stderr else ""
    return f"{path} cannot be read again: {said or 'qemu-nbd has ended'}"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a closed file, by which later readers see that it has not rotted."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
