# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal of one disk's copy: the ranges that need not be copied again, whatever dies.

A range enters it after an NBD flush that was issued when its write had returned. That holds for as long as the qemu-nbd
that flushed it lives, so the journal names the start of the export (systemd's InvocationID) and the snapshot that is
read; for another one it is worth nothing and begins anew.

The file is a header and then records of 20 bytes, each with its own checksum and on stable storage before it counts. What
follows the first record that is not whole was being written when the machine died, and is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from struct import Struct
from zlib import crc32

from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas, Range, normalise, widened

_MAGIC = b"SENDJNL1"
_HEADER = Struct(">8sQ32s")  # magic, capacity, SHA-256 of the identity
_RECORD = Struct(">QQ")  # offset, length
_SUM = Struct(">I")  # CRC-32 of what stands before it


class Journal:
    """The journal at *path* of a disk of *capacity* bytes; ``why`` tells why nothing is believed that was there.

    An empty *identity* means that nobody knows which start of the export is written to: nothing found is believed then.
    """

    def __init__(self, path: Path, identity: str, capacity: int) -> None:
        self._path, self._capacity = path, capacity
        self._header = _summed(_HEADER.pack(_MAGIC, capacity, sha256(identity.encode()).digest()))
        found, self.why = self._found() if identity else ([], "nobody knows which start of the export it was for")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(
            self._descriptor, len(self._header) + len(found) * (_RECORD.size + _SUM.size) if not self.why else 0
        )
        os.lseek(self._descriptor, 0, os.SEEK_END)
        if self.why:
            self._append(self._header)
            _sync_folder(path.parent)

    def done(self) -> Areas:
        """Return the ranges that are safe, merged and in order; read anew, for a fragmented disk has very many."""
        return Areas(widened(sorted(self._found()[0]), self._capacity))

    def _found(self) -> tuple[list[Range], str]:
        """Return the ranges that the file holds, and why it is not believed; empty when it is."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return [], "there is no journal"
        if not content.startswith(self._header):
            known = content.startswith(_MAGIC) and _whole(content[: len(self._header)])
            other = "its export, its snapshot or its digest is another one now"
            return [], other if known else "its journal is damaged"
        return list(self._records(content[len(self._header) :])), ""

    def _records(self, content: bytes) -> Iterator[Range]:
        size = _RECORD.size + _SUM.size
        for start in range(0, len(content) - size + 1, size):
            record = content[start : start + size]
            if not _whole(record):
                return
            offset, length = _RECORD.unpack_from(record)
            if not 0 < length <= self._capacity - offset:
                return
            yield offset, length

    def add(self, ranges: Iterable[Range]) -> None:
        """Note that *ranges* are safe; it counts when this returns."""
        ranges = normalise(ranges, self._capacity)
        if ranges:
            self._append(b"".join(_summed(_RECORD.pack(*each)) for each in ranges))

    def _append(self, data: bytes) -> None:
        os.write(self._descriptor, data)
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; it stays until the copy of the job is removed."""
        os.close(self._descriptor)


def _summed(content: bytes) -> bytes:
    return content + _SUM.pack(crc32(content))


def _whole(summed: bytes) -> bool:
    end = len(summed) - _SUM.size
    return end > 0 and _summed(summed[:end]) == summed


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
