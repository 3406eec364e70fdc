# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs

pytest.importorskip("pyVmomi")


@pytest.fixture
def job(run_module, lab):
    """Return the id of a job for pgtest1, and see that nothing of it is left in /run."""
    one = run_module("vm_info", {**lab.options, "name": "pgtest1"})["job"]
    lab.ask("POST", "/stats/reset")
    yield one
    assert not jobs.folder(one).exists()


@pytest.fixture
def snapshot(lab, run_module, job):
    """Return vm_snapshot for that job, with some options changed."""
    if not _may_use_run():
        pytest.skip("only root can use /run/sendense")

    def run(state, check=False, **options):
        given = {**lab.options, "job": job, "vm": lab.vm("pgtest1")["moref"], "state": state, **options}
        result = run_module("vm_snapshot", given, check)
        assert lab.options["vcenter_password"] not in json.dumps(result)
        return result

    yield run
    lab.knobs(faults={}, quiesce="ok")
    run("absent")


def _may_use_run():
    try:
        jobs.RUN.mkdir(exist_ok=True)
    except OSError:
        return False
    return True


def test_a_snapshot_is_predicted_taken_kept_and_removed(lab, snapshot, job):
    name = f"sendense-{job}"

    predicted = snapshot("present", check=True)
    assert predicted["changed"]
    assert predicted["snapshot"]["moref"] is None
    assert lab.snapshots("pgtest1") == []
    assert not jobs.folder(job).exists()

    taken = snapshot("present")
    assert taken["changed"]
    assert lab.snapshots("pgtest1") == [name]
    assert (jobs.folder(job) / "session").exists()
    sizes = [(disk["key"], disk["capacity"], disk["path"]) for disk in taken["snapshot"]["disks"]]
    assert sizes == [(disk["key"], disk["capacity"], disk["path"]) for disk in predicted["snapshot"]["disks"]]
    assert taken["diff"]["before"] == {}
    assert taken["diff"]["after"]["snapshot"] == predicted["diff"]["after"]["snapshot"] == name

    again = snapshot("present")
    assert not again["changed"]
    assert again["snapshot"] == taken["snapshot"]
    assert again["diff"]["before"] == again["diff"]["after"]

    would = snapshot("absent", check=True)
    assert would["changed"]
    assert lab.snapshots("pgtest1") == [name]

    gone = snapshot("absent")
    assert gone["changed"]
    assert gone["vm"]["snapshots"] == []
    assert gone["diff"] == would["diff"]
    assert lab.snapshots("pgtest1") == []

    assert not snapshot("absent")["changed"]
    assert not snapshot("absent", check=True)["changed"]


def test_one_backup_costs_one_login_and_few_calls_here(lab, snapshot):
    snapshot("present")
    snapshot("absent")
    assert lab.logins() == 1
    assert lab.sessions() == []
    calls = lab.ask("GET", "/stats")["soap"]
    assert sum(calls.values()) <= 16, calls


def test_a_failure_ends_the_session_and_leaves_nothing(lab, snapshot, job):
    lab.knobs(quiesce="fail")
    result = snapshot("present", quiesce="require")
    assert result["failed"]
    assert "An error occurred while quiescing" in result["msg"]
    assert lab.sessions() == []
    assert lab.snapshots("pgtest1") == []
    assert not jobs.folder(job).exists()


def test_a_fallback_is_told(lab, snapshot):
    lab.knobs(quiesce="fail")
    taken = snapshot("present")["snapshot"]
    assert (taken["quiesce_requested"], taken["quiesce_achieved"]) == ("prefer", False)
    assert "quiescing" in taken["quiesce_reason"]


def test_off_may_be_written_without_quotes(snapshot):
    taken = snapshot("present", quiesce=False)["snapshot"]
    assert (taken["quiesce_requested"], taken["quiesce_achieved"]) == ("off", False)


def test_what_else_lies_in_the_folder_stays(snapshot, job):
    snapshot("present")
    other = jobs.folder(job) / "2000.sock"
    other.touch()
    snapshot("absent")
    assert [path.name for path in jobs.folder(job).iterdir()] == ["2000.sock"]
    other.unlink()


