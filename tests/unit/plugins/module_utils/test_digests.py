# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import random
from hashlib import sha256

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, ZERO, LeafFile, Tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from hypothesis import given, settings
from hypothesis import strategies as st


def naive_root(leaves, capacity):
    """Return the root as the head of digests.py defines it, from the leaves of all cells."""
    nodes = list(leaves)
    while len(nodes) & (len(nodes) - 1):
        nodes.append(ZERO)
    while len(nodes) > 1:
        nodes = [
            ZERO if left == right == ZERO else sha256(b"\x01" + left + right).digest()
            for left, right in zip(nodes[::2], nodes[1::2], strict=True)
        ]
    return sha256(b"\x02" + capacity.to_bytes(8, "big") + nodes[0]).hexdigest()


def naive_leaves(data):
    cells = [data[start : start + CELL] for start in range(0, len(data), CELL)]
    return [sha256(cell).digest() if any(cell) else ZERO for cell in cells]


def leaf(seed):
    return sha256(str(seed).encode()).digest()


@st.composite
def disks(draw, most=1500):
    """Draw a number of cells and the leaves of those that are not zero, ascending."""
    count = draw(st.integers(1, most))
    numbers = draw(st.sets(st.integers(0, count - 1), max_size=40))
    return count, [(number, leaf(number)) for number in sorted(numbers)]


@given(disks(), st.integers(1, CELL))
@settings(max_examples=60)
def test_the_streamed_root_is_the_root_of_the_whole_tree(disk, last_cell):
    count, found = disk
    capacity = (count - 1) * CELL + last_cell
    every = [dict(found).get(number, ZERO) for number in range(count)]
    assert digests.tree(found, capacity).root == naive_root(every, capacity)
    assert digests.tree(enumerate(every), capacity).root == naive_root(every, capacity), "zero leaves may be listed"


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 511, 512, 513, 1025])
def test_the_root_where_levels_and_sections_begin(count):
    every = [leaf(number) for number in range(count)]
    assert digests.tree(enumerate(every), count * CELL).root == naive_root(every, count * CELL)


@pytest.mark.parametrize("size", [1, 512, CELL - 1, CELL, CELL + 1536, 3 * CELL])
def test_leaves_are_hashes_of_cells_and_zero_for_zero_cells(size):
    data = bytearray(random.Random(size).randbytes(size))
    data[:CELL] = bytes(min(size, CELL))
    if size > 2 * CELL:
        data[CELL : 2 * CELL] = bytes(CELL - 2) + b"\x01\x00"  # looks zero at both ends
    assert digests.leaves(memoryview(data)) == b"".join(naive_leaves(bytes(data)))


@pytest.mark.parametrize("algorithm", digests.ALGORITHMS)
def test_any_algorithm_makes_leaves_and_root(tmp_path, algorithm):
    """Of a disk of two cells, as anybody can compute it: 32 bytes of each digest count."""
    cells = [b"a" * CELL, b"b" * 512]

    def by_hand(data):
        return hashlib.new(algorithm, data).digest()[:32]

    found = digests.leaves(memoryview(b"".join(cells)), algorithm)
    assert found == by_hand(cells[0]) + by_hand(cells[1])
    top = by_hand(b"\x01" + found)
    told = digests.tree([(0, found[:32]), (1, found[32:])], CELL + 512, algorithm)
    assert told.root == by_hand(b"\x02" + (CELL + 512).to_bytes(8, "big") + top).hex()
    list(digests.write(tmp_path / "d", CELL + 512, [(0, found[:32])], algorithm))
    assert json.loads((tmp_path / "d").read_bytes().partition(b"\n")[0])["algorithm"] == told.algorithm == algorithm
    assert list(digests.read(tmp_path / "d")) == [(0, found[:32])]


def test_an_algorithm_that_nobody_knows_makes_nothing():
    with pytest.raises(SendenseError, match="^there are no digests by 'md5'; this version knows sha256, "):
        digests.leaves(memoryview(b"x"), "md5")


def test_the_root_of_an_empty_disk_depends_on_its_size():
    assert digests.tree([], CELL).root != digests.tree([], 2 * CELL).root
    assert digests.tree([], 100 << 30).sections == {}


