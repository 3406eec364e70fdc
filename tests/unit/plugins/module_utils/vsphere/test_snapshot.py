# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot as util
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import describe
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    Fault,
    Unreachable,
    VCenter,
    session,
)

pytest.importorskip("pyVmomi")
JOB = "pgtest1-5029f3ab-20261123T140102Z"
OTHER = "pgtest1-5029f3ab-20261124T140102Z"


def entry(moref, name, description=None):
    return {"moref": moref, "name": name, "description": description}


MARK = util.mark(JOB, "prefer")
OURS = entry("s-1", f"sendense-{JOB}", MARK)


@pytest.mark.parametrize(
    ("snapshots", "chosen"),
    [
        pytest.param([], None, id="none at all"),
        pytest.param([entry("s-1", "before the update")], None, id="somebody's"),
        pytest.param([entry("s-1", f"sendense-{OTHER}", util.mark(OTHER, "off"))], None, id="of another job"),
        pytest.param([entry("s-1", "renamed", MARK)], None, id="the mark under another name"),
        pytest.param([entry("s-1", "x"), entry("s-2", f"sendense-{JOB}", MARK)], "s-2", id="ours among others"),
        pytest.param(
            [entry("s-1", f"sendense-{JOB}", ""), entry("s-2", f"sendense-{JOB}", MARK)], "s-2", id="beside a like name"
        ),
        pytest.param([entry("s-1", f"sbak-{JOB}", "Ephemeral snapshot")], "s-1", id="that of its client"),
        pytest.param(
            [entry("s-1", f"sbak-{OTHER}"), entry("s-2", "sbak-backup-pgtest1-1759901526")], None, id="of other clients"
        ),
    ],
)
def test_only_name_and_mark_together_are_ours(snapshots, chosen):
    found = util.choose(snapshots, JOB)
    assert (found["moref"] if found else None) == chosen


@pytest.mark.parametrize(
    "description",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("by hand", id="words"),
        pytest.param("[1]", id="a list"),
        pytest.param('"sendense"', id="a string"),
        pytest.param('{"sendense": "x"}', id="not a mark"),
        pytest.param(util.mark(OTHER, "off"), id="the mark of another job"),
    ],
)
def test_our_name_without_our_mark_is_refused(description):
    with pytest.raises(Refused, match=r"\(s-1\) does not carry the mark"):
        util.choose([entry("s-1", f"sendense-{JOB}", description)], JOB)


@pytest.mark.parametrize(
    ("snapshots", "jobs", "left", "has_parent"),
    [
        pytest.param([OURS], [JOB], [], False, id="that of a dead job is all there is"),
        pytest.param(
            [OURS, entry("s-2", "x")], [JOB], [entry("s-2", "x")], True, id="there is somebody else's as well"
        ),
        pytest.param([OURS], [], [OURS], True, id="nobody is dead"),
        pytest.param([entry("s-1", "renamed", MARK)], [JOB], [entry("s-1", "renamed", MARK)], True, id="a renamed one"),
    ],
)
def test_a_vm_is_foreseen_without_the_snapshots_of_dead_jobs(snapshots, jobs, left, has_parent):
    vm = {"snapshots": snapshots, "disks": [{"key": 2000, "has_parent": True}]}
    foreseen = util.without(vm, jobs)
    assert foreseen["snapshots"] == left
    assert foreseen["disks"] == [{"key": 2000, "has_parent": has_parent}]


def test_a_vm_on_a_snapshot_that_vcenter_does_not_tell_of_stays_as_it_is():
    vm = {"snapshots": [], "disks": [{"key": 2000, "has_parent": True}]}
    assert util.without(vm, [JOB]) == vm


def test_what_a_client_left_is_known_and_removed_and_that_of_another_one_stays(lab, opened, vm):
    machine = opened.managed("VirtualMachine", vm["moref"])
    for name in (f"sbak-{JOB}", f"sbak-{OTHER}", "sbak-backup-pgtest1-1759901526"):
        opened.wait(machine.CreateSnapshotEx_Task(name, "Ephemeral snapshot", False, None), name)
    ours, others = util.listed(opened, vm["moref"])
    assert [(each["name"], each["job"], each["quiesce_requested"]) for each in ours] == [
        (f"sbak-{job}", job, "off") for job in (JOB, OTHER)
    ]
    assert [each["name"] for each in others] == ["sbak-backup-pgtest1-1759901526"]
    assert util.remove(opened, vm["moref"], JOB) is True
    assert lab.snapshots("pgtest1") == [f"sbak-{OTHER}", "sbak-backup-pgtest1-1759901526"]
    opened.wait(machine.RemoveAllSnapshots_Task(), "cleaning")


