# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, point
from ansible_collections.sendense.backup.plugins.module_utils.repository.image import Image
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Draft, lock_name, unfinished

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, LATER = "pgtest1-5029f3ab-20261123T140102Z", "pgtest1-5029f3ab-20261124T140102Z"
DISKS = {2000: (2 << 20) + 1536, 16000: 1 << 20}


def draft(job, **more):
    return Draft(**{"instance_uuid": UUID, "job": job, "disks": DISKS, **more})


def tree_below(path):
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


def test_a_partial_point_has_an_empty_image_for_every_disk(repository):
    images = point.make(repository, draft(JOB))
    folder = repository.path / "vms" / UUID / "20261123T140102Z.partial"
    assert images == {2000: folder / "disk-2000.qcow2", 16000: folder / "disk-16000.qcow2"}
    assert {key: image.read(path) for key, path in images.items()} == {key: Image(size) for key, size in DISKS.items()}
    assert tree_below(repository.path / "vms" / UUID) == [
        folder.name, *(f"{folder.name}/{name}" for name in ("disk-16000.qcow2", "disk-2000.qcow2", "job.json"))
    ]  # fmt: skip
    assert repository.points(UUID) == []


def test_a_partial_point_is_made_once(repository, leases):
    assert point.plan(repository, draft(JOB), leases)
    leases.take(lock_name(UUID), JOB)
    assert point.plan(repository, draft(JOB), leases)
    images = point.make(repository, draft(JOB))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 512", images[2000]], check=True)
    before = images[2000].read_bytes()
    assert not point.plan(repository, draft(JOB), leases)
    point.make(repository, draft(JOB))
    assert images[2000].read_bytes() == before
    assert point.plan(repository, draft(JOB, disks=DISKS | {2001: 512}), leases), "a disk is missing"


def test_a_vm_that_another_job_holds_waits(repository, leases):
    leases.take(lock_name(UUID), JOB)
    with pytest.raises(Refused, match=f"is being backed up by job {JOB}"):
        point.plan(repository, draft(LATER), leases)


def test_another_run_of_the_same_second_waits_too(repository, leases):
    leases.take(lock_name(UUID), JOB, "boot/ns/1/2")
    assert point.plan(repository, draft(JOB, controller="boot/ns/1/2"), leases)
    with pytest.raises(Refused, match=f"is being backed up by job {JOB}"):
        point.plan(repository, draft(JOB, controller="boot/ns/3/4"), leases)


DEAD, NEXT = "boot/ns/1/2", "boot/ns/3/4"


def test_the_next_run_takes_a_dead_one_s_job_over_with_all_it_has(repository, leases):
    point.begin(repository, draft(JOB, controller=DEAD, node="node1", need=4096), leases)
    before, below = {lease.thing for lease in leases.of(JOB)}, tree_below(repository.path)
    point.take_over(repository, draft(JOB, controller=NEXT), leases, DEAD, predict=True)
    assert leases.held(lock_name(UUID)).controller == DEAD, "check mode"
    point.take_over(repository, draft(JOB, controller=NEXT), leases, DEAD)
    assert leases.held(lock_name(UUID)).controller == NEXT
    assert ({lease.thing for lease in leases.of(JOB)}, tree_below(repository.path)) == (before, below)


def test_only_one_run_takes_a_job_over(repository, leases):
    point.begin(repository, draft(JOB, controller=DEAD), leases)
    point.take_over(repository, draft(JOB, controller=NEXT), leases, DEAD)
    with pytest.raises(Refused, match="another run was first"):
        point.take_over(repository, draft(JOB, controller="boot/ns/5/6"), leases, DEAD)
    assert leases.held(lock_name(UUID)).controller == NEXT


@pytest.mark.parametrize("lost", ["the lock", "an image", "the folder"])
def test_a_job_that_lacks_something_is_not_taken_over(repository, leases, lost):
    images = point.begin(repository, draft(JOB, controller=DEAD), leases)
    if lost == "the lock":
        leases.release(JOB)
    elif lost == "an image":
        images[2000].unlink()
    else:
        shutil.rmtree(images[2000].parent)
    with pytest.raises(Refused, match=JOB):
        point.take_over(repository, draft(JOB, controller=NEXT), leases, DEAD)
    assert all(lease.controller != NEXT for lease in leases.of(JOB))


