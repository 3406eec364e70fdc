# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import chain

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
FULL, CHILD = "20261123T140102Z", "20261124T140102Z"
SIZE = 1 << 20


@pytest.fixture
def linked(repository):
    """Return the folders of a full point and of an incremental one that stands on it."""
    folders = []
    for point, parent in ((FULL, None), (CHILD, FULL)):
        folder = repository.vm_folder(UUID) / point
        folder.mkdir(parents=True)
        disk = {"key": 2000, "type": "incremental" if parent else "full", "parent": parent, "provisioned": SIZE}
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "disks": [disk]}), encoding="utf-8")
        create(folder / "disk-2000.qcow2", f"../{parent}/disk-2000.qcow2" if parent else None)
        folders.append(folder)
    return folders


def create(path, backing=None, size=SIZE):
    path.unlink(missing_ok=True)
    backed = ["-F", "qcow2", "-b", backing] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", *backed, path, str(size)], check=True)


def change(folder, **values):
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["disks"][0].update(values)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_images_of_a_disk_are_told_newest_first(repository, linked):
    full, child = (folder / "disk-2000.qcow2" for folder in linked)
    assert chain.layers(repository, UUID, CHILD, 2000) == [child, full]
    assert chain.layers(repository, UUID, FULL, 2000) == [full]


SPOILT = {
    "the parent is gone": (
        lambda full, _child: full.rename(full.with_name("away")),
        rf"restore point {FULL} \(which restore point {CHILD} stands on\), disk 2000: there is no restore point {FULL}",
    ),
    "the parent's image is gone": (
        lambda full, _child: (full / "disk-2000.qcow2").unlink(),
        rf"restore point {FULL} .*disk-2000.qcow2 is not there as a plain file",
    ),
    "the image is a link": (
        lambda _full, child: (
            (child / "disk-2000.qcow2").rename(child / "x") and (child / "disk-2000.qcow2").symlink_to("x")
        ),
        rf"restore point {CHILD}, disk 2000: .* is not there as a plain file",
    ),
    "the image stands on another file": (
        lambda full, child: create(full / "other.qcow2") or create(child / "disk-2000.qcow2", f"{full}/other.qcow2"),
        rf"restore point {CHILD}, disk 2000: .* where its manifest says .*; it is not read",
    ),
    "the image stands on nothing": (
        lambda _full, child: create(child / "disk-2000.qcow2"),
        rf"restore point {CHILD}, disk 2000: .*backing=None.* where its manifest says",
    ),
    "the image has another size": (
        lambda full, _child: create(full / "disk-2000.qcow2", size=2 * SIZE),
        rf"restore point {FULL} .*size={2 * SIZE}.* where its manifest says",
    ),
    "the parent had another size": (
        lambda full, _child: change(full, provisioned=2 * SIZE) or create(full / "disk-2000.qcow2", size=2 * SIZE),
        rf"restore point {FULL} .*it has {2 * SIZE} bytes where the disk that stands on it has {SIZE}",
    ),
    "the disk is not in the parent": (
        lambda full, _child: change(full, key=2001),
        rf"restore point {FULL} .*the point has no such disk, only 2001",
    ),
    "the manifest is damaged": (
        lambda _full, child: (child / "manifest.json").write_text("{", encoding="utf-8"),
        rf"restore point {CHILD}, disk 2000: .*manifest.json",
    ),
    "a point stands on itself": (
        lambda full, _child: (
            change(full, type="incremental", parent=CHILD)
            or create(full / "disk-2000.qcow2", f"../{CHILD}/disk-2000.qcow2")
        ),
        rf"restore point {CHILD}: it stands on itself through {CHILD}",
    ),
    "nothing says what it stands on": (
        lambda _full, child: change(child, parent=None),
        r"its manifest does not say what it stands on",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), SPOILT.values(), ids=SPOILT)
def test_a_chain_that_is_not_what_it_says_is_not_read(repository, linked, spoil, sentence):
    spoil(*linked)
    with pytest.raises(SendenseError, match=sentence):
        chain.layers(repository, UUID, CHILD, 2000)


@pytest.mark.parametrize("point", ["", "..", f"{FULL}.partial", f"../{FULL}"])
def test_what_is_no_point_is_not_opened(repository, linked, point):
    with pytest.raises(SendenseError, match="is not a restore point"):
        chain.open_point(repository, UUID, point)