def test_it_is_known_whether_vcenter_is_at_work_on_snapshots(lab, opened, vm):
    assert not util.at_work(opened, vm["moref"])
    lab.knobs(create_snapshot_ms=1000)
    task = opened.managed("VirtualMachine", vm["moref"]).CreateSnapshotEx_Task("by hand", "", False, None)
    assert util.at_work(opened, vm["moref"])
    opened.wait(task, "it")
    assert not util.at_work(opened, vm["moref"])
    opened.wait(opened.managed("VirtualMachine", vm["moref"]).RemoveAllSnapshots_Task(), "cleaning")


def test_the_mark_says_job_and_time():
    said = json.loads(MARK)["sendense"]
    assert said["job"] == JOB
    assert said["created"].endswith("Z")


@pytest.fixture
def opened(lab):
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as one:
        yield one


@pytest.fixture
def vm(lab, opened):
    return describe(opened, lab.vm("pgtest1")["moref"])


def test_a_snapshot_is_taken_told_and_removed(lab, opened, vm):
    taken = util.create(opened, vm, JOB, "prefer")
    assert lab.snapshots("pgtest1") == [f"sendense-{JOB}"]
    assert (taken.quiesce_requested, taken.quiesce_achieved, taken.quiesce_reason) == ("prefer", True, None)
    assert [(disk["key"], disk["capacity"]) for disk in taken.disks] == [
        (2000, 1 << 20),
        (2001, (1 << 20) + 1536),
        (16000, 48 << 20),
    ]
    assert all(disk["change_id"] for disk in taken.disks)
    assert asdict(util.read(opened, vm["moref"], JOB)) == asdict(taken)
    assert util.remove(opened, vm["moref"], JOB) is True
    assert util.read(opened, vm["moref"], JOB) is None
    assert util.remove(opened, vm["moref"], JOB) is False


def test_its_disks_are_the_frozen_files(opened, vm):
    taken = util.create(opened, vm, JOB, "off")
    now = describe(opened, vm["moref"])
    assert [disk["path"] for disk in taken.disks] == [disk["path"] for disk in vm["disks"]]
    assert [disk["path"] for disk in taken.disks] != [disk["path"] for disk in now["disks"]]
    assert all(disk["has_parent"] for disk in now["disks"])
    assert json.loads(now["snapshots"][0]["description"])["sendense"]["job"] == JOB
    util.remove(opened, vm["moref"], JOB)
    assert describe(opened, vm["moref"])["disks"][0]["path"] == vm["disks"][0]["path"]


def test_a_prediction_has_what_the_snapshot_then_has(opened, vm):
    predicted = util.predict(vm, JOB, "off")
    taken = util.create(opened, vm, JOB, "off")
    util.remove(opened, vm["moref"], JOB)
    unknown = {"moref": None, "created": None, "quiesce_achieved": None}
    disks = [{**disk, "change_id": None} for disk in taken.disks]
    assert asdict(predicted) == {**asdict(taken), **unknown, "disks": disks}


def test_snapshots_of_others_stay(lab, opened, vm):
    machine = opened.managed("VirtualMachine", vm["moref"])
    for name in ("before", f"sendense-{OTHER}"):
        description = util.mark(OTHER, "off") if OTHER in name else ""
        opened.wait(machine.CreateSnapshotEx_Task(name, description, False, None), name)
    util.create(opened, describe(opened, vm["moref"]), JOB, "off")
    opened.wait(machine.CreateSnapshotEx_Task("after", "", False, None), "after")
    assert util.remove(opened, vm["moref"], JOB) is True
    assert lab.snapshots("pgtest1") == ["before", f"sendense-{OTHER}", "after"]
    opened.wait(machine.RemoveAllSnapshots_Task(), "cleaning")


def test_a_snapshot_with_our_name_by_hand_is_left_alone(lab, opened, vm):
    machine = opened.managed("VirtualMachine", vm["moref"])
    opened.wait(machine.CreateSnapshotEx_Task(f"sendense-{JOB}", "by hand", False, None), "it")
    for deed in (util.read, util.remove):
        with pytest.raises(Refused, match="left alone"):
            deed(opened, vm["moref"], JOB)
    assert lab.snapshots("pgtest1") == [f"sendense-{JOB}"]
    opened.wait(machine.RemoveAllSnapshots_Task(), "cleaning")


def test_a_preferred_quiesce_that_fails_becomes_a_plain_snapshot_with_the_reason(lab, opened, vm):
    lab.knobs(quiesce="fail")
    taken = util.create(opened, vm, JOB, "prefer")
    assert taken.quiesce_achieved is False
    assert "quiescing the virtual machine" in taken.quiesce_reason
    util.remove(opened, vm["moref"], JOB)


