# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, manifest, store
from ansible_collections.sendense.backup.plugins.module_utils.repository.image import Image

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, LATER = "pgtest1-5029f3ab-20261123T140102Z", "pgtest1-5029f3ab-20261124T140102Z"
DISKS = {2000: (2 << 20) + 1536, 16000: 1 << 20}


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    return store.open_repository(str(tmp_path / "r"))


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


def tree_below(path):
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.fixture
def finished(repository, leases, tmp_path):
    """Return ``finished(job) -> Run``: it has the lock, and its partial point's images hold what was delivered."""

    def make(job):
        leases.take(store.lock_name(UUID), job)
        copies = []
        for key, path in store.make_partial(repository, UUID, job, DISKS).items():
            content = random.Random(f"{job}{key}").randbytes(DISKS[key])
            (raw := tmp_path / "raw").write_bytes(content)
            fill = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, path]
            subprocess.run(fill, check=True)
            leaves = digests.leaves(memoryview(content))
            every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
            tree = json.loads(json.dumps(asdict(digests.tree(every, DISKS[key]))))  # as a module hands it on
            moved = dict.fromkeys(("read", "written"), DISKS[key])
            counted = {
                "provisioned": DISKS[key],
                "allocated": None,
                "map": "none",
                "zeroed": 0,
                "seconds": 0.1,
                **moved,
            }
            copies.append({"key": key, "tree": tree, **counted})
        disks = [
            {"key": key, "capacity": size, "path": f"[ds] {key}.vmdk", "label": f"Hard disk {key}"}
            for key, size in DISKS.items()
        ]
        vm = {
            "name": "pgtest1", "instance_uuid": UUID, "inventory_path": "/DC0/vm/pgtest1", "vcenter": {"version": "8"},
            "config": {"cpus": 2}, "host": {"name": "esx1"}, "disks": disks,
        }  # fmt: skip
        frozen = [disk | {"change_id": f"52 ab/{disk['key']}"} for disk in disks]
        quiesced = {"quiesce_requested": "prefer", "quiesce_achieved": True, "quiesce_reason": ""}
        return manifest.Run(
            job, vm, quiesced | {"disks": frozen}, vm | {"host": {"name": "esx2"}}, copies, {"transport": "https"}
        )

    return make


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        pytest.param(None, r"there is no repository at .* \(.*repository.json is missing\)", id="none"),
        pytest.param("{", "cannot be read as a repository's mark", id="damaged"),
        pytest.param('{"format": 2}', "has format 2, this version knows format 1", id="newer"),
    ],
)
def test_what_is_no_repository_is_said_so(tmp_path, mark, sentence):
    if mark is not None:
        (tmp_path / "repository.json").write_text(mark, encoding="utf-8")
    with pytest.raises(SendenseError, match=sentence):
        store.open_repository(str(tmp_path))


@pytest.mark.parametrize("uuid", ["", "..", "../../etc", UUID.upper(), f"{UUID}/x", f"{UUID}\n"])
def test_what_is_no_uuid_names_no_folder(repository, uuid):
    with pytest.raises(Refused, match="is not an instance uuid"):
        repository.vm_folder(uuid)


def test_a_partial_point_has_an_empty_image_for_every_disk(repository):
    images = store.make_partial(repository, UUID, JOB, DISKS)
    folder = repository.path / "vms" / UUID / "20261123T140102Z.partial"
    assert images == {2000: folder / "disk-2000.qcow2", 16000: folder / "disk-16000.qcow2"}
    assert {key: image.read(path) for key, path in images.items()} == {key: Image(size) for key, size in DISKS.items()}
    assert tree_below(repository.path / "vms" / UUID) == [
        folder.name, *(f"{folder.name}/{name}" for name in ("disk-16000.qcow2", "disk-2000.qcow2", "job.json"))
    ]  # fmt: skip
    assert repository.points(UUID) == []


def test_a_partial_point_is_made_once(repository, leases):
    assert store.plan_partial(repository, UUID, JOB, DISKS, leases)
    leases.take(store.lock_name(UUID), JOB)
    assert store.plan_partial(repository, UUID, JOB, DISKS, leases)
    images = store.make_partial(repository, UUID, JOB, DISKS)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 512", images[2000]], check=True)
    before = images[2000].read_bytes()
    assert not store.plan_partial(repository, UUID, JOB, DISKS, leases)
    store.make_partial(repository, UUID, JOB, DISKS)
    assert images[2000].read_bytes() == before
    assert store.plan_partial(repository, UUID, JOB, DISKS | {2001: 512}, leases), "a disk is missing"


