# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boots under the real QEMU. The guests are a boot sector and a second stage, which say a word and halt."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from struct import pack

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.repository import boot, machine
from ansible_collections.sendense.backup.plugins.module_utils.repository.boot import Wish

UUID, POINT = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "20261123T140102Z"
UNIT = boot.unit_name(UUID, POINT)
SECTOR, STAGE = 512, 2048  # the second stage's sector: where a partition begins, with what is its superblock
MARKER = b"STAGE TWO IS UP"
QUICK = Wish(pattern="STAGE TWO", timeout=60)


def boot_sector():
    """Return code that loads the second stage, looks for its mark and jumps there, or says that it is missing."""
    says = bytes.fromhex("AC84C07409B40EBB0700CD10EBF2F4EBFD")  # print what SI points to, and halt
    start = bytes.fromhex("31C08ED88EC08ED0BC007CBE")  # registers and stack; mov si, packet
    load = bytes.fromhex("B442CD13720D813EFE8155AA7505EA00800000BE")  # int 13h; jc; cmp; jne; jmp 0:8000; mov si, words
    packet_at = 0x7C00 + len(start) + 2 + len(load) + 2 + len(says)
    packet = pack("<BBHHHQ", 16, 0, 1, 0x8000, 0, STAGE)
    code = start + pack("<H", packet_at) + load + pack("<H", packet_at + 16) + says + packet
    return (code + b"Missing operating system\0").ljust(510, b"\0") + b"\x55\xaa"


def second_stage():
    """Return code that says the marker on the serial port and on the screen, and halts."""
    code = bytes.fromhex("BE1980AC84C0740DBAF803EEB40EBB0700CD10EBEEF4EBFD")
    return (code.ljust(0x19, b"\0") + MARKER + b"\0").ljust(510, b"\0") + b"\x55\xaa"


def system_disk(first=None, second=None):
    return {0: boot_sector() if first is None else first, STAGE: second_stage() if second is None else second}


DATA_DISK = {5: b"known data"}


@pytest.fixture
def folder():
    """Return a folder with a short path, for sockets."""
    with tempfile.TemporaryDirectory(prefix="boot-") as path:
        yield Path(path)


@pytest.fixture
def vm(tmp_path, folder):
    """Return ``vm(*disks, **config)``: a machine on images that hold these sectors."""

    def make(*disks, **config):
        layers, facts = {}, []
        for rank, content in enumerate(disks):
            raw, path = tmp_path / "raw", tmp_path / f"disk-{2000 + rank}.qcow2"
            with raw.open("wb") as file:
                file.truncate(2 << 20)
                for sector, data in content.items():
                    file.seek(sector * SECTOR)
                    file.write(data)
            command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path]
            subprocess.run(command, check=True)
            layers[2000 + rank] = [path]
            facts.append({"key": 2000 + rank, "controller_key": 1000, "unit_number": rank, "provisioned": 2 << 20})
        controllers = [{"key": 1000, "type": "ParaVirtualSCSIController", "bus_number": 0}]
        config = {"cpus": 1, "memory_mib": 64, "firmware": "bios", "controllers": controllers} | config
        said = {"vm": {"name": "guest", "instance_uuid": UUID, "config": config}, "disks": facts}
        return machine.of(said, layers, folder / "m", 2048)

    return make


@pytest.fixture(autouse=True)
def no_kvm(monkeypatch):
    monkeypatch.setattr(boot, "accelerator", lambda: "tcg")


def layers_of(wanted):
    return {disk.key: list(disk.layers) for disk in wanted.disks}


def test_a_vm_whose_console_says_the_word_has_booted(vm, host_units):
    wanted = vm(system_disk(), DATA_DISK)
    before = {path: path.read_bytes() for images in layers_of(wanted).values() for path in images}
    found = boot.prove(wanted, UNIT, QUICK)
    assert (found.ok, found.how, found.why, found.accelerator) == (True, "pattern", "", "tcg")
    assert MARKER.decode() in " ".join(found.console)
    assert found.screenshot.startswith(b"\x89PNG")
    assert not wanted.folder.exists()
    assert {path: path.read_bytes() for path in before} == before
    said = (host_units / f"{UNIT}.command").read_text()
    for word in ("--property=PrivateNetwork=yes", "--property=RuntimeMaxSec=360", "--property=User=sendense"):
        assert word in said
    assert not boot.runs(UNIT)


