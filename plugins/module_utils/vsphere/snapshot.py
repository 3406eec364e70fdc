# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one snapshot of a job: found by its name and its mark, taken, and removed. Nobody else's is ever touched."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import hardware, lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import BY_CLIENT, part, refusals
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, Session, Unreachable, id_of

REQUIRE, PREFER, OFF = "require", "prefer", "off"
_DEVICES = "config.hardware.device"
SHOWN = ("key", "label", "capacity", "path", "backing_uuid", "change_id")


@dataclass(frozen=True)
class Snapshot:
    """A job's snapshot, with the disks of its own config: the frozen files, not those the guest writes to."""

    moref: str | None  # None: predicted
    name: str
    created: str | None  # UTC, ISO 8601
    quiesce_requested: str
    quiesce_achieved: bool | None
    quiesce_reason: str | None  # why it was not achieved, when this run took it
    disks: list[dict[str, Any]]
    skipped: list[dict[str, Any]]  # those that take no part in it


def name_of(job: str) -> str:
    """Return the name of the snapshot that *job* takes."""
    return f"sendense-{job}"


def name_by_client(job: str) -> str:
    """Return the name of the snapshot that the program sendense-backup-client takes by itself for *job*."""
    return f"{BY_CLIENT}{job}"


def mark(job: str, quiesce: str, now: datetime | None = None) -> str:
    """Return the description that proves a snapshot to be this job's."""
    created = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({"sendense": {"job": job, "created": created, "quiesce": quiesce}})


def marked(description: str | None) -> dict[str, Any]:
    """Return what a mark says; nothing for the description of somebody else's snapshot."""
    try:
        said = json.loads(description or "")["sendense"]
    except (ValueError, TypeError, KeyError):
        return {}
    return said if isinstance(said, dict) else {}


def choose(snapshots: list[dict[str, Any]], job: str) -> dict[str, Any] | None:
    """Return the snapshot of *job* among those of a VM. Raises Refused for one with its name and without its mark.

    One that the client took has no mark, but the job's id in its name, and nobody else has told that to a client.
    """
    named = [each for each in snapshots if each["name"] == name_of(job)]
    for each in named:
        if marked(each["description"]).get("job") == job:
            return each
    if named:
        raise Refused(
            f"snapshot {name_of(job)} ({named[0]['moref']}) does not carry the mark of job {job}, so it is left alone"
        )
    return next((each for each in snapshots if each["name"] == name_by_client(job)), None)


def without(vm: lookup.Vm, dead: Collection[str]) -> lookup.Vm:
    """Return the VM as it is going to be once the snapshots of the *dead* jobs are removed; the paths of its disks stay as they are.

    Raises Refused as choose does.
    """
    going = [found for job in dead if (found := choose(vm["snapshots"], job))]
    others = [each for each in vm["snapshots"] if each not in going]
    if others or not vm["snapshots"]:
        return {**vm, "snapshots": others}
    return {**vm, "snapshots": [], "disks": [{**disk, "has_parent": False} for disk in vm["disks"]]}


def read(session: Session, vm_moref: str, job: str) -> Snapshot | None:
    """Return the job's snapshot as it is, None when there is none. Raises Refused as choose does, Gone without the VM.

    One round trip for the newest snapshot, which the job's is unless others took some after it.
    """
    tree, configs = _look(session, vm_moref)
    found = choose(list(lookup.walk(tree)), job)
    if not found:
        return None
    if found["moref"] not in configs:
        configs = session.retrieve(session.managed("vm.Snapshot", found["moref"]), [_DEVICES])
    disks, skipped = _disks(hardware.disks(configs[found["moref"]][_DEVICES]))
    return Snapshot(
        moref=found["moref"],
        name=found["name"],
        created=found["created"],
        quiesce_requested=marked(found["description"]).get("quiesce", OFF),
        quiesce_achieved=found["quiesced"],
        quiesce_reason=None,
        disks=disks,
        skipped=skipped,
    )


def keep(found: Snapshot, quiesce: str) -> Snapshot:
    """Return the snapshot that is there. Raises Refused when *quiesce* requires what it was taken without."""
    if quiesce == REQUIRE and found.quiesce_requested != REQUIRE and not found.quiesce_achieved:
        raise Refused(f"snapshot {found.name} ({found.moref}) is there already, and the guest was not quiesced for it")
    return found


