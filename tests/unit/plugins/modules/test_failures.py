# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the system refuses is one sentence of every module, never a traceback."""

from __future__ import annotations

import pytest

JOB = "pgtest1-5029f3ab-20261123T140102Z"
VCENTER = {
    "vcenter_hostname": "127.0.0.1",
    "vcenter_port": 1,
    "vcenter_username": "u",
    "vcenter_password": "Kx7-secret",
}


@pytest.mark.parametrize(
    ("module", "options", "program"),
    [
        ("nbd_copy", {"job": JOB, "vm": "vm-1", "datacenter": "/DC0", "disks": [], **VCENTER}, "nbdkit"),
        ("nbd_copy", {"job": JOB, "state": "absent", **VCENTER}, "systemctl"),
        ("nbd_export", {"job": JOB, "state": "absent"}, "systemctl"),
        ("nbd_export_info", {"job": JOB}, "systemctl"),
        ("qcow2_image", {"path": "{tmp_path}/systemctl", "size": 512}, "qemu-img"),
        ("ssh_tunnel", {"job": JOB, "state": "absent"}, "systemctl"),
    ],
)
def test_a_program_that_may_not_be_executed_is_named(run_module, tmp_path, module, options, program):
    for each in ("nbdkit", "qemu-img", "systemctl"):
        (tmp_path / each).touch(mode=0o644)
    given = {key: value.format(tmp_path=tmp_path) if key == "path" else value for key, value in options.items()}
    failed = run_module(module, given, env={"PATH": str(tmp_path)})
    assert (failed["failed"], failed["msg"]) == (True, f"Permission denied: {program}")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("vm_snapshot", {"job": JOB, "vm": "vm-1", **VCENTER}),
        ("vm_snapshot", {"job": JOB, "vm": "vm-1", "state": "absent", **VCENTER}),
        ("ssh_tunnel", {"job": JOB, "hub_address": "hub", "forwards": []}),
    ],
)
@pytest.mark.usefixtures("systemd")
def test_a_folder_that_cannot_be_made_is_named(run_module, private_run, tmp_path, module, options):
    (tmp_path / "run" / "sendense").touch()
    failed = run_module(module, options, prefix=private_run)
    assert (failed["failed"], failed["msg"]) == (True, f"Not a directory: /run/sendense/{JOB}")


@pytest.mark.parametrize("hostname", ["vcenter..example.com", "v" * 64 + ".example.com"])
def test_a_name_that_no_host_can_have_is_said_so(run_module, hostname):
    failed = run_module("vm_info", VCENTER | {"vcenter_hostname": hostname, "name": "pgtest1"})
    assert failed["failed"]
    assert failed["msg"].startswith(f"vCenter {hostname}:1 cannot be reached from this node: ")


def test_a_lease_that_cannot_be_read_is_named(run_module, private_run, tmp_path):
    uuid = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
    (tmp_path / "run" / "sendense" / "leases" / f"vm-{uuid}").mkdir(parents=True)
    (tmp_path / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    args = {"repository": str(tmp_path), "vm": uuid}
    failed = run_module("restore_point_info", args, prefix=private_run)
    assert (failed["failed"], failed["msg"]) == (True, f"Is a directory: /run/sendense/leases/vm-{uuid}")
