# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest

JOB = "pgtest1-5029f3ab-20261123T140102Z"


def test_check_mode_predicts_the_exports_without_ports(run_module, private_run, systemd, tmp_path):
    wish = [{"key": 2000, "image": str(tmp_path / "d.qcow2"), "name": f"{JOB}-disk0", "size": 512}]
    told = run_module("nbd_export", {"job": JOB, "exports": wish}, check=True, prefix=private_run)
    assert told["changed"]
    assert told["exports"] == [{"key": 2000, "name": f"{JOB}-disk0", "size": 512, "port": None}]
    assert not list((tmp_path / "run").iterdir())


def test_where_nothing_is_served_nothing_is_stopped(run_module, private_run, systemd):
    for check in (True, False):
        told = run_module("nbd_export", {"job": JOB, "state": "absent"}, check=check, prefix=private_run)
        assert (told["failed"], told["changed"], told["ended"]) == (False, False, [])


def test_an_export_that_had_died_fails_the_stop_once_it_was_dealt_with(run_module, private_run, systemd):
    systemd(f"sendense-export-{JOB}-2000", active="failed", result="signal", code="2", status="9", journal="oops")
    gone = {"job": JOB, "state": "absent"}
    assert run_module("nbd_export", gone, check=True, prefix=private_run)["changed"]
    told = run_module("nbd_export", gone, prefix=private_run)
    assert told["failed"]
    assert f"sendense-export-{JOB}-2000 killed by SIGKILL (oops)" in told["msg"]
    assert not run_module("nbd_export", gone, prefix=private_run)["changed"]


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.usefixtures("systemd")
def test_the_leases_of_the_job_are_renewed(run_module, private_run, tmp_path, state):
    (tmp_path / "systemd" / "systemd-run").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "systemd" / "systemd-run").chmod(0o755)
    (folder := tmp_path / "run" / "sendense" / "leases").mkdir(parents=True)
    lease = {"thing": "vm-x", "job": JOB, "controller": "boot/ns/1/2", "expires": 1.0}
    (folder / "vm-x").write_text(json.dumps(lease), encoding="utf-8")
    wish = [{"key": 2000, "image": str(tmp_path / "d.qcow2"), "name": f"{JOB}-disk0", "size": 512}]
    run_module("nbd_export", {"job": JOB, "state": state, "exports": wish}, prefix=private_run)
    found = json.loads((folder / "vm-x").read_text(encoding="utf-8"))
    assert found.pop("expires") > time.time()
    assert found == {key: value for key, value in lease.items() if key != "expires"}


def test_what_is_no_job_is_refused(run_module):
    assert "is not a job id" in run_module("nbd_export", {"job": "*", "state": "absent"})["msg"]
