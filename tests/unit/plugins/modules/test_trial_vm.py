# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

pytest.importorskip("pyVmomi")

from ansible_collections.sendense.backup.plugins.module_utils.vsphere import creation, inventory
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session

ID = "1d0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e"
OTHER = "2e0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e"
JOB = "restore-trial-1d0f3c52-20261123T140102Z"


@pytest.fixture
def make(run_module, private_run, lab, systemd, tmp_path):
    """Return ``make(trial)``: it makes the VM that a restore would of that trial's point, and returns its moref."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    vcenter = VCenter.of({"vcenter_validate_certs": True, **lab.options})
    made = []

    def run(trial):
        given = {"repository": f"{tmp_path}/repository", "trial": trial, "vm": "/DC0/vm/prod/trial", "datastore": "datastore1",
                 "min_free": 0}  # fmt: skip
        path = run_module("trial_point", given, prefix=private_run)["path"]
        point = run_module(
            "restore_point_info", {"repository": path, "vm": trial, "point": "latest"}, prefix=private_run
        )
        with session(vcenter) as opened:
            wish = creation.Wish(pool="DC0_C0")
            there, refusals = creation.target(inventory.read(opened), point["point"], wish)
            assert refusals == []
            spec = creation.spec(point["point"], there, wish, creation.mark(JOB, "node1", ""), "notes")
            made.append(creation.create(opened, there, spec))
        return made[-1]

    yield run
    with session(vcenter) as opened:
        for trial in (ID, OTHER):
            creation.remove_of_trial(opened, trial, "trial")


@pytest.fixture
def gone(run_module, private_run, lab):
    """Return trial_vm."""
    return lambda check=False, **options: run_module(
        "trial_vm", {**lab.options, "trial": ID, "name": "trial", **options}, check, prefix=private_run
    )


def names(lab):
    return {vm["name"] for vm in lab.ask("GET", "/vms")["vms"]}


def test_predict_take_away_repeat(lab, make, gone):
    moref = make(ID)
    assert (gone(check=True)["vms"], "trial" in names(lab)) == ([moref], True)
    done = gone()
    assert (done["changed"], done["vms"]) == (True, [moref])
    assert "trial" not in names(lab)
    assert not gone()["changed"]


def test_a_vm_of_that_name_that_this_trial_did_not_make_stays(lab, make, gone):
    make(OTHER)
    assert not gone()["changed"]
    assert not gone(name="web01")["changed"]
    assert names(lab) >= {"trial", "web01"}


def test_what_its_jobs_have_on_the_node_goes_and_nothing_of_others(gone, tmp_path, systemd):
    others = "trial-5029f3ab-20261123T140102Z"
    named = "trial-50aa0001-20261123T140102Z"
    for job in (JOB, named, others):
        (tmp_path / "run/sendense" / job / "copy").mkdir(parents=True)
        systemd(f"sendense-copy-{job}")
    done = gone(jobs=[named])
    assert done["jobs"] == [JOB, named]
    assert {path.name for path in (tmp_path / "run/sendense").iterdir()} == {others, "leases"}
    assert [path.name for path in (tmp_path / "systemd").glob("sendense-*")] == [f"sendense-copy-{others}.service"]


def test_a_deletion_that_vcenter_refuses_is_one_sentence(lab, make, gone):
    make(ID)
    lab.knobs(faults={"Destroy_Task": "NoPermission"})
    failed = gone()
    assert failed["failed"]
    assert failed["msg"].startswith("removing VM trial of the trial failed: ")
    lab.knobs(faults={})