def test_a_repository_that_cannot_be_written_to_is_said_so(repository):
    (repository.path / "vms").touch()  # root could write through any permission
    with pytest.raises(SendenseError, match=r"^the repository .*/r cannot be written to: Not a directory: .*/r/vms"):
        point.make(repository, draft(JOB))
    assert tree_below(repository.path) == ["repository.json", "vms"]


def test_a_point_is_published_whole(repository, finished, leases):
    run = finished(JOB)
    partial = repository.partial_folder(UUID, JOB)
    made = point.publish(repository, run, leases)
    assert not partial.exists()
    assert tree_below(repository.path / "vms" / UUID) == sorted(
        [made.name, "vm.json"]
        + [f"{made.name}/disk-{key}.{kind}" for key in DISKS for kind in ("digests", "qcow2")]
        + [f"{made.name}/manifest.json"]
    )
    (found,) = repository.points(UUID)
    assert (found["job"], found["point"], found["error"]) == (JOB, "20261123T140102Z", "")
    for disk, copied in zip(found["disks"], run.copies, strict=True):
        assert (disk["root"], disk["change_id"]) == (copied["tree"]["root"], f"52 ab/{disk['key']}")
        leaves = digests.read(made / disk["digests"])
        assert digests.tree(leaves, disk["capacity"]).root == disk["root"], "the digests are those of the root"
        assert disk["stored"] == (made / disk["image"]).stat().st_size
    assert found["files"] == {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        for path in made.glob("disk-*")
    }
    assert json.loads((made.parent / "vm.json").read_text())["name"] == "pgtest1"
    assert repository.vms() == [UUID]


def test_all_belongs_to_whom_the_repository_belongs(repository, finished, leases):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(repository.path, 12345, 12346)
    made = point.publish(repository, finished(JOB), leases)
    owners = {(each.stat().st_uid, each.stat().st_gid) for each in (repository.path / "vms").rglob("*")}
    assert owners == {(12345, 12346)}
    assert all(path.stat().st_mode & 0o007 == 0 for path in [made, made / "manifest.json"])


def test_there_is_no_point_before_all_is_proven(repository, finished, leases, monkeypatch):
    run, seen = finished(JOB), []
    prove = point.proof.compare

    def look(*arguments):
        seen.append((repository.points(UUID), repository.point_folder(UUID, JOB).exists()))
        prove(*arguments)

    monkeypatch.setattr(point.proof, "compare", look)
    point.publish(repository, run, leases)
    assert seen == [([], False)] * len(DISKS)


def by_client(run, **changes):
    """Return *run* as it were if a client had copied: the source told no digests."""
    return replace(
        run, copies=[disk | {"tree": None, "map": "client", "allocated": 1 << 20, **changes} for disk in run.copies]
    )


def test_a_copy_whose_source_tells_no_digests_is_published_with_those_of_its_images(repository, finished, leases):
    run = finished(JOB)
    made = point.publish(repository, by_client(run), leases)
    (found,) = repository.points(UUID)
    for disk, copied in zip(found["disks"], run.copies, strict=True):
        assert (disk["root"], disk["digests_of"]) == (copied["tree"]["root"], "image")
        assert (disk["read"], disk["zeroed"], disk["written"]) == (None, None, copied["written"])
        assert disk["change_id"] is None, "nothing may stand on it"
        assert digests.tree(digests.read(made / disk["digests"]), disk["capacity"]).root == disk["root"]


@pytest.mark.parametrize(
    ("allocated", "told"),
    [(1 << 20, "1048576 bytes on the datastore"), (None, "nobody knows what it takes on the datastore"), (512, "")],
)
def test_an_image_that_checks_clean_and_holds_nothing_is_refused_unless_its_disk_takes_no_room(
    repository, finished, leases, allocated, told
):
    run = by_client(finished(JOB), allocated=allocated)
    path = repository.partial_folder(UUID, JOB) / "disk-16000.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -z 0 {DISKS[16000]}", path], check=True)
    if not told:
        assert point.publish(repository, run, leases)
        return
    with pytest.raises(SendenseError, match=rf"^disk 16000: the client .* wrote nothing into disk 16000 \({told}\)"):
        point.publish(repository, run, leases)
    assert repository.points(UUID) == []


