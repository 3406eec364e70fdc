# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import commands
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import image
from ansible_collections.sendense.backup.plugins.module_utils.repository.image import Image, plan

PATH = Path("/r/disk-2000.qcow2")
CREATE = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=1.1,lazy_refcounts=off,cluster_size=65536"]
MIB = 1 << 20


@pytest.mark.parametrize(
    ("current", "desired", "commands"),
    [
        pytest.param(Image(MIB), Image(MIB), [], id="as wished: nothing to do"),
        pytest.param(None, None, [], id="absent and wished so: nothing to do"),
        pytest.param(None, Image(MIB + 512), [[*CREATE, str(PATH), "1049088"]], id="a new image has the exact size"),
        pytest.param(
            None,
            Image(MIB, "../p/d.qcow2"),
            [[*CREATE, "-F", "qcow2", "-b", "../p/d.qcow2", str(PATH), "1048576"]],
            id="an overlay states the format of what it stands on",
        ),
        pytest.param(
            Image(MIB),
            Image(2 * MIB),
            [["qemu-img", "resize", "-q", "-f", "qcow2", str(PATH), "2097152"]],
            id="a larger size is grown into",
        ),
        pytest.param(Image(MIB), None, [["rm", "--", str(PATH)]], id="absent: removed"),
    ],
)
def test_the_way_from_what_is_to_what_is_wished(current, desired, commands):
    assert plan(PATH, current, desired) == commands


@pytest.mark.parametrize(
    ("current", "desired", "sentence"),
    [
        pytest.param(Image(2 * MIB), Image(MIB), "is never shrunk to 1048576", id="shrinking loses data"),
        pytest.param(Image(MIB, "a"), Image(MIB), "is not overwritten", id="it stands on another image"),
        pytest.param(Image(MIB), Image(MIB, "a"), "is not overwritten", id="it stands on none"),
        pytest.param(Image(MIB, None, 4096), Image(MIB), "is not overwritten", id="it has other clusters"),
        pytest.param(None, Image(MIB + 1), "no multiple of 512", id="qemu-img would round the size up"),
        pytest.param(None, Image(0), "no multiple of 512", id="a disk of no bytes"),
        pytest.param(Image(512), Image(1000), "no multiple of 512", id="growing to an odd size"),
        pytest.param(None, Image(MIB, "/etc/shadow"), "not a path relative", id="an absolute backing file"),
        pytest.param(None, Image(MIB, "json:{}"), "not a path relative", id="a backing file that qemu would interpret"),
        pytest.param(None, Image(MIB, "nbd:host:1"), "not a path relative", id="a backing file over the network"),
    ],
)
def test_what_is_refused(current, desired, sentence):
    with pytest.raises(Refused, match=sentence):
        plan(PATH, current, desired)


@pytest.mark.parametrize("wish", [Image(MIB + 1536), Image(3 * MIB, "base.qcow2"), Image(100 << 30, None, 1 << 20)])
def test_the_commands_make_what_was_wished(tmp_path, wish):
    for command in plan(tmp_path / "base.qcow2", None, Image(MIB)) + plan(tmp_path / "d.qcow2", None, wish):
        commands.run(command)
    assert image.read(tmp_path / "d.qcow2") == wish
    assert plan(tmp_path / "d.qcow2", wish, image.read(tmp_path / "d.qcow2")) == []
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", tmp_path / "d.qcow2"]))
    special = shown["format-specific"]["data"]
    assert (special["compat"], special["lazy-refcounts"]) == ("1.1", False)
    assert shown.get("backing-filename-format") == ("qcow2" if wish.backing else None)
    image.check(tmp_path / "d.qcow2")


def test_an_image_grows_and_goes(tmp_path):
    path = tmp_path / "d.qcow2"
    for wish in (Image(MIB), Image(2 * MIB), None):
        for command in plan(path, image.read(path), wish):
            commands.run(command)
        assert image.read(path) == wish


def test_an_image_is_read_while_it_is_served(tmp_path, qemu_nbd):
    path = tmp_path / "d.qcow2"
    commands.run(plan(path, None, Image(MIB))[0])
    qemu_nbd("--format=qcow2", path)
    assert image.read(path) == Image(MIB)


def test_a_raw_file_is_never_taken_for_an_image(tmp_path):
    (tmp_path / "d").write_bytes(bytes(MIB))
    with pytest.raises(SendenseError, match="is no QCOW2 image: "):
        image.read(tmp_path / "d")


def test_an_image_whose_tables_are_damaged_fails_the_check(tmp_path):
    path = tmp_path / "d.qcow2"
    commands.run(plan(path, None, Image(MIB))[0])
    with path.open("r+b") as file:
        file.seek(int.from_bytes(path.read_bytes()[48:56], "big"))  # the refcount table
        file.write(bytes(8))
    with pytest.raises(SendenseError, match="fails qemu-img check"):
        image.check(path)


def test_an_image_that_keeps_its_data_elsewhere_is_not_read(tmp_path):
    path, elsewhere = tmp_path / "d.qcow2", tmp_path / "shadow"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={elsewhere},cluster_size=65536", path, "1M"]
    subprocess.run(create, check=True)
    with pytest.raises(SendenseError, match=r"d\.qcow2 keeps its data in another file"):
        image.read(path)


@pytest.mark.parametrize("backing", [None, "base.qcow2"])
def test_an_empty_image_is_otherwise_the_same(tmp_path, backing):
    if backing:
        commands.run(plan(tmp_path / backing, None, Image(MIB))[0])
    path = tmp_path / "disk-2000.qcow2"
    commands.run(plan(path, None, Image(MIB + 512, backing))[0])
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 64k", path], check=True)
    os.chown(path, 1234, 1235)
    (tmp_path / ".disk-2000.qcow2.new").write_text("of an attempt that was killed", encoding="utf-8")
    image.empty(path)
    assert image.read(path) == Image(MIB + 512, backing)
    held = json.loads(
        subprocess.run(["qemu-img", "map", "--output=json", path], capture_output=True, check=True).stdout
    )
    assert not any(each["data"] for each in held)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, *([backing] if backing else [])}


def test_what_is_not_there_is_not_emptied(tmp_path):
    with pytest.raises(SendenseError, match="disk-2000.qcow2 is not there any more$"):
        image.empty(tmp_path / "disk-2000.qcow2")
    assert not list(tmp_path.iterdir())
