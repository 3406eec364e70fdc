# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backup leaves: the bytes of the truth, and nothing else."""

from __future__ import annotations

import json

import pytest

ODD = 64 * 1024**2 + 1536


@pytest.mark.parametrize(("vm", "sizes"), [
    ("pgtest1", {2000: 256 * 1024**2, 2001: ODD, 16000: 20 * 1024**3}),
    ("thin1", {2000: 100 * 1024**3}),
])  # fmt: skip
def test_every_disk_holds_the_bytes_of_the_truth(clean, vm, sizes):
    _manifest, disks = clean.compare(vm)
    assert {disk.key: disk.size for disk in disks} == sizes
    assert [disk.key for disk in disks if not disk.equal] == []


def test_thin_space_is_neither_read_nor_stored(site):
    manifest, disks = site.compare("thin1")
    assert manifest["disks"][0]["read"] == 0
    assert disks[0].stored < 1024**2


def test_only_allocated_space_of_a_thin_disk_is_read(site):
    manifest, _disks = site.compare("pgtest1")
    thin = next(disk for disk in manifest["disks"] if disk["key"] == 16000)
    assert 0 < thin["read"] == thin["allocated"] < 2 * 1024**3


def test_an_operator_reads_the_point_with_plain_tools(site):
    point = site.points()[0]
    manifest = json.loads(site.hub.file(f"{point}/manifest.json").content_string)
    for disk in manifest["disks"]:
        assert site.hub.run(f"qemu-img check -f qcow2 {point}/{disk['image']}").rc == 0
        told = manifest["files"][disk["image"]]["sha256"]
        assert site.hub.check_output(f"sha256sum {point}/{disk['image']}").split()[0] == told


def test_what_the_guest_writes_meanwhile_is_not_in_the_point(clean):
    before, keys = len(clean.points()), (2000, 2001, 16000)
    first, later = b"before the snapshot" * 27, b"written during the copy" * 200
    with clean.restoring("pgtest1", [(16000, 5 * 1024**3, len(first)), *((key, 1024**2, len(later)) for key in keys)]):
        clean.write("pgtest1", 16000, 5 * 1024**3, first)
        with clean.knobs(folder_bytes_per_second=30 * 1024**2, nfc_bytes_per_second=30 * 1024**2):
            run = clean.start("--limit=pgtest1,hub1,node1")
            clean.wait_for_copy("pgtest1")
            for key in keys:
                clean.write("pgtest1", key, 1024**2, later)
        output, _nothing = run.communicate(timeout=600)
        assert run.returncode == 0, output
        _manifest, disks = clean.compare("pgtest1")
        assert all(disk.equal for disk in disks)
        assert len(clean.points()) == before + 1
        for key in keys:
            assert clean.read("pgtest1", key, 1024**2, len(later)) == later


def test_the_hub_offers_the_node_nothing_but_sshd(site):
    with site.knobs(folder_bytes_per_second=30 * 1024**2, nfc_bytes_per_second=30 * 1024**2):
        run = site.start("--limit=pgtest1")
        site.wait_for_copy("pgtest1")
        address = site.lab_json["machines"][0]["address"]
        scan = (
            "import socket\n"
            "def is_open(port):\n"
            "    with socket.socket() as probe:\n"
            "        probe.settimeout(2)\n"
            f"        return probe.connect_ex(('{address}', port)) == 0\n"
            "print([port for port in range(1, 65536) if is_open(port)])\n"
        )
        seen = site.node.run(f'/usr/bin/python3 -c "{scan}"').stdout
        served = site.hub.run("ss -Htln 'sport >= 10100 and sport <= 10200'").stdout
    output, _nothing = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert seen.strip() == "[22]"
    assert len(served.splitlines()) == 3
    assert all("127.0.0.1:" in line for line in served.splitlines())


def test_only_the_node_reaches_vcenter(site):
    look = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{site.lab_json['vcenter']['hostname']}/443'"
    assert site.node.run(look).rc == 0
    assert site.hub.run(look).rc != 0


def test_one_of_two_vms_with_one_name_is_chosen_by_its_moref(clean):
    chosen = next(vm for vm in clean.ask("/vms")["vms"] if "/test/" in vm["path"] and vm["name"] == "twin")
    run = clean.backup("-e", "vm_name=twin", "-e", f"backup_moref={chosen['moref']}")
    assert run.code == 0, run.output
    assert any(chosen["instance_uuid"] in point for point in clean.points())
