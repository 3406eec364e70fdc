# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("pyVmomi")


@pytest.fixture
def info(lab, run_module):
    """Return vm_info at the lab's vCenter, with some options changed."""

    def run(check=False, **options):
        result = run_module("vm_info", {**lab.options, **options}, check)
        assert lab.options["vcenter_password"] not in json.dumps(result)
        return result

    return run


@pytest.mark.parametrize("check", [False, True], ids=["run", "check"])
def test_a_vm_is_described_and_nothing_changes(lab, info, check):
    result = info(check, name="pgtest1")
    assert (result["changed"], result["refusals"]) == (False, [])
    assert [disk["key"] for disk in result["vm"]["disks"]] == [2000, 2001, 16000]
    uuid = lab.vm("pgtest1")["instance_uuid"]
    assert re.fullmatch(f"pgtest1-{uuid[:8]}-[0-9]{{8}}T[0-9]{{6}}Z", result["job"])
    assert lab.logins() == 1
    assert set(lab.ask("GET", "/stats")["soap"]) <= {
        "RetrieveServiceContent", "Login", "Logout", "CreateContainerView", "DestroyView", "RetrievePropertiesEx", "FindChild",
    }  # fmt: skip


def test_what_a_transport_cannot_read_is_told_before_anything_is_made(lab, info, run_module):
    job = info(name="thin1")["job"]
    options = {**lab.options, "job": job, "vm": lab.vm("thin1")["moref"]}
    run_module("vm_snapshot", options)
    for transport in ("https", "auto"):
        (sentence,) = info(name="thin1", transport=transport)["refusals"]
        assert re.search("stands on a snapshot.*remove the VM's snapshots, or use transport vddk", sentence)
    (sentence,) = info(name="thin1", transport="vddk")["refusals"]
    assert sentence.startswith("transport vddk cannot be used: ")
    run_module("vm_snapshot", {**options, "state": "absent"})


def test_without_vddk_auto_is_https_and_says_why(info):
    chosen = info(name="thin1")["transport"]
    assert chosen["name"] == "https"
    assert "vddk" in chosen["reason"].lower()
    assert info(name="thin1", transport="https")["transport"] == {"name": "https", "reason": "it was asked for"}


def test_a_node_without_nbdkit_is_refused(info, run_module, lab, tmp_path):
    result = run_module("vm_info", {**lab.options, "name": "thin1"}, env={"PATH": str(tmp_path)})
    (sentence,) = result["refusals"]
    assert sentence.startswith("transport https cannot be used: ")
    assert "nbdkit" in sentence


def test_a_datastore_below_its_minimum_is_told(lab, info):
    lab.knobs(free={"datastore1": 50 << 30})
    (sentence,) = info(name="pgtest1")["refusals"]
    assert sentence.startswith("datastore datastore1 of VM pgtest1 has 50.0 GiB free of 1024.0 GiB")
    assert info(name="pgtest1", datastore_min_free=4)["refusals"] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"name": "pgtst1"}, "no VM named pgtst1 is in vCenter .*close names: pgtest1", id="unknown VM"),
        pytest.param({"moref": "vm-9999"}, "no VM with moref vm-9999", id="unknown moref"),
        pytest.param(
            {"name": "thin1", "vcenter_password": "falsches Pferd"}, "refuses user backup@", id="wrong password"
        ),
        pytest.param({"name": "thin1", "vcenter_port": 1}, "cannot be reached from this node", id="nobody there"),
        pytest.param({"name": "thin1", "vcenter_ca_file": None}, "is not trusted: .*vcenter_ca_file", id="untrusted"),
        pytest.param({"name": "thin1", "vcenter_hostname": "localhost"}, "in vcenter_hostname", id="other name"),
        pytest.param(
            {"name": "thin1", "vcenter_hostname": "x.invalid"}, "x.invalid:.* is not found", id="no such host"
        ),
        pytest.param({"name": "thin1", "vcenter_username": ""}, "VMWARE_USER in the environment", id="no user"),
        pytest.param({}, "one of the following is required: moref, uuid, path, name", id="no VM given"),
        pytest.param({"name": "thin1", "moref": "vm-1"}, "mutually exclusive", id="two given"),
    ],
)
def test_a_failure_is_one_sentence(lab, info, options, says):
    result = info(**options)
    assert result["failed"]
    assert re.search(says, result["msg"]), result["msg"]
    assert "Traceback" not in result.get("exception", "") + result["msg"]
    assert "\n" not in result["msg"]


