# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs made from manifests at the lab's vCenter, and what is refused before anything is made. docs/restored-vm.md is the list."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests, jobs, restoring
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import push
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import (
    creation,
    importing,
    inventory,
    lookup,
    overwriting,
)
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import Transport

JOB = "restore-uefi1-5029f3ab-20261123T140102Z"
POINT = "20261123T120000Z"
BY = Transport("https", "it was asked for")
SETTINGS = {
    "upload_fault": "",
    "upload_fault_after": 0,
    "upload_bytes_per_second": 0,
    "read_only": [],
    "lease_seconds": 300,
}


@pytest.fixture
def opened(lab):
    """Return a session with the lab's vCenter; VMs that a test made are gone at its end."""
    known = {vm["moref"] for vm in lab.ask("GET", "/vms")["vms"]}
    vcenter = VCenter.of({"vcenter_validate_certs": True, **lab.options})
    with session(vcenter) as one:
        yield one
        lab.knobs(**SETTINGS)
        for vm in lab.ask("GET", "/vms")["vms"]:
            if vm["moref"] not in known:
                with contextlib.suppress(SendenseError):
                    one.wait(one.call("end", one.managed("VirtualMachine", vm["moref"]).PowerOffVM_Task), "end")
                one.wait(one.call("end", one.managed("VirtualMachine", vm["moref"]).Destroy_Task), "end")


def manifest_of(lab, opened, name):
    """Return a manifest as a full backup of that VM would have it, and its disks' content by key."""
    vm = lookup.describe(opened, lookup.find(opened, name=name))
    told = next(each for each in lab.ask("GET", "/vms")["vms"] if each["moref"] == vm["moref"])
    content = {disk["key"]: Path(disk["file"]).read_bytes() for disk in told["disks"]}
    disks = [
        {
            **disk, "type": "full", "written": 1 << 20, "digest_algorithm": by,
            "root": digests.tree(enumerate_leaves(content[disk["key"]], by), disk["capacity"], by).root,
        }
        for disk, by in zip(vm["disks"], itertools.cycle(["blake2b", "sha256"]))
    ]  # fmt: skip
    host = {"before": vm["host"], "after": vm["host"]}
    return {"vm": vm, "disks": disks, "host": host, "point": POINT, "format": 1}, content


