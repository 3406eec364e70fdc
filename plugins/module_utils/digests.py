# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The digest grid: a digest per 64 KiB cell of a disk, and the Merkle root over all of them.

H is the first 32 bytes of what one of ``ALGORITHMS`` makes of bytes: SHA-256 unless somebody wished another one. The leaf of
a cell is H(its bytes) (the last cell may be short), and ``ZERO`` for a cell whose bytes are all zero. A node is
H(0x01 ‖ left ‖ right), and ``ZERO`` where both children are; cells beyond the end are ``ZERO``. The root is
H(0x02 ‖ capacity as 8 bytes, big endian ‖ top node). So a root can be computed from the non-zero cells alone, in ascending
order and constant memory, however large the disk is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range

CELL = 64 * 1024
ZERO = bytes(32)
ALGORITHM = "sha256"
# hashlib has them everywhere, and their first 32 bytes stand against collisions as SHA-256 does
ALGORITHMS = (ALGORITHM, "sha512", "sha3_256", "blake2b")
FORMAT = 1

_SECTIONS_LOG2 = 8
_RECORD = Struct(">QB32s")  # cell number, 1 = data and 0 = zero, leaf
_ZERO_CELL = bytes(CELL)
_NODE = b"\x01"

Leaf = tuple[int, bytes]  # cell number, leaf
Hash = Callable[[Any], bytes]  # of anything with a buffer


@dataclass(frozen=True)
class Tree:
    """The root of a disk, and the nodes of one level of at most 256 sections that tell where two disks differ."""

    root: str  # hex
    section_size: int  # bytes of the disk that a section covers
    sections: dict[int, str]  # hex by section number; a section that is all zero is left out
    algorithm: str = ALGORITHM


def hashing(algorithm: str) -> Hash:
    """Return H of that algorithm. Raises SendenseError for one that is not ours."""
    if algorithm not in ALGORITHMS:
        raise SendenseError(f"there are no digests by {algorithm!r}; this version knows {', '.join(ALGORITHMS)}")
    new = getattr(hashlib, algorithm)
    return lambda data: new(data).digest()[:32]


def leaves(view: memoryview, algorithm: str = ALGORITHM) -> bytes:
    """Return the leaves of the cells in *view*, 32 bytes each, in order; *view* begins on the grid."""
    found, digest = bytearray(), hashing(algorithm)
    for start in range(0, len(view), CELL):
        cell = view[start : start + CELL]
        found += ZERO if is_zero(cell) else digest(cell)
    return bytes(found)


def is_zero(cell: memoryview) -> bool:
    """Whether every byte of *cell*, at most 64 KiB long, is zero."""
    # a first look at a few bytes spares most data the copy that the comparison makes
    return cell[0] == 0 and cell[-1] == 0 and cell.tobytes() == (_ZERO_CELL if len(cell) == CELL else bytes(len(cell)))