def test_a_vm_that_another_job_holds_waits(repository, leases):
    leases.take(store.lock_name(UUID), JOB)
    with pytest.raises(Refused, match=f"is being backed up by job {JOB}"):
        store.plan_partial(repository, UUID, LATER, DISKS, leases)


def test_another_run_of_the_same_second_waits_too(repository, leases):
    leases.take(store.lock_name(UUID), JOB, "boot/ns/1/2")
    assert store.plan_partial(repository, UUID, JOB, DISKS, leases, controller="boot/ns/1/2")
    with pytest.raises(Refused, match=f"is being backed up by job {JOB}"):
        store.plan_partial(repository, UUID, JOB, DISKS, leases, controller="boot/ns/3/4")


def test_a_repository_that_cannot_be_written_to_is_said_so(repository):
    (repository.path / "vms").touch()  # root could write through any permission
    with pytest.raises(SendenseError, match=r"^the repository .*/r cannot be written to: Not a directory: .*/r/vms"):
        store.make_partial(repository, UUID, JOB, DISKS)
    assert tree_below(repository.path) == ["repository.json", "vms"]


def test_a_point_is_published_whole(repository, finished, leases):
    run = finished(JOB)
    partial = repository.partial_folder(UUID, JOB)
    point = store.publish(repository, run, leases)
    assert not partial.exists()
    assert tree_below(repository.path / "vms" / UUID) == sorted(
        [point.name, "vm.json"]
        + [f"{point.name}/disk-{key}.{kind}" for key in DISKS for kind in ("digests", "qcow2")]
        + [f"{point.name}/manifest.json"]
    )
    (found,) = repository.points(UUID)
    assert (found["job"], found["point"], found["error"]) == (JOB, "20261123T140102Z", "")
    for disk, copied in zip(found["disks"], run.copies, strict=True):
        assert (disk["root"], disk["change_id"]) == (copied["tree"]["root"], f"52 ab/{disk['key']}")
        leaves = digests.read(point / disk["digests"])
        assert digests.tree(leaves, disk["capacity"]).root == disk["root"], "the digests are those of the root"
        assert disk["stored"] == (point / disk["image"]).stat().st_size
    assert found["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        for path in point.glob("disk-*")
    }
    assert json.loads((point.parent / "vm.json").read_text())["name"] == "pgtest1"
    assert repository.vms() == [UUID]


def test_all_belongs_to_whom_the_repository_belongs(repository, finished, leases):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(repository.path, 12345, 12346)
    point = store.publish(repository, finished(JOB), leases)
    owners = {(each.stat().st_uid, each.stat().st_gid) for each in (repository.path / "vms").rglob("*")}
    assert owners == {(12345, 12346)}
    assert all(path.stat().st_mode & 0o007 == 0 for path in [point, point / "manifest.json"])


def test_there_is_no_point_before_all_is_proven(repository, finished, leases, monkeypatch):
    run, seen = finished(JOB), []
    prove = store.proof.compare

    def look(*arguments):
        seen.append((repository.points(UUID), repository.point_folder(UUID, JOB).exists()))
        prove(*arguments)

    monkeypatch.setattr(store.proof, "compare", look)
    store.publish(repository, run, leases)
    assert seen == [([], False)] * len(DISKS)


@pytest.mark.parametrize("key", DISKS)
def test_an_image_that_was_altered_is_named_and_nothing_is_published(repository, finished, leases, key):
    run = finished(JOB)
    path = repository.partial_folder(UUID, JOB) / f"disk-{key}.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0 {DISKS[key] - 512} 512", path], check=True)
    with pytest.raises(SendenseError, match=f"^disk {key}: .* does not hold what the source delivered"):
        store.publish(repository, run, leases)
    assert repository.points(UUID) == []
    assert not repository.point_folder(UUID, JOB).exists()


