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
        "RetrieveServiceContent", "Login", "Logout", "CreateContainerView", "DestroyView", "RetrievePropertiesEx",
    }  # fmt: skip


def test_what_a_transport_cannot_read_is_told_before_anything_is_made(lab, info, run_module):
    job = info(name="thin1")["job"]
    options = {**lab.options, "job": job, "vm": lab.vm("thin1")["moref"]}
    run_module("vm_snapshot", options)
    assert info(name="thin1", transport="vddk")["refusals"] == []
    (sentence,) = info(name="thin1", transport="https")["refusals"]
    assert "stands on a snapshot" in sentence
    run_module("vm_snapshot", {**options, "state": "absent"})


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
