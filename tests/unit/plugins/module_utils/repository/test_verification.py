# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import (
    flatten,
    manifest,
    point,
    proof,
    scan,
    verification,
)
from ansible_collections.sendense.backup.plugins.module_utils.repository.verification import LEVELS

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, POINT, CHILD = "pgtest1-5029f3ab-20261123T140102Z", "20261123T140102Z", "20261124T140102Z"
DISKS = {2000: (2 << 20) + 1536, 16000: 1 << 20}
FLIPS = {"data": 160, "tables": 120, "digests": 100, "manifest": 140}


@pytest.fixture
def published(repository, finished, leases):
    """Return the folder of a published point of two disks."""
    return point.publish(repository, finished(JOB), leases)


def verify(repository, level="data", wanted=POINT):
    return verification.verify(repository, UUID, wanted, level)


def sentences(repository, level="data", wanted=POINT):
    return [each.sentence for each in verify(repository, level, wanted)]


def flip(path, position, bit):
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def data_places(path):
    """Return where in an image data lies: (position in the file, offset on the disk, length)."""
    return [(each.position, each.offset, each.length) for each in scan.extents(path) if each.inline]


@pytest.mark.parametrize("level", LEVELS[:3])
def test_a_point_as_it_was_published_is_good(repository, published, level):
    assert verify(repository, level) == []


def test_a_point_is_verified_by_what_its_manifest_says(repository, finished, leases):
    folder = point.publish(repository, finished(JOB, "blake2b"), leases)
    said = json.loads((folder / manifest.FILE).read_text())
    assert [disk["digest_algorithm"] for disk in said["disks"]] == ["blake2b", "blake2b"]
    assert verify(repository) == []
    disk = flatten.disks(repository, UUID, said, [16000])[0]
    assert proof.root(disk.image, disk.capacity, "qcow2", disk.algorithm) == disk.root
    position, _offset, _length = data_places(folder / "disk-16000.qcow2")[0]
    flip(folder / "disk-16000.qcow2", position, 3)
    assert [(each.disk, each.what) for each in verify(repository)] == [(16000, "it does not hold what was backed up")]


def test_every_single_flipped_bit_is_caught_and_its_place_named(repository, published):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    places = {key: data_places(published / f"disk-{key}.qcow2") for key in DISKS}
    kinds = [kind for kind, count in FLIPS.items() for _each in range(count)]
    for kind in kinds:
        key = chance.choice(list(DISKS))
        path = published / {"digests": f"disk-{key}.digests", "manifest": manifest.FILE}.get(kind, f"disk-{key}.qcow2")
        at, bit, disk_byte = chance.randrange(len(before[path.name])), chance.randrange(8), None
        if kind == "data":
            position, offset, length = chance.choice(places[key])
            within = chance.randrange(length)
            at, disk_byte = position + within, offset + within
        while kind == "tables" and any(start <= at < start + length for start, _offset, length in places[key]):
            at = chance.randrange(len(before[path.name]))
        flip(path, at, bit)
        found = verify(repository)
        told = f"seed {seed}: bit {bit} of byte {at} of {path.name} ({kind}): {[each.sentence for each in found]}"
        assert found, told
        assert all(each.point == POINT and each.ranges for each in found), told
        assert {each.disk for each in found} == {None if kind == "manifest" else key}, told
        named = [each for each in found if each.file == path.name]
        assert any(covers(each, at, disk_byte, DISKS[key]) for each in named), told
        if kind == "data":
            cell = disk_byte // CELL * CELL
            assert [each.ranges for each in found] == [[(cell, min(CELL, DISKS[key] - cell))]], told
        assert path.read_bytes() != before[path.name], "nothing was repaired"
        flip(path, at, bit)
    assert verify(repository) == []
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before


def covers(finding, at, disk_byte, size):
    if finding.of_file:
        return any(offset <= at < offset + length for offset, length in finding.ranges)
    wanted = range(size) if disk_byte is None else range(disk_byte, disk_byte + 1)
    return any(offset < wanted.stop and wanted.start < offset + length for offset, length in finding.ranges)


def test_a_flipped_bit_in_the_data_is_told_in_one_sentence(repository, published):
    position, offset, _length = data_places(published / "disk-16000.qcow2")[0]
    flip(published / "disk-16000.qcow2", position + CELL + 5, 3)
    cell = offset + CELL
    assert sentences(repository) == [
        f"restore point {POINT}, disk 16000, bytes {cell}-{cell + CELL - 1} of the disk: it does not hold what was backed up"
    ]
    assert sentences(repository, "image") == [], "only reading the data tells"


