# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import subprocess

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import trial

ID = "1d0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e"
OTHER = "2e0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e"


@pytest.fixture
def real(tmp_path):
    """Return the repository beside which trials are made."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    return tmp_path / "repository"


@pytest.fixture
def point(run_module, private_run, systemd, real):
    """Return trial_point for that repository."""

    def run(state="present", check=False, **options):
        wish = {"trial": ID, "vm": "/DC0/vm/tests/trial", "datastore": "datastore1"} if state == "present" else {}
        given = {"repository": str(real), "state": state, "min_free": 0, "controller": "a/b/1/2", **wish, **options}
        return run_module("trial_point", given, check, prefix=private_run)

    return run


def tree(folder):
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


def test_predict_do_repeat_undo(point, real, tmp_path):
    before, place = tree(real), tmp_path / "repository.preflight"
    predicted = point(check=True)
    assert (predicted["failed"], predicted["changed"], place.exists()) == (False, True, False)
    made = point()
    assert (made["changed"], made["path"]) == (True, str(place))
    assert not point()["changed"]
    assert point()["content"] == made["content"]
    told = point("absent", check=True)
    assert (told["changed"], told["trial"]["trial"], told["trial"]["controller"]) == (True, ID, "a/b/1/2")
    assert told["trial"]["age"] < 60
    assert [job[:18] for job in told["jobs"]] == ["preflight-1d0f3c52"]
    assert place.exists()
    assert point("absent")["changed"]
    assert not place.exists()
    assert not point("absent")["changed"]
    assert tree(real) == before
    assert list((tmp_path / "run/sendense").rglob("*")) == [tmp_path / "run/sendense/leases", *leases_lock(tmp_path)]


def leases_lock(tmp_path):
    return [tmp_path / "run/sendense/leases/.lock"]


def test_the_image_holds_the_content_and_zeroes_and_the_point_is_found(point, run_module, private_run, tmp_path):
    content = point()["content"]
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", content["image"], raw], check=True)
    expected = bytearray(trial.CAPACITY)
    for offset, data in trial.content(ID):
        expected[offset : offset + len(data)] = data
    assert raw.read_bytes() == expected
    assert content["written"] == sum(length for _offset, length in trial.pieces(ID))
    wish = {"repository": f"{tmp_path}/repository.preflight", "vm": ID, "point": "latest"}
    found = run_module("restore_point_info", wish, prefix=private_run)["point"]
    assert (found["vm"]["name"], found["disks"][0]["root"]) == ("trial", content["root"])
    proof = {"repository": wish["repository"], "vm": ID, "point": found["point"], "level": "data"}
    verified = run_module("restore_point_verify", proof, prefix=private_run)
    assert not verified["failed"], verified


def test_another_trial_is_neither_joined_nor_taken_away(point, tmp_path):
    point()
    second = point(trial=OTHER)
    assert second["msg"] == (
        f"{tmp_path}/repository.preflight is that of a trial with VM /DC0/vm/tests/trial already; a second one has to wait for its end"
    )
    assert not point("absent", trial=OTHER)["changed"]
    assert point("absent", trial=ID)["changed"]


@pytest.mark.parametrize("state", ["present", "absent"])
def test_what_no_trial_made_stays(point, tmp_path, state):
    place = tmp_path / "repository.preflight"
    place.mkdir()
    (place / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    refused = point(state)
    assert refused["msg"] == f"{place} is there, and no trial made it (trial.json does not say so); move it away"
    assert tree(place) == ["repository.json"]


def test_what_somebody_put_into_a_trial_stays(point, tmp_path):
    point()
    (tmp_path / "repository.preflight" / "notes.txt").touch()
    assert (
        point("absent")["msg"] == f"{tmp_path}/repository.preflight holds notes.txt, which no trial made; move it away"
    )


def test_a_trial_that_died_at_once_is_in_nobodys_way(point, tmp_path):
    place = tmp_path / "repository.preflight"
    place.mkdir()
    (place / ".trial.json.new").touch()
    assert not point("absent")["changed"]
    assert point()["changed"]


def test_a_failure_leaves_nothing(point, run_module, tmp_path):
    (tmp_path / "systemd" / "qemu-img").write_text(
        '#!/bin/sh\n[ "$1" = convert ] && echo no room >&2 && exit 1\nexec /usr/bin/qemu-img "$@"\n'
    )
    (tmp_path / "systemd" / "qemu-img").chmod(0o755)
    failed = point()
    assert (failed["failed"], failed["msg"]) == (True, "qemu-img failed: no room")
    assert not (tmp_path / "repository.preflight").exists()
    assert json.loads((tmp_path / "repository" / "repository.json").read_text()) == {"format": 1}
    assert [each.name for each in (tmp_path / "run/sendense/leases").iterdir()] == [".lock"]
