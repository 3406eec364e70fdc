# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM of a manifest as QEMU can run it: without any network, every write into throw-away overlays. Pure but for overlays.

The image graph is spelt out for QEMU, with every format stated and every image of the point read-only: no header leads it
to another file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import commands, jobs
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

PROGRAM = "qemu-system-x86_64"
PROVISION = "provision the hub with hub_boot: true"
PROPERTIES = (
    "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateNetwork=yes",
    "RestrictAddressFamilies=AF_UNIX", "ProtectKernelTunables=yes", "ProtectControlGroups=yes", "DevicePolicy=closed",
)  # fmt: skip
EFI = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")  # Debian: ovmf
_AHCI_PORTS = 6  # of QEMU's ich9-ahci
_SAS_TARGETS = 8  # of QEMU's mptsas1068
# vSphere's class to QEMU's device. SeaBIOS boots from each of them; Debian's OVMF from SATA, NVMe and IDE alone
_SCSI = {"ParaVirtualSCSIController": ("pvscsi", 64), "VirtualLsiLogicSASController": ("mptsas1068", _SAS_TARGETS)}


@dataclass(frozen=True)
class Disk:
    """One disk, where it hangs, and the images behind it."""

    key: int
    kind: str  # vSphere's class of its controller; empty when the manifest does not know
    controller: int  # key of that
    bus: int  # number of that
    unit: int
    size: int  # bytes
    overlay: Path
    layers: tuple[Path, ...]  # newest first


@dataclass(frozen=True)
class Machine:
    """A VM, cut down to what the hub gives it."""

    name: str
    uuid: str
    firmware: str  # bios or efi
    cpus: int
    memory_mib: int
    disks: tuple[Disk, ...]  # in the order in which firmware tries them
    folder: Path  # where all of it lies that is thrown away


def of(said: Mapping[str, Any], layers: Mapping[int, list[Path]], folder: Path, memory_mib: int) -> Machine:
    """Return the machine of a manifest, with at most that much memory and as many processors as there are here."""
    vm, config = said["vm"], said["vm"]["config"]
    controllers = {each["key"]: each for each in config.get("controllers", [])}
    disks = []
    for rank, each in enumerate(sorted(said["disks"], key=lambda disk: int(disk["key"]))):
        hangs = controllers.get(each.get("controller_key"), {})
        disks.append(
            Disk(
                key=each["key"],
                kind=hangs.get("type", ""),
                controller=each.get("controller_key") or 0,
                bus=hangs.get("bus_number") or 0,
                unit=each["unit_number"] if each.get("unit_number") is not None else rank,
                size=each["provisioned"],
                overlay=folder / f"disk-{each['key']}.qcow2",
                layers=tuple(layers[each["key"]]),
            )
        )
    return Machine(
        name=jobs.slug(str(vm.get("name", ""))),
        uuid=vm.get("bios_uuid") or vm["instance_uuid"],
        firmware="efi" if config.get("firmware") == "efi" else "bios",
        cpus=max(1, min(int(config.get("cpus") or 1), os.cpu_count() or 1)),
        memory_mib=max(64, min(int(config.get("memory_mib") or memory_mib), memory_mib)),
        disks=tuple(disks),
        folder=folder,
    )


def substituted(machine: Machine) -> list[str]:
    """Return a sentence for each disk that hangs on another controller than in vSphere, because QEMU or its firmware has none like it."""
    return [
        f"disk {disk.key} hangs on AHCI instead of {disk.kind or 'an unknown controller'}"
        for disk in machine.disks
        if _place(disk, machine.firmware) is None
    ]


def prepare(machine: Machine) -> None:
    """Make the overlays of a machine, empty, and its firmware's memory; all of it lies in its folder."""
    for disk in machine.disks:
        options = ["-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", str(disk.layers[0])]
        commands.run(["qemu-img", "create", *options, str(disk.overlay), str(disk.size)])
        jobs.own(disk.overlay)
    if machine.firmware == "efi":
        for path in EFI:
            if not Path(path).exists():
                raise SendenseError(f"{path} is not on this hub, which a UEFI VM needs to boot; {PROVISION}")
        jobs.write_private(machine.folder / "vars.fd", Path(EFI[1]).read_bytes())


