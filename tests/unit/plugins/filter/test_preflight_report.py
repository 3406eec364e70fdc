# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.preflight_report import preflight_report

OK = {"name": "clock", "state": "ok", "seen": "agrees", "remedy": ""}


def loop(*results):
    return {"results": list(results)}


CONTENT = {"capacity": 64 << 20, "written": 12 << 20, "pieces": 26, "root": "aa", "image": "/r/disk-2000.qcow2"}
VM = {"inventory_path": "/DC0/vm/tests/trial", "moref": "vm-7"}
WRITTEN = {"failure": {}, "done": {"vm": VM, "transport": {"name": "vddk"}}}
CLEANED = {"trial": {}, "vms": ["vm-7"], "msg": ""}


def trial(*backups, **more):
    usual = {
        "earlier": {},
        "content": CONTENT,
        "restored": WRITTEN,
        "backups": backups,
        "failure": {},
        "cleaned": CLEANED,
    }
    return {**usual, **more}


def backup(transport="vddk", root="aa", compared=None, **more):
    return {
        "asked": transport,
        "manifest": {"disks": [{"key": 2000, "root": root}]},
        "compared": compared or {"rc": 0, "stdout": "Images are identical."},
        "failure": {},
        "left": [],
        "away": [],
        **more,
    }


def judged(one):
    """Return name, state and what was seen of each check of a trial."""
    return [(check["name"], check["state"], check["seen"]) for check in preflight_report({"trial": one}, {})["checks"]]


def test_checks_stand_by_host_and_one_that_is_lost_fails_once():
    seen = {
        "hubs": loop({"item": "hub1", "checks": [OK]}),
        "nodes": loop({"item": "node1", "failed": True, "connection_lost": True, "msg": "no route"}),
        "vcenter": loop({"item": "node1", "failed": True, "connection_lost": True, "msg": "no route"}),
    }
    found = preflight_report(seen, {"made": "today"})
    assert [(check["where"], check["name"], check["state"]) for check in found["checks"]] == [
        ("hub1", "clock", "ok"), ("node1", "look at the host", "failed"),
    ]  # fmt: skip
    assert found["count"]["failed"] == 1


def test_a_trial_tells_what_was_written_and_that_each_transport_read_it():
    write, *backups, cleaning = judged(trial(backup("vddk"), backup("https")))
    assert write == (
        "write", "ok",
        "12 MiB of random bytes in 26 places of a disk of 64 MiB, the rest zero, as VM /DC0/vm/tests/trial, by vddk",
    )  # fmt: skip
    assert [(name, state) for name, state, _seen in backups] == [
        ("backup 1 over vddk", "ok"), ("backup 2 over https", "ok"),
    ]  # fmt: skip
    assert {seen for _name, _state, seen in backups} == {
        "all 67108864 bytes are those that were written, by qemu-img compare and by their SHA-256"
    }
    assert cleaning[:2] == ("cleaning up", "ok")


MISMATCH = {"rc": 1, "stdout": "Content mismatch at offset 1048576!"}
TOOL = {"rc": 2, "stdout": "", "stderr": "qemu-img: Could not open 'x'"}
DIFFERENT = {
    "both say so": (
        backup(root="bb", compared=MISMATCH),
        "mismatch at offset 1048576!; the SHA-256 of the disk is another one",
    ),
    "the bytes alone": (backup(compared=MISMATCH), "qemu-img compare says: Content mismatch at offset 1048576!"),
    "the digest alone": (backup(root="bb"), "the SHA-256 of the disk is another one"),
    "nothing was compared": (backup(compared=TOOL), "qemu-img compare says: qemu-img: Could not open 'x'"),
    "the tool is missing": (backup(compared={"msg": "no such file: qemu-img"}), "says: no such file: qemu-img"),
}


@pytest.mark.parametrize(("result", "seen"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_backup_that_is_not_what_was_written_fails(result, seen):
    _write, (name, state, said), _cleaning = judged(trial(result))
    assert (name, state) == ("backup 1 over vddk", "failed")
    assert said.startswith("what was read is not what was written: ")
    assert said.endswith(seen)


LOST = {
    "failure": {"step": "The snapshot is taken", "msg": "no"},
    "manifest": {},
    "left": ["snapshot x"],
}
FAILED = {
    "a place that is none": (
        trial(failure={"step": "It is said where its VM is to be", "msg": "no"}, content={}, restored={}, cleaned={}),
        {("trial", "failed", "failed at 'It is said where its VM is to be': no")},
    ),
    "a restore": (
        trial(restored={"failure": {"step": "The VM can be restored", "msg": "full"}}, cleaned={**CLEANED, "vms": []}),
        {("trial", "failed", "failed at 'The VM can be restored': full")},
    ),
    "a backup, and what it left": (
        trial(backup(**LOST)),
        {("backup 1 over vddk", "failed", "failed at 'The snapshot is taken': no"),
         ("backup 1 over vddk: cleaning up", "failed", "snapshot x")},
    ),
    "cleaning up": (
        trial(backup(), cleaned={**CLEANED, "msg": "no permission"}), {("cleaning up", "failed", "no permission")},
    ),
    "a VM that somebody renamed": (
        trial(backup(), cleaned={**CLEANED, "vms": []}),
        {("cleaning up", "failed", "VM /DC0/vm/tests/trial (vm-7) is not there any more by that name")},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "failed"), FAILED.values(), ids=FAILED)
def test_what_failed_in_a_trial_is_told(one, failed):
    assert {check for check in judged(one) if check[1] == "failed"} == failed


def test_what_an_earlier_trial_left_is_told():
    assert judged(trial(backup(), earlier={"vm": "/DC0/vm/old"}))[0] == (
        "what an earlier trial left", "ok", "its VM /DC0/vm/old and its repository are gone",
    )  # fmt: skip