@pytest.mark.parametrize(("disks", "why"), [
    pytest.param([system_disk(first=b"\xf4\xeb\xfd".ljust(510, b"\x90") + b"\x55\xaa")], "did not boot within 8 s",
                 id="a damaged boot loader"),
    pytest.param([system_disk(second=bytes(SECTOR))], "'Missing operating system'", id="a zeroed superblock"),
    pytest.param([DATA_DISK, system_disk()], "'No bootable device'", id="a swapped order of disks"),
])  # fmt: skip
def test_a_vm_that_does_not_boot_is_told_with_picture_and_last_lines(vm, host_units, disks, why):
    wanted = vm(*disks)
    assert boot.bootable(layers_of(wanted), "bios")
    found = boot.prove(wanted, UNIT, Wish(pattern="STAGE TWO", timeout=8))
    assert not found.ok
    assert why in found.why
    assert found.screenshot.startswith(b"\x89PNG")
    assert any("Boot" in line or "Missing" in line for line in found.console), found.console
    assert not wanted.folder.exists()


def test_without_a_word_a_screen_at_rest_tells(vm, host_units):
    found = boot.prove(vm(system_disk()), UNIT, Wish(settle=3, timeout=60))
    assert (found.ok, found.how) == (True, "screen")


def test_a_screen_at_rest_that_shows_a_failure_is_none(vm, host_units):
    found = boot.prove(vm(system_disk(second=bytes(SECTOR))), UNIT, Wish(settle=3, timeout=60))
    assert (found.ok, found.why) == (False, "it did not boot: 'Missing operating system'")


def test_a_screen_at_rest_that_shows_the_firmware_alone_is_none(vm, host_units):
    hangs = b"\xf4\xeb\xfd".ljust(510, b"\x90") + b"\x55\xaa"
    found = boot.prove(vm(system_disk(first=hangs)), UNIT, Wish(settle=3, timeout=20))
    assert (found.ok, found.how) == (False, "")
    assert (
        found.why
        == "it did not boot within 20 s: no guest agent answered, and its screen did not go beyond the firmware's"
    )


def test_a_vm_that_qemu_cannot_run_is_told_in_qemus_words(vm, host_units, monkeypatch):
    monkeypatch.setattr(machine, "serial", lambda _machine, log: ["-device", "nonsense"])
    found = boot.prove(vm(system_disk()), UNIT, QUICK)
    assert not found.ok
    assert "nonsense" in found.why
    assert found.screenshot == b""


def test_a_guest_that_stops_by_itself_has_not_booted(vm, host_units):
    # outw 0x2000 to the power management port of the PIIX4 (SeaBIOS puts it at 0x600): soft off
    off = bytes.fromhex("BA0406B80020EFF4EBFD").ljust(510, b"\0") + b"\x55\xaa"
    found = boot.prove(vm(system_disk(second=off)), UNIT, QUICK)
    assert (found.ok, found.why) == (False, "the guest stopped by itself: shutdown")


def test_only_one_boots_a_point_at_a_time(vm, host_units):
    wanted = vm(system_disk())
    boot.run(wanted, UNIT)
    try:
        with pytest.raises(Exception, match=f"{UNIT} runs already"):
            boot.prove(wanted, UNIT, QUICK)
        assert boot.runs(UNIT)
    finally:
        boot.end(wanted.folder, UNIT)
    assert not boot.runs(UNIT)
    wanted.folder.mkdir()  # as a task leaves it that was killed
    assert boot.prove(wanted, UNIT, QUICK).ok