def check_unchanged(looked: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Raise SendenseError when the disks *found* are not those that were *looked* at; images were made for those.

    A disk may have grown since, come, gone, or been moved by Storage vMotion.
    """
    left, said = {disk["key"]: disk for disk in found}, []
    for disk in looked:
        start = f"disk {disk['key']} ({disk['label']})"
        now = left.pop(disk["key"], None)
        if not now:
            said.append(f"{start} is gone")
        elif now["capacity"] != disk["capacity"]:
            said.append(f"{start} had {disk['capacity']} bytes and has {now['capacity']} now")
        elif now["path"] != disk["path"]:
            said.append(f"{start} moved from {disk['path']} to {now['path']}")
        elif now["backing_uuid"] != disk["backing_uuid"]:
            said.append(f"{start} was exchanged for another one")
    said += [f"disk {disk['key']} ({disk['label']}) is new" for disk in left.values()]
    if said:
        raise SendenseError(f"the VM was changed after it was looked at: {'; '.join(said)}; run the backup again")


def predict(vm: lookup.Vm, job: str, quiesce: str) -> Snapshot:
    """Return the snapshot that create would take of the VM as described. Raises Refused as create does."""
    check_allowed(vm, quiesce)
    disks = [{**each, "change_id": None} for each in _disks(vm["disks"])[0]]
    return Snapshot(None, name_of(job), None, quiesce, None, None, disks, vm["skipped"])


def create(
    session: Session, vm: lookup.Vm, job: str, quiesce: str, looked: list[dict[str, Any]] | None = None
) -> Snapshot:
    """Take the job's snapshot of all disks of the VM, without memory, and return it once its task has ended.

    Raises Refused for a VM that cannot have one, and SendenseError when vCenter fails, when *quiesce* is ``require`` and
    could not be had, or when its disks are not those that were *looked* at; then nothing is left behind.
    """
    check_allowed(vm, quiesce)
    reason = None
    wanted = quiesce != OFF and vm["power_state"] == "poweredOn"
    if quiesce != OFF and not wanted:
        reason = f"the VM is {vm['power_state']}, so there is no guest to ask"
    try:
        _take(session, vm, job, quiesce, quiesced=wanted)
    except Fault as fault:
        if not wanted or isinstance(fault.fault, vcenter.vim.fault.NoPermission):
            raise
        if quiesce == REQUIRE:
            raise SendenseError(
                f"{fault}; the guest could not be quiesced as required: check VMware Tools in it"
            ) from None
        reason = vcenter.words(fault.fault)
        _take(session, vm, job, quiesce, quiesced=False)
    taken = read(session, vm["moref"], job)
    if not taken:
        raise SendenseError(f"vCenter took snapshot {name_of(job)} of VM {vm['name']}, but does not list it")
    try:
        if looked is not None:
            check_unchanged(looked, taken.disks)
        if wanted and not taken.quiesce_achieved:
            reason = reason or "vCenter took the snapshot without quiescing the guest"
            if quiesce == REQUIRE:
                raise SendenseError(
                    f"{reason}, and quiescing VM {vm['name']} is required; the snapshot is removed again"
                )
    except SendenseError as why:
        _undo(session, vm["moref"], job, why)
        raise
    return replace(taken, quiesce_reason=reason)


def stun(session: Session, vm: lookup.Vm, job: str) -> None:
    """Take a snapshot as the job's and remove it: what is set for change tracking takes effect then. Raises as both do."""
    check_allowed(vm)
    _take(session, vm, job, OFF, quiesced=False)
    remove(session, vm["moref"], job)


def remove(session: Session, vm_moref: str, job: str) -> bool:
    """Remove the job's snapshot and wait until the data is merged, however long; whether there was one.

    A snapshot task that runs already is waited for first: one that is only just being taken would come after we have
    looked, and one that is being removed would be in the way.
    Raises Refused as choose does, Gone when the VM does not exist, and SendenseError when vCenter fails.
    """
    removed: list[str] = []
    _settle(session, vm_moref)
    while found := choose(list(lookup.walk(_look(session, vm_moref)[0])), job):
        if found["moref"] in removed:
            raise SendenseError(
                f"vCenter says that snapshot {found['name']} ({found['moref']}) is removed, and still lists it"
            )
        if _drop(session, vm_moref, found):
            removed.append(found["moref"])
    return bool(removed)


def listed(session: Session, vm_moref: str | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the snapshots of all jobs and those of anybody else, of one VM or of all, both oldest first.

    RETURN of module vm_snapshot_info describes them. Raises Gone when the VM does not exist.
    """
    wish = ["name", "snapshot.rootSnapshotList"]
    if vm_moref:
        vm = session.managed("VirtualMachine", vm_moref)
        vms = lookup.of_vm(session, vm_moref, lambda: session.retrieve(vm, wish))
    else:
        vms = lookup.every(session, wish)
    now = session.call("asking the time", session.managed("ServiceInstance", "ServiceInstance").CurrentTime)
    ours, others = [], []
    for moref, values in vms.items():
        for each in lookup.walk(values.get("snapshot.rootSnapshotList")):
            job = str(marked(each["description"]).get("job") or "")
            by_client = each["name"].removeprefix(BY_CLIENT) if each["name"].startswith(BY_CLIENT) else ""
            found = {
                "vm": {"moref": moref, "name": lookup.spelt(values.get("name", moref))},
                "moref": each["moref"],
                "name": each["name"],
                "created": each["created"],
                "age": int((now - datetime.fromisoformat(each["created"])).total_seconds()),
                "quiesced": each["quiesced"],
            }
            if jobs.is_job(by_client):
                ours.append({**found, "job": by_client, "quiesce_requested": OFF})
            elif jobs.is_job(job) and each["name"] == name_of(job):
                quiesce = marked(each["description"]).get("quiesce", OFF)
                ours.append({**found, "job": job, "quiesce_requested": quiesce})
            else:
                others.append({**found, "why": _not_ours(each["name"], job)})
    return sorted(ours, key=_order), sorted(others, key=_order)


def _order(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["created"], found["moref"]


def _not_ours(name: str, job: str) -> str:
    if job:
        return f"it has the mark of job {job} and not its name, so it is not proven to be that job's"
    if name.startswith(name_of("")):
        return "it is named as that of a job and does not carry its mark"
    return "it is not a backup job's"


def check_allowed(vm: lookup.Vm, quiesce: str = OFF) -> None:
    """Raise Refused for a VM that cannot have a snapshot, or not the one that *quiesce* requires."""
    found = refusals(vm)
    if quiesce == REQUIRE and vm["power_state"] == "suspended":
        found.append(f"VM {vm['name']} is suspended, so it cannot be quiesced as required")
    if found:
        raise Refused("; ".join(found))


def _look(session: Session, vm_moref: str) -> tuple[Any, lookup.Found]:
    """Return the VM's tree of snapshots, and the devices of the newest by its moref."""
    collector, vim = vcenter.vmodl.query.PropertyCollector, vcenter.vim
    newest = collector.TraversalSpec(type=vim.VirtualMachine, path="snapshot.currentSnapshot")
    vm = collector.ObjectSpec(obj=session.managed("VirtualMachine", vm_moref), selectSet=[newest])
    wish = {vim.VirtualMachine: ["snapshot.rootSnapshotList"], vim.vm.Snapshot: [_DEVICES]}
    found = lookup.of_vm(session, vm_moref, lambda: session.collect([vm], wish))
    return found[vm_moref].get("snapshot.rootSnapshotList"), found


def _undo(session: Session, vm_moref: str, job: str, why: SendenseError) -> None:
    """Remove the snapshot after a failure; should that fail too, both are told."""
    try:
        remove(session, vm_moref, job)
    except SendenseError as also:
        raise SendenseError(f"{why}; and what is left of the snapshot could not be removed: {also}") from None


def _drop(session: Session, vm_moref: str, found: Mapping[str, Any]) -> bool:
    """Remove one snapshot; False when another task of the VM was in the way, and has ended now."""
    what = f"removing snapshot {found['name']} ({found['moref']})"
    snapshot = session.managed("vm.Snapshot", found["moref"])
    try:
        session.wait(session.call(what, snapshot.RemoveSnapshot_Task, removeChildren=False, consolidate=True), what)
    except Fault as fault:
        if isinstance(fault.fault, vcenter.vmodl.fault.ManagedObjectNotFound):
            return False
        if not isinstance(fault.fault, vcenter.vim.fault.TaskInProgress):
            raise
        time.sleep(vcenter.PAUSE)
        _settle(session, vm_moref)
        return False
    return True


def at_work(session: Session, vm_moref: str) -> bool:
    """Whether vCenter takes or removes a snapshot of the VM just now. Raises Gone without the VM."""
    return bool(_running(session, vm_moref))


def _settle(session: Session, vm_moref: str) -> None:
    for task in _running(session, vm_moref):
        with suppress(Fault):  # its failure is not ours
            session.wait(task, "a snapshot task that was running already")


def _running(session: Session, vm_moref: str) -> list[Any]:
    """Return the tasks of the VM that run, or are going to, and are about snapshots."""
    vm = session.managed("VirtualMachine", vm_moref)
    found = lookup.of_vm(session, vm_moref, lambda: session.retrieve(vm, ["recentTask"]))
    recent = found[vm_moref].get("recentTask", [])
    told: dict[str, dict[str, Any]] = {}
    for some in [recent, *([each] for each in recent)]:
        with suppress(Fault):  # one that vCenter has forgotten meanwhile fails the question for all: then one by one
            told.update(session.retrieve(some, ["info.descriptionId", "info.state"]))
        if len(told) == len(recent):
            break
    running = []
    for task in recent:
        info = told.get(id_of(task), {})
        kind = info.get("info.descriptionId", "").lower()
        if info.get("info.state") in ("queued", "running") and ("snapshot" in kind or "consolidate" in kind):
            running.append(task)
    return running


def _take(session: Session, vm: lookup.Vm, job: str, quiesce: str, *, quiesced: bool) -> None:
    """Take the snapshot. One whose task failed is not to be trusted, should it be there all the same: it goes again."""
    what = f"taking snapshot {name_of(job)} of VM {vm['name']}"
    try:
        task = session.call(
            what,
            session.managed("VirtualMachine", vm["moref"]).CreateSnapshotEx_Task,
            name=name_of(job),
            description=mark(job, quiesce),
            memory=False,
            quiesceSpec=vcenter.vim.vm.GuestQuiesceSpec() if quiesced else None,
        )
    except Unreachable:  # only the answer may be lost
        _settle(session, vm["moref"])
        if not choose(list(lookup.walk(_look(session, vm["moref"])[0])), job):
            raise
        return
    try:
        session.wait(task, what)
    except SendenseError as why:
        _undo(session, vm["moref"], job, why)
        raise


def _disks(disks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    held, skipped = part(disks)
    return [{name: each[name] for name in SHOWN} for each in held], skipped
