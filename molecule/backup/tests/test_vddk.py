# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks read by VMware's library: nbdkit's own vddk plugin, and the lab's stand-in for the library under it."""

from __future__ import annotations

import pytest

VDDK = "/opt/sendense/vddk/current"
BY_VDDK = ("-e", "backup_transport=vddk")


@pytest.fixture
def snapshot(clean):
    """Return ``snapshot(vm, name)``, which takes one by hand; all of them go at the end."""
    vms = set()

    def take(vm, name):
        vms.add(vm)
        clean.administrator(vm, f"CreateSnapshot_Task({name!r}, '', False, False)")

    yield take
    for vm in vms:
        clean.administrator(vm, "RemoveAllSnapshots_Task()")


@pytest.fixture
def library(clean):
    """Return the folder that the node's VDDK is in, to be spoiled; it is whole again at the end."""
    place = clean.node.check_output(f"readlink {VDDK}")
    yield place
    clean.node.check_output(f"ln -sfn {place} {VDDK}")
    clean.node.check_output("rm -rf /opt/sendense/vddk/spoilt")


def test_every_disk_is_what_it_was(clean):
    before = clean.ask("/stats")
    run = clean.backup("-e", "vm_name=pgtest1", *BY_VDDK)
    assert run.code == 0, run.output
    manifest, disks = clean.compare("pgtest1")
    assert len(disks) == 3
    assert all(disk.equal for disk in disks)
    assert manifest["transport"] == "vddk"
    assert manifest["tools"]["plugin"].startswith("vddk 1.")
    assert manifest["tools"]["library"].startswith("8.")
    assert {disk["map"] for disk in manifest["disks"]} == {"used"}, "CBT says what is read, as over HTTPS"
    after = clean.ask("/stats")
    assert after["nfc"]["opens"] - before["nfc"]["opens"] == 3
    assert after["nfc"]["open_now"] == 0
    assert after["folder"] == before["folder"]


def test_the_password_shows_in_no_process(clean):
    password = clean.lab_json["vcenter"]["password_file"].read_text().strip()
    with clean.knobs(nfc_bytes_per_second=1024**2):
        process = clean.start("-e", "vm_name=pgtest1", *BY_VDDK)
        job = clean.wait_for_copy("pgtest1")
        seen = clean.node.check_output("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
        kept = clean.node.check_output(f"stat -c '%a %U' /run/sendense/{job}/copy/password")
    output, _nothing = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f"password=+/run/sendense/{job}/copy/password" in seen, "the look must be able to see nbdkit"
    assert password not in seen
    assert "reexeced_=" not in seen, "nbdkit started again, and handed the password on in a file in /tmp"
    assert kept == "600 sendense"
    assert password not in output


def test_a_vm_that_stands_on_an_older_snapshot_is_read_through_its_chain(clean, snapshot):
    snapshot("pgtest1", "by-hand")
    clean.write("pgtest1", 2001, 8192, b"written on the older snapshot" * 50)
    run = clean.backup("-e", "vm_name=pgtest1", *BY_VDDK)
    assert run.code == 0, run.output
    manifest, disks = clean.compare("pgtest1")
    assert all(disk.equal for disk in disks)
    assert clean.read("pgtest1", 2001, 8192, 29) == b"written on the older snapshot"
    assert [each["name"] for each in clean.ask("/snapshots")["snapshots"]] == ["by-hand"], "what others took stays"
    assert all("-000001" in disk["path"] for disk in manifest["disks"])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(
            f"rm {VDDK}",
            f"there is no VDDK on this node: {VDDK} is missing; give node_vddk_archive and run the provision playbook",
            id="no library",
            marks=pytest.mark.matrix,
        ),
        pytest.param(
            f"install -D /dev/null /opt/sendense/vddk/spoilt/lib64/libvixDiskLib.so.8 && ln -sfn spoilt {VDDK}",
            "the VDDK in /opt/sendense/vddk/spoilt does not load on this node: "
            "/opt/sendense/vddk/spoilt/lib64/libvixDiskLib.so.8: file too short",
            id="a library that does not load",
        ),
    ],
)
def test_a_node_that_cannot_read_so_says_why(clean, library, spoil, sentence):
    clean.node.check_output(spoil)
    before = clean.points()
    run = clean.backup("-e", "vm_name=web01", *BY_VDDK)
    assert run.code != 0
    assert sentence in " ".join(run.output.split())
    assert clean.points() == before


def test_a_host_that_serves_no_more_disks_says_so(clean):
    before = clean.points()
    with clean.knobs(nfc_disks=1, nfc_bytes_per_second=1024**2):
        run = clean.backup("-e", "vm_name=pgtest1", *BY_VDDK)
    assert run.code != 0
    assert "the ESXi host serves no more disks at once" in " ".join(run.output.split())
    assert clean.points() == before