def test_a_quiesce_that_silently_did_not_happen_is_told(lab, opened, vm):
    lab.knobs(quiesce="silent")
    taken = util.create(opened, vm, JOB, "prefer")
    assert taken.quiesce_achieved is False
    assert "without quiescing" in taken.quiesce_reason
    util.remove(opened, vm["moref"], JOB)


@pytest.mark.parametrize(
    ("knob", "says"), [("fail", "could not be quiesced as required"), ("silent", "the snapshot is removed again")]
)
def test_a_required_quiesce_that_is_not_had_fails_and_leaves_nothing(lab, opened, vm, knob, says):
    lab.knobs(quiesce=knob)
    with pytest.raises(SendenseError, match=says):
        util.create(opened, vm, JOB, "require")
    assert lab.snapshots("pgtest1") == []


def test_a_snapshot_that_vcenter_refuses_has_the_faults_words(lab, opened, vm):
    lab.knobs(faults={"CreateSnapshotEx_Task": "NoPermission"})
    with pytest.raises(Fault, match=f"^taking snapshot sendense-{JOB} of VM pgtest1 failed: user .* lacks "):
        util.create(opened, vm, JOB, "prefer")
    assert lab.ask("GET", "/stats")["soap"]["CreateSnapshotEx_Task"] == 1


@pytest.mark.parametrize("state", ["poweredOff", "suspended"])
def test_a_vm_that_does_not_run_is_not_asked_to_quiesce(opened, vm, state):
    taken = util.create(opened, {**vm, "power_state": state}, JOB, "prefer")
    assert (taken.quiesce_achieved, taken.quiesce_reason) == (False, f"the VM is {state}, so there is no guest to ask")
    util.remove(opened, vm["moref"], JOB)


def test_a_suspended_vm_cannot_be_required_to_quiesce(opened, vm):
    with pytest.raises(Refused, match="is suspended"):
        util.create(opened, {**vm, "power_state": "suspended"}, JOB, "require")


@pytest.mark.parametrize("deed", ["create", "predict"])
def test_a_vm_that_is_refused_is_refused_before_anything_is_made(lab, opened, vm, deed):
    refused = {**vm, "template": True, "encrypted": True}
    with pytest.raises(Refused, match=r"is a template.*; VM pgtest1 is encrypted"):
        util.create(opened, refused, JOB, "off") if deed == "create" else util.predict(refused, JOB, "off")
    assert "CreateSnapshotEx_Task" not in lab.ask("GET", "/stats")["soap"]


def test_a_snapshot_that_is_only_just_being_taken_is_waited_for_and_removed(lab, opened, vm):
    lab.knobs(create_snapshot_ms=1500)
    machine = opened.managed("VirtualMachine", vm["moref"])
    machine.CreateSnapshotEx_Task(f"sendense-{JOB}", MARK, False, None)
    assert lab.snapshots("pgtest1") == []
    assert util.remove(opened, vm["moref"], JOB) is True
    assert lab.snapshots("pgtest1") == []


def test_a_removal_that_is_under_way_already_is_waited_for(lab, opened, vm):
    taken = util.create(opened, vm, JOB, "off")
    lab.knobs(remove_snapshot_ms=1500)
    opened.managed("vm.Snapshot", taken.moref).RemoveSnapshot_Task(False, True)
    util.remove(opened, vm["moref"], JOB)
    assert lab.snapshots("pgtest1") == []


def test_a_removal_is_not_done_before_its_task_is(lab, opened, vm):
    util.create(opened, vm, JOB, "off")
    lab.knobs(remove_snapshot_ms=1500)
    begun = time.monotonic()
    util.remove(opened, vm["moref"], JOB)
    assert time.monotonic() - begun >= 1.5


def test_a_session_lost_during_a_removal_does_not_end_the_waiting(lab, opened, vm):
    util.create(opened, vm, JOB, "off")
    lab.knobs(remove_snapshot_ms=1500)
    threading.Timer(0.5, lambda: lab.ask("POST", "/sessions/kill", {})).start()
    assert util.remove(opened, vm["moref"], JOB) is True
    assert lab.logins() == 2


def test_a_kept_snapshot_that_was_not_quiesced_is_not_what_is_required(opened, vm):
    taken = util.create(opened, vm, JOB, "off")
    assert util.keep(taken, "prefer") is taken
    with pytest.raises(Refused, match="was not quiesced for it"):
        util.keep(taken, "require")
    util.remove(opened, vm["moref"], JOB)