def enumerate_leaves(content, algorithm):
    found = digests.leaves(memoryview(content), algorithm)
    return ((number, found[32 * number : 32 * number + 32]) for number in range(len(found) // 32))


def options(manifest, **wishes):
    """Return what a module's options would be."""
    defaults = {name: each.get("default") for name, each in restoring.OPTIONS.items()}
    return {
        **defaults,
        "job": JOB,
        "manifest": manifest,
        "controller": "",
        "power_on": False,
        "transport": "https",
        **wishes,
    }


@pytest.fixture
def send(opened, nbdkit, tmp_path):
    """Return a function that imports a VM as the module and its unit do, all in this process."""

    def run(manifest, content, name, spoil=None):
        given = options(manifest, name=name)
        seen = restoring.look(opened, given, BY)
        assert (seen.refusals, seen.unfinished) == ([], [])
        wanted = creation.spec(manifest, seen.target, restoring.wish(given), creation.mark(JOB, "n", "c"), "unfinished")
        lease = importing.begin(opened, seen.target, wanted)
        ready = importing.await_ready(opened, lease, seen.target)
        sources, targets = {}, {}
        for key, data in content.items():
            (tmp_path / f"{key}.raw").write_bytes(data)
            sources[key] = nbdkit("--readonly", "file", str(tmp_path / f"{key}.raw")).uri
            upload = ready.uploads[key]
            targets[key] = {"transport": "https", "url": upload.url, "thumbprint": upload.thumbprint}
        disks = restoring.parts(manifest, sources, targets)
        for folder in ("job/push", "work"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "job/session").write_text(
            json.dumps(
                {
                    "hostname": opened.vcenter.hostname,
                    "port": opened.vcenter.port,
                    "username": opened.vcenter.username,
                    "cookie": opened.cookie,
                }
            )
        )
        if spoil:
            disks = spoil(disks)
        status = push.push(
            disks, tmp_path / "job/push", tmp_path / "work", opened.vcenter, {"lease": lease, "timeout": ready.timeout}
        )
        return ready, status

    return run


def test_a_vm_is_imported_whole_and_every_field_is_kept_mapped_or_new(lab, opened, send):
    manifest, content = manifest_of(lab, opened, "uefi1")
    ready, status = send(manifest, content, "uefi1 again")
    assert (status["state"], status["error"]) == ("done", "")
    assert creation.read_mark(opened, ready.vm) == {"job": JOB, "node": "n", "controller": "c"}
    importing.complete(opened, ready.lease)
    creation.finish(opened, ready.vm, "uefi1 again", manifest)
    made, old = lookup.describe(opened, ready.vm), manifest["vm"]
    told = next(each for each in lab.ask("GET", "/vms")["vms"] if each["moref"] == ready.vm)

    assert {disk["key"]: Path(disk["file"]).read_bytes() for disk in told["disks"]} == content
    assert creation.read_mark(opened, ready.vm) == {}
    kept = ("guest_id", "version", "firmware", "secure_boot", "cpus", "cores_per_socket", "memory_mib", "cpu_hot_add",
            "memory_hot_add", "annotation", "controllers", "extra_config")  # fmt: skip
    assert {name: made["config"][name] for name in kept} == {name: old["config"][name] for name in kept}
    assert made["config"]["firmware"] == "efi", "the example must be worth it"
    assert made["config"]["secure_boot"]
    assert made["config"]["extra_config"] == {"disk.EnableUUID": "TRUE", "ethernet0.pciSlotNumber": "192"}
    of_disk = ("key", "capacity", "controller_key", "unit_number", "mode", "thin")
    assert [{name: disk[name] for name in of_disk} for disk in made["disks"]] == [
        {name: disk[name] for name in of_disk} for disk in old["disks"]
    ]
    of_card = ("type", "network", "start_connected")
    assert [{name: card[name] for name in of_card} for card in made["config"]["nics"]] == [
        {name: card[name] for name in of_card} for card in old["config"]["nics"]
    ]
    assert made["cbt_enabled"] == old["cbt_enabled"]
    assert [each["name"] for each in made["datastores"]] == [each["name"] for each in old["datastores"]]
    assert made["name"] == "uefi1 again"
    assert made["inventory_path"].rpartition("/")[0] == old["inventory_path"].rpartition("/")[0]
    assert made["power_state"] == "poweredOff"

    new = ("moref", "instance_uuid", "bios_uuid", "vmx_path")
    assert not {made[name] for name in new} & {old[name] for name in new}
    assert not {disk["backing_uuid"] for disk in made["disks"]} & {disk["backing_uuid"] for disk in old["disks"]}
    macs = {card["mac_address"] for vm in (made, old) for card in vm["config"]["nics"]}
    assert len(macs) == 4


def test_mac_addresses_and_bios_uuid_are_kept_on_request(lab, opened):
    manifest, _content = manifest_of(lab, opened, "uefi1")
    given = options(manifest, name="uefi1 kept", keep=["mac", "uuid"])
    target = restoring.look(opened, given, BY).target
    moref = creation.create(opened, target, creation.spec(manifest, target, restoring.wish(given), "x", "x"))
    made, old = lookup.describe(opened, moref), manifest["vm"]
    assert made["bios_uuid"] == old["bios_uuid"]
    assert made["instance_uuid"] != old["instance_uuid"]
    assert [card["mac_address"] for card in made["config"]["nics"]] == [
        card["mac_address"] for card in old["config"]["nics"]
    ]


def test_networks_datastores_and_pool_are_mapped(lab, opened):
    manifest, _content = manifest_of(lab, opened, "uefi1")
    given = options(
        manifest, name="mapped", networks={"VM Network": "DC0_DVPG0"}, datastores={"datastore1": "data store 2"},
        pool="DC0_C0_H1", folder="/DC0/vm/test", disks=[2019],
    )  # fmt: skip
    manifest = restoring.chosen(manifest, given["disks"])
    seen = restoring.look(opened, given, BY)
    assert seen.refusals == []
    moref = creation.create(opened, seen.target, creation.spec(manifest, seen.target, restoring.wish(given), "x", "x"))
    made = lookup.describe(opened, moref)
    assert made["inventory_path"] == "/DC0/vm/test/mapped"
    assert made["host"]["name"] == "DC0_C0_H1"
    assert {card["network"] for card in made["config"]["nics"]} == {"DC0_DVPG0"}
    assert made["vmx_path"].startswith("[data store 2]")
    assert [(disk["key"], disk["path"].partition("]")[0]) for disk in made["disks"]] == [(2019, "[data store 2")]


REFUSALS = [
    pytest.param(({}, {}, "there is a VM named web01 in /DC0/vm/prod already"), id="the name is taken"),
    pytest.param(({"name": "WEB01"}, {}, "there is a VM named WEB01 in /DC0/vm/prod"), id="taken, spelt otherwise"),
    pytest.param(({"name": "x", "networks": {"VM Network": "dmz"}}, {}, "there is no network dmz at DC0_C0; map VM Network to"), id="an unknown network"),
    pytest.param(({"name": "x", "folder": "/DC0/vm/nowhere"}, {}, "there is no /DC0/vm/nowhere among the folders of VMs"), id="an unknown folder"),
    pytest.param(({"name": "x", "datastore": "fast"}, {}, "there is no fast among the datastores that DC0_C0 has; there are: data"), id="an unknown datastore"),
    pytest.param(({"name": "x", "pool": "C9"}, {}, "there is no C9, or more than one, among the clusters, hosts and resource pools"), id="an unknown pool"),
    pytest.param(({"name": "x"}, {"free": {"datastore1": 1000}}, "datastore datastore1 has 1000 bytes free, and the VM brings 1048576"), id="too little space"),
    pytest.param(({"name": "x", "datastore_min_free": 99}, {"free": {"datastore1": 9999999}}, "have to stay free; make room or"), id="space is kept"),
    pytest.param(({"name": "x"}, {"read_only": ["datastore1"]}, "datastore datastore1 is read-only on every host of DC0_C0"), id="a read-only datastore"),
    pytest.param(({"over": "web01"}, {}, "VM web01 is poweredOn: switch it off first"), id="over a running VM"),
    pytest.param(({"over": "template1"}, {}, "transport https only makes new VMs"), id="over a VM, by import"),
    pytest.param(({"over": "nobody"}, {}, "no VM named nobody is in vCenter"), id="over a VM that is not there"),
    pytest.param(({"name": "x", "disks": [2000, 77]}, {}, "the point has no disk 77; it has 2000"), id="an unknown disk"),
]  # fmt: skip


@pytest.mark.parametrize("example", REFUSALS)
def test_what_is_refused_is_refused_in_one_sentence_before_anything_is_made(lab, opened, run_module, example):
    wishes, knobs, sentence = example
    manifest, _content = manifest_of(lab, opened, "web01")
    before = lab.ask("GET", "/vms")["vms"]
    lab.knobs(**knobs)
    given = {**lab.options, "manifest": manifest, "transport": "https", **wishes}
    found = run_module("vm_restore_info", given)
    said = [found["msg"]] if found["failed"] else found["refusals"]
    assert len(said) >= 1
    assert any(sentence in each for each in said), said
    uris = [{"key": 2000, "uri": "nbd+unix:///?socket=/none"}]
    refused = run_module("vm_restore", {**given, "job": JOB, "sources": uris}, check=True)
    assert refused["failed"]
    assert sentence in refused["msg"]
    assert lab.ask("GET", "/vms")["vms"] == before
    stats = lab.ask("GET", "/stats")["soap"]
    assert not {"ImportVApp", "CreateVM_Task", "ReconfigVM_Task"} & set(stats)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"power_state": "suspended"}, "VM web01 is suspended: switch it off first"),
        ({"snapshots": [{"name": "s"}]}, "VM web01 has snapshots, and what is written below them spoils them"),
        ({"disks": []}, "disk 2000 (Hard disk 1) of the point has no counterpart in VM web01"),
        ({"consolidation_needed": True}, "VM web01 needs consolidation"),
        ({"unfinished": '{"job": "restore-web01"}'}, "VM web01 is being made by a restore that is not finished"),
        ({"connection_state": "inaccessible"}, "VM web01 is inaccessible"),
    ],
)
def test_disks_are_not_written_over_a_vm_that_cannot_take_them(lab, opened, change, sentence):
    manifest, _content = manifest_of(lab, opened, "web01")
    vm = {**manifest["vm"], "power_state": "poweredOff", **change}
    assert [each for each in overwriting.refusals(vm, manifest, "vddk") if each.startswith(sentence)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sharing": "sharingMultiWriter"}, "disk 2000 (Hard disk 1) of VM web01 is shared with other VMs"),
        ({"kind": "rdm_physical"}, "disk 2000 (Hard disk 1) of VM web01 is a physical raw device mapping"),
    ],
)
def test_a_disk_that_others_may_use_is_not_written_over(lab, opened, change, sentence):
    manifest, _content = manifest_of(lab, opened, "web01")
    vm = {**manifest["vm"], "power_state": "poweredOff"}
    vm["disks"] = [{**disk, **change} for disk in vm["disks"]]
    assert [each for each in overwriting.refusals(vm, manifest, "vddk") if each.startswith(sentence)]


