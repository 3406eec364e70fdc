# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest

pytest.importorskip("pyVmomi")


@pytest.fixture
def manifest(run_module, lab):
    """Return a manifest as a full backup of web01 would have it."""
    vm = run_module("vm_info", {**lab.options, "name": "web01"})["vm"]
    disks = [{**disk, "type": "full", "written": 65536, "root": "00" * 32} for disk in vm["disks"]]
    return {"vm": vm, "disks": disks, "point": "20261123T120000Z", "format": 1, "host": {}}


def test_a_look_says_where_the_vm_goes_and_by_which_job(run_module, lab, manifest):
    found = run_module("vm_restore_info", {**lab.options, "manifest": manifest, "name": "again", "transport": "https"})
    assert not found["failed"]
    assert (found["changed"], found["refusals"], found["unfinished"]) == (False, [], [])
    assert re.fullmatch(r"restore-again-[0-9a-f]{8}-[0-9]{8}T[0-9]{6}Z", found["job"])
    assert found["target"]["folder"] == "/DC0/vm/prod"
    assert found["target"]["home"] == "datastore1"
    assert [disk["place"] for disk in found["target"]["disks"]] == ["ParaVirtualSCSIController0:0"]
    assert [disk["key"] for disk in found["disks"]] == [2000]
    assert found["transport"] == {"name": "https", "reason": "it was asked for"}


def test_without_a_library_auto_imports_and_vddk_is_refused(run_module, lab, manifest):
    wish = {**lab.options, "manifest": manifest, "name": "again"}
    assert run_module("vm_restore_info", wish)["transport"]["name"] == "https"
    refused = run_module("vm_restore_info", {**wish, "transport": "vddk"})["refusals"]
    assert refused[0].startswith("transport vddk cannot be used: ")


def test_a_vm_whose_host_is_not_here_goes_to_the_only_cluster(run_module, lab, manifest):
    manifest["host"] = {"before": {"name": "esx9.elsewhere"}, "after": {"name": "esx9.elsewhere"}}
    found = run_module("vm_restore_info", {**lab.options, "manifest": manifest, "name": "again"})
    assert found["refusals"] == []
