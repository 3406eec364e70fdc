# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What turning change tracking is told to do, where no simulator has such a VM."""

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import tracking

pytest.importorskip("pyVmomi")

DISK = {"label": "Hard disk 1", "capacity": 512, "mode": "persistent", "kind": "flat"}


def vm(**disks):
    """Return a VM with these disks: change id by the node of the virtual device."""
    controllers = {
        "scsi0": (1000, "ParaVirtualSCSIController", 0),
        "scsi1": (1001, "VirtualLsiLogicController", 1),
        "sata0": (15000, "VirtualAHCIController", 0),
        "nvme0": (31000, "VirtualNVMEController", 0),
        "ide1": (201, "VirtualIDEController", 1),
    }
    return {
        "name": "vm",
        "cbt_enabled": True,
        "disks": [
            {**DISK, "key": key, "controller_key": controllers[node.partition("_")[0]][0], "change_id": change_id}
            | {"unit_number": int(node.partition("_")[2])}
            for key, (node, change_id) in enumerate(disks.items())
        ],
        "config": {
            "controllers": [{"key": key, "type": kind, "bus_number": bus} for key, kind, bus in controllers.values()]
        },
    }


def test_a_disk_has_its_own_setting_by_its_node():
    given = vm(scsi0_0=None, scsi1_12=None, sata0_3=None, nvme0_1=None, ide1_0=None, scsi0_1="52/1")
    spec = tracking._spec(given, enabled=True)
    assert spec.changeTrackingEnabled is True
    assert {(each.key, each.value) for each in spec.extraConfig} == {
        ("scsi0:0.ctkEnabled", "TRUE"),
        ("scsi1:12.ctkEnabled", "TRUE"),
        ("sata0:3.ctkEnabled", "TRUE"),
        ("nvme0:1.ctkEnabled", "TRUE"),
        ("ide1:0.ctkEnabled", "TRUE"),
    }
    assert [each.key for each in tracking._spec(given, enabled=False).extraConfig] == ["scsi0:1.ctkEnabled"]


@pytest.mark.parametrize(
    ("on", "disks", "enabled", "wished"),
    [
        pytest.param(True, {"scsi0_0": "52/1"}, True, True, id="all on"),
        pytest.param(True, {"scsi0_0": "52/1", "scsi0_1": None}, True, False, id="a disk without"),
        pytest.param(False, {"scsi0_0": "52/1"}, True, False, id="off, not yet stunned"),
        pytest.param(False, {"scsi0_0": None}, False, True, id="all off"),
        pytest.param(True, {"scsi0_0": None}, False, False, id="on, not yet stunned"),
    ],
)
def test_only_vm_and_every_disk_together_are_as_wished(on, disks, enabled, wished):
    assert tracking.as_wished(tracking.of(vm(**disks) | {"cbt_enabled": on}), enabled) is wished