def test_without_pyvmomi_the_module_says_what_to_install(lab, run_module, tmp_path):
    (tmp_path / "pyVmomi").mkdir()
    (tmp_path / "pyVmomi" / "__init__.py").write_text("raise ImportError('not here')\n")
    result = run_module("vm_info", {**lab.options, "name": "thin1"}, env={"PYTHONPATH": str(tmp_path)})
    assert result["failed"]
    assert "pyvmomi" in result["msg"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("template1", "VM template1 is a template: convert it to a VM, or leave it out"),
        ("encrypted1", "VM encrypted1 is encrypted, and its backup would lie readable in the repository"),
        ("ft1", "VM ft1 is fault tolerant, and vSphere takes no disk-only snapshot of such a VM"),
        (
            "sharedbus1",
            "disk 2000 .* of VM sharedbus1 hangs on a controller with bus sharing .*, so no snapshot can be",
        ),
        (
            "independent1",
            "disk 2001 .* of VM independent1 has mode independent_persistent, .*: set it to dependent, or",
        ),
    ],
)
def test_an_odd_vm_is_refused_with_one_sentence(info, name, says):
    (sentence,) = info(name=name)["refusals"]
    assert re.match(says, sentence), sentence


def test_an_independent_disk_can_be_skipped(info):
    result = info(name="independent1", independent="skip")
    assert result["refusals"] == []
    assert [disk["key"] for disk in result["vm"]["disks"]] == [2000]
    (skipped,) = result["vm"]["skipped"]
    assert (skipped["key"], skipped["label"]) == (2001, "Hard disk 2")
    assert skipped["reason"].startswith("has mode independent_persistent")


def test_a_vm_that_needs_consolidation_is_refused(lab, info):
    lab.ask("POST", "/vm", {"vm": "web04", "consolidation_needed": True})
    sentences = info(name="web04", transport="https")["refusals"]
    lab.ask("POST", "/vm", {"vm": "web04", "consolidation_needed": False})
    assert sentences[0] == "VM web04 needs consolidation of its disks: consolidate them in vCenter first"
    assert info(name="web04")["refusals"] == []


def test_a_name_borne_twice_lists_both(info):
    message = info(name="twin")["msg"]
    assert message.startswith("2 VMs named twin are in vCenter ")
    assert re.search(r"/DC0/vm/prod/twin \(vm-\d+\), /DC0/vm/test/twin \(vm-\d+\); choose one by its moref$", message)
    assert info(path="/DC0/vm/test/twin")["vm"]["inventory_path"] == "/DC0/vm/test/twin"


def test_an_odd_name_is_an_ordinary_vm(info):
    result = info(name="Büro/Kasse 1")
    assert (result["vm"]["name"], result["refusals"]) == ("Büro/Kasse 1", [])
    assert result["job"].startswith("buro-kasse-1-")


def test_each_disk_says_what_it_has_allocated(lab, info):
    told = {disk["key"]: disk["allocated"] for disk in info(name="pgtest1")["vm"]["disks"]}
    known = {disk["key"]: disk["allocated"] for disk in lab.vm("pgtest1")["disks"]}
    assert told.keys() == known.keys()
    assert all(0 < told[key] <= known[key] + 65536 for key in told), (told, known)
    assert told[16000] < 1 << 20 < info(name="pgtest1")["vm"]["disks"][2]["capacity"]
