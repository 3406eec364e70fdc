# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a restore point, and all that it stands on, still is what was published. It only reads, and repairs nothing.

Levels, each with those before it: ``metadata`` (manifest, chain, files, sizes), ``image`` (headers, qemu-img check) and
``data`` (every byte of every file, and every cell of every disk, against what was recorded). Level ``boot`` is boot.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, Leaf
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, gaps, normalise
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, manifest, scan
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository

LEVELS = ("metadata", "image", "data", "boot")
_SHOWN = 8  # ranges that a sentence names


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was published. Ranges are bytes: of the disk, or of the file where only that is known."""

    point: str
    disk: int | None  # device key; None: all of the point's
    file: str
    what: str
    ranges: Sequence[Range] = ()
    of_file: bool = False

    @property
    def sentence(self) -> str:
        """What the operator reads."""
        disk = "all of its disks" if self.disk is None else f"disk {self.disk}"
        told = ", ".join(f"{offset}-{offset + length - 1}" for offset, length in self.ranges[:_SHOWN])
        more = f" and {len(self.ranges) - _SHOWN} more ranges" if len(self.ranges) > _SHOWN else ""
        whose = f"bytes {told}{more} of {f'the file {self.file}' if self.of_file else 'the disk'}"
        return f"restore point {self.point}, {disk}, {whose}: {self.what}"

    @property
    def facts(self) -> dict[str, Any]:
        """The same as data."""
        return {
            "point": self.point, "disk": self.disk, "file": self.file, "what": self.what,
            "ranges": [list(each) for each in self.ranges], "of_file": self.of_file,
        }  # fmt: skip


@dataclass
class _Layer:
    """One image of a disk and what its own manifest says of it."""

    point: str
    folder: Path
    disk: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    findings: list[Finding] = field(default_factory=list)

    @property
    def key(self) -> int:
        return int(self.disk["key"])

    @property
    def capacity(self) -> int:
        return int(self.disk["provisioned"])

    @property
    def parent(self) -> str | None:
        return self.disk.get("parent") if self.disk["type"] != "full" else None

    @property
    def algorithm(self) -> str:
        return manifest.algorithm(self.disk)

    @property
    def image(self) -> Path:
        return self.folder / manifest.image_file(self.key)

    @property
    def digests(self) -> Path:
        return self.folder / manifest.digest_file(self.key)

    def find(self, what: str, *, file: Path | None = None, ranges: Sequence[Range] = (), of_file: bool = False) -> None:
        """Note a finding; without *ranges* the whole disk is meant."""
        name = (file or self.image).name
        found = ranges or [(0, self.capacity)]
        self.findings.append(Finding(self.point, self.key, name, what, found, of_file=of_file))


def verify(repository: Repository, instance_uuid: str, point: str, level: str) -> list[Finding]:
    """Return what is wrong with a published point, and with what it stands on; nothing when all is as published.

    Raises Refused for what is no name of a point or VM.
    """
    folder = repository.published_folder(instance_uuid, point)
    rank = LEVELS.index(level)
    try:
        manifest.check_seal(folder)
        said = manifest.load(folder)
        keys = [int(disk["key"]) for disk in said["disks"]]
        chains = {key: _layers(repository, instance_uuid, point, key) for key in keys}
        others = {name: facts for name, facts in said["files"].items() if not name.startswith("disk-")}
        if said["point"] != point:
            raise SendenseError(f"its manifest is that of point {said['point']}")
    except _Lost as lost:
        return [lost.finding]
    except (*FAILURES, KeyError, TypeError, ValueError, AttributeError) as why:
        told = sentence(why) if isinstance(why, FAILURES) else f"its manifest lacks or misspells {why}"
        return [
            Finding(
                point, None, manifest.FILE, f"{told}; nothing that it says can be relied on", _all(folder), of_file=True
            )
        ]
    findings = [each for name, facts in others.items() for each in _other(point, folder / name, facts, rank)]
    for layers in chains.values():
        _disk(layers, rank)
        findings += [each for layer in layers for each in layer.findings]
    if findings and not folder.is_dir():
        raise SendenseError(f"restore point {point} of VM {instance_uuid} was removed while it was verified")
    return findings


def _all(folder: Path) -> list[Range]:
    """Return the whole manifest as a range, of one byte where there is none."""
    path = folder / manifest.FILE
    return [(0, max(1, path.stat().st_size if path.is_file() else 1))]


class _Lost(Exception):
    """A chain that leads nowhere: what it is, as a finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.sentence)
        self.finding = finding


