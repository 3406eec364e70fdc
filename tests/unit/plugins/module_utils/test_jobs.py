# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from hypothesis import given
from hypothesis import strategies as st

UUID = "5029F3AB-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
NOON = datetime(2026, 11, 23, 14, 1, 2, tzinfo=UTC)
JOB = "pgtest1-5029f3ab-20261123T140102Z"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        pytest.param("pgtest1", "pgtest1", id="a plain name stays"),
        pytest.param("Büro Server_02", "buro-server-02", id="marks go, other signs become one hyphen"),
        pytest.param("db%2fold / x", "db-2fold-x", id="a slash as vCenter spells it"),
        pytest.param("  --x--  ", "x", id="no hyphen at the ends"),
        pytest.param("日本語", "vm", id="nothing left"),
        pytest.param("", "vm", id="no name"),
        pytest.param("a" * 31 + " bcd", "a" * 31, id="no hyphen where it is cut"),
        pytest.param("../../etc", "etc", id="no way out of a folder"),
    ],
)
def test_a_name_is_spelt_so_that_it_can_stand_anywhere(name, slug):
    assert jobs.slug(name) == slug


def test_a_job_id_tells_vm_and_start():
    assert jobs.job_id("pgtest1", UUID, NOON) == JOB
    assert jobs.point_id(JOB) == "20261123T140102Z"
    assert jobs.export_name(JOB, 2) == f"{JOB}-disk2"


@given(st.text(max_size=80), st.uuids())
def test_every_job_id_is_known_as_one(name, uuid):
    assert jobs.point_id(jobs.job_id(name, str(uuid), NOON)) == "20261123T140102Z"


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("", id="nothing"),
        pytest.param("pgtest1-20261123T140102Z", id="no uuid"),
        pytest.param("../x-5029f3ab-20261123T140102Z", id="a path"),
        pytest.param(f"{JOB}\n", id="a line end after it"),
        pytest.param(f"{JOB}.service", id="more after it"),
        pytest.param("-x-5029f3ab-20261123T140102Z", id="looks like an option"),
        pytest.param("a" * 33 + "-5029f3ab-20261123T140102Z", id="a name too long"),
        pytest.param("pgtest1-*-20261123T140102Z", id="a pattern"),
    ],
)
def test_what_is_no_job_id_names_no_folder(job):
    with pytest.raises(Refused, match="is not a job id"):
        jobs.folder(job)


def test_the_folder_is_closed_to_others_and_the_last_one_out_removes_it(run_folder):
    folder = jobs.make_folder(JOB)
    assert folder == jobs.make_folder(JOB) == run_folder / JOB
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "mine").touch()
    jobs.leave_folder(JOB)
    assert folder.exists()
    (folder / "mine").unlink()
    jobs.leave_folder(JOB)
    jobs.leave_folder(JOB)
    assert not folder.exists()


def test_what_a_killed_writer_left_does_not_keep_the_folder(run_folder):
    folder = jobs.make_folder(JOB)
    (folder / ".session.new").touch()
    jobs.leave_folder(JOB)
    assert not folder.exists()


def test_a_private_file_is_replaced_whole_and_closed_to_others(tmp_path):
    path = tmp_path / "secret"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o644)
    before = os.open(path, os.O_RDONLY)
    jobs.write_private(path, "new")
    assert os.read(before, 10) == b"old", "a reader of the old file sees none of the new one"
    os.close(before)
    assert path.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("unit", "job"),
    [
        ("sendense-export-pgtest1-5029f3ab-20261123T140102Z-2000", "pgtest1-5029f3ab-20261123T140102Z"),
        ("sendense-copy-a-b-5029f3ab-20261123T140102Z", "a-b-5029f3ab-20261123T140102Z"),
        ("sendense-tunnel", ""),
        ("sendense-greeter-node1", ""),
        ("other-copy-pgtest1-5029f3ab-20261123T140102Z", ""),
    ],
)
def test_a_unit_tells_its_job(unit, job):
    assert jobs.of_unit(unit) == job
    assert jobs.is_job(job) is bool(job)


def test_a_job_tells_when_it_began_and_for_which_vm():
    job = jobs.job_id(
        "a-20261123T140102Z", "5029F3AB-1c2d-4e3f-8a9b-0c1d2e3f4a5b", datetime(2026, 11, 23, 14, 1, 2, tzinfo=UTC)
    )
    assert jobs.started(job) == datetime(2026, 11, 23, 14, 1, 2, tzinfo=UTC)
    assert jobs.vm_part(job) == "5029f3ab"