def test_a_running_point_is_reached_by_sockets_and_goes_with_all_that_it_wrote(vm, host_units):
    wanted = vm(system_disk())
    before = wanted.disks[0].layers[0].read_bytes()
    assert boot.run(wanted, UNIT) == "tcg"
    with socket.socket(socket.AF_UNIX) as screen:
        screen.settimeout(20)
        screen.connect(str(wanted.folder / "vnc"))
        assert screen.recv(12).startswith(b"RFB ")
    assert (wanted.folder.stat().st_mode & 0o777) == 0o700
    assert "RuntimeMaxSec" not in (host_units / f"{UNIT}.command").read_text()
    boot.end(wanted.folder, UNIT)
    assert not boot.runs(UNIT)
    assert not wanted.folder.exists()
    assert wanted.disks[0].layers[0].read_bytes() == before


def efi_disk(tmp_path):
    """Return a disk with a system partition, from which the firmware's own shell runs a script that says a word."""
    part, script = tmp_path / "esp", tmp_path / "startup.nsh"
    with part.open("wb") as file:
        file.truncate(1440 * 1024)
    script.write_bytes(b"@echo -off\r\necho STAGE TWO IS UP\r\n")
    subprocess.run(["mformat", "-i", part, "-f", "1440", "::"], check=True)
    subprocess.run(["mcopy", "-i", part, script, "::"], check=True)
    entry = pack("<B3sB3sII", 0, b"\xfe\xff\xff", 0xEF, b"\xfe\xff\xff", 63, 2880)
    return {0: bytes(446) + entry + bytes(48) + b"\x55\xaa", 63: part.read_bytes()}


def test_a_uefi_vm_boots_from_its_system_partition(vm, host_units, tmp_path):
    wanted = vm(efi_disk(tmp_path), firmware="efi", memory_mib=256)
    found = boot.prove(wanted, UNIT, Wish(pattern="STAGE TWO", timeout=240))
    assert (found.ok, found.why) == (True, "")
    assert found.substituted == ["disk 2000 hangs on AHCI instead of ParaVirtualSCSIController"]


def test_a_uefi_vm_without_one_ends_in_the_firmwares_shell(vm, host_units):
    found = boot.prove(vm(system_disk(), firmware="efi", memory_mib=256), UNIT, Wish(pattern="STAGE TWO", timeout=240))
    assert (found.ok, found.why) == (False, "it did not boot: 'Shell>'")


def esp(kind):
    return bytes(446) + bytes(4) + bytes([kind]) + bytes(59) + b"\x55\xaa"


@pytest.mark.parametrize(("disk", "bios", "efi"), [
    pytest.param(system_disk(), True, False, id="a boot sector with code"),
    pytest.param({}, False, False, id="an empty disk"),
    pytest.param(DATA_DISK, False, False, id="data without any partition table"),
    pytest.param({0: esp(0x83)}, False, False, id="a partition table without code"),
    pytest.param({0: esp(0xEF)}, False, True, id="a system partition in an MBR"),
    pytest.param({0: esp(0xEE), 1: b"EFI PART", 2: bytes(128) + boot._ESP}, False, True, id="a system partition in a GPT"),
])  # fmt: skip
def test_what_can_be_booted_is_seen_on_the_disk(vm, disk, bios, efi):
    layers = layers_of(vm(DATA_DISK, disk))
    assert boot.bootable(layers, "bios") is bios
    assert boot.bootable(layers, "efi") is efi


@pytest.mark.parametrize(("answer", "alive"), [(b'{"return": {}}\n', True), (b'{"error": {}}\n', False), (b"", False)])
def test_a_guest_agent_is_alive_when_it_answers(folder, answer, alive):
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(folder / "agent"))
        agent.listen()

        def serve():
            peer, _address = agent.accept()
            with peer:
                assert json.loads(peer.recv(100).strip(b"\xff")) == {"execute": "guest-ping"}
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert boot._agent_answers(folder / "agent") is alive
        thread.join()
    assert boot._agent_answers(folder / "nobody") is False


def test_console_lines_are_plain():
    assert boot._lines("\x1b[2J\x1b[01;01HBdsDxe: x\r\n\0\n\x07login:\r\n") == ["BdsDxe: x", "?login:"]
