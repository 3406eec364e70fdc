# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs that were backed up, restored into vCenter and backed up again; what is refused; what an interruption leaves."""

from __future__ import annotations

import re
import signal

import pytest

KEPT = ("guest_id", "version", "firmware", "secure_boot", "cpus", "cores_per_socket", "memory_mib", "cpu_hot_add",
        "memory_hot_add", "annotation", "extra_config", "controllers")  # fmt: skip
OF_DISK = ("key", "capacity", "controller_key", "unit_number", "mode", "root")
OF_CARD = ("type", "network", "start_connected")


def essence(manifest):
    """Return what a restored VM has to have of its original."""
    config = manifest["vm"]["config"]
    return {
        **{name: config[name] for name in KEPT},
        "nics": [{name: card[name] for name in OF_CARD} for card in config["nics"]],
        "disks": [{name: disk[name] for name in OF_DISK} for disk in manifest["disks"]],
    }


@pytest.mark.parametrize(
    ("vm", "transport"),
    [("pgtest1", "https"), pytest.param("uefi1", "https", marks=pytest.mark.matrix), ("uefi1", "vddk")],
)
def test_a_restored_vm_is_backed_up_as_its_original_was(site, vm, transport):
    old = site.back_up(vm)
    name = f"{vm}-{transport}"
    run = site.restore(vm, restore_name=name, restore_transport=transport, restore_power_on=True)
    assert run.code == 0, run.output
    assert site.differing(name, vm) == []
    assert site.vm(name)["power_state"] == "poweredOn"
    new = site.back_up(name)
    was, became = essence(old), essence(new)
    if not was["annotation"]:
        assert became.pop("annotation") == f"Restored from {vm}, point {old['point']}"
        del was["annotation"]
    assert became == was
    assert new["vm"]["instance_uuid"] != old["vm"]["instance_uuid"]
    macs = {card["mac_address"] for each in (old, new) for card in each["vm"]["config"]["nics"]}
    assert len(macs) == 2 * len(old["vm"]["config"]["nics"])


def test_a_vm_comes_to_be_in_another_vcenter(site, other_vcenter):
    site.have("web01")
    name, where = other_vcenter
    here = site.vms()
    run = site.restore("web01", **where, restore_transport="https", restore_name="web01-moved")
    assert run.code == 0, run.output
    assert site.differing("web01-moved", "web01", vcenter=name) == []
    assert site.vms() == here
    assert not site.ask("/stats", vcenter=name)["sessions"]


def test_three_disks_on_two_controllers_are_written_by_the_library_and_flushed(site):
    site.have("pgtest1")
    before = site.ask("/stats")["nfc"]
    run = site.restore("pgtest1", restore_name="pgtest1-vddk", restore_transport="vddk")
    assert run.code == 0, run.output
    assert site.differing("pgtest1-vddk", "pgtest1") == []
    after = site.ask("/stats")["nfc"]
    assert after["flushes"] - before["flushes"] >= 3
    assert after["open_now"] == 0


def test_a_disk_is_written_over_one_of_an_existing_vm_after_its_name_was_said(site):
    site.back_up("web03")
    site.write("web03", 2000, 1 << 20, b"damage" * 50_000)
    refused = site.restore("web03", restore_over="web03", restore_disks=[2000])
    assert refused.code != 0
    assert "VM web03 is poweredOn: switch it off first" in refused.told
    site.administrator("web03", "PowerOffVM_Task()")
    try:
        unsaid = site.restore("web03", restore_disks=[2000])
        assert unsaid.code != 0
        assert "there is a VM named web03 in /DC0/vm/prod already" in unsaid.told
        assert site.differing("web03", "web03") == [2000], "the damage is there, and nobody wrote over it"
        run = site.restore("web03", restore_over="web03", restore_disks=[2000])
        assert run.code == 0, run.output
        assert site.differing("web03", "web03") == []
        assert site.vm("web03")["power_state"] == "poweredOff"
    finally:
        site.administrator("web03", "PowerOnVM_Task()")


@pytest.mark.parametrize(
    ("wishes", "knobs", "sentence"),
    [
        pytest.param({}, {}, "there is a VM named web01 in /DC0/vm/prod already", id="the name is taken"),
        pytest.param(
            {"restore_name": "x", "restore_networks": {"VM Network": "dmz"}},
            {},
            "there is no network dmz at DC0_C0; map VM Network to one of",
            id="an unknown network",
            marks=pytest.mark.matrix,
        ),
        pytest.param(
            {"restore_name": "x"},
            {"free": {"datastore1": 1000}},
            "datastore datastore1 has 1000 bytes free, and the VM brings",
            id="too little space",
        ),
        pytest.param(
            {"restore_name": "x"},
            {"read_only": ["datastore1"]},
            "datastore datastore1 is read-only on every host of DC0_C0",
            id="a read-only datastore",
            marks=pytest.mark.matrix,
        ),
    ],
)
def test_what_is_refused_leaves_nothing(site, wishes, knobs, sentence):
    site.have("web01")
    before, calls = site.vms(), site.ask("/stats")["soap"]
    with site.knobs(**knobs):
        run = site.restore("web01", **wishes)
    assert run.code != 0
    assert sentence in run.told
    assert site.vms() == before
    made = {name: site.ask("/stats")["soap"].get(name) for name in ("ImportVApp", "CreateVM_Task", "ReconfigVM_Task")}
    assert made == {name: calls.get(name) for name in made}


def test_a_point_whose_image_is_not_whole_becomes_no_vm(site):
    site.back_up("web02")
    point = max(site.shelf("web02").glob("*Z"))
    image = point / "disk-2000.qcow2"
    image.rename(point / "away")
    try:
        run = site.restore("web02", restore_name="web02-again", restore_point=point.name)
    finally:
        (point / "away").rename(image)
    assert run.code != 0
    assert "disk-2000.qcow2" in run.told
    assert "web02-again" not in site.vms()


@pytest.mark.parametrize("transport", ["https", pytest.param("vddk", marks=pytest.mark.matrix)])
def test_a_datastore_that_fills_up_leaves_no_vm(site, transport):
    site.have("uefi1")
    with site.knobs(upload_fault="NoDiskSpace", upload_fault_after=6 << 20):
        run = site.restore("uefi1", restore_name="uefi1-full", restore_transport=transport)
    assert run.code != 0
    assert re.search("disk (2019|32000): ", run.told)
    assert ("NoDiskSpace" if transport == "https" else "the datastore is full") in run.told
    assert "uefi1-full" not in site.vms()


@pytest.mark.parametrize("transport", [pytest.param("https", marks=pytest.mark.matrix), "vddk"])
def test_what_a_killed_restore_left_is_taken_away_by_the_next(site, transport):
    site.have("uefi1")
    name = f"uefi1-killed-{transport}"
    with site.knobs(upload_bytes_per_second=200_000, nfc_bytes_per_second=200_000):
        process = site.start_restore("uefi1", restore_name=name, restore_transport=transport)
        job = site.wait_for_sending()
        site.end(process, signal.SIGKILL)
        half = site.vm(name)
        assert half["power_state"] == "poweredOff"
        second = site.start_restore("uefi1", restore_name=name, restore_transport=transport)
        site.wait_for("the end of the dead job's VM", lambda: site.vms().get(name, half)["moref"] != half["moref"])
    run = site.end(second)
    assert run.code == 0, run.output
    assert job in run.output
    assert site.differing(name, "uefi1") == []
