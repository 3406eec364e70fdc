# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.repository import machine

FOLDER = Path("/x")


def said(*disks, **config):
    """Return a manifest; a disk is its key, the class of its controller and its unit."""
    controllers = {}
    for rank, (_key, kind, _unit) in enumerate(disks):
        controllers.setdefault(kind, {"key": 1000 + rank, "type": kind, "bus_number": 0})
    return {
        "vm": {
            "name": "Pg Test", "instance_uuid": "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "bios_uuid": "b",
            "config": {"cpus": 64, "memory_mib": 512, "firmware": "bios", "controllers": list(controllers.values()), **config},
        },
        "disks": [
            {"key": key, "controller_key": controllers[kind]["key"], "unit_number": unit, "provisioned": 1 << 20}
            for key, kind, unit in disks
        ],
    }  # fmt: skip


def made(*disks, memory=2048, **config):
    layers = {key: [Path(f"/r/{key}.qcow2")] for key, _kind, _unit in disks}
    return machine.of(said(*disks, **config), layers, FOLDER, memory)


def devices(wanted):
    words = machine.command(wanted, "tcg")
    return [after for word, after in itertools.pairwise(words) if word == "-device" and "disk" in after]


@pytest.mark.parametrize(("disk", "device"), [
    pytest.param((2000, "ParaVirtualSCSIController", 3), "scsi-hd,bus=scsi1000.0,scsi-id=3", id="paravirtual SCSI"),
    pytest.param((2000, "VirtualLsiLogicSASController", 0), "scsi-hd,bus=scsi1000.0,scsi-id=0", id="LSI SAS"),
    pytest.param((2000, "VirtualLsiLogicSASController", 9), "ide-hd,bus=spare0.0", id="more targets than QEMU's LSI SAS has"),
    pytest.param((16000, "VirtualAHCIController", 7), "ide-hd,bus=ahci1000n1.1", id="the seventh port of SATA"),
    pytest.param((31000, "VirtualNVMEController", 0), "nvme-ns,bus=nvme1000,nsid=1", id="NVMe"),
    pytest.param((3001, "VirtualIDEController", 1), "ide-hd,bus=ide.0,unit=1", id="IDE"),
    pytest.param((2000, "VirtualBusLogicController", 0), "ide-hd,bus=spare0.0", id="one that QEMU lacks"),
])  # fmt: skip
def test_a_disk_hangs_on_the_controller_that_it_had(disk, device):
    assert devices(made(disk)) == [f"{device},drive=disk0,bootindex=0"]


def test_what_hangs_elsewhere_is_told():
    wanted = made((2000, "VirtualBusLogicController", 0), (2001, "ParaVirtualSCSIController", 0))
    assert machine.substituted(wanted) == ["disk 2000 hangs on AHCI instead of VirtualBusLogicController"]


def test_firmware_tries_the_disks_in_order_of_their_keys():
    wanted = made((16000, "VirtualAHCIController", 0), (2000, "ParaVirtualSCSIController", 0))
    assert [each.rpartition("bus=")[2] for each in devices(wanted)] == [
        "scsi1001.0,scsi-id=0,drive=disk0,bootindex=0",
        "ahci1000n0.0,drive=disk1,bootindex=1",
    ]


def test_memory_and_processors_are_no_more_than_the_hub_gives():
    wanted = made((2000, "ParaVirtualSCSIController", 0), memory=128)
    assert wanted.memory_mib == 128
    assert 1 <= wanted.cpus < 64
    assert made((2000, "ParaVirtualSCSIController", 0)).memory_mib == 512


def test_the_images_of_the_point_are_read_only_and_no_header_leads_anywhere():
    layers = {2000: [Path("/r/new"), Path("/r/old")]}
    wanted = machine.of(said((2000, "ParaVirtualSCSIController", 0)), layers, FOLDER, 512)
    words = machine.command(wanted, "tcg")
    graph = json.loads(words[words.index("-blockdev") + 1])
    assert graph["file"]["filename"] == "/x/disk-2000.qcow2"
    below = graph["backing"]
    assert (below["file"]["filename"], below["read-only"], below["file"]["read-only"]) == ("/r/new", True, True)
    assert below["backing"]["file"]["filename"] == "/r/old"
    assert below["backing"]["backing"] is None


def test_there_is_no_network():
    words = machine.command(made((2000, "ParaVirtualSCSIController", 0)), "tcg")
    assert words[words.index("-nic") + 1] == "none"
    assert "-nodefaults" in words
    assert "PrivateNetwork=yes" in machine.PROPERTIES


@pytest.mark.parametrize("firmware", ["bios", "efi"])
def test_the_firmware_is_that_of_the_vm(firmware):
    words = " ".join(machine.command(made((2000, "ParaVirtualSCSIController", 0), firmware=firmware), "tcg"))
    assert ("OVMF_CODE" in words) == (firmware == "efi")
    assert ("pvscsi" in words) == (firmware == "bios"), "OVMF does not boot from it"


def test_a_link_in_the_machines_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "serial.log").symlink_to(tmp_path / "secret")
    assert machine.read(tmp_path / "serial.log") == b""
    assert machine.read(tmp_path / "secret", 3) == b"ret"