def command(machine: Machine, accelerator: str, *extra: str) -> Command:
    """Return QEMU's command. Whoever holds the folder's sockets talks to serial console, QMP and guest agent."""
    folder = machine.folder
    return [
        PROGRAM, "-name", machine.name, "-nodefaults", "-no-user-config", "-nic", "none", "-sandbox", "on",
        "-machine", "pc", "-uuid", machine.uuid, "-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M",
        *(("-accel", "kvm", "-cpu", "host") if accelerator == "kvm" else ("-accel", "tcg,thread=multi", "-cpu", "max")),
        "-device", "VGA", "-no-shutdown",
        "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={folder}/agent.sock,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        "-chardev", f"file,id=firmware,path={folder}/firmware.log",  # SeaBIOS tells there what becomes of a boot
        "-device", "isa-debugcon,iobase=0x402,chardev=firmware",
        *_firmware(machine),
        *(word for rank, disk in enumerate(machine.disks) for word in ("-blockdev", json.dumps(_graph(disk, rank)))),
        *_devices(machine),
        *extra,
    ]  # fmt: skip


def serial(machine: Machine, *, log: bool) -> Command:
    """Return the words that give the machine a serial console on a socket, with a *log* of what it says if so wished."""
    kept = f",logfile={machine.folder}/serial.log" if log else ""
    return [
        "-chardev", f"socket,id=serial,path={machine.folder}/serial.sock,server=on,wait=off{kept}",
        "-device", "isa-serial,chardev=serial",
    ]  # fmt: skip


def _firmware(machine: Machine) -> Iterator[str]:
    if machine.firmware == "efi":
        yield from ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={EFI[0]}")
        yield from ("-drive", f"if=pflash,unit=1,format=raw,file={machine.folder}/vars.fd")


def _graph(disk: Disk, rank: int) -> dict[str, Any]:
    """Return the overlay of a disk and everything below it, as QEMU's blockdev; what lies below is read-only."""
    below: dict[str, Any] | None = None
    for path in reversed(disk.layers):
        file = {"driver": "file", "filename": str(path), "read-only": True}
        below = {"driver": "qcow2", "read-only": True, "file": file, "backing": below}
    return {
        "driver": "qcow2",
        "node-name": f"disk{rank}",
        "cache": {"no-flush": True},  # it is thrown away
        "file": {"driver": "file", "filename": str(disk.overlay)},
        "backing": below,
    }


def _place(disk: Disk, firmware: str) -> tuple[str, str, str] | None:
    """Return the controller that a disk needs, its id, and the disk's device on it; None where there is none like it."""
    if firmware == "bios" and disk.kind in _SCSI and disk.unit < _SCSI[disk.kind][1]:
        name = f"scsi{disk.controller}"
        return f"{_SCSI[disk.kind][0]},id={name}", name, f"scsi-hd,bus={name}.0,scsi-id={disk.unit}"
    if disk.kind == "VirtualAHCIController":
        name = f"ahci{disk.controller}n{disk.unit // _AHCI_PORTS}"
        return f"ahci,id={name}", name, f"ide-hd,bus={name}.{disk.unit % _AHCI_PORTS}"
    if disk.kind == "VirtualNVMEController":
        name = f"nvme{disk.controller}"
        return f"nvme,id={name},serial={name}", name, f"nvme-ns,bus={name},nsid={disk.unit + 1}"
    if disk.kind == "VirtualIDEController" and disk.bus < 2 and disk.unit < 2:
        return "", f"ide{disk.bus}", f"ide-hd,bus=ide.{disk.bus},unit={disk.unit}"  # every such machine has it
    return None


def _devices(machine: Machine) -> Iterator[str]:
    made = set()
    spare = 0
    for rank, disk in enumerate(machine.disks):
        place = _place(disk, machine.firmware)
        if place is None:
            name = f"spare{spare // _AHCI_PORTS}"
            place = f"ahci,id={name}", name, f"ide-hd,bus={name}.{spare % _AHCI_PORTS}"
            spare += 1
        controller, name, device = place
        if controller and name not in made:
            made.add(name)
            yield from ("-device", controller)
        yield from ("-device", f"{device},drive=disk{rank},bootindex={rank}")


def make_folder(path: Path) -> None:
    """Make the folder of a machine, for nobody but the service user."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    jobs.own(path)


def read(path: Path, limit: int = 16 << 20) -> bytes:
    """Return the end of a file that the machine wrote; its folder belongs to the service user, so no link is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(max(0, os.fstat(descriptor).st_size - limit))
        return file.read(limit)