def test_a_restore_over_a_vm_that_died_is_found_and_the_vm_can_be_written_over_again(
    lab, opened, systemd, tmp_path, monkeypatch
):
    """The node may have forgotten the job, or be another one: then the VM is found by its name."""
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    manifest, _content = manifest_of(lab, opened, "web02")
    moref, given = manifest["vm"]["moref"], options(manifest, over="web02")
    overwriting.begin(opened, manifest["vm"], JOB, "a controller")
    try:
        seen = restoring.look(opened, given, BY)
        assert [asdict(each) for each in seen.unfinished] == [
            {"moref": moref, "name": "web02", "job": JOB, "node": platform.node(), "controller": "a controller"}
        ]
        assert not [each for each in seen.refusals if "not finished" in each]
        with pytest.raises(Refused, match=f"VM web02 .{moref}. is not finished by job {JOB}"):
            restoring.begin(opened, {**given, "job": JOB.replace("T14", "T15")}, {2000: "nbd+unix:///"})
        assert not restoring.undo(opened, JOB.replace("T14", "T15"), "web02"), "the mark is another job's"
        assert restoring.look(opened, given, BY).unfinished == seen.unfinished
        assert restoring.undo(opened, JOB, "web02")
        assert not restoring.undo(opened, JOB, "web02")
        after = restoring.look(opened, given, BY)
        assert (after.unfinished, after.refusals) == ([], seen.refusals)
        assert JOB in after.over["unfinished"], "the disks are not whole, and no backup of them passes for it"
        assert overwriting.tracked(after.over)
    finally:
        overwriting.finish(opened, lookup.describe(opened, moref), True)