DISK = {"key": 2000, "label": "Hard disk 1", "capacity": 1024, "path": "[ds] a.vmdk", "backing_uuid": "6000"}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(
            [{**DISK, "capacity": 2048}], "disk 2000 (Hard disk 1) had 1024 bytes and has 2048 now", id="grown"
        ),
        pytest.param([], "disk 2000 (Hard disk 1) is gone", id="gone"),
        pytest.param([DISK, {**DISK, "key": 2001, "label": "Hard disk 2"}], "disk 2001 (Hard disk 2) is new", id="new"),
        pytest.param(
            [{**DISK, "path": "[other] a.vmdk"}],
            "disk 2000 (Hard disk 1) moved from [ds] a.vmdk to [other] a.vmdk",
            id="moved",
        ),
        pytest.param(
            [{**DISK, "backing_uuid": "6001"}], "disk 2000 (Hard disk 1) was exchanged for another one", id="exchanged"
        ),
        pytest.param(
            [{**DISK, "key": 2001}], "disk 2000 (Hard disk 1) is gone; disk 2001 (Hard disk 1) is new", id="two things"
        ),
    ],
)
def test_disks_that_are_not_those_looked_at_are_refused(found, says):
    with pytest.raises(SendenseError) as error:
        util.check_unchanged([DISK], found)
    assert str(error.value) == f"the VM was changed after it was looked at: {says}; run the backup again"


def test_the_same_disks_are_no_change():
    util.check_unchanged([DISK], [{**DISK, "change_id": "52/1"}])


def test_a_snapshot_whose_task_failed_is_not_trusted_but_removed(lab, opened, vm):
    lab.knobs(create_snapshot_fault="Timedout")
    with pytest.raises(Fault, match=f"^taking snapshot sendense-{JOB} of VM pgtest1 failed: vCenter .* says: "):
        util.create(opened, vm, JOB, "off")
    assert lab.snapshots("pgtest1") == []


def test_what_a_failed_task_left_and_cannot_be_removed_is_told_as_well(lab, opened, vm):
    lab.knobs(create_snapshot_fault="Timedout", faults={"RemoveSnapshot_Task": "NoPermission"})
    with pytest.raises(SendenseError, match=r"^taking snapshot .* failed: .*; and what is left .* lacks "):
        util.create(opened, vm, JOB, "off")
    lab.knobs(create_snapshot_fault="", faults={})
    assert util.remove(opened, vm["moref"], JOB) is True


class Cut:
    """A session whose answer to the call that takes a snapshot is lost once; *done* says whether it was taken."""

    def __init__(self, opened, monkeypatch, *, done):
        self.call, self.lost = opened.call, False

        def call(what, method, *args, **kwargs):
            if self.lost or not what.startswith("taking snapshot"):
                return self.call(what, method, *args, **kwargs)
            self.lost = True
            if done:
                self.call(what, method, *args, **kwargs)
            raise Unreachable("vCenter cannot be reached from this node: reset")

        monkeypatch.setattr(opened, "call", call)


def test_a_snapshot_of_which_only_the_answer_was_lost_is_found_and_used(lab, opened, vm, monkeypatch):
    lab.knobs(create_snapshot_ms=500)
    cut = Cut(opened, monkeypatch, done=True)
    taken = util.create(opened, vm, JOB, "off")
    assert cut.lost
    assert lab.snapshots("pgtest1") == [taken.name] == [f"sendense-{JOB}"]
    util.remove(opened, vm["moref"], JOB)


def test_a_snapshot_that_was_never_asked_for_is_an_error(lab, opened, vm, monkeypatch):
    Cut(opened, monkeypatch, done=False)
    with pytest.raises(Unreachable, match="cannot be reached"):
        util.create(opened, vm, JOB, "off")
    assert lab.snapshots("pgtest1") == []


def test_a_snapshot_below_a_newer_one_has_its_own_disks(opened, vm):
    taken = util.create(opened, vm, JOB, "off")
    machine = opened.managed("VirtualMachine", vm["moref"])
    opened.wait(machine.CreateSnapshotEx_Task("after", "", False, None), "after")
    assert util.read(opened, vm["moref"], JOB) == taken
    opened.wait(machine.RemoveAllSnapshots_Task(), "cleaning")


def test_taking_and_removing_are_few_round_trips(lab, opened, vm):
    lab.ask("POST", "/stats/reset")
    util.create(opened, vm, JOB, "off")
    util.remove(opened, vm["moref"], JOB)
    soap = lab.ask("GET", "/stats")["soap"]
    assert (soap.pop("CreateSnapshotEx_Task"), soap.pop("RemoveSnapshot_Task")) == (1, 1)
    assert soap == {"RetrievePropertiesEx": soap["RetrievePropertiesEx"]}
    assert soap["RetrievePropertiesEx"] <= 11  # 3 at each end, and the looks at two tasks