def test_no_other_copy_may_go_without_digests(repository, finished, leases):
    with pytest.raises(SendenseError, match="^disk 2000: the copy told no digests of what it read"):
        point.publish(repository, by_client(finished(JOB), map="used"), leases)


@pytest.mark.parametrize("key", DISKS)
def test_an_image_that_was_altered_is_named_and_nothing_is_published(repository, finished, leases, key):
    run = finished(JOB)
    path = repository.partial_folder(UUID, JOB) / f"disk-{key}.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0 {DISKS[key] - 512} 512", path], check=True)
    with pytest.raises(SendenseError, match=f"^disk {key}: .* does not hold what the source delivered"):
        point.publish(repository, run, leases)
    assert repository.points(UUID) == []
    assert not repository.point_folder(UUID, JOB).exists()


def test_an_image_that_is_gone_is_named_and_nothing_is_published(repository, finished, leases):
    run = finished(JOB)
    (repository.partial_folder(UUID, JOB) / "disk-2000.qcow2").unlink()
    with pytest.raises(SendenseError, match="^disk 2000: .* is not the image that this job made"):
        point.publish(repository, run, leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_an_image_that_points_elsewhere_is_not_ours(repository, finished, leases, tmp_path):
    run = finished(JOB)
    path = repository.partial_folder(UUID, JOB) / "disk-2000.qcow2"
    subprocess.run(
        ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", path], check=True
    )
    with pytest.raises(SendenseError, match="^disk 2000: .* is not the image that this job made: .*/etc/passwd"):
        point.publish(repository, run, leases)


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
            point.publish(repository, run, leases)
        (partial / name).rmdir() if (partial / name).is_dir() else (partial / name).unlink()
        if kept is not None:
            (partial / name).write_bytes(kept)
    assert not repository.point_folder(UUID, JOB).exists()
    after = victim.stat()
    assert victim.read_text(encoding="utf-8") == "precious"
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    point.publish(repository, run, leases)  # once all that is taken away


def test_a_link_that_comes_while_the_images_are_proven_is_not_followed(
    repository, finished, leases, tmp_path, monkeypatch
):
    if os.geteuid() == 0:
        os.chown(repository.path, 12345, 12346)
    (victim := tmp_path / "victim").write_text("precious", encoding="utf-8")
    run, prove, owner = finished(JOB), point.proof.compare, victim.stat().st_uid

    def plant(path, *arguments):
        prove(path, *arguments)
        for name in ("manifest.json", ".manifest.json.new", "x"):
            (path.parent / name).unlink(missing_ok=True)
            (path.parent / name).symlink_to(victim)

    monkeypatch.setattr(point.proof, "compare", plant)
    with pytest.raises(Refused, match="holds x, which this job did not make"):
        point.publish(repository, run, leases)
    assert (victim.read_text(encoding="utf-8"), victim.stat().st_uid) == ("precious", owner)
    assert not repository.point_folder(UUID, JOB).exists()


def test_what_is_told_of_the_vm_is_there_before_its_point(repository, finished, leases):
    run = finished(JOB)
    (repository.vm_folder(UUID) / "vm.json").mkdir()  # so that it cannot be written
    with pytest.raises(IsADirectoryError):
        point.publish(repository, run, leases)
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
    result = beside(lambda: point.publish(repository, run, waiting))
    assert waiting.arrived.wait(20)
    yield waiting.go.set, result
    waiting.go.set()


@pytest.mark.parametrize("remember", [False, True])
def test_a_publisher_whose_work_was_taken_away_publishes_nothing(repository, leases, publisher, remember):
    let_go, published = publisher
    assert point.remove(repository, UUID, JOB, leases, remember=remember)
    let_go()
    with pytest.raises(Refused, match=f"job {JOB} holds vm-{UUID} no more"):
        published()
    assert repository.points(UUID) == []


def test_a_publisher_does_not_rename_what_is_being_taken_away(repository, leases, publisher, monkeypatch):
    (let_go, published), rmtree, outcome = publisher, shutil.rmtree, []

    def meanwhile(path, *arguments, **options):
        let_go()
        with pytest.raises(Refused) as refused:
            published()
        outcome.append(refused.value)
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(point.shutil, "rmtree", meanwhile)
    point.remove(repository, UUID, JOB, leases)
    assert len(outcome) == 1
    assert tree_below(repository.path / "vms") == [UUID, f"{UUID}/vm.json"]


def test_a_cleanup_that_comes_too_late_takes_nothing_from_the_point(repository, finished, leases, tmp_path, beside):
    run, waiting = finished(JOB), Waiting(tmp_path / "leases")
    removed = beside(lambda: point.remove(repository, UUID, JOB, waiting))
    assert waiting.arrived.wait(20)
    made = point.publish(repository, run, leases)
    before = {path: path.read_bytes() for path in made.iterdir()}
    waiting.go.set()
    assert removed()
    assert {path: path.read_bytes() for path in made.iterdir()} == before
    assert len(before) == 2 * len(DISKS) + 1
    assert [each["error"] for each in repository.points(UUID)] == [""]
    assert unfinished(repository, UUID, leases) == []


def test_a_publisher_that_has_lost_its_lock_to_another_job_publishes_nothing(repository, finished, leases):
    run = finished(JOB)
    leases.release(JOB)
    leases.take(lock_name(UUID), LATER)
    with pytest.raises(Refused, match=f"job {JOB} holds vm-{UUID} no more"):
        point.publish(repository, run, leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_disk_that_was_not_copied_is_missed(repository, finished, leases):
    run = finished(JOB)
    with pytest.raises(Refused, match="^disk 16000 was not copied"):
        point.publish(repository, replace(run, copies=run.copies[:1]), leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_disk_that_moved_publishes_nothing(repository, finished, leases):
    run = finished(JOB)
    with pytest.raises(SendenseError, match="moved during the backup"):
        point.publish(repository, replace(run, after=run.vm | {"disks": []}), leases)
    assert not repository.point_folder(UUID, JOB).exists()


def test_a_published_point_is_never_written_to_again(repository, finished, leases):
    run = finished(JOB)
    made = point.publish(repository, run, leases)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()}
    with pytest.raises(Refused, match="is published already"):
        point.plan(repository, draft(JOB), leases)
    with pytest.raises(Refused, match="is published already"):
        point.make(repository, draft(JOB))
    repository.partial_folder(UUID, JOB).mkdir()
    with pytest.raises(Refused, match="is published already"):
        point.publish(repository, run, leases)
    assert point.remove(repository, UUID, JOB, leases)
    assert not point.remove(repository, UUID, JOB, leases)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()} == before


def test_what_was_never_made_is_not_published(repository, finished, leases):
    run = finished(JOB)
    point.remove(repository, UUID, JOB, leases)
    with pytest.raises(Refused, match=f"job {JOB} has no point to publish"):
        point.publish(repository, run, leases)


def test_only_what_the_job_made_is_removed(repository, finished, leases):
    point.publish(repository, finished(JOB), leases)
    point.make(repository, draft(LATER))
    (repository.path / "vms" / UUID / "notes.txt").write_text("mine", encoding="utf-8")
    before = [each for each in tree_below(repository.path) if "20261124" not in each]
    assert point.remove(repository, UUID, LATER, leases)
    assert tree_below(repository.path) == before


def test_the_folder_of_a_vm_goes_with_its_only_failed_job(repository, leases):
    point.make(repository, draft(JOB))
    point.remove(repository, UUID, JOB, leases)
    assert tree_below(repository.path / "vms") == []
    assert repository.vms() == []


def test_a_job_is_remembered_by_its_mark_alone_and_in_nobodys_way(repository, finished, leases):
    finished(JOB)
    leases.take("port-10100", JOB)
    assert point.remove(repository, UUID, JOB, leases, remember=True, node="node1")
    assert leases.of(JOB) == []
    assert tree_below(repository.vm_folder(UUID)) == ["20261123T140102Z.gone", "20261123T140102Z.gone/job.json"]
    left = {"job": JOB, "controller": "", "node": "node1", "dead": True}
    assert unfinished(repository, UUID, leases) == [left]
    assert point.plan(repository, draft(LATER), leases)
    assert point.remove(repository, UUID, JOB, leases)
    assert unfinished(repository, UUID, leases) == []
    assert tree_below(repository.path / "vms") == []


def _make_until(repository, leases, event, name):
    def die(happens, arguments):
        if happens == event and name in {
            Path(os.fsdecode(each)).name for each in arguments if isinstance(each, str | Path)
        }:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    point.begin(repository, draft(JOB, node="node1"), leases)


@pytest.mark.parametrize(
    ("event", "name", "left", "node"),
    [
        ("open", ".job.json.new", f".{JOB}.new", ""),
        ("os.rename", "20261123T140102Z.partial", f".{JOB}.new", "node1"),
        ("subprocess.Popen", "qemu-img", "20261123T140102Z.partial", "node1"),
    ],
)
def test_a_job_that_is_killed_while_it_begins_leaves_nothing_that_is_nobodys(
    repository, leases, event, name, *, left, node
):
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_make_until, args=(repository, leases, event, name))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert tree_below(repository.vm_folder(UUID))[0] == left
    (found,) = unfinished(repository, UUID, leases)
    assert (found["job"], found["node"]) == (JOB, "node1")
    leases.release(JOB)  # as a reboot does
    assert unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "", "node": node, "dead": True}]
    assert point.begin(repository, draft(JOB), leases).keys() == DISKS.keys(), "and does not stand in its own way"
    assert point.remove(repository, UUID, JOB, leases)
    assert tree_below(repository.path / "vms") == []