def test_a_session_that_died_is_no_obstacle_to_removal(lab, snapshot):
    snapshot("present")
    lab.ask("POST", "/sessions/kill", {})
    assert snapshot("absent")["changed"]


def test_a_vm_that_is_gone_has_no_snapshot(snapshot):
    result = snapshot("absent", vm="vm-9999")
    assert (result["changed"], result["vm"], result["failed"]) == (False, None, False)
    assert snapshot("absent", check=True, vm="vm-9999")["vm"] is None


def test_a_vm_that_is_gone_can_have_none_taken(snapshot):
    result = snapshot("present", vm="vm-9999")
    assert result["failed"]
    assert "vm-9999" in result["msg"]


def test_a_removal_that_fails_says_so_and_ends_the_session(lab, snapshot, job):
    snapshot("present")
    lab.knobs(faults={"RemoveSnapshot_Task": "NoPermission"})
    result = snapshot("absent")
    assert result["failed"]
    assert result["msg"].startswith(f"removing snapshot sendense-{job} (snapshot-")
    assert lab.sessions() == []


def test_what_is_no_job_is_refused(lab, snapshot):
    for check in (False, True):
        assert "is not a job id" in snapshot("present", check, job="../../etc")["msg"]
    assert lab.ask("GET", "/stats")["soap"] == {}
    assert not Path("/run/etc").exists()


@pytest.fixture
def looked(lab, run_module):
    """Return the disks of a VM as vm_info tells them."""
    return lambda vm: run_module("vm_info", {**lab.options, "name": vm})["vm"]["disks"]


def test_a_disk_that_grew_after_the_look_is_refused_and_leaves_nothing(lab, snapshot, looked):
    disks, moref = looked("web02"), lab.vm("web02")["moref"]
    assert snapshot("present", vm=moref, disks=disks)["changed"]
    assert not snapshot("present", vm=moref, disks=disks)["changed"]
    snapshot("absent", vm=moref)
    size = disks[0]["capacity"]
    lab.ask("POST", "/disk", {"vm": "web02", "key": 2000, "grow_at_snapshot": 65536})
    for check in (False, True):  # the check sees what the run has seen
        result = snapshot("present", check, vm=moref, disks=disks)
        assert result["msg"] == (
            "the VM was changed after it was looked at: disk 2000 (Hard disk 1) had "
            f"{size} bytes and has {size + 65536} now; run the backup again"
        )
    assert lab.snapshots("web02") == []
    assert lab.sessions() == []


def test_disks_that_changed_under_the_snapshot_of_a_client_are_told(lab, snapshot, looked):
    disks = looked("pgtest1")
    assert not snapshot("absent", disks=disks)["failed"]
    disks[0]["capacity"] += 512
    told = snapshot("absent", disks=disks)["msg"]
    assert re.search(
        "the VM was changed after it was looked at: disk 2000 .* had 1049088 bytes and has 1048576 now", told
    )


def test_an_independent_disk_is_refused_or_skipped(lab, snapshot):
    moref = lab.vm("independent1")["moref"]
    assert "disk 2001 (Hard disk 2) of VM independent1 has mode" in snapshot("present", vm=moref)["msg"]
    for check in (True, False):
        taken = snapshot("present", check, vm=moref, independent="skip")["snapshot"]
        assert [disk["key"] for disk in taken["disks"]] == [2000]
        assert [(disk["key"], disk["label"]) for disk in taken["skipped"]] == [(2001, "Hard disk 2")]
    assert snapshot("absent", vm=moref)["changed"]


def test_a_vm_that_goes_with_its_snapshot_is_no_failure_of_the_cleanup(lab, snapshot):
    moref = lab.vm("web03")["moref"]
    snapshot("present", vm=moref)
    lab.ask("POST", "/vm", {"vm": "web03", "registered": False})
    gone = snapshot("absent", vm=moref)
    assert (gone["failed"], gone["changed"], gone["vm"]) == (False, False, None)
    assert snapshot("present", vm=moref)["msg"].startswith(f"no VM with moref {moref} is in vCenter 127.0.0.1:")
    lab.ask("POST", "/vm", {"vm": "web03", "registered": True})
    assert snapshot("absent", vm=moref)["changed"]
