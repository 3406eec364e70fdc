# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

JOB = "pgtest1-5029f3ab-20261123T140102Z"
DISK = {"key": 2000, "capacity": 512, "path": "[ds] a.vmdk", "target": "nbd://127.0.0.1:1/x"}
WISH = {"job": JOB, "vm": "vm-1", "snapshot": "snapshot-2", "datacenter": "/DC0", "disks": [DISK], "wait": 0}
VCENTER = {
    "vcenter_hostname": "127.0.0.1",
    "vcenter_username": "u",
    "vcenter_password": "Kx7-secret",
    "vcenter_port": 1,
}


def test_check_mode_predicts_and_asks_nobody(run_module, private_run, systemd, tmp_path):
    wish = WISH | VCENTER | {"snapshot": None}
    told = run_module("nbd_copy", wish, check=True, prefix=private_run)
    assert (told["failed"], told["changed"], told["transfer"]["state"]) == (False, True, "predicted")
    assert told["tools"]["nbdkit"].startswith("nbdkit ")
    assert not list((tmp_path / "run").iterdir())


def test_a_copy_that_was_started_is_followed_and_not_started_again(run_module, private_run, systemd, tmp_path):
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "request.json").write_text("{}", encoding="utf-8")
    systemd(f"sendense-copy-{JOB}")
    told = run_module("nbd_copy", WISH | VCENTER, prefix=private_run)
    assert (told["changed"], told["transfer"]["state"]) == (False, "running")
    failed = {"state": "failed", "error": "disk 2000: the export hung up", "disks": []}
    (folder / "status.json").write_text(json.dumps(failed), encoding="utf-8")
    told = run_module("nbd_copy", WISH | VCENTER, prefix=private_run)
    assert (told["failed"], told["msg"], told["transfer"]) == (True, "disk 2000: the export hung up", failed)


def test_what_it_kept_goes(run_module, private_run, systemd, tmp_path):
    gone = {"job": JOB, "state": "absent", **VCENTER}
    assert not run_module("nbd_copy", gone, prefix=private_run)["changed"]
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "cookie").touch()
    assert run_module("nbd_copy", gone, check=True, prefix=private_run)["changed"]
    assert run_module("nbd_copy", gone, prefix=private_run)["changed"]
    assert not folder.parent.exists()
