# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The way of a restore point through its two modules, in a /run of the test's own."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, OTHER = "pgtest1-5029f3ab-20261123T140102Z", "pgtest1-5029f3ab-20261123T150000Z"
SIZE = (1 << 20) + 1536
VM = {
    "name": "pgtest1", "instance_uuid": UUID, "inventory_path": "/DC0/vm/pgtest1", "vcenter": {}, "config": {},
    "host": {"name": "esx1"},
    "disks": [{"key": 16000, "capacity": 512, "path": "[ds] b.vmdk"}, {"key": 2000, "capacity": SIZE, "path": "[ds] a.vmdk"}],
}  # fmt: skip


@pytest.fixture
def point(run_module, private_run, systemd, tmp_path):
    """Return ``point(state, job=JOB, check=False, **options)``, a run of restore_point."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "repository.json").write_text('{"format": 1}', encoding="utf-8")

    def run(state, job=JOB, check=False, prefix=private_run, **options):
        args = {"repository": str(tmp_path / "r"), "job": job, "state": state, "vm": VM, **options}
        return run_module("restore_point", args, check=check, prefix=prefix)

    return run


@pytest.fixture
def info(run_module, private_run, tmp_path):
    """Return ``info(**options)``, a run of restore_point_info."""
    repository = {"repository": str(tmp_path / "r")}
    return lambda **options: run_module("restore_point_info", {**repository, **options}, prefix=private_run)


def finish(images):
    """Fill the images and return what the other modules would have said."""
    copies = []
    for each in images:
        content = random.Random(each["key"]).randbytes(each["size"])
        (raw := Path(each["image"]).with_suffix(".raw")).write_bytes(content)
        fill = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, each["image"]]
        subprocess.run(fill, check=True)
        raw.unlink()
        leaves = digests.leaves(memoryview(content))
        every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
        counted = dict.fromkeys(("read", "written", "zeroed"), 0) | {"allocated": None, "map": "none", "seconds": 0.1}
        tree = asdict(digests.tree(every, each["size"]))
        copies.append({"key": each["key"], "provisioned": each["size"], "tree": tree, **counted})
    disks = [disk | {"change_id": None} for disk in VM["disks"]]
    snapshot = {"quiesce_requested": "off", "quiesce_achieved": False, "quiesce_reason": "", "disks": disks}
    facts = {"transport": "https", "tools": {"nbdkit": "1"}}
    return {"snapshot": snapshot, "after": VM, "copies": copies, "facts": facts}


def test_predict_make_repeat_publish_repeat(point, info, tmp_path):
    predicted = point("partial", check=True)
    assert (predicted["changed"], list((tmp_path / "run").iterdir())) == (True, [])
    assert not (tmp_path / "r" / "vms").exists()
    made = point("partial", controller="boot/ns/1/2", node="node1")
    assert (made["changed"], made["images"]) == (True, predicted["images"])
    assert [(each["key"], each["name"], each["size"]) for each in made["images"]] == [
        (2000, f"{JOB}-disk0", SIZE), (16000, f"{JOB}-disk1", 512)
    ]  # fmt: skip
    assert not point("partial", controller="boot/ns/1/2", node="node1")["changed"]
    assert info()["unfinished"] == [{"job": JOB, "controller": "boot/ns/1/2", "node": "node1", "dead": False}]

    said = finish(made["images"])
    assert point("published", check=True, **said)["changed"]
    published = point("published", **said)
    assert published["changed"]
    assert published["manifest"]["tools"].keys() == {"nbdkit", "qemu-img"}
    assert published["manifest"]["times"]["started"] == "20261123T140102Z"
    again = point("published", **said)
    assert (again["changed"], again["manifest"]) == (False, published["manifest"])
    told = info()
    assert told["unfinished"] == []
    assert [each["job"] for each in told["points"]] == [JOB]
    assert not point("absent")["changed"], "a published point is nothing that a job may undo"
    assert [each["job"] for each in info()["points"]] == [JOB]


def test_a_second_job_waits_for_the_first(point, info):
    point("partial")
    for check in (True, False):
        refused = point("partial", job=OTHER, check=check)
        assert refused["failed"]
        assert f"is being backed up by job {JOB}" in refused["msg"]
    assert [each["job"] for each in info()["unfinished"]] == [JOB]
    assert point("absent", job=OTHER)["changed"] is False
    assert point("absent", check=True)["changed"]
    assert point("absent")["changed"]
    assert info()["unfinished"] == []
    assert not point("absent")["changed"]
    assert not point("partial", job=OTHER)["failed"]


def test_another_run_of_the_same_second_waits_too(point, info):
    point("partial", controller="boot/ns/1/2")
    for check in (True, False):
        refused = point("partial", controller="boot/ns/3/4", check=check)
        assert refused["failed"]
        assert f"is being backed up by job {JOB}" in refused["msg"]
    assert info()["unfinished"] == [{"job": JOB, "controller": "boot/ns/1/2", "node": "", "dead": False}]


def test_a_cleanup_that_left_something_elsewhere_is_remembered(point, info):
    point("partial", controller="boot/ns/1/2", node="node1")
    assert point("absent", check=True, remember=True)["changed"]
    assert point("absent", remember=True, node="node1")["changed"]
    assert not point("absent", remember=True, node="node1")["changed"]
    left = {"job": JOB, "controller": "", "node": "node1", "dead": True}
    assert info(vm=UUID)["unfinished"] == [left]
    assert not point("partial", job=OTHER)["failed"], "it holds nobody up"
    assert left in info(vm=UUID)["unfinished"]
    for check in (True, False):
        assert point("absent", check=check)["changed"]
    assert [each["job"] for each in info(vm=UUID)["unfinished"]] == [OTHER]


def test_a_check_foresees_that_a_dead_job_holds_nothing(point):
    point("partial")
    assert not point("partial", job=OTHER, check=True, dead=[JOB])["failed"]
    assert point("partial", job=OTHER, check=True, dead=["web1-5029f3ab-20261123T140102Z"])["failed"]


@pytest.fixture
def read_only(private_run, tmp_path):
    """Return a prefix for commands that cannot write to the repository, whoever runs them."""
    return [*private_run, "sh", "-c", 'mount -o bind,ro "$0" "$0" && exec "$@"', str(tmp_path / "r")]


def test_a_repository_that_went_read_only_is_one_sentence(point, info, read_only, tmp_path):
    for check in (True, False):
        failed = point("partial", prefix=read_only, check=check)
        assert failed["failed"]
        assert failed["msg"] == f"the repository {tmp_path}/r cannot be written to: its file system is read-only"
    assert info(vm=UUID)["unfinished"] == []
    made = point("partial")
    said = finish(made["images"])
    failed = point("published", **said, prefix=read_only)
    assert (failed["failed"], failed["msg"]) == (True, f"Read-only file system: {made['path']}/disk-2000.digests")
    failed = point("absent", prefix=read_only)
    assert (failed["failed"], failed["msg"]) == (True, f"Read-only file system: {made['path']}")
    told = info()
    assert (told["points"], [each["job"] for each in told["unfinished"]]) == ([], [JOB])


def test_what_is_reserved_is_not_there_for_another_vm(point, small_filesystem):
    (small_filesystem / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    here = {"repository": str(small_filesystem)}
    one, two = (
        VM
        | {
            "instance_uuid": f"5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5{each}",
            "disks": [{"key": 2000, "capacity": 60 << 20}],
        }
        for each in "12"
    )
    thin = two | {"disks": [{"key": 2000, "capacity": 1 << 40, "allocated": 1 << 20}]}
    assert not point("partial", vm=one, **here)["failed"]
    for check in (True, False):
        refused = point("partial", job=OTHER, vm=two, check=check, **here)
        assert refused["failed"]
        assert "is too small for this backup beside those that run" in refused["msg"]
        assert f"by job {JOB} are reserved" in refused["msg"]
        refused = point("partial", job=OTHER, vm=two, min_free=45, check=check, **here)
        assert "is too small for this backup: it needs up to 61.1 MiB" in refused["msg"]
    assert not (small_filesystem / "vms" / two["instance_uuid"]).exists()
    assert not point("partial", job=OTHER, vm=thin, **here)["failed"]
    assert point("absent", job=OTHER, vm=thin, **here)["changed"]
    assert point("absent", vm=one, **here)["changed"]
    assert not point("partial", job=OTHER, vm=two, **here)["failed"]


def test_a_vm_without_its_uuid_is_said_so(point):
    assert "option vm has no instance_uuid" in point("partial", vm={"name": "pgtest1"})["msg"]


def test_an_altered_image_is_not_published_and_the_lock_stays_for_the_cleanup(point, info, tmp_path):
    made = point("partial")
    said = finish(made["images"])
    lock = tmp_path / "run" / "sendense" / "leases" / f"vm-{UUID}"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"expires": 1.0}), encoding="utf-8")
    assert [each["dead"] for each in info()["unfinished"]] == [True]
    write = "write -q -P 0 0 512"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, made["images"][0]["image"]], check=True)
    failed = point("published", **said)
    assert failed["failed"]
    assert failed["msg"].startswith("disk 2000: ")
    told = info()
    assert (told["points"], [each["job"] for each in told["unfinished"]]) == ([], [JOB])
    assert [each["dead"] for each in told["unfinished"]] == [False], "proving takes long, so the lock is renewed"


def test_a_repository_that_cannot_be_written_to_leaves_nothing(point, info, tmp_path):
    (tmp_path / "r" / "vms").touch()
    failed = point("partial")
    assert failed["failed"]
    assert "cannot be written to: Not a directory" in failed["msg"]
    (tmp_path / "r" / "vms").unlink()
    assert info()["unfinished"] == []
    assert json.loads((tmp_path / "r" / "repository.json").read_text()) == {"format": 1}


def test_no_repository_no_point(run_module, tmp_path):
    args = {"repository": str(tmp_path), "job": JOB, "state": "partial", "vm": VM}
    for module in ("restore_point", "restore_point_info"):
        given = args if module == "restore_point" else {"repository": str(tmp_path)}
        failed = run_module(module, given)
        assert failed["failed"]
        assert f"there is no repository at {tmp_path}" in failed["msg"]


def test_what_is_no_job_is_refused(run_module, tmp_path):
    args = {"repository": str(tmp_path), "job": "../x", "state": "absent", "vm": VM}
    assert "is not a job id" in run_module("restore_point", args)["msg"]