def test_a_truncated_image_is_seen_at_the_first_level(repository, published):
    path = published / "disk-2000.qcow2"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 100_000)
    (told,) = sentences(repository, "metadata")
    assert told.startswith(
        f"restore point {POINT}, disk 2000, bytes {size - 100_000}-{size - 1} of the file disk-2000.qcow2: "
    )
    assert any("disk 2000" in each for each in sentences(repository))


def test_swapped_images_of_disks_are_both_named(repository, published):
    one, other = published / "disk-2000.qcow2", published / "disk-16000.qcow2"
    one.rename(published / "x"), other.rename(one), (published / "x").rename(other)
    for level in LEVELS[:3]:
        assert {each.disk for each in verify(repository, level)} == set(DISKS)


def test_swapped_images_of_one_size_are_seen_by_their_data(repository, finished, leases, monkeypatch):
    monkeypatch.setitem(finished.__globals__["DISKS"], 2000, DISKS[16000])
    folder = point.publish(repository, finished(JOB), leases)
    for kind in ("qcow2", "digests"):
        one, other = (folder / f"disk-{key}.{kind}" for key in (2000, 16000))
        one.rename(folder / "x"), other.rename(one), (folder / "x").rename(other)
    assert {each.disk for each in verify(repository)} == {2000, 16000}


@pytest.mark.parametrize("name", ["disk-2000.qcow2", "disk-16000.digests", "manifest.json"])
def test_a_file_that_is_gone_is_named(repository, published, name):
    (published / name).unlink()
    for level in LEVELS[:3]:
        assert any(each.file == name for each in verify(repository, level))


def test_an_image_behind_a_link_is_not_opened(repository, published, tmp_path):
    (published / "disk-2000.qcow2").rename(tmp_path / "x")
    (published / "disk-2000.qcow2").symlink_to(tmp_path / "x")
    assert any("not there as a plain file" in each for each in sentences(repository))