def _layers(repository: Repository, instance_uuid: str, point: str, key: int) -> list[_Layer]:
    """Return the layers of a disk, newest first, by their manifests alone. Raises _Lost for a parent that is not whole."""
    found: list[_Layer] = []
    wanted: str | None = point
    while wanted is not None:
        folder = repository.published_folder(instance_uuid, wanted)
        try:
            if any(each.point == wanted for each in found):
                raise SendenseError("it stands on itself")
            manifest.check_seal(folder)
            said = manifest.load(folder)
            disk = next((each for each in said["disks"] if each["key"] == key), None)
            if disk is None:
                raise SendenseError("its manifest knows no such disk")
            if disk["type"] != "full" and not disk.get("parent"):
                raise SendenseError("its manifest does not say what it stands on")
            layer = _Layer(wanted, folder, disk, said["files"])
            capacity = layer.capacity
        except FAILURES as why:
            needed = "" if wanted == point else f", on which restore point {point} stands"
            size = found[0].capacity if found else 1
            raise _Lost(Finding(wanted, key, manifest.FILE, f"{sentence(why)}{needed}", [(0, size)])) from None
        found.append(layer)
        if capacity != found[0].capacity:
            layer.find(
                f"it has {capacity} bytes where the disk of point {point}, which stands on it, has {found[0].capacity}"
            )
        wanted = layer.parent
    return found


def _other(point: str, path: Path, facts: Mapping[str, Any], rank: int) -> Iterator[Finding]:
    """Yield what is wrong with a file that belongs to no disk."""
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
    whole = [(0, max(1, facts["size"]))]
    if size is None:
        yield Finding(point, None, path.name, "it is not there as a plain file", whole, of_file=True)
    elif size != facts["size"]:
        yield Finding(point, None, path.name, _sizes(size, facts["size"]), whole, of_file=True)
    elif rank >= LEVELS.index("data") and scan.sha256_of(path) != facts["sha256"]:
        yield Finding(point, None, path.name, "its content is not what was published", whole, of_file=True)


def _sizes(found: int, published: int) -> str:
    return f"the file has {found} bytes where {published} were published"


def _disk(layers: list[_Layer], rank: int) -> None:
    """Look at the layers of one disk; what is wrong is noted in each."""
    readable = [_files(layer) for layer in layers]
    if rank >= LEVELS.index("image"):
        readable = [there and _headers(layer) for there, layer in zip(readable, layers, strict=True)]
        whole = all(readable)
        for layer in (each for each, there in zip(layers, readable, strict=True) if there):
            try:
                image.check(layer.image)
            except FAILURES as why:
                layer.find(sentence(why))
    if rank >= LEVELS.index("data"):
        for layer, there in zip(layers, readable, strict=True):
            if layer.image.is_file() and not layer.image.is_symlink():
                _data(layer, mapped=there and whole)
        _root(layers)


def _files(layer: _Layer) -> bool:
    """Return whether the files of a disk are there in the published size."""
    good = True
    for path in (layer.image, layer.digests):
        facts = layer.files.get(path.name)
        if facts is None:
            layer.find(f"the manifest does not list {path.name}", file=path)
        elif path.is_symlink() or not path.is_file():
            layer.find(f"{path.name} is not there as a plain file", file=path)
        elif (size := path.stat().st_size) != facts["size"]:
            cut = [(size, facts["size"] - size)] if size < facts["size"] else [(facts["size"], size - facts["size"])]
            layer.find(_sizes(size, facts["size"]), file=path, ranges=cut, of_file=True)
            good = good and path != layer.image
            continue
        else:
            continue
        good = False
    return good


