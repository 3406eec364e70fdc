# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The virtual devices of a VM as plain data. Pure: from pyvmomi's data objects to dictionaries, no calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session

Fact = dict[str, Any]

# Settings of the .vmx with which a restore marks a VM that it makes, or whose disks it overwrites, until that is whole.
MADE, OVERWRITTEN = "sendense.restore", "sendense.overwritten"
TRIAL = "sendense.trial"  # the one that a VM has for good which a trial made: the trial's id

# Of the settings that only the .vmx has, those that a restored VM needs to be what it was. All others are vSphere's own notes
# of a run, name files or ids of the old VM, or may be secrets of the guest (guestinfo).
EXTRA = re.compile(
    r"disk\.EnableUUID|(ethernet|scsi|sata|nvme)[0-9]+\.pciSlotNumber|(isolation|monitor_control|smbios|cpuid|time\.synchronize)\..+"
    r"|tools\.syncTime|sched\.cpu\.latencySensitivity|numa\.vcpu\.[^.]+|vhv\.enable|hypervisor\.cpuid\.v0|mem\.hotadd|vcpu\.hotadd"
)


def disks(devices: Iterable[Any]) -> list[Fact]:
    """Return the disks in order of their key, sizes in bytes."""
    found = [_disk(each) for each in devices if isinstance(each, session.vim.vm.device.VirtualDisk)]
    return sorted(found, key=lambda disk: int(disk["key"]))


def allocated(layouts: Iterable[Any] | None, files: Iterable[Any] | None, key: int) -> int | None:
    """Return the bytes that all files of a disk take on the datastore, by the VM's layoutEx; None when it does not say."""
    sizes = {file.key: int(file.size) for file in files or []}
    own = {
        file for disk in layouts or [] if disk.key == key for link in disk.chain or [] for file in link.fileKey or []
    }
    return sum(sizes[file] for file in own) if own and own <= sizes.keys() else None


def controllers(devices: Iterable[Any]) -> list[Fact]:
    """Return the controllers that disks can hang on; ``type`` is vSphere's own class name."""
    device = session.vim.vm.device
    kinds = (
        device.VirtualSCSIController,
        device.VirtualSATAController,
        device.VirtualNVMEController,
        device.VirtualIDEController,
    )
    return [
        {
            "key": each.key,
            "type": kind_of(each),
            "bus_number": each.busNumber,
            "sharing": str(getattr(each, "sharedBus", None) or "noSharing"),
        }
        for each in devices
        if isinstance(each, kinds)
    ]


def nics(devices: Iterable[Any], networks: Mapping[str, str]) -> list[Fact]:
    """Return the network cards; *networks* has the names of distributed port groups by moref."""
    return [
        {
            "key": each.key,
            "type": kind_of(each),
            "network": _network(each.backing, networks),
            "mac_address": each.macAddress,
            "start_connected": each.connectable.startConnected if each.connectable else True,
        }
        for each in devices
        if isinstance(each, session.vim.vm.device.VirtualEthernetCard)
    ]


def unfinished(options: Iterable[Any] | None) -> str:
    """Return what the mark of a restore says that has made or overwritten the VM and is not finished; empty without one."""
    marks = (str(each.value) for each in options or [] if each.key in (MADE, OVERWRITTEN))
    return next(filter(None, marks), "")


def extra_config(options: Iterable[Any] | None) -> dict[str, str]:
    """Return the settings of the .vmx that EXTRA names."""
    return {each.key: str(each.value) for each in options or [] if EXTRA.fullmatch(each.key)}


def encrypted(devices: Sequence[Any]) -> bool:
    """Whether one of the disks is encrypted on its own."""
    return any(
        getattr(each.backing, "keyId", None) is not None
        for each in devices
        if isinstance(each, session.vim.vm.device.VirtualDisk)
    )


def kind_of(thing: Any) -> str:
    """Return vSphere's own name of a data object's class, such as ``ParaVirtualSCSIController``."""
    return type(thing).__name__.rpartition(".")[2]


def _disk(device: Any) -> Fact:
    backing = device.backing
    return {
        "key": device.key,
        "label": device.deviceInfo.label if device.deviceInfo else f"disk {device.key}",
        "capacity": device.capacityInBytes if device.capacityInBytes is not None else device.capacityInKB * 1024,
        "path": getattr(backing, "fileName", None) or None,
        "backing_uuid": getattr(backing, "uuid", None) or None,
        "mode": str(getattr(backing, "diskMode", None) or "persistent"),
        "controller_key": device.controllerKey,
        "unit_number": device.unitNumber,
        "thin": bool(getattr(backing, "thinProvisioned", None)),
        "change_id": getattr(backing, "changeId", None) or None,
        "kind": _backing_kind(backing),
        "sharing": str(getattr(backing, "sharing", None) or "sharingNone"),
        "has_parent": getattr(backing, "parent", None) is not None,
    }


def _backing_kind(backing: Any) -> str:
    disk = session.vim.vm.device.VirtualDisk
    if isinstance(backing, disk.FlatVer2BackingInfo):
        return "flat"
    if isinstance(backing, disk.SeSparseBackingInfo):
        return "sesparse"
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo):
        return "rdm_physical" if backing.compatibilityMode == "physicalMode" else "rdm_virtual"
    return "other"


def _network(backing: Any, networks: Mapping[str, str]) -> str | None:
    port = getattr(backing, "port", None)
    if port is not None:
        # the key of a distributed port group is its moref (vSphere API, DistributedVirtualPortgroup.key)
        key: str = port.portgroupKey or ""
        return networks.get(key, key)
    name: str | None = getattr(backing, "deviceName", None) or getattr(backing, "opaqueNetworkId", None)
    return name