@pytest.mark.parametrize("said", [None, "{", json.dumps({"job": LATER})])
def test_what_lies_where_the_point_is_to_be_made_is_not_touched(repository, leases, said):
    folder = repository.partial_folder(UUID, JOB)
    folder.mkdir(parents=True)
    (folder / "disk-2000.qcow2").write_text("precious", encoding="utf-8")
    if said is not None:
        (folder / "job.json").write_text(said, encoding="utf-8")
    with pytest.raises(Refused, match=f"^{folder} is there already, and job {JOB} did not make it; move it away"):
        point.plan(repository, draft(JOB), leases)
    assert (folder / "disk-2000.qcow2").read_text(encoding="utf-8") == "precious"


def test_an_image_that_is_there_already_is_not_overwritten(repository, leases):
    path = point.begin(repository, draft(JOB), leases)[2000]
    path.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    before = path.read_bytes()
    with pytest.raises(Refused, match=f"^{path} holds {1 << 30} bytes and is never shrunk to {DISKS[2000]}$"):
        point.make(repository, draft(JOB))
    assert path.read_bytes() == before


def _remove_until(repository, leases, victim):
    def die(event, arguments):
        if event == "os.remove" and Path(os.fsdecode(arguments[0])).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    point.remove(repository, UUID, JOB, leases)


