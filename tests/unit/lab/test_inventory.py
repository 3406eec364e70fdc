# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "inventories" / "lab" / "inventory.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("lab_inventory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def described(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("CERTIFICATE")
    return {
        "machines": [
            {"name": "hub1", "address": "198.51.100.2", "user": "root", "ssh_key": "/key", "groups": ["hubs"]},
            {"name": "node1", "address": "198.51.100.3", "user": "root", "ssh_key": "/key", "groups": ["nodes"]},
        ],
        "known_hosts": "/state/known_hosts",
        "vcenter": {
            "hostname": "198.51.100.17",
            "user": "somebody",
            "password_file": "/password",
            "ca_file": str(ca),
            "vms": ["pgtest1", "thin1"],
            "odd": ["twin", "Büro/Kasse 1"],
        },
        "vddk": {"archive": "/cache/vddk.tar.gz", "sha256": "5f3c"},
    }


def test_machines_and_vms_are_in_their_groups(script, described):
    found = script.inventory(described)
    assert found["hubs"]["hosts"] == ["hub1"]
    assert found["nodes"]["hosts"] == ["node1"]
    assert found["vms"]["hosts"] == ["pgtest1", "thin1"]
    assert found["nodes"]["vars"] == {
        "node_vcenter_ca": "CERTIFICATE",
        "node_vddk_archive": "/cache/vddk.tar.gz",
        "node_vddk_sha256": "5f3c",
    }
    assert set(found["_meta"]["hostvars"]) == {"hub1", "node1", "Buro-Kasse-1"}


def test_a_name_that_no_limit_can_choose_is_a_variable_of_a_plain_host(script, described):
    found = script.inventory(described)
    assert found["odd"]["hosts"] == ["twin", "Buro-Kasse-1"]
    assert found["_meta"]["hostvars"]["Buro-Kasse-1"] == {"backup_vm": "Büro/Kasse 1"}


def test_more_machines_stand_behind_the_first(script, described):
    for name, group in (("node2", "nodes"), ("hub2", "hubs")):
        described["machines"].append(described["machines"][0] | {"name": name, "groups": [group]})
    found = script.inventory(described)
    assert found["hubs"]["hosts"] == ["hub1", "hub2"]
    assert found["nodes"]["hosts"] == ["node1", "node2"]


def test_host_keys_are_pinned(script, described):
    host = script.inventory(described)["_meta"]["hostvars"]["hub1"]
    assert "StrictHostKeyChecking=yes" in host["ansible_ssh_common_args"]
    assert "-o UserKnownHostsFile=/state/known_hosts" in host["ansible_ssh_common_args"]


def test_the_password_is_looked_up_and_not_listed(script, described):
    variables = script.inventory(described)["all"]["vars"]
    assert variables["vcenter_password"] == "{{ lookup('ansible.builtin.file', \"/password\") }}"


def test_a_lab_of_machines_only_has_no_vms(script, described):
    described["vcenter"] = None
    found = script.inventory(described)
    assert found["vms"]["hosts"] == found["odd"]["hosts"] == []
    assert found["all"]["vars"] == {}


def test_without_a_lab_it_says_so_in_one_sentence(tmp_path):
    copy = tmp_path / "inventories" / "lab" / "inventory.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(SCRIPT.read_text())
    done = subprocess.run([sys.executable, copy, "--list"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "the lab is not up (`make lab` raises it), so this inventory is empty\n"


def test_the_script_is_executable_and_prints_json(tmp_path, described):
    copy = tmp_path / "inventories" / "lab" / "inventory.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "lab.json").write_text(json.dumps(described))
    done = subprocess.run([sys.executable, copy, "--list"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["hubs"]["hosts"] == ["hub1"]
    assert SCRIPT.stat().st_mode & 0o100
