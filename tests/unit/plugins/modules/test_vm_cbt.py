# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs

pytest.importorskip("pyVmomi")
JOB = "nocbt1-5029f3ab-20261123T140102Z"


@pytest.fixture
def cbt(lab, run_module):
    """Return vm_cbt for a VM of the lab, nocbt1 unless another is named; nocbt1 is again without tracking at the end."""

    def run(state, check=False, vm="nocbt1", **options):
        return run_module(
            "vm_cbt", {**lab.options, "job": JOB, "vm": lab.vm(vm)["moref"], "state": state, **options}, check
        )

    yield run
    lab.knobs(faults={}, create_snapshot_fault="")
    run("disabled")
    lab.ask("POST", "/sessions/kill", {})
    for left in jobs.folder(JOB).glob("*"):
        left.unlink()
    jobs.leave_folder(JOB)


def ids(result):
    return [bool(disk["change_id"]) for disk in result["cbt"]["disks"]]


def test_tracking_is_predicted_turned_on_kept_and_turned_off(lab, cbt):
    predicted = cbt("enabled", check=True)
    assert predicted["changed"]
    assert lab.vm("nocbt1")["cbt"] is False
    assert lab.ask("GET", "/stats")["soap"].keys().isdisjoint({"ReconfigVM_Task", "CreateSnapshotEx_Task"})

    turned = cbt("enabled")
    assert (turned["changed"], turned["cbt"]["enabled"], ids(turned)) == (True, True, [True])
    assert turned["diff"]["before"]["enabled"] is predicted["diff"]["before"]["enabled"] is False
    assert lab.vm("nocbt1")["cbt"] is True
    assert lab.snapshots("nocbt1") == []

    stats = lab.ask("GET", "/stats")["soap"]
    for check in (True, False):
        again = cbt("enabled", check)
        assert (again["changed"], again["cbt"]) == (False, turned["cbt"])
    assert lab.ask("GET", "/stats")["soap"]["CreateSnapshotEx_Task"] == stats["CreateSnapshotEx_Task"] == 1

    assert cbt("disabled", check=True)["changed"]
    gone = cbt("disabled")
    assert (gone["changed"], gone["cbt"]["enabled"], ids(gone)) == (True, False, [False])
    assert not cbt("disabled")["changed"]


def test_what_waits_for_a_stun_only_gets_one(lab, cbt):
    lab.ask("POST", "/cbt", {"vm": "nocbt1", "enabled": True})
    turned = cbt("enabled")
    assert (turned["changed"], ids(turned)) == (True, [True])


def test_independent_disks_are_left_as_they_are(lab, cbt):
    assert [disk["key"] for disk in cbt("enabled", vm="independent1")["cbt"]["disks"]] == [2000]


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_a_vm_with_snapshots_is_refused_and_stays_as_it_is(lab, cbt, run_module, check):
    other = {**lab.options, "job": "nocbt1-5029f3ab-20261124T140102Z", "vm": lab.vm("nocbt1")["moref"]}
    run_module("vm_snapshot", other)
    result = cbt("enabled", check)
    assert re.fullmatch(
        r"change tracking of VM nocbt1 is not turned on while it has snapshots \(sendense-nocbt1-.*\), because .*; remove them first",
        result["msg"],
    )
    assert cbt("enabled", check=True, dead=[other["job"]])["changed"]
    run_module("vm_snapshot", {**other, "state": "absent"})
    assert lab.vm("nocbt1")["cbt"] is False


def test_a_vm_that_cannot_be_stunned_is_refused(cbt):
    assert "is a template" in cbt("disabled", vm="template1")["msg"]


def test_a_privilege_that_lacks_is_named(lab, cbt):
    lab.knobs(faults={"ReconfigVM_Task": "NoPermission"})
    assert cbt("enabled")["msg"].startswith("turning change tracking of VM nocbt1 on failed: user backup@vsphere.local")
    assert lab.sessions() == []


def test_a_stun_that_fails_leaves_no_snapshot(lab, cbt):
    lab.knobs(create_snapshot_fault="Timedout")
    assert "failed: vCenter" in cbt("enabled")["msg"]
    assert lab.snapshots("nocbt1") == []
