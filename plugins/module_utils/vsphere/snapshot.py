# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one snapshot of a job: found by its name and its mark, taken, and removed. Nobody else's is ever touched."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import hardware, lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import refusals
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, Session

REQUIRE, PREFER, OFF = "require", "prefer", "off"
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


def name_of(job: str) -> str:
    """Return the name of the snapshot that *job* takes."""
    return f"sendense-{job}"


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
    """Return the snapshot of *job* among those of a VM. Raises Refused for one with its name and without its mark."""
    named = [each for each in snapshots if each["name"] == name_of(job)]
    for each in named:
        if marked(each["description"]).get("job") == job:
            return each
    if named:
        raise Refused(
            f"snapshot {name_of(job)} ({named[0]['moref']}) does not carry the mark of job {job}, so it is left alone"
        )
    return None


def read(session: Session, vm_moref: str, job: str) -> Snapshot | None:
    """Return the job's snapshot as it is, None when there is none. Raises Refused as choose does."""
    vm = session.managed("VirtualMachine", vm_moref)
    tree = session.retrieve(vm, ["snapshot.rootSnapshotList"])[vm_moref].get("snapshot.rootSnapshotList")
    found = choose(list(lookup.walk(tree)), job)
    if not found:
        return None
    config = session.retrieve(session.managed("vm.Snapshot", found["moref"]), ["config.hardware.device"])
    return Snapshot(
        moref=found["moref"],
        name=found["name"],
        created=found["created"],
        quiesce_requested=marked(found["description"]).get("quiesce", OFF),
        quiesce_achieved=found["quiesced"],
        quiesce_reason=None,
        disks=_disks(hardware.disks(config[found["moref"]]["config.hardware.device"])),
    )


def keep(found: Snapshot, quiesce: str) -> Snapshot:
    """Return the snapshot that is there. Raises Refused when *quiesce* requires what it was taken without."""
    if quiesce == REQUIRE and found.quiesce_requested != REQUIRE and not found.quiesce_achieved:
        raise Refused(f"snapshot {found.name} ({found.moref}) is there already, and the guest was not quiesced for it")
    return found


def predict(vm: lookup.Vm, job: str, quiesce: str) -> Snapshot:
    """Return the snapshot that create would take of the VM as described. Raises Refused as create does."""
    _may(vm, quiesce)
    disks = [{**each, "change_id": None} for each in _disks(vm["disks"])]
    return Snapshot(None, name_of(job), None, quiesce, None, None, disks)


def create(session: Session, vm: lookup.Vm, job: str, quiesce: str) -> Snapshot:
    """Take the job's snapshot of all disks of the VM, without memory, and return it once its task has ended.

    Raises Refused for a VM that cannot have one, and SendenseError when vCenter fails, or when *quiesce* is ``require``
    and could not be had; then nothing is left behind.
    """
    _may(vm, quiesce)
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
    if wanted and not taken.quiesce_achieved:
        reason = reason or "vCenter took the snapshot without quiescing the guest"
        if quiesce == REQUIRE:
            remove(session, vm["moref"], job)
            raise SendenseError(f"{reason}, and quiescing VM {vm['name']} is required; the snapshot is removed again")
    return Snapshot(**{**vars(taken), "quiesce_reason": reason})


def remove(session: Session, vm_moref: str, job: str) -> bool:
    """Remove the job's snapshot and wait until the data is merged, however long; whether there was one.

    A snapshot task that runs already is waited for first: one that is only just being taken would come after we have
    looked, and one that is being removed would be in the way.
    Raises Refused as choose does, and SendenseError when vCenter fails.
    """
    removed: list[str | None] = []
    _settle(session, vm_moref)
    while found := read(session, vm_moref, job):
        if found.moref in removed:
            raise SendenseError(
                f"vCenter says that snapshot {found.name} ({found.moref}) is removed, and still lists it"
            )
        if _drop(session, vm_moref, found):
            removed.append(found.moref)
    return bool(removed)


def _drop(session: Session, vm_moref: str, found: Snapshot) -> bool:
    """Remove one snapshot; False when another task of the VM was in the way, and has ended now."""
    what = f"removing snapshot {found.name} ({found.moref})"
    snapshot = session.managed("vm.Snapshot", str(found.moref))
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


def _settle(session: Session, vm_moref: str) -> None:
    vm = session.managed("VirtualMachine", vm_moref)
    recent = session.retrieve(vm, ["recentTask"])[vm_moref].get("recentTask", [])
    told: dict[str, dict[str, Any]] = {}
    for some in [recent, *([each] for each in recent)]:
        with suppress(Fault):  # one that vCenter has forgotten meanwhile fails the question for all: then one by one
            told.update(session.retrieve(some, ["info.descriptionId", "info.state"]))
        if len(told) == len(recent):
            break
    for task in recent:
        info = told.get(vcenter.id_of(task), {})
        kind = info.get("info.descriptionId", "").lower()
        if info.get("info.state") in ("queued", "running") and ("snapshot" in kind or "consolidate" in kind):
            with suppress(Fault):  # its failure is not ours
                session.wait(task, "a snapshot task that was running already")


def _take(session: Session, vm: lookup.Vm, job: str, quiesce: str, *, quiesced: bool) -> None:
    what = f"taking snapshot {name_of(job)} of VM {vm['name']}"
    task = session.call(
        what,
        session.managed("VirtualMachine", vm["moref"]).CreateSnapshotEx_Task,
        name=name_of(job),
        description=mark(job, quiesce),
        memory=False,
        quiesceSpec=vcenter.vim.vm.GuestQuiesceSpec() if quiesced else None,
    )
    session.wait(task, what)


def _may(vm: lookup.Vm, quiesce: str) -> None:
    found = refusals(vm)
    if quiesce == REQUIRE and vm["power_state"] == "suspended":
        found.append(f"VM {vm['name']} is suspended, so it cannot be quiesced as required")
    if found:
        raise Refused("; ".join(found))


def _disks(disks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: each[name] for name in SHOWN} for each in disks]