def test_an_image_that_is_gone_is_named_and_nothing_is_published(repository, finished, leases):
    run = finished(JOB)
    (repository.partial_folder(UUID, JOB) / "disk-2000.qcow2").unlink()
    with pytest.raises(SendenseError, match="^disk 2000: .* is not the image that this job made"):
        store.publish(repository, run, leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_an_image_that_points_elsewhere_is_not_ours(repository, finished, leases, tmp_path):
    run = finished(JOB)
    path = repository.partial_folder(UUID, JOB) / "disk-2000.qcow2"
    subprocess.run(
        ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", path], check=True
    )
    with pytest.raises(SendenseError, match="^disk 2000: .* is not the image that this job made: .*/etc/passwd"):
        store.publish(repository, run, leases)


def test_what_another_one_put_beside_the_images_is_not_published(repository, finished, leases, tmp_path):
    if os.geteuid() == 0:
        os.chown(repository.path, 12345, 12346)
    (victim := tmp_path / "victim").write_text("precious", encoding="utf-8")
    victim.chmod(0o600)
    before = victim.stat()
    run = finished(JOB)
    partial = repository.partial_folder(UUID, JOB)

    def plant_link(name):
        (partial / name).unlink(missing_ok=True)
        (partial / name).symlink_to(victim)

    planted = {
        "x": plant_link,
        "notes.txt": lambda name: (partial / name).touch(),
        "disk-2001.qcow2": lambda name: (partial / name).touch(),
        "disk-2000.digests": plant_link,
        "manifest.json": plant_link,
        ".manifest.json.new": plant_link,
        "job.json": lambda name: ((partial / name).unlink(), (partial / name).mkdir()),
    }
    for name, plant in planted.items():
        kept = (partial / name).read_bytes() if (partial / name).exists() else None
        plant(name)
        with pytest.raises(Refused, match=f"holds {name}, which this job did not make"):
            store.publish(repository, run, leases)
        (partial / name).rmdir() if (partial / name).is_dir() else (partial / name).unlink()
        if kept is not None:
            (partial / name).write_bytes(kept)
    assert not repository.point_folder(UUID, JOB).exists()
    after = victim.stat()
    assert victim.read_text(encoding="utf-8") == "precious"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    store.publish(repository, run, leases)  # once all that is taken away


def test_a_link_that_comes_while_the_images_are_proven_is_not_followed(
    repository, finished, leases, tmp_path, monkeypatch
):
    if os.geteuid() == 0:
        os.chown(repository.path, 12345, 12346)
    (victim := tmp_path / "victim").write_text("precious", encoding="utf-8")
    run, prove, owner = finished(JOB), store.proof.compare, victim.stat().st_uid

    def plant(path, *arguments):
        prove(path, *arguments)
        for name in ("manifest.json", ".manifest.json.new", "x"):
            (path.parent / name).unlink(missing_ok=True)
            (path.parent / name).symlink_to(victim)

    monkeypatch.setattr(store.proof, "compare", plant)
    with pytest.raises(Refused, match="holds x, which this job did not make"):
        store.publish(repository, run, leases)
    assert (victim.read_text(encoding="utf-8"), victim.stat().st_uid) == ("precious", owner)
    assert not repository.point_folder(UUID, JOB).exists()


def test_what_is_told_of_the_vm_is_there_before_its_point(repository, finished, leases):
    run = finished(JOB)
    (repository.vm_folder(UUID) / "vm.json").mkdir()  # so that it cannot be written
    with pytest.raises(IsADirectoryError):
        store.publish(repository, run, leases)
    assert repository.points(UUID) == []
    assert not repository.point_folder(UUID, JOB).exists()


class Waiting(Leases):
    """Leases whose user waits for a word before the step in which all is decided."""

    def __init__(self, folder):
        super().__init__(folder)
        self.arrived, self.go = threading.Event(), threading.Event()

    def _wait(self):
        self.arrived.set()
        assert self.go.wait(20)

    def while_held(self, *arguments):
        self._wait()
        super().while_held(*arguments)

    def release(self, *arguments, **options):
        self._wait()
        return super().release(*arguments, **options)


@pytest.fixture
def beside():
    """Return ``beside(function) -> result``: the function runs in a thread, ``result()`` gives its result or raises."""
    with ThreadPoolExecutor() as pool:
        yield lambda function: pool.submit(function).result


@pytest.fixture
def publisher(repository, finished, tmp_path, beside):
    """Return ``let_go`` and ``result`` of a publisher that stands right before the rename."""
    run, waiting = finished(JOB), Waiting(tmp_path / "leases")
    result = beside(lambda: store.publish(repository, run, waiting))
    assert waiting.arrived.wait(20)
    yield waiting.go.set, result
    waiting.go.set()


@pytest.mark.parametrize(
    ("keep_lock", "failure"),
    [(False, (Refused, f"job {JOB} holds vm-{UUID} no more")), (True, (FileNotFoundError, "No such file"))],
)
def test_a_publisher_whose_work_was_taken_away_publishes_nothing(repository, leases, publisher, keep_lock, failure):
    let_go, published = publisher
    assert store.remove_partial(repository, UUID, JOB, leases, keep_lock=keep_lock)
    let_go()
    with pytest.raises(failure[0], match=failure[1]):
        published()
    assert tree_below(repository.path / "vms") == [UUID, f"{UUID}/vm.json"]


def test_a_publisher_does_not_rename_what_is_being_taken_away(repository, leases, publisher, monkeypatch):
    (let_go, published), rmtree, outcome = publisher, shutil.rmtree, []

    def meanwhile(path, *arguments, **options):
        let_go()
        with pytest.raises(Refused) as refused:
            published()
        outcome.append(refused.value)
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(store.shutil, "rmtree", meanwhile)
    store.remove_partial(repository, UUID, JOB, leases)
    assert len(outcome) == 1
    assert tree_below(repository.path / "vms") == [UUID, f"{UUID}/vm.json"]


def test_a_cleanup_that_comes_too_late_takes_nothing_from_the_point(repository, finished, leases, tmp_path, beside):
    run, waiting = finished(JOB), Waiting(tmp_path / "leases")
    removed = beside(lambda: store.remove_partial(repository, UUID, JOB, waiting))
    assert waiting.arrived.wait(20)
    point = store.publish(repository, run, leases)
    before = {path: path.read_bytes() for path in point.iterdir()}
    waiting.go.set()
    assert removed()
    assert {path: path.read_bytes() for path in point.iterdir()} == before
    assert len(before) == 2 * len(DISKS) + 1
    assert [each["error"] for each in repository.points(UUID)] == [""]
    assert store.unfinished(repository, UUID, leases) == []


def test_a_publisher_that_has_lost_its_lock_to_another_job_publishes_nothing(repository, finished, leases):
    run = finished(JOB)
    leases.release(JOB)
    leases.take(store.lock_name(UUID), LATER)
    with pytest.raises(Refused, match=f"job {JOB} holds vm-{UUID} no more"):
        store.publish(repository, run, leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_disk_that_was_not_copied_is_missed(repository, finished, leases):
    run = finished(JOB)
    with pytest.raises(Refused, match="^disk 16000 was not copied"):
        store.publish(repository, replace(run, copies=run.copies[:1]), leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_disk_that_moved_publishes_nothing(repository, finished, leases):
    run = finished(JOB)
    with pytest.raises(SendenseError, match="moved during the backup"):
        store.publish(repository, replace(run, after=run.vm | {"disks": []}), leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_published_point_is_never_written_to_again(repository, finished, leases):
    run = finished(JOB)
    point = store.publish(repository, run, leases)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in point.iterdir()}
    with pytest.raises(Refused, match="is published already"):
        store.plan_partial(repository, UUID, JOB, DISKS, leases)
    with pytest.raises(Refused, match="is published already"):
        store.make_partial(repository, UUID, JOB, DISKS)
    repository.partial_folder(UUID, JOB).mkdir()
    with pytest.raises(Refused, match="is published already"):
        store.publish(repository, run, leases)
    assert store.remove_partial(repository, UUID, JOB, leases)
    assert not store.remove_partial(repository, UUID, JOB, leases)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in point.iterdir()} == before


def test_what_was_never_made_is_not_published(repository, finished, leases):
    run = finished(JOB)
    store.remove_partial(repository, UUID, JOB, leases)
    with pytest.raises(Refused, match=f"job {JOB} has no point to publish"):
        store.publish(repository, run, leases)


def test_only_what_the_job_made_is_removed(repository, finished, leases):
    store.publish(repository, finished(JOB), leases)
    store.make_partial(repository, UUID, LATER, DISKS)
    (repository.path / "vms" / UUID / "notes.txt").write_text("mine", encoding="utf-8")
    before = [each for each in tree_below(repository.path) if "20261124" not in each]
    assert store.remove_partial(repository, UUID, LATER, leases)
    assert tree_below(repository.path) == before


def test_the_folder_of_a_vm_goes_with_its_only_failed_job(repository, leases):
    store.make_partial(repository, UUID, JOB, DISKS)
    store.remove_partial(repository, UUID, JOB, leases)
    assert tree_below(repository.path / "vms") == []
    assert repository.vms() == []


def test_points_are_told_oldest_first_and_a_damaged_one_with_its_error(repository, finished, leases):
    for job in (LATER, JOB):
        store.publish(repository, finished(job), leases)
        leases.release(job)
    (repository.point_folder(UUID, LATER) / "manifest.json").write_text("{", encoding="utf-8")
    store.make_partial(repository, UUID, "pgtest1-5029f3ab-20261125T140102Z", DISKS)
    one, two = repository.points(UUID)
    assert (one["point"], one["error"]) == ("20261123T140102Z", "")
    assert two["point"] == "20261124T140102Z"
    assert "is damaged" in two["error"]


def test_an_unfinished_job_is_told_with_whom_to_ask(repository, leases, tmp_path, systemd):
    assert store.unfinished(repository, UUID, leases) == []
    leases.take(store.lock_name(UUID), JOB, "boot/ns/1/2")
    store.make_partial(repository, UUID, JOB, DISKS)
    assert store.unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "boot/ns/1/2", "dead": False}]
    lease = tmp_path / "leases" / store.lock_name(UUID)
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"expires": time.time() - 1}), encoding="utf-8")
    assert [each["dead"] for each in store.unfinished(repository, UUID, leases)] == [True]
    lease.unlink()  # as a reboot does
    assert store.unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "", "dead": True}]
    systemd(f"sendense-export-{JOB}-2000")
    assert [each["dead"] for each in store.unfinished(repository, UUID, leases)] == [True], "nobody is connected to it"
    systemd(f"sendense-other-{JOB}")
    assert [each["dead"] for each in store.unfinished(repository, UUID, leases)] == [False]


