# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is refused before a guest's disks are looked at; what is read from them is tested in molecule, with libguestfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.repository import delivery
from ansible_collections.sendense.backup.plugins.modules import restore_point_files


@pytest.fixture
def files(run_module, points, tmp_path):
    """Return ``files(check=False, **options)``, where python3-guestfs is not installed."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "guestfs.py").write_text("raise ImportError('not here')\n")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "python"), os.environ.get("PYTHONPATH", "")])}

    def run(check=False, **options):
        args = {"repository": str(points.repository), "vm": "pgtest1", **options}
        return run_module("restore_point_files", args, check=check, env=env)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({}, "set hub_file_restore: true and run the provision playbook", id="a hub without libguestfs"),
        pytest.param({"copy": ["/etc"]}, "give copy with path, the folder for the copies", id="no place"),
        pytest.param({"copy": ["/etc"], "browse": ["/"], "path": "/x"}, "or browse alone", id="two wishes"),
        pytest.param({"browse": ["etc"]}, "'etc' is no path of a guest; one looks like /etc/fstab", id="no path"),
        pytest.param({"browse": ["2000-1:../x"]}, "'2000-1:../x' is no path of a guest", id="a path that leads upwards"),
        pytest.param(
            {"copy": ["vg0/a:/x", "vg0-a:/x"], "path": "/x"},
            "vg0/a:/x, vg0-a:/x would lie at the same place",
            id="two at the same place",
        ),
        pytest.param({"copy": ["/etc"], "path": "{tmp_path}/no/out"}, "there is no folder {tmp_path}/no", id="a place that is not there"),
        pytest.param({"copy": ["/etc"], "path": "{tmp_path}/repository"}, "is no whole restore of ours", id="a place that is taken"),
        pytest.param({"disks": [7]}, "has no disk 7, only 2000", id="a disk that is not there"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(files, tmp_path, options, said):
    given = {**options, **({"path": options["path"].format(tmp_path=tmp_path)} if "path" in options else {})}
    before = sorted(tmp_path.rglob("*"))
    for check in (True, False):
        refused = files(check=check, **given)
        assert refused["failed"], refused
        assert said.format(tmp_path=tmp_path) in refused["msg"]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_left_out_is_told_again_when_the_copies_are_there(files, points, tmp_path, monkeypatch):
    class Source:
        """A guest of which no more is known than what a copy comes to."""

        def read(self, _work):
            return {"copied": 1, "left_out": ["/dev/null: no file"], "seconds_to_first_file": 0.1}

    monkeypatch.setattr(restore_point_files.files, "owner", lambda _user: (os.geteuid(), os.getegid()))
    given = {"path": str(tmp_path / "out"), "copy": ["/dev"]}
    wish = {"kind": "files", "vm": points.uuid, "point": points.child, "disks": [2000, 16000], "paths": ["/dev"]}
    made = restore_point_files.fetch(Source(), delivery.Delivery(Path(given["path"]), wish), ["/dev"], {})
    again = files(**given)
    assert (again["changed"], again["copied"]) == (False, 0), again
    assert again["left_out"] == made["left_out"] == ["/dev/null: no file"]