@pytest.mark.parametrize(("change", "told"), [
    pytest.param(lambda said: said["disks"][0].update(root="0" * 64), "the root .* where the manifest says 0000", id="root"),
    pytest.param(
        lambda said: said["disks"][0].update(digest_algorithm="sha512"),
        "its digests are by sha256, where the manifest says sha512", id="another algorithm",
    ),
    pytest.param(lambda said: said["files"]["disk-2000.qcow2"].update(sha256="0" * 64), "disk 2000", id="digest of a file"),
    pytest.param(lambda said: said.update(point=CHILD), f"that of point {CHILD}", id="the manifest of another point"),
    pytest.param(lambda said: said["files"].pop("disk-2000.digests"), "does not list disk-2000.digests", id="a file unlisted"),
    pytest.param(lambda said: said.pop("disks"), "lacks or misspells 'disks'", id="no disks"),
    pytest.param(lambda said: said["disks"][0].update(provisioned=512), "its header says", id="another size"),
])  # fmt: skip
def test_a_manifest_that_says_something_else_is_seen_even_with_a_right_seal(repository, published, change, told):
    said = json.loads((published / manifest.FILE).read_text())
    change(said)
    (published / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
    assert re.search(told, " ".join(sentences(repository)))


def test_a_manifest_without_a_seal_is_damaged(repository, published):
    said = json.loads((published / manifest.FILE).read_text())
    del said[manifest.SEAL]
    (published / manifest.FILE).write_text(manifest.text(said))
    assert "does not say its own digest (manifest_sha256)" in sentences(repository, "metadata")[0]


def test_the_seal_can_be_checked_by_hand(published):
    said = json.loads((published / manifest.FILE).read_text())
    by_hand = f"grep -v '\"{manifest.SEAL}\"' manifest.json | sha256sum"
    found = subprocess.run(by_hand, shell=True, cwd=published, capture_output=True, text=True, check=True).stdout
    assert found.split()[0] == said[manifest.SEAL]


@pytest.fixture
def child(repository, published):
    """Return the folder of a point whose disk 2000 stands on the published one, with one cell changed and one cleared."""
    folder = published.with_name(CHILD)
    folder.mkdir()
    said = json.loads((published / manifest.FILE).read_text())
    (disk,) = (each for each in said["disks"] if each["key"] == 2000)
    path = folder / "disk-2000.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"../{POINT}/disk-2000.qcow2"]
    subprocess.run([*make, path.name], cwd=folder, check=True)
    write = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 {CELL} {CELL}", "-c", f"write -q -z {3 * CELL} {CELL}"]
    subprocess.run([*write, path], check=True)
    listed = [(1, digests.leaves(memoryview(b"\7" * CELL)))]
    kept = dict(digests.read(published / "disk-2000.digests")) | dict(listed)
    del kept[3]
    header, record = (published / "disk-2000.digests").read_bytes().splitlines()[0], digests._RECORD
    lines = [record.pack(*listed[0][:1], 1, listed[0][1]), record.pack(3, 0, digests.ZERO)]
    (folder / "disk-2000.digests").write_bytes(header.replace(b'"zero"', b'"parent"') + b"\n" + b"".join(lines))
    root = digests.tree(sorted(kept.items()), DISKS[2000]).root
    disk |= {"type": "incremental", "parent": POINT, "root": root}
    facts = {each.name: point._file_facts(each) for each in folder.glob("disk-*")}
    content = said | {"point": CHILD, "type": "incremental", "parent": POINT, "disks": [disk], "files": facts}
    (folder / manifest.FILE).write_text(manifest.text(manifest.sealed(content)))
    return folder


@pytest.mark.parametrize("level", LEVELS[:3])
def test_an_incremental_point_is_good_with_all_that_it_stands_on(repository, child, level):
    assert sentences(repository, level, CHILD) == []


def test_damage_in_the_parent_is_told_of_the_parent(repository, published, child):
    position, offset, _length = data_places(published / "disk-2000.qcow2")[0]
    flip(published / "disk-2000.qcow2", position, 0)
    (told,) = sentences(repository, "data", CHILD)
    assert told.startswith(f"restore point {POINT}, disk 2000, bytes {offset}-{offset + CELL - 1} of the disk")


def test_damage_in_the_child_is_told_of_the_child_alone(repository, published, child):
    position, _offset, _length = data_places(child / "disk-2000.qcow2")[0]
    flip(child / "disk-2000.qcow2", position, 0)
    (told,) = sentences(repository, "data", CHILD)
    assert told.startswith(f"restore point {CHILD}, disk 2000, bytes {CELL}-{2 * CELL - 1} of the disk")
    assert sentences(repository, "data", POINT) == []


@pytest.mark.parametrize("damage", [
    pytest.param(shutil.rmtree, id="the parent is gone"),
    pytest.param(lambda parent: (parent / "disk-2000.qcow2").unlink(), id="its image is gone"),
    pytest.param(lambda parent: flip(parent / "manifest.json", 40, 1), id="its manifest is damaged"),
])  # fmt: skip
def test_a_chain_that_is_not_whole_is_seen_at_the_first_level(repository, published, child, damage):
    damage(published)
    assert all(f"restore point {POINT}" in each for each in sentences(repository, "metadata", CHILD))
    assert verify(repository, "metadata", CHILD)


def test_a_cell_recorded_as_data_that_reads_as_zero_is_seen(repository, published):
    path = published / "disk-16000.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -z {2 * CELL} {CELL}", path], check=True)
    said = json.loads((published / manifest.FILE).read_text())
    said["files"][path.name] = point._file_facts(path)  # even if the file were as published
    (published / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
    (found,) = verify(repository)
    assert (found.disk, found.ranges) == (16000, [(2 * CELL, CELL)])


def test_a_compressed_image_is_read_through_qemu(repository, published):
    path = published / "disk-16000.qcow2"
    command = ["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", path, published.parent / "x"]
    subprocess.run(command, check=True)
    (published.parent / "x").rename(path)
    said = json.loads((published / manifest.FILE).read_text())
    said["files"][path.name] = point._file_facts(path)
    (published / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
    assert sentences(repository) == []
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 9 {5 * CELL} 512", path], check=True)
    said["files"][path.name] = point._file_facts(path)
    (published / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
    assert [each.ranges for each in verify(repository)] == [[(5 * CELL, CELL)]]


def test_what_is_no_point_is_refused(repository, published):
    with pytest.raises(Refused, match="is not a restore point"):
        verify(repository, wanted="../x")


def test_a_digest_file_is_read_as_it_is(published, tmp_path):
    path = published / "disk-2000.digests"
    records = scan.Records(path, DISKS[2000])
    assert list(records) == list(digests.read(path))
    assert [number for number, _leaf in records.between(3, 6)] == [3, 4, 5]
    assert len(records) == -(-DISKS[2000] // CELL)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SendenseError, match="cut short"):
        scan.Records(tmp_path / "cut", DISKS[2000])
    with pytest.raises(SendenseError, match=f"is of a disk of {DISKS[2000]} bytes, not 512"):
        scan.Records(path, 512)
    (tmp_path / "empty").touch()
    with pytest.raises(SendenseError, match="not a digest file"):
        scan.Records(tmp_path / "empty", 512)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, (4 << 20) - 1, 4 << 20, (9 << 20) + 5])
def test_a_file_of_any_size_is_read_whole(tmp_path, size):
    (tmp_path / "f").write_bytes(random.Random(size).randbytes(size))
    found = scan.sha256_of(tmp_path / "f")
    command = ["sha256sum", tmp_path / "f"]
    assert found == subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
