# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs, leftovers
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import point
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Draft, lock_name, open_repository

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, LATER = (f"pgtest1-5029f3ab-2026112{day}T140102Z" for day in (3, 4))
HOUR = 3600


@pytest.fixture
def leases(tmp_path, systemd, monkeypatch):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    monkeypatch.setattr(jobs, "WORK", tmp_path / "work")
    for folder in ("run", "work", "repository"):
        (tmp_path / folder).mkdir()
    (tmp_path / "repository" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    return Leases(tmp_path / "run" / "leases")


@pytest.fixture
def repository(leases, tmp_path):
    return open_repository(str(tmp_path / "repository"))


@pytest.fixture
def begun(repository, leases, systemd):
    """Have JOB hold the VM, with images, an export and a folder; return what it has."""
    point.begin(repository, Draft(UUID, JOB, {2000: 1 << 20}, controller="b/n/1/2", node="node1"), leases)
    systemd(f"sendense-export-{JOB}-2000")
    (jobs.make_folder(JOB) / "exports.json").write_text("[]", encoding="utf-8")
    return repository.partial_folder(UUID, JOB)


def expire(leases, seconds):
    """Have every lease be out for that long."""
    for lease in leases.every():
        path = leases._path(lease)
        path.write_text(json.dumps(asdict(replace(lease, expires=time.time() - seconds))), encoding="utf-8")


def age(path, seconds):
    for each in (*path.iterdir(), path):
        os.utime(each, (time.time() - seconds,) * 2)


def test_a_job_is_told_with_all_it_has(repository, leases, begun):
    (found,) = leftovers.look(repository, leases)
    assert found == leftovers.Known(
        job=JOB, vm=UUID, units=[f"sendense-export-{JOB}-2000"], running=[f"sendense-export-{JOB}-2000"],
        folders=[str(jobs.folder(JOB))], leases=[f"space-{repository.path.stat().st_dev}", lock_name(UUID)],
        points=[str(begun)], controllers=["b/n/1/2"], nodes=["node1"], dead=False, why=found.why,
    )  # fmt: skip
    assert found.why == f"its lease '{lock_name(UUID)}' runs for 15 min more"


def test_a_vm_without_any_point_yet_has_its_vcenter_from_the_jobs_mark(repository, leases):
    vcenter = {"instance_uuid": "8b1f4b0a", "hostname": "vc2.example.com"}
    point.begin(repository, Draft(UUID, JOB, {2000: 1 << 20}, node="node1", vcenter=vcenter), leases)
    (begun,) = leftovers.look(repository, leases)
    assert (begun.vcenter, begun.vcenter_name) == ("8b1f4b0a", "vc2.example.com")
    leftovers.take_away(JOB, repository, leases, remember=True, node="node1")
    (found,) = leftovers.look(repository, leases)
    assert found.points == [str(repository.gone_folder(UUID, JOB))]
    assert (found.vcenter, found.vcenter_name) == ("8b1f4b0a", "vc2.example.com"), "what is remembered tells it too"


@pytest.mark.parametrize(
    ("over", "dead", "why"),
    [
        (60, False, "it may wait for its snapshot to go, for 12 h more"),
        (13 * HOUR, True, "ran out 13 h ago, and nothing of it is at work on this hub"),
    ],
)
@pytest.mark.usefixtures("begun")
def test_a_job_whose_lease_ran_out_is_dead_once_its_grace_is_over(repository, leases, over, dead, why):
    expire(leases, over)
    (found,) = leftovers.look(repository, leases)
    assert found.dead is dead
    assert why in found.why


@pytest.mark.usefixtures("begun")
def test_a_job_without_a_lock_is_dead_unless_it_is_at_work(repository, leases, systemd):
    leases.release(JOB)
    (found,) = leftovers.look(repository, leases)
    assert (found.dead, found.why) == (True, "it holds no lock any more, and nothing of it is at work on this hub")
    systemd(f"sendense-prove-{JOB}")
    assert leftovers.look(repository, leases)[0].dead is False


def test_a_node_cannot_know_who_is_dead(leases, systemd):
    systemd(f"sendense-copy-{JOB}", active="failed")
    (jobs.make_folder(JOB) / "session").write_text("{}", encoding="utf-8")
    (jobs.WORK / JOB).mkdir()
    (found,) = leftovers.look(None, leases)
    assert (found.dead, found.session, found.running) == (None, True, [])
    assert found.folders == [str(jobs.folder(JOB)), str(jobs.WORK / JOB)]


def test_what_works_on_a_hub_without_any_lease_lives(repository, leases, systemd):
    """A point that was booted, for example, and is looked at for days."""
    systemd(f"sendense-boot-{JOB}")
    (found,) = leftovers.look(repository, leases)
    assert (found.dead, found.why) == (False, "it is at work on this hub")
    assert leftovers.look(None, leases)[0].dead is None


def test_what_is_asked_for_is_told_with_its_published_point(repository, leases):
    folder = repository.point_folder(UUID, JOB)
    folder.mkdir(parents=True)
    manifest = {"format": 1, "job": JOB, "point": folder.name, "vm": {"instance_uuid": UUID}, "disks": []}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert [(each.job, each.published) for each in leftovers.look(repository, leases, [JOB, LATER])] == [
        (JOB, True), (LATER, False),
    ]  # fmt: skip


def test_all_of_a_job_goes_and_nothing_else(repository, leases, begun, systemd, tmp_path):
    leases.take("vm-other", LATER)
    systemd(f"sendense-export-{LATER}-2000")
    jobs.make_folder(LATER)
    before = sorted(tmp_path.rglob("*"))
    told = leftovers.take_away(JOB, repository, leases, predict=True)
    assert sorted(tmp_path.rglob("*")) == before
    done = leftovers.take_away(JOB, repository, leases)
    assert (sorted(done.removed), done.failed) == (sorted(told.removed), [])
    assert f"unit sendense-export-{JOB}-2000" in done.removed
    assert not begun.exists()
    assert [each.job for each in leftovers.look(repository, leases)] == [LATER]
    assert leftovers.take_away(JOB, repository, leases) == leftovers.Taken()


@pytest.mark.usefixtures("begun")
def test_a_job_that_has_something_elsewhere_is_remembered(repository, leases):
    leftovers.take_away(JOB, repository, leases, remember=True, node="node1")
    (found,) = leftovers.look(repository, leases)
    assert (found.points, found.nodes, found.leases) == ([str(repository.gone_folder(UUID, JOB))], ["node1"], [])
    assert leftovers.take_away(JOB, repository, leases, remember=True, node="node1") == leftovers.Taken()
    leftovers.take_away(JOB, repository, leases)
    assert leftovers.look(repository, leases) == []


def test_a_file_that_no_job_makes_keeps_the_point(repository, leases, begun):
    (begun / "notes.txt").write_text("precious", encoding="utf-8")
    assert leftovers.look(repository, leases)[0].strangers == [str(begun / "notes.txt")]
    told = leftovers.take_away(JOB, repository, leases)
    assert told.failed == [f"{begun / 'notes.txt'} was made by no job; move it away and sweep again"]
    assert (begun / "notes.txt").exists()


def test_a_unit_that_does_not_stop_keeps_what_it_uses(repository, leases, begun, tmp_path):
    systemctl = tmp_path / "systemd" / "systemctl"
    text = systemctl.read_text(encoding="utf-8")
    systemctl.write_text(text.replace("stop|", "stop) echo no bus >&2; exit 1 ;;\n"), encoding="utf-8")
    told = leftovers.take_away(JOB, repository, leases)
    assert told.failed == [f"unit sendense-export-{JOB}-2000: systemctl failed: no bus"]
    assert begun.exists()
    assert leases.of(JOB)


def test_what_tells_no_owner_goes_when_it_is_old_and_only_ours(repository, leases):
    old, young, strange, held = (
        repository.vm_folder(UUID[:-1] + end) / "20261123T140102Z.partial" for end in ("1", "2", "3", "4")
    )
    for folder in (old, young, strange, held):
        folder.mkdir(parents=True)
        (folder / "disk-2000.qcow2").touch()
    (strange / "notes.txt").touch()
    leases.take(lock_name(held.parent.name), JOB)
    for folder in (old, strange, held):
        age(folder, 13 * HOUR)
    found = {each.path: each for each in leftovers.unowned(repository, leases)}
    assert [path for path, each in found.items() if each.removable] == [str(old)]
    assert "was changed 0 s ago" in found[str(young)].why
    assert "notes.txt was made by no job" in found[str(strange)].why
    assert f"job {JOB} works for the VM" in found[str(held)].why
    told = leftovers.take_unowned(repository, leases, [str(old), str(young), "/etc"], predict=True)
    assert told.removed == [str(old)]
    told = leftovers.take_unowned(repository, leases, [str(old), str(young), "/etc"])
    assert (told.removed, len(told.failed)) == ([str(old)], 1)
    assert not old.exists()
    assert young.exists()


def test_what_lies_about_and_is_nobodys_is_told(repository, leases):
    (jobs.RUN / "notes").touch()
    (repository.path / "vms" / "lost+found").mkdir(parents=True)
    (repository.vm_folder(UUID)).mkdir()
    for name in ("20261123T140102Z", "vm.json", "20261123T140102Z.verified", "readme"):
        (repository.vm_folder(UUID) / name).mkdir()
    leases.take("vm-x", JOB)
    jobs.make_folder(JOB)
    assert [each["path"] for each in leftovers.strangers(repository)] == [
        str(jobs.RUN / "notes"),
        str(repository.path / "vms" / "lost+found"),
        str(repository.vm_folder(UUID) / "readme"),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s"), (59.6, "60 s"), (900, "15 min"), (13 * HOUR, "13 h"), (4e5, "5 d")]
)
def test_times_are_said_as_a_person_does(seconds, words):
    assert leftovers.ago(seconds) == words


def test_how_far_a_copy_was_goes_with_its_job_and_is_no_stranger(repository, leases):
    (shown := jobs.progress_file(JOB)).parent.mkdir()
    shown.write_text("{}", encoding="utf-8")
    assert leftovers.strangers(repository) == []
    assert leftovers.take_away(JOB, None, leases).removed == [str(shown)]
    assert not shown.exists()


def claim(leases, *controllers, gone=False, by="b/n/7/8", predict=False):
    return leftovers.claim(leftovers.Claim(JOB, controllers, gone), leases, by, predict=predict)


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize("gone", [False, True])
def test_a_dead_job_that_was_claimed_is_taken_over_by_nobody_else(repository, leases, gone):
    if not gone:
        expire(leases, 13 * HOUR)
    before = leases.held(lock_name(UUID))
    assert claim(leases, "b/n/1/2", gone=gone, predict=True) == ""
    assert leases.held(lock_name(UUID)) == before
    assert claim(leases, "b/n/1/2", gone=gone) == ""
    held = leases.held(lock_name(UUID))
    assert (held.job, held.controller, held.node, leases.dead(held)) == (JOB, "b/n/7/8", "node1", False)
    draft = Draft(UUID, JOB, {2000: 1 << 20}, controller="b/n/3/4")
    with pytest.raises(Refused, match="another run was first"):
        point.take_over(repository, draft, leases, "b/n/1/2")
    with pytest.raises(Refused, match="is being backed up by job"):
        point.plan(repository, replace(draft, job=LATER), leases)
    assert claim(leases, "b/n/1/2", gone=gone, by="b/n/3/4") == "another run took it over meanwhile"
    leftovers.take_away(JOB, repository, leases)
    assert leases.every() == []


@pytest.mark.usefixtures("begun")
def test_a_job_that_was_taken_over_meanwhile_is_not_claimed(repository, leases):
    expire(leases, 13 * HOUR)
    point.take_over(repository, Draft(UUID, JOB, {2000: 1 << 20}, controller="b/n/3/4"), leases, "b/n/1/2")
    before = leases.held(lock_name(UUID))
    for gone in (False, True):
        assert claim(leases, "b/n/1/2", gone=gone) == "another run took it over meanwhile"
    assert leases.held(lock_name(UUID)) == before


@pytest.mark.usefixtures("begun")
def test_a_job_that_showed_that_it_lives_meanwhile_is_not_claimed(leases):
    expire(leases, 13 * HOUR)
    leases.renew(JOB)
    assert claim(leases, "b/n/1/2") == "it was taken for dead, and showed that it lives meanwhile"
    assert leases.held(lock_name(UUID)).controller == "b/n/1/2"


def test_a_job_that_holds_no_lock_needs_no_claim(repository, leases):
    assert claim(leases) == ""
    leases.take("port-10100", JOB)
    assert claim(leases) == ""
    leases.take(lock_name(UUID), JOB)  # of a version that named no controller
    expire(leases, 13 * HOUR)
    assert claim(leases) == ""
    assert leases.held(lock_name(UUID)).controller == "b/n/7/8"


def _claim(folder, each, start, results):
    leases = Leases(folder)
    start.wait()
    results.put(claim(leases, "b/n/1/2", by=f"b/n/{each}/0") or leases.held(lock_name(UUID)).controller)


@pytest.mark.usefixtures("begun")
def test_of_many_that_claim_a_job_one_gets_it(leases, race):
    expire(leases, 13 * HOUR)
    said = race(_claim, leases._folder)
    assert [each for each in said if each.startswith("b/n/")] == [leases.held(lock_name(UUID)).controller]