def test_a_job_that_fails_to_write_over_a_vm_leaves_word_that_it_has_ended(lab, opened, systemd, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    monkeypatch.setattr(restoring, "transport", lambda *_words: Transport("vddk", "it was asked for"))
    monkeypatch.setattr(restoring.push_unit, "start", unable)
    opened_vm = opened.managed("VirtualMachine", lab.vm("web02")["moref"])
    opened.wait(opened.call("off", opened_vm.PowerOffVM_Task), "off")
    manifest, _content = manifest_of(lab, opened, "web02")
    try:
        with pytest.raises(SendenseError, match="no room for units"):
            restoring.begin(opened, options(manifest, over="web02", controller="c"), {2000: "nbd+unix:///"})
        now = lookup.describe(opened, manifest["vm"]["moref"])
        assert (JOB in now["unfinished"], overwriting.unfinished(now)) == (True, [])
    finally:
        overwriting.finish(opened, lookup.describe(opened, manifest["vm"]["moref"]), True)
        opened.wait(opened.call("on", opened_vm.PowerOnVM_Task, None), "on")


def unable(*_words):
    raise SendenseError("no room for units")


def test_changes_are_tracked_again_after_a_restore_over_that_took_two_tries(lab, opened):
    moref = lab.vm("web02")["moref"]
    for job in (JOB, JOB.replace("T14", "T15")):
        vm = lookup.describe(opened, moref)
        was_tracked = overwriting.tracked(vm)
        overwriting.begin(opened, vm, job, "")  # and the first one is interrupted
        now = lookup.describe(opened, moref)
        assert [each.job for each in overwriting.unfinished(now)] == [job]
        assert not now["cbt_enabled"]
    overwriting.finish(opened, now, was_tracked)
    after = lookup.describe(opened, moref)
    assert (after["unfinished"], after["cbt_enabled"]) == ("", True)


def test_a_disk_of_another_size_is_not_written_over(lab, opened):
    manifest, _content = manifest_of(lab, opened, "web01")
    vm = {**manifest["vm"], "power_state": "poweredOff"}
    larger = {**manifest, "disks": [{**manifest["disks"][0], "capacity": 1 << 30}]}
    assert overwriting.refusals(vm, manifest, "vddk") == []
    assert "has 1073741824 bytes, that of VM web01 1048576" in overwriting.refusals(vm, larger, "vddk")[0]


def test_a_disk_that_does_not_come_to_its_root_is_never_complete(lab, opened, send):
    manifest, content = manifest_of(lab, opened, "web01")
    content[2000] = content[2000][:500] + b"rot" + content[2000][503:]
    ready, status = send(manifest, content, "rotten")
    assert status["state"] == "failed"
    assert status["error"].startswith("disk 2000: the hub delivered something else than the point holds: root ")
    with pytest.raises(SendenseError):
        importing.complete(opened, ready.lease)
    importing.abort(opened, ready.lease)
    wait_until_gone(lab, "rotten")


def wait_until_gone(lab, name):
    def left():
        known = [vm["name"] for vm in lab.ask("GET", "/vms")["vms"] if vm["name"] == name]
        return known + list(lab.datastores.glob(f"*/{name}*"))

    for _turn in range(100):
        if not left():
            break
        time.sleep(0.1)
    assert not left()


@pytest.mark.parametrize(
    ("knobs", "pattern"),
    [
        ({"upload_fault": "NoDiskSpace", "upload_fault_after": 200_000}, r"disk 2000: .*; vCenter says: .*NoDiskSpace"),
        ({"upload_fault": "HostCommunication"}, r"disk 2000: .*; vCenter says: .*HostCommunication"),
    ],
)
def test_a_lease_that_fails_in_the_middle_says_why(lab, opened, send, knobs, pattern):
    manifest, content = manifest_of(lab, opened, "web01")
    lab.knobs(**knobs)
    ready, status = send(manifest, content, "half")
    assert status["state"] == "failed"
    assert re.fullmatch(pattern, status["error"]), status["error"]
    assert creation.read_mark(opened, ready.vm)["job"] == JOB
    importing.abort(opened, ready.lease)
    wait_until_gone(lab, "half")


def test_a_lease_is_kept_alive_for_as_long_as_it_takes(lab, opened, send):
    manifest, content = manifest_of(lab, opened, "web01")
    lab.knobs(lease_seconds=2, upload_bytes_per_second=250_000)
    ready, status = send(manifest, content, "slow")
    assert (status["state"], status["error"]) == ("done", "")
    assert status["disks"][0]["seconds"] > 2, "or it proves nothing"
    importing.complete(opened, ready.lease)


def test_a_certificate_that_vcenter_does_not_speak_of_is_not_trusted(lab, opened, send):
    manifest, content = manifest_of(lab, opened, "web01")

    def spoil(disks):
        return [push.Disk(**{**vars(disk), "target": {**disk.target, "thumbprint": "AA:BB"}}) for disk in disks]

    ready, status = send(manifest, content, "untrusted", spoil)
    assert "is not trusted: its certificate has thumbprint" in status["error"]
    importing.abort(opened, ready.lease)
    wait_until_gone(lab, "untrusted")


def test_only_the_unfinished_vm_of_the_job_is_removed(lab, opened):
    manifest, _content = manifest_of(lab, opened, "web01")
    given = options(manifest, name="mine")
    target = restoring.look(opened, given, BY).target
    marked = creation.mark(JOB, "node1", "controller")
    moref = creation.create(
        opened, target, creation.spec(manifest, target, restoring.wish(given), marked, "unfinished")
    )
    seen = restoring.look(opened, given, BY)
    assert seen.refusals == []
    assert [(each.moref, each.job, each.node) for each in seen.unfinished] == [(moref, JOB, "node1")]
    assert creation.named(opened, "Mine") == [moref]
    with pytest.raises(SendenseError, match="does not carry the mark of job other"):
        creation.remove(opened, moref, "other")
    with pytest.raises(SendenseError, match="does not carry the mark"):
        creation.remove(opened, lookup.find(opened, name="web02"), JOB)
    assert creation.remove(opened, moref, JOB)
    assert not creation.remove(opened, moref, JOB)
    wait_until_gone(lab, "mine")


def test_the_inventory_is_read_with_its_kinds(lab, opened):
    found = inventory.read(opened)
    assert [each.path for each in found.of_kind("Datacenter")] == ["/DC0"]
    assert {each.name for each in found.of_kind("Datastore")} == {"datastore1", "data store 2"}
    assert [each.name for each in found.of_kind("HostSystem")] == ["DC0_C0_H0", "DC0_C0_H1"]
    assert "DC0_DVPG0" in {each.name for each in found.of_kind("Portgroup")}
    assert "VM Network" in {each.name for each in found.of_kind("Network")}


def test_a_job_of_a_restore_is_not_taken_for_one_of_a_backup():
    assert jobs.point_id(jobs.job_id("restore-pgtest1", "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"))
