# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session

pytest.importorskip("pyVmomi")
JOBS = {name: f"{name}-5029f3ab-20261123T14010{second}Z" for second, name in enumerate(("pgtest1", "thin1"))}


@pytest.fixture
def taken(lab, run_module):
    """Take the snapshots of two jobs, and one by hand that bears the name of a job; remove them at the end."""

    def snapshot(state):
        for vm, job in JOBS.items():
            run_module("vm_snapshot", {**lab.options, "job": job, "vm": lab.vm(vm)["moref"], "state": state})

    snapshot("present")
    moref = lab.vm("web01")["moref"]
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        web = opened.managed("VirtualMachine", moref)
        for name, description in ((f"sendense-{JOBS['thin1']}", "by hand"), ("before the update", "")):
            opened.wait(web.CreateSnapshotEx_Task(name, description, False, None), name)
    lab.knobs(quiesce="ok")
    yield
    snapshot("absent")
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        opened.wait(opened.managed("VirtualMachine", moref).RemoveAllSnapshots_Task(), "cleaning")


@pytest.mark.usefixtures("taken")
def test_snapshots_of_jobs_are_told_with_owner_and_age(lab, run_module):
    lab.ask("POST", "/stats/reset")
    result = run_module("vm_snapshot_info", lab.options)
    assert result["changed"] is False
    assert [(each["job"], each["vm"]["name"]) for each in result["snapshots"]] == [
        (job, name) for name, job in JOBS.items()
    ]
    assert all(0 <= each["age"] < 60 and each["quiesced"] for each in result["snapshots"])
    assert lab.ask("GET", "/stats")["soap"]["RetrievePropertiesEx"] == 1
    assert [(each["vm"]["name"], each["name"], each["why"]) for each in result["others"]] == [
        ("web01", f"sendense-{JOBS['thin1']}", "it is named as that of a job and does not carry its mark"),
        ("web01", "before the update", "it is not a backup job's"),
    ]
    assert result["vcenter"]["hostname"] == "127.0.0.1"
    assert result["vcenter"]["instance_uuid"]

    (one,) = run_module("vm_snapshot_info", {**lab.options, "vm": lab.vm("thin1")["moref"]})["snapshots"]
    assert one["name"] == f"sendense-{JOBS['thin1']}"
    assert one["vm"] == {"moref": lab.vm("thin1")["moref"], "name": "thin1"}
    assert run_module("vm_snapshot_info", {**lab.options, "vm": lab.vm("web01")["moref"]})["snapshots"] == []


def test_without_snapshots_there_is_nothing_to_tell(lab, run_module):
    assert run_module("vm_snapshot_info", lab.options)["snapshots"] == []


def test_a_vm_that_is_not_there_is_said(lab, run_module):
    assert "no VM with moref vm-9999" in run_module("vm_snapshot_info", {**lab.options, "vm": "vm-9999"})["msg"]
