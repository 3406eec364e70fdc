# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess

import pytest

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.qcow2"


def test_predict_do_repeat_grow_undo(run_module, path):
    wish = {"path": str(path), "size": MIB + 1536}
    made = {"size": MIB + 1536, "backing": None, "cluster_size": 65536}
    predicted = run_module("qcow2_image", wish, check=True)
    assert (predicted["changed"], predicted["image"], path.exists()) == (True, made, False)
    done = run_module("qcow2_image", wish)
    assert (done["changed"], done["image"], done["diff"]) == (True, made, {"before": {}, "after": made})
    assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0
    again = run_module("qcow2_image", wish)
    assert (again["changed"], again["image"]) == (False, made)
    grown = run_module("qcow2_image", wish | {"size": 2 * MIB})
    assert (grown["changed"], grown["diff"]["before"]["size"], grown["image"]["size"]) == (True, MIB + 1536, 2 * MIB)
    gone = {"path": str(path), "state": "absent"}
    assert run_module("qcow2_image", gone, check=True)["changed"]
    assert path.exists()
    assert run_module("qcow2_image", gone)["changed"]
    assert not path.exists()
    assert not run_module("qcow2_image", gone)["changed"]


def test_an_overlay_stands_on_its_base(run_module, tmp_path, path):
    run_module("qcow2_image", {"path": str(tmp_path / "base.qcow2"), "size": MIB})
    wish = {"path": str(path), "size": MIB, "backing_file": "base.qcow2"}
    assert run_module("qcow2_image", wish)["image"]["backing"] == "base.qcow2"
    assert not run_module("qcow2_image", wish)["changed"]


def test_data_is_never_lost(run_module, path):
    run_module("qcow2_image", {"path": str(path), "size": 2 * MIB})
    before = path.read_bytes()
    for check in (True, False):
        refused = run_module("qcow2_image", {"path": str(path), "size": MIB}, check=check)
        assert refused["failed"]
        assert refused["msg"] == f"{path} holds {2 * MIB} bytes and is never shrunk to {MIB}"
    assert path.read_bytes() == before


def test_a_file_that_is_no_image_is_left_alone(run_module, path):
    path.write_text("precious", encoding="utf-8")
    for state in ({"size": MIB}, {"state": "absent"}):
        refused = run_module("qcow2_image", {"path": str(path), **state})
        assert refused["failed"]
        assert "is no QCOW2 image" in refused["msg"]
    assert path.read_text(encoding="utf-8") == "precious"


def test_a_tool_that_fails_is_quoted(run_module, tmp_path):
    failed = run_module("qcow2_image", {"path": str(tmp_path / "nowhere" / "d"), "size": MIB})
    assert failed["failed"]
    assert "qemu-img failed: " in failed["msg"]
    assert "No such file or directory" in failed["msg"]
