# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import shutil
import stat
import time
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas
from ansible_collections.sendense.backup.plugins.module_utils.transfer import copy_unit, detached, run
from ansible_collections.sendense.backup.plugins.module_utils.transfer.copy_unit import COPY
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import REQUEST, STATUS
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource

JOB = "pgtest1-5029f3ab-20261123T140102Z"
DISKS = [Disk(2000, 512, HttpsSource("https://vc/x", "/c", None, validate_certs=True), "nbd://x", Areas([(0, 512)]))]


@pytest.fixture
def folder(tmp_path, monkeypatch, systemd):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    monkeypatch.setattr(jobs, "WORK", tmp_path / "work")
    copy_unit.keep(JOB, "cookie", "vmware_soap_session=5f3c")
    return COPY.folder(JOB)


def write_status(folder, state):
    (folder / STATUS).write_text(json.dumps({"state": state, "error": "", "disks": []}), encoding="utf-8")


@pytest.mark.parametrize("state", ["running", "done", "failed"])
def test_what_the_copy_says_is_believed_while_it_runs(folder, systemd, state):
    systemd(COPY.unit_name(JOB))
    write_status(folder, state)
    assert COPY.status(JOB) == {"state": state, "error": "", "disks": []}


def test_a_copy_that_has_just_begun_runs(folder, systemd):
    systemd(COPY.unit_name(JOB))
    assert COPY.status(JOB)["state"] == "running"


def test_a_copy_that_ended_well_is_done(folder, systemd):
    write_status(folder, "done")
    assert COPY.status(JOB)["state"] == "done"


def test_a_copy_that_was_killed_is_said_so_with_its_last_words(folder, systemd):
    words = "Traceback\nMemoryError\n"
    systemd(COPY.unit_name(JOB), active="failed", result="signal", code="2", status="9", journal=words)
    write_status(folder, "running")
    found = COPY.status(JOB)
    assert found["state"] == "failed"
    assert found["error"] == "the copy killed by SIGKILL; its last words: Traceback / MemoryError"


def test_a_copy_of_which_nothing_is_known_is_no_success(folder):
    found = COPY.status(JOB)
    assert (found["state"], found["error"]) == ("failed", "the copy ended without a result")


def test_it_is_followed_for_as_long_as_was_asked(folder, systemd):
    systemd(COPY.unit_name(JOB))
    began = time.monotonic()
    assert COPY.follow(JOB, 0.5)["state"] == "running"
    assert 0.5 <= time.monotonic() - began < 3
    write_status(folder, "done")
    assert COPY.follow(JOB, 30)["state"] == "done"


def test_starting_it_hands_the_request_over_in_a_closed_file(folder, tmp_path):
    starter = tmp_path / "systemd" / "systemd-run"
    starter.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/asked\n', encoding="utf-8")
    starter.chmod(0o755)
    assert not COPY.started(JOB)
    copy_unit.start(JOB, DISKS)
    assert COPY.started(JOB)
    request = folder / REQUEST
    assert stat.S_IMODE(request.stat().st_mode) == 0o600
    assert run.parse(json.loads(request.read_text())) == DISKS
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-3:] == ["-m", run.__name__, str(request)]
    assert {f"--unit=sendense-copy-{JOB}", "--property=User=sendense"} <= set(asked)
    (code,) = (word.partition("PYTHONPATH=")[2] for word in asked if "PYTHONPATH=" in word)
    assert (Path(code) / "ansible_collections/sendense/backup/plugins/module_utils/transfer/run.py").exists()


def test_a_task_that_runs_from_a_zip_leaves_a_copy_of_it_to_the_unit(folder, tmp_path, monkeypatch):
    shutil.make_archive(str(tmp_path / "payload"), "zip", tmp_path, "run")
    monkeypatch.setattr(detached, "__file__", f"{tmp_path}/payload.zip/ansible_collections/x/detached.py")
    code = detached._code(folder)
    assert code == folder / "code.zip"
    assert code.read_bytes() == (tmp_path / "payload.zip").read_bytes()


def test_the_cookie_is_kept_in_a_closed_file(folder):
    path = copy_unit.keep(JOB, "cookie", "vmware_soap_session=new")
    assert Path(path).read_text(encoding="utf-8") == "vmware_soap_session=new"
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_stopping_it_leaves_nothing_of_its_own_and_all_of_others(folder, systemd, tmp_path):
    write_status(folder, "done")
    (tmp_path / "work" / JOB).mkdir(parents=True)
    (tmp_path / "work" / JOB / "disk-2000.leaves").touch()
    (tmp_path / "work" / "other").mkdir()
    (jobs.folder(JOB) / "2000.sock").touch()
    systemd(COPY.unit_name(JOB))
    assert copy_unit.stop(JOB)
    assert units.names(JOB) == []
    assert [path.name for path in jobs.folder(JOB).iterdir()] == ["2000.sock"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["other"]
    assert not copy_unit.stop(JOB)


def test_a_copy_that_failed_is_started_again_with_what_it_had(folder, systemd, tmp_path):
    starter = tmp_path / "systemd" / "systemd-run"
    starter.write_text("#!/bin/sh\n", encoding="utf-8")
    starter.chmod(0o755)
    copy_unit.start(JOB, DISKS, kept={"vm": {"moref": "vm-1"}})
    (tmp_path / "work" / JOB / "disk-2000.journal").touch()
    write_status(folder, "failed")
    systemd(COPY.unit_name(JOB), active="failed", result="signal", code="2", status="9")
    copy_unit.start(JOB, DISKS, stall=60)
    assert not (folder / STATUS).exists()
    assert (tmp_path / "work" / JOB / "disk-2000.journal").exists()
    assert copy_unit.kept(JOB) == {"vm": {"moref": "vm-1"}}
    request = json.loads((folder / REQUEST).read_text())
    assert (request["stall"], request["public"]) == (60, str(jobs.progress_file(JOB)))


def test_what_is_kept_survives_and_can_be_replaced(folder, tmp_path):
    assert copy_unit.kept(JOB) == {}
    (tmp_path / "work" / JOB).mkdir(parents=True)
    copy_unit.keep_with(JOB, {"vm": 1})
    copy_unit.keep_with(JOB, {"vm": 2})
    assert copy_unit.kept(JOB) == {"vm": 2}


def test_a_copy_that_wants_a_session_says_so(folder, systemd):
    systemd(COPY.unit_name(JOB))
    write_status(folder, "running")
    assert copy_unit.wants(JOB) == ""
    said = {"state": "running", "error": "", "disks": [{"wants": ""}, {"wants": "session"}]}
    (folder / STATUS).write_text(json.dumps(said), encoding="utf-8")
    assert copy_unit.wants(JOB) == "session"


def test_how_far_it_was_goes_with_it(folder, tmp_path):
    (shown := jobs.progress_file(JOB)).parent.mkdir()
    shown.touch()
    assert copy_unit.stop(JOB)
    assert not shown.exists()
