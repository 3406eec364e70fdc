# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pyvmomi's own data objects, as a vCenter with such devices sends them, turned into plain data."""

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import hardware
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import vim

pytest.importorskip("pyVmomi")
device = vim and vim.vm.device
Disk = device and device.VirtualDisk


def disk(backing, key=2000, **more):
    return Disk(key=key, controllerKey=1000, unitNumber=0, capacityInBytes=4096, backing=backing, **more)


@pytest.mark.parametrize(
    ("backing", "kind", "sharing"),
    [
        pytest.param(Disk.FlatVer2BackingInfo(sharing="sharingMultiWriter"), "flat", "sharingMultiWriter", id="shared"),
        pytest.param(Disk.FlatVer2BackingInfo(), "flat", "sharingNone", id="flat"),
        pytest.param(Disk.SeSparseBackingInfo(), "sesparse", "sharingNone", id="sesparse"),
        pytest.param(
            Disk.RawDiskMappingVer1BackingInfo(compatibilityMode="physicalMode"),
            "rdm_physical",
            "sharingNone",
            id="physical",
        ),
        pytest.param(
            Disk.RawDiskMappingVer1BackingInfo(compatibilityMode="virtualMode"),
            "rdm_virtual",
            "sharingNone",
            id="virtual",
        ),
        pytest.param(Disk.SparseVer2BackingInfo(), "other", "sharingNone", id="hosted"),
        pytest.param(device.VirtualDevice.BackingInfo(), "other", "sharingNone", id="unknown"),
    ],
)
def test_a_backing_has_its_kind(backing, kind, sharing):
    (found,) = hardware.disks([disk(backing)])
    assert (found["kind"], found["sharing"]) == (kind, sharing)


def test_what_a_server_leaves_out_is_filled_in():
    (found,) = hardware.disks([disk(Disk.FlatVer2BackingInfo())])
    assert found == {
        "key": 2000,
        "label": "disk 2000",
        "capacity": 4096,
        "path": None,
        "backing_uuid": None,
        "mode": "persistent",
        "controller_key": 1000,
        "unit_number": 0,
        "thin": False,
        "change_id": None,
        "kind": "flat",
        "sharing": "sharingNone",
        "has_parent": False,
    }


def test_an_old_server_tells_kilobytes():
    (found,) = hardware.disks([Disk(key=2000, capacityInKB=4, backing=Disk.FlatVer2BackingInfo())])
    assert found["capacity"] == 4096


def test_an_empty_change_id_is_none():
    (found,) = hardware.disks([disk(Disk.FlatVer2BackingInfo(changeId=""))])
    assert found["change_id"] is None


def test_a_delta_has_a_parent():
    (found,) = hardware.disks([disk(Disk.FlatVer2BackingInfo(parent=Disk.FlatVer2BackingInfo()))])
    assert found["has_parent"] is True


def test_disks_come_in_order_of_their_keys_and_other_devices_do_not():
    devices = [disk(Disk.FlatVer2BackingInfo(), key) for key in (16000, 2001, 2000)]
    assert [each["key"] for each in hardware.disks([device.VirtualCdrom(), *devices])] == [2000, 2001, 16000]


def test_a_disk_may_be_encrypted_on_its_own():
    key = vim.encryption.CryptoKeyId(keyId="k")
    assert hardware.encrypted([disk(Disk.FlatVer2BackingInfo(keyId=key))])
    assert not hardware.encrypted([disk(Disk.FlatVer2BackingInfo()), device.VirtualCdrom()])


def test_controllers_have_their_class_and_sharing():
    found = hardware.controllers(
        [
            device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="physicalSharing"),
            device.VirtualAHCIController(key=15000, busNumber=0),
            device.VirtualNVMEController(key=31000, busNumber=1),
            device.VirtualIDEController(key=200, busNumber=0),
            device.VirtualPCIController(key=100, busNumber=0),
        ]
    )
    assert [(each["key"], each["type"], each["sharing"]) for each in found] == [
        (1000, "ParaVirtualSCSIController", "physicalSharing"),
        (15000, "VirtualAHCIController", "noSharing"),
        (31000, "VirtualNVMEController", "noSharing"),
        (200, "VirtualIDEController", "noSharing"),
    ]


@pytest.mark.parametrize(
    ("backing", "name"),
    [
        pytest.param(
            device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"), "VM Network", id="standard switch"
        ),
        pytest.param(
            device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
                port=vim.dvs.PortConnection(switchUuid="u", portgroupKey="dvportgroup-9")
            ),
            "prod/lan",
            id="distributed switch",
        ),
        pytest.param(
            device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
                port=vim.dvs.PortConnection(switchUuid="u", portgroupKey="dvportgroup-10")
            ),
            "dvportgroup-10",
            id="a port group we may not see",
        ),
        pytest.param(
            device.VirtualEthernetCard.OpaqueNetworkBackingInfo(opaqueNetworkId="seg-1", opaqueNetworkType="nsx"),
            "seg-1",
            id="NSX segment",
        ),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_a_network_card_names_its_network(backing, name):
    card = device.VirtualVmxnet3(key=4000, macAddress="00:50:56:01:02:03", backing=backing)
    assert hardware.nics([card], {"dvportgroup-9": "prod/lan"}) == [
        {"key": 4000, "type": "VirtualVmxnet3", "network": name, "mac_address": "00:50:56:01:02:03"}
    ]