def _headers(layer: _Layer) -> bool:
    """Return whether the header of the image is the one that the manifest promises: else it is not opened further."""
    parent = layer.parent
    desired = image.Image(layer.capacity, f"../{parent}/{layer.image.name}" if parent else None)
    try:
        found = image.read(layer.image)
    except FAILURES as why:
        layer.find(sentence(why))
        return False
    if found != desired:
        layer.find(f"its header says {found} where the manifest says {desired}")
    return found == desired


def _data(layer: _Layer, *, mapped: bool) -> None:
    """Read image and digests of a layer whole, once, and hold them against manifest and digests."""
    records, intact = _records(layer)
    try:
        extents = scan.extents(layer.image) if mapped else []
        found = scan.image(layer.image, extents, records, full=layer.parent is None)
    except FAILURES as why:
        layer.find(f"its data cannot be read: {sentence(why)}")
        return
    same = found.sha256 == layer.files.get(layer.image.name, {}).get("sha256")
    bad = normalise(((cell * CELL, CELL) for cell in found.bad), layer.capacity)
    if records is not None and not intact:
        aside = ", though the image is" if same else ""
        layer.find(
            f"{layer.digests.name} is not what was published{aside}", file=layer.digests, ranges=bad if same else ()
        )
    elif bad:
        layer.find("it does not hold what was backed up", ranges=bad)
        return
    if not same and mapped:
        size = layer.image.stat().st_size
        tables = list(gaps(normalise(((each.position, each.length) for each in extents if each.inline), size), size))
        layer.find("the tables of the image, or room that it does not use, changed", ranges=tables, of_file=True)
    elif not same:
        layer.find("the image is not what was published")


def _records(layer: _Layer) -> tuple[scan.Records | None, bool]:
    """Return the recorded leaves of a layer, None where they cannot be read, and whether their file is as published."""
    path = layer.digests
    facts = layer.files.get(path.name, {})
    if path.is_symlink() or not path.is_file():
        return None, False
    try:
        intact = scan.sha256_of(path) == facts.get("sha256")
        records = scan.Records(path, layer.capacity)
    except FAILURES as why:
        layer.find(f"its digests cannot be read: {sentence(why)}", file=path)
        return None, False
    if records.algorithm != layer.algorithm:
        layer.find(f"its digests are by {records.algorithm}, where the manifest says {layer.algorithm}", file=path)
        return None, False
    return records, intact


def _root(layers: list[_Layer]) -> None:
    """Hold the root of the newest layer against the digests of all: the younger record of a cell counts."""
    newest = layers[0]
    if any(each.findings for each in layers):
        return  # what is wrong is told already, and nearer to its place
    if others := {each.algorithm for each in layers} - {newest.algorithm}:
        newest.find(
            f"it stands on digests by {', '.join(sorted(others))}, which do not come to a root by {newest.algorithm}"
        )
        return
    merged = _merged([scan.Records(each.digests, each.capacity) for each in layers])
    found = digests.tree(merged, newest.capacity, newest.algorithm)
    if found.root != newest.disk["root"]:
        newest.find(f"its digests come to the root {found.root}, where the manifest says {newest.disk['root']}")


def _merged(layers: Sequence[Iterable[Leaf]]) -> Iterator[Leaf]:
    """Yield the leaves of the disk, ascending, from those of its layers, newest first."""
    ranked = [((number, rank, leaf) for number, leaf in layer) for rank, layer in enumerate(layers)]
    last = -1
    for number, _rank, leaf in merge(*ranked):
        if number != last:
            yield number, leaf
            last = number


def named(repository: Repository, instance_uuid: str, point: str | None) -> str:
    """Return the published point of that name, or the newest one, whether it is damaged or not.

    Raises Refused when there is none.
    """
    there = [each.name for each in repository.folders(instance_uuid)]
    if not there:
        raise Refused(f"the repository {repository.path} holds no restore point of VM {instance_uuid}")
    if point and point not in there:
        raise Refused(f"VM {instance_uuid} has no restore point {point}; the newest are {', '.join(there[-10:])}")
    return point or there[-1]