@given(disks(), st.data())
@settings(max_examples=60)
def test_differences_name_the_sections_of_the_cells_that_changed_and_no_other(disk, data):
    count, found = disk
    capacity = count * CELL - 512
    changed = data.draw(st.sets(st.integers(0, count - 1), max_size=5))
    other = {**dict(found), **{number: leaf(f"new {number}") for number in changed}}
    one, two = digests.tree(found, capacity), digests.tree(sorted(other.items()), capacity)
    size = one.section_size
    expected = sorted({number * CELL // size * size for number in changed})
    assert digests.differences(one, two, capacity) == [(start, min(size, capacity - start)) for start in expected]
    assert len(one.sections) <= 256
    assert (one.root == two.root) == (not changed)


def test_a_cell_that_became_zero_is_a_difference():
    one, two = digests.tree([(3, leaf(3))], 8 * CELL), digests.tree([], 8 * CELL)
    assert digests.differences(one, two, 8 * CELL) == [(3 * CELL, CELL)]


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 16)), max_size=12), st.randoms())
@settings(max_examples=40)
def test_a_leaf_file_takes_leaves_in_any_order(tmp_path_factory, batches, shuffled):
    expected = {start + each: leaf(start + each) for start, count in batches for each in range(count)}
    shuffled.shuffle(batches)
    kept = LeafFile(tmp_path_factory.mktemp("leaves") / "leaves")
    for start, count in batches:
        kept.put(start * CELL, b"".join(leaf(start + each) for each in range(count)))
    found = list(kept)
    kept.close()
    assert [number for number, _leaf in found] == sorted({number for number, _leaf in found})
    assert {number: each for number, each in found if each != ZERO} == expected


def test_a_leaf_file_of_zeroes_is_empty_however_large_the_disk(tmp_path):
    kept = LeafFile(tmp_path / "leaves")
    kept.put(1 << 40, ZERO * 16)
    assert list(kept) == []
    assert (tmp_path / "leaves").stat().st_size == 0
    kept.put(1 << 40, ZERO + leaf(1))
    assert (tmp_path / "leaves").stat().st_blocks <= 16
    assert [each for each in kept if each[1] != ZERO] == [((1 << 24) + 1, leaf(1))]
    kept.close()


def test_what_is_written_to_a_digests_file_is_read_from_it(tmp_path):
    found = [(0, leaf(0)), (1, ZERO), (7, leaf(7)), (1 << 33, leaf(9))]
    assert list(digests.write(tmp_path / "d", 1 << 50, found)) == found, "they are passed on as they come"
    assert list(digests.read(tmp_path / "d")) == [each for each in found if each[1] != ZERO]
    header, _newline, records = (tmp_path / "d").read_bytes().partition(b"\n")
    assert json.loads(header) == {
        "format": 1, "algorithm": "sha256", "cell": 65536, "capacity": 1 << 50, "unlisted": "zero",
    }  # fmt: skip
    assert records == b"".join(number.to_bytes(8, "big") + b"\x01" + each for number, each in found if each != ZERO)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "is not a digest file", id="an empty file"),
        pytest.param(b"\x00\x01\x02\n", "is not a digest file", id="another file"),
        pytest.param(b"[]\n", "is not a digest file", id="JSON that is no object"),
        pytest.param(b'{"format": 2, "algorithm": "sha256", "cell": 65536}\n', "is not a digest", id="a newer format"),
        pytest.param(b'{"format": 1, "algorithm": "sha256", "cell": 4096}\n', "is not a digest", id="another grid"),
        pytest.param(
            b'{"format": 1, "algorithm": "blake3", "cell": 65536}\n',
            "holds digests by 'blake3', and this version knows sha256, sha512, sha3_256, blake2b; read it",
            id="another algorithm",
        ),
        pytest.param(b'{"format": 1, "algorithm": "sha256", "cell": 65536}\n123', "is cut short", id="a torn record"),
    ],
)
def test_what_is_no_digests_file_is_refused(tmp_path, content, sentence):
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(SendenseError, match=sentence):
        list(digests.read(tmp_path / "d"))


def test_a_tree_names_how_much_of_the_disk_a_section_covers():
    assert digests.tree([], 256 * CELL) == Tree(root=digests.tree([], 256 * CELL).root, section_size=CELL, sections={})
    assert digests.tree([], 257 * CELL).section_size == 2 * CELL
    assert digests.tree([], 20 << 30).section_size == (20 << 30) // 160 // CELL * CELL  # 327,680 cells: 2^19, 2^11 each
