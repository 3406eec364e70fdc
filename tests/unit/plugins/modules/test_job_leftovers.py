# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules job_info and job_leftovers, which belong together: what the one tells, the other takes away."""

from __future__ import annotations

import pytest

UUID = "50aa1111-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB = "left1-50aa1111-20261123T140102Z"  # no other test has it: /var/lib/sendense is that of the machine


@pytest.fixture
def hub(run_module, private_run, systemd, tmp_path):
    """Return ``hub(module, check=False, **options)`` of a hub on which a job has begun."""
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "repository.json").write_text('{"format": 1}', encoding="utf-8")

    def run(module, *, check=False, **options):
        return run_module(module, {"repository": str(repository), **options}, check=check, prefix=private_run)

    vm = {"instance_uuid": UUID, "disks": [{"key": 2000, "capacity": 1 << 20}]}
    assert run("restore_point", job=JOB, vm=vm, state="partial", node="node1")["changed"]
    systemd(f"sendense-export-{JOB}-2000")
    return run


def known(hub):
    """Return what is known of our job; other tests may have jobs on this machine."""
    return [each for each in hub("job_info")["jobs"] if each["job"] == JOB]


def test_predict_take_away_repeat(hub, tmp_path):
    (found,) = known(hub)
    assert (found["job"], found["vm"], found["dead"], found["nodes"]) == (JOB, UUID, False, ["node1"])
    assert found["age"] > 0
    before = sorted(tmp_path.rglob("*"))
    told = hub("job_leftovers", jobs=[JOB], check=True)
    assert told["changed"]
    assert sorted(tmp_path.rglob("*")) == before
    done = hub("job_leftovers", jobs=[JOB])
    assert done["removed"] == told["removed"]
    assert f"unit sendense-export-{JOB}-2000" in done["removed"]
    assert known(hub) == []
    assert not hub("job_leftovers", jobs=[JOB])["changed"]


def test_a_job_that_is_remembered_is_found_again(hub):
    hub("job_leftovers", jobs=[JOB], remember={JOB: "node1"})
    (found,) = known(hub)
    assert (found["dead"], found["nodes"]) == (True, ["node1"])


def test_what_could_not_be_taken_away_fails_after_the_rest(hub, tmp_path):
    (partial,) = (tmp_path / "repository").rglob("*.partial")
    (partial / "notes.txt").touch()
    done = hub("job_leftovers", jobs=[JOB])
    assert done["failed"]
    assert done["unable"] == [f"{partial}/notes.txt was made by no job; move it away and sweep again"]
    assert f"unit sendense-export-{JOB}-2000" in done["removed"]


@pytest.mark.parametrize("module", ["job_info", "job_leftovers"])
def test_what_is_no_job_is_refused(hub, module):
    assert "is not a job id" in hub(module, jobs=["../x"])["msg"]


def test_a_folder_that_is_no_repository_is_said(hub):
    assert "there is no repository at /nowhere" in hub("job_info", repository="/nowhere")["msg"]


def test_predict_claim_repeat(hub, tmp_path):
    (found,) = known(hub)
    claims = [{"job": JOB, "controllers": found["controllers"], "gone": True}]
    before = sorted(tmp_path.rglob("*"))
    told = hub("job_leftovers", state="claimed", claims=claims, controller="b/n/1/2", check=True)
    assert (told["changed"], told["refused"]) == (True, {})
    assert (sorted(tmp_path.rglob("*")), known(hub)[0]["controllers"]) == (before, found["controllers"])
    done = hub("job_leftovers", state="claimed", claims=claims, controller="b/n/1/2")
    assert (done["changed"], done["refused"]) == (True, {})
    assert known(hub)[0]["controllers"] == ["b/n/1/2"]
    again = hub("job_leftovers", state="claimed", claims=claims, controller="b/n/3/4")
    assert (again["changed"], again["refused"]) == (False, {JOB: "another run took it over meanwhile"})
    assert "is not a job id" in hub("job_leftovers", state="claimed", claims=[{**claims[0], "job": "../x"}])["msg"]