def tree(found: Iterable[Leaf], capacity: int, algorithm: str = ALGORITHM) -> Tree:
    """Return the tree of a disk of *capacity* bytes whose leaves, ascending, are *found*; cells left out are zero."""
    digest = hashing(algorithm)
    height = max(-(-capacity // CELL) - 1, 0).bit_length()
    fold = max(height - _SECTIONS_LOG2, 0)
    nodes: Iterable[Leaf] = (leaf for leaf in found if leaf[1] != ZERO)
    for _level in range(fold):
        nodes = _parents(nodes, digest)
    sections = list(nodes)
    top: Iterable[Leaf] = sections
    for _level in range(height - fold):
        top = _parents(top, digest)
    top_node = next(iter(top), (0, ZERO))[1]
    return Tree(
        root=digest(b"\x02" + capacity.to_bytes(8, "big") + top_node).hex(),
        section_size=CELL << fold,
        sections={number: node.hex() for number, node in sections},
        algorithm=algorithm,
    )


def _parents(nodes: Iterable[Leaf], digest: Hash) -> Iterator[Leaf]:
    """Yield the nodes one level up; *nodes* ascend, and those left out are ZERO."""
    waiting: Leaf | None = None
    for number, node in nodes:
        if waiting and number == waiting[0] + 1:
            yield number >> 1, digest(_NODE + waiting[1] + node)
            waiting = None
            continue
        if waiting:
            yield waiting[0] >> 1, digest(_NODE + waiting[1] + ZERO)
            waiting = None
        if number & 1:
            yield number >> 1, digest(_NODE + ZERO + node)
        else:
            waiting = number, node
    if waiting:
        yield waiting[0] >> 1, digest(_NODE + waiting[1] + ZERO)


def differences(one: Tree, other: Tree, capacity: int) -> list[Range]:
    """Return the ranges of the disk, as coarse as the sections, in which two trees differ."""
    numbers = sorted({number for number, _node in one.sections.items() ^ other.sections.items()})
    size = one.section_size
    return [(number * size, min(size, capacity - number * size)) for number in numbers]


class LeafFile:
    """Leaves in a sparse file, 32 bytes each at 32 times the cell number, so that they may come in any order; a hole is zero.

    With *keep* those that are there already stay.
    """

    def __init__(self, path: Path, algorithm: str = ALGORITHM, *, keep: bool = False) -> None:
        self.algorithm = algorithm
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o600)

    def put(self, offset: int, found: bytes) -> None:
        """Keep the leaves of the cells that begin at byte *offset* of the disk."""
        if found.count(0) != len(found):
            os.pwrite(self._descriptor, found, offset // CELL * 32)

    def __iter__(self) -> Iterator[Leaf]:
        end = os.fstat(self._descriptor).st_size
        position = 0
        while position < end:
            position = os.lseek(self._descriptor, position, os.SEEK_DATA) // 32 * 32
            hole = os.lseek(self._descriptor, position, os.SEEK_HOLE)
            while position < hole:
                block = os.pread(self._descriptor, min(1 << 20, hole - position), position)
                for start in range(0, len(block), 32):
                    yield (position + start) // 32, block[start : start + 32]
                position += len(block)

    def sync(self) -> None:
        """Have what was put on stable storage."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; it stays until it is removed."""
        os.close(self._descriptor)


def write(path: Path, capacity: int, found: Iterable[Leaf], algorithm: str = ALGORITHM) -> Iterator[Leaf]:
    """Write the leaves of a full disk to a ``.digests`` file (format: design, section 6), passing them on as they come.

    Cells that the file does not list are zero. The file is on stable storage when the iterator is exhausted.
    """
    header = {"format": FORMAT, "algorithm": algorithm, "cell": CELL, "capacity": capacity, "unlisted": "zero"}
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        for number, leaf in found:
            if leaf != ZERO:
                file.write(_RECORD.pack(number, 1, leaf))
            yield number, leaf
        file.flush()
        os.fsync(file.fileno())


def check_known(path: Path, algorithm: str) -> None:
    """Raise SendenseError when the digests in a file are by an algorithm that only another version knows."""
    if algorithm not in ALGORITHMS:
        raise SendenseError(
            f"{path} holds digests by {algorithm!r}, and this version knows {', '.join(ALGORITHMS)}; read it with the version "
            "of the collection that wrote it"
        )


def read(path: Path) -> Iterator[Leaf]:
    """Yield the leaves that a ``.digests`` file lists. Raises SendenseError for what is not one of ours."""
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline())
            known = (header["format"], header["cell"]) == (FORMAT, CELL)
            algorithm = header["algorithm"]
        except (ValueError, KeyError, TypeError):
            known, algorithm = False, ""
        if not known:
            raise SendenseError(f"{path} is not a digest file of format {FORMAT}")
        check_known(path, algorithm)
        while record := file.read(_RECORD.size):
            if len(record) < _RECORD.size:
                raise SendenseError(f"{path} is cut short")
            number, kind, leaf = _RECORD.unpack(record)
            yield number, leaf if kind else ZERO
