# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest

pytest.importorskip("pyVmomi")

JOB = "restore-again-5029f3ab-20261123T140102Z"


@pytest.fixture
def restore(run_module, lab, private_run, tmp_path, systemd):
    """Return vm_restore for web01 in a /run of its own; a unit of that name runs when ``systemd`` was told so."""
    vm = run_module("vm_info", {**lab.options, "name": "web01"})["vm"]
    disks = [{**disk, "type": "full", "written": 65536, "root": "00" * 32} for disk in vm["disks"]]
    manifest = {"vm": vm, "disks": disks, "point": "20261123T120000Z", "format": 1, "host": {}}
    lab.ask("POST", "/stats/reset")

    def run(check=False, **options):
        given = {"state": "present", "manifest": manifest, "name": "again", "transport": "https",
                 "sources": [{"key": 2000, "uri": "nbd+unix:///?socket=/none"}], **options}  # fmt: skip
        return run_module("vm_restore", {**lab.options, "job": JOB, **given}, check, prefix=private_run)

    return run


def names(lab):
    return {vm["name"] for vm in lab.ask("GET", "/vms")["vms"]}


def test_a_restore_is_predicted_without_a_trace(lab, restore, tmp_path):
    predicted = restore(check=True)
    assert (predicted["failed"], predicted["changed"]) == (False, True)
    assert (predicted["vm"], predicted["transfer"]["state"]) == (None, "predicted")
    assert "again" not in names(lab)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_unit_that_does_not_start_leaves_no_vm(lab, restore, tmp_path):
    (tmp_path / "systemd" / "systemd-run").write_text("#!/bin/sh\necho no room for units >&2\nexit 1\n")
    (tmp_path / "systemd" / "systemd-run").chmod(0o755)
    failed = restore()
    assert failed["failed"]
    assert failed["msg"] == f"systemd did not start sendense-push-{JOB}: systemd-run failed: no room for units"
    assert lab.ask("GET", "/stats")["soap"]["ImportVApp"] == 1, "it had begun"
    wait_until_gone(lab)
    gone = restore(state="absent")
    assert gone["changed"]
    assert not (tmp_path / "run" / "sendense" / JOB).exists()
    assert not restore(state="absent")["changed"]


def test_a_unit_that_dies_leaves_no_vm(lab, restore, tmp_path):
    (tmp_path / "systemd" / "systemd-run").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "systemd" / "systemd-run").chmod(0o755)
    failed = restore()  # systemd says yes, and there is no such unit
    assert failed["msg"].startswith("the sending ended without a result")
    wait_until_gone(lab)
    restore(state="absent")


def wait_until_gone(lab):
    for _turn in range(100):
        if "again" not in names(lab):
            break
        time.sleep(0.1)
    assert "again" not in names(lab)