def test_a_cleanup_that_left_something_keeps_the_lock_and_nothing_else(repository, finished, leases):
    finished(JOB)
    leases.take_ports(JOB, [None, None])
    before = leases.held(store.lock_name(UUID))
    assert store.remove_partial(repository, UUID, JOB, leases, keep_lock=True)
    assert leases.of(JOB) == [before]
    assert tree_below(repository.path / "vms") == []
    assert [each["job"] for each in store.unfinished(repository, UUID, leases)] == [JOB]
    with pytest.raises(Refused, match=f"is being backed up by job {JOB}"):
        store.plan_partial(repository, UUID, LATER, DISKS, leases)
    assert store.remove_partial(repository, UUID, JOB, leases)
    assert store.unfinished(repository, UUID, leases) == []


def _remove_until(repository, leases, victim):
    def die(event, arguments):
        if event == "os.remove" and Path(os.fsdecode(arguments[0])).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    store.remove_partial(repository, UUID, JOB, leases)


@pytest.mark.parametrize("victim", ["job.json", "disk-2000.qcow2", "disk-16000.qcow2", "manifest.json"])
def test_a_removal_that_is_killed_is_told_and_can_be_done_again(repository, finished, leases, victim):
    finished(JOB)
    if victim == "manifest.json":  # right before the rename there is no job.json any more
        store.publish(repository, finished(JOB), leases).rename(repository.partial_folder(UUID, JOB))
        (repository.vm_folder(UUID) / "vm.json").unlink()
    process = multiprocessing.get_context("fork").Process(target=_remove_until, args=(repository, leases, victim))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = tree_below(repository.vm_folder(UUID))
    assert left[0] == "20261123T140102Z.gone"
    assert left[1:]
    assert store.unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "", "dead": True}]
    assert repository.points(UUID) == []
    assert store.remove_partial(repository, UUID, JOB, leases)
    assert tree_below(repository.path / "vms") == []
    assert store.unfinished(repository, UUID, leases) == []


def test_a_job_that_died_right_before_the_rename_is_told(repository, finished, leases):
    store.publish(repository, finished(JOB), leases).rename(repository.partial_folder(UUID, JOB))
    leases.release(JOB)  # as a reboot does
    assert [each["job"] for each in store.unfinished(repository, UUID, leases)] == [JOB]


def test_a_partial_folder_that_nobody_owns_is_left_alone(repository, leases):
    (foreign := repository.vm_folder(UUID) / "20261123T140102Z.partial").mkdir(parents=True)
    assert store.unfinished(repository, UUID, leases) == []
    (foreign / "job.json").write_text("{", encoding="utf-8")
    assert store.unfinished(repository, UUID, leases) == []
