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
        {
            "key": 4000, "type": "VirtualVmxnet3", "network": name, "mac_address": "00:50:56:01:02:03",
            "start_connected": True,
        }
    ]  # fmt: skip


def layout(disks, files):
    """Return a layoutEx of a VM: the file keys of each disk's links by its key, and the sizes of files by theirs."""
    info = vim.vm.FileLayoutEx
    return info(
        disk=[
            info.DiskLayout(key=key, chain=[info.DiskUnit(fileKey=link) for link in links])
            for key, links in disks.items()
        ],
        file=[info.FileInfo(key=key, name=f"f{key}", type="diskExtent", size=size) for key, size in files.items()],
    )


@pytest.mark.parametrize(
    ("told", "count"),
    [
        pytest.param(({2000: [[1, 2]]}, {1: 500, 2: 4096, 9: 7}), 4596, id="descriptor and extent"),
        pytest.param(({2000: [[1, 2], [3, 4]]}, {1: 1, 2: 10, 3: 100, 4: 1000}), 1111, id="a delta on its base"),
        pytest.param(({2000: [[1]], 2001: [[2]]}, {1: 0, 2: 4096}), 0, id="nothing written yet"),
        pytest.param(({2001: [[1]]}, {1: 4096}), None, id="another disk"),
        pytest.param(({2000: [[1, 2]]}, {1: 500}), None, id="a file without a size"),
        pytest.param(({2000: []}, {1: 500}), None, id="no files"),
        pytest.param(({}, {}), None, id="an empty layout"),
    ],
)
def test_what_a_disk_takes_is_the_sum_of_its_files(told, count):
    assert hardware.allocated(layout(*told).disk, layout(*told).file, 2000) == count


def test_what_a_disk_takes_is_unknown_without_a_layout():
    assert hardware.allocated(None, None, 2000) is None


def test_of_the_settings_of_a_vmx_only_those_are_taken_that_make_the_machine():
    told = {
        "disk.EnableUUID": "TRUE", "ethernet0.pciSlotNumber": "192", "nvme12.pciSlotNumber": "33", "isolation.tools.copy.disable": "TRUE",
        "guestinfo.userdata": "a secret", "ethernet0.generatedAddress": "00:50:56:01:02:03", "uuid.location": "56 4d", "nvram": "web1.nvram",
        "disk.EnableUUIDs": "no", "sched.swap.derivedName": "/vmfs/volumes/x", "numa.autosize.cookie": "10001", "sendense.restore": "{}",
    }  # fmt: skip
    options = [vim.option.OptionValue(key=key, value=value) for key, value in told.items()]
    kept = {"disk.EnableUUID", "ethernet0.pciSlotNumber", "nvme12.pciSlotNumber", "isolation.tools.copy.disable"}
    assert hardware.extra_config(options) == {key: told[key] for key in kept}
    assert hardware.extra_config(None) == {}