@pytest.mark.parametrize("victim", ["job.json", "disk-2000.qcow2", "disk-16000.qcow2", "manifest.json"])
def test_a_removal_that_is_killed_is_told_and_can_be_done_again(repository, finished, leases, victim):
    finished(JOB)
    if victim == "manifest.json":  # right before the rename there is no job.json any more
        point.publish(repository, finished(JOB), leases).rename(repository.partial_folder(UUID, JOB))
        (repository.vm_folder(UUID) / "vm.json").unlink()
    process = multiprocessing.get_context("fork").Process(target=_remove_until, args=(repository, leases, victim))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = tree_below(repository.vm_folder(UUID))
    assert left[0] == "20261123T140102Z.gone"
    assert left[1:]
    assert unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "", "node": "", "dead": True}]
    assert repository.points(UUID) == []
    assert point.remove(repository, UUID, JOB, leases)
    assert tree_below(repository.path / "vms") == []
    assert unfinished(repository, UUID, leases) == []


def _remove_at_once(repository, leases, _number, start, results):
    start.wait()
    try:
        point.remove(repository, UUID, JOB, leases)
    except Exception as why:  # whatever it is, the test tells it
        results.put(repr(why))
    else:
        results.put("")


def test_removals_of_one_job_at_once_are_in_nobodys_way(repository, leases, race):
    for _turn in range(10):
        folder = repository.partial_folder(UUID, JOB)
        folder.mkdir(parents=True)
        for number in range(200):
            (folder / f"disk-{number}.qcow2").touch()
        (folder / "job.json").write_text(json.dumps({"job": JOB}), encoding="utf-8")
        assert set(race(_remove_at_once, repository, leases)) == {""}
        assert tree_below(repository.path / "vms") == []
