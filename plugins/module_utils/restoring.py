# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A restore into vCenter from its first look to its end: a new VM that is whole or gone, or disks of an existing one."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository.manifest import algorithm
from ansible_collections.sendense.backup.plugins.module_utils.transfer import push, push_unit, reader
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import (
    creation,
    importing,
    inventory,
    lookup,
    overwriting,
)
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session, VCenter, session
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import (
    AUTO,
    HTTPS,
    VDDK,
    Transport,
    choose,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "manifest": {"type": "dict"},
    "disks": {"type": "list", "elements": "int", "default": []},
    "name": {"type": "str", "default": ""},
    "folder": {"type": "str", "default": ""},
    "pool": {"type": "str", "default": ""},
    "datastore": {"type": "str", "default": ""},
    "datastores": {"type": "dict", "default": {}},
    "networks": {"type": "dict", "default": {}},
    "keep": {"type": "list", "elements": "str", "choices": [creation.MAC, creation.UUID], "default": []},
    "datastore_min_free": {"type": "int", "default": 0},
    "over": {"type": "str", "default": ""},
}  # the argument spec behind the documentation fragment sendense.backup.vm_target

_GOES = 30.0  # seconds that vCenter may take to remove the VM of a lease that was aborted
_PAUSE = 0.5


@dataclass(frozen=True)
class Look:
    """What a restore finds before it begins."""

    name: str  # of the VM
    target: creation.Target | None  # of a new VM
    over: lookup.Vm | None  # the VM whose disks are written
    refusals: list[str]
    unfinished: list[creation.Unfinished]


def wish(params: Mapping[str, Any]) -> creation.Wish:
    """Return what a module's options wish."""
    return creation.Wish(
        name=params["name"],
        folder=params["folder"],
        pool=params["pool"],
        datastore=params["datastore"],
        datastores=params["datastores"],
        networks=params["networks"],
        keep=params["keep"],
        min_free=params["datastore_min_free"],
    )


def chosen(manifest: Mapping[str, Any], keys: Sequence[int]) -> dict[str, Any]:
    """Return the manifest with these of its disks, or all. Raises Refused for one that it does not have."""
    have = [disk["key"] for disk in manifest["disks"]]
    if unknown := [str(key) for key in keys if key not in have]:
        raise Refused(f"the point has no disk {', '.join(unknown)}; it has {', '.join(map(str, have))}")
    return {**manifest, "disks": [disk for disk in manifest["disks"] if not keys or disk["key"] in keys]}


def transport(wished: str, over: str) -> Transport:
    """Return how the node writes: as for reading, but that transport https takes nothing on the node."""
    found = choose(
        wished if not (over and wished == AUTO) else VDDK, lambda name: {} if name == HTTPS else reader.versions(name)
    )
    return Transport(found.name, "only it writes into existing VMs", found.lacks) if over and wished == AUTO else found


def look(opened: Session, params: Mapping[str, Any], by: Transport) -> Look:
    """Return what there is, and one sentence for each thing that forbids the restore."""
    manifest = chosen(params["manifest"], params["disks"])
    said = [f"transport {by.name} cannot be used: {by.lacks}"] if by.lacks else []
    if params["over"]:
        path = f"{params['folder'].rstrip('/')}/{params['over']}" if params["folder"] else None
        try:
            moref = lookup.find(opened, path=path, name=None if path else params["over"])
        except SendenseError as why:
            return Look(params["over"], None, None, [*said, str(why)], [])
        vm = lookup.describe(opened, moref)
        said += overwriting.refusals(vm, manifest, by.name)
        return Look(vm["name"], None, vm, said, overwriting.unfinished(vm))
    wished = wish(params)
    there, forbids = creation.target(inventory.read(opened), manifest, wished)
    name = wished.name or manifest["vm"]["name"]
    if there is None:
        return Look(name, None, None, said + forbids, [])
    taken, unfinished = creation.taken(opened, there)
    return Look(name, there, None, said + forbids + taken, unfinished)


def parts(
    manifest: Mapping[str, Any],
    sources: Mapping[int, str],
    targets: Mapping[int, Mapping[str, Any]],
    *,
    fresh: bool = True,
) -> list[push.Disk]:
    """Return the disks of a manifest as they are to be sent, from which source to which target."""
    return [
        push.Disk(
            disk["key"],
            disk["capacity"],
            sources[disk["key"]],
            disk["root"],
            targets[disk["key"]],
            fresh,
            algorithm(disk),
        )
        for disk in manifest["disks"]
    ]


def begin(opened: Session, params: Mapping[str, Any], sources: Mapping[int, str]) -> None:
    """Make the VM of the job and start filling it from *sources*, NBD URIs by disk. Nothing is left when that fails.

    Raises Refused for what look forbids.
    """
    job, manifest = params["job"], chosen(params["manifest"], params["disks"])
    by = transport(params["transport"], params["over"])
    seen = look(opened, params, by)
    said = seen.refusals + [
        f"VM {each.name} ({each.moref}) is not finished by job {each.job}" for each in seen.unfinished
    ]
    if missing := [str(disk["key"]) for disk in manifest["disks"] if disk["key"] not in sources]:
        said.append(f"no source is given for disk {', '.join(missing)}")
    if said:
        raise Refused("; ".join(said))
    push_unit.remember(job, name=seen.name, transport=by.name)
    try:
        targets, lease, fresh = _make(opened, params, manifest, seen, by.name)
        push_unit.start(job, parts(manifest, sources, targets, fresh=fresh), opened.vcenter, lease)
    except FAILURES as why:
        undo_after(opened, job, why)
        raise


def _make(
    opened: Session, params: Mapping[str, Any], manifest: Mapping[str, Any], seen: Look, by: str
) -> tuple[dict[int, dict[str, Any]], dict[str, Any] | None, bool]:
    """Return where each disk goes, the lease if there is one, and whether the disks are new."""
    job = params["job"]
    if seen.over:
        push_unit.remember(job, over=seen.over["moref"], tracked=overwriting.tracked(seen.over))
        overwriting.begin(opened, seen.over, job, params["controller"] or "")
        paths = {disk["key"]: disk["path"] for disk in seen.over["disks"]}
        return _by_vddk(opened, job, seen.over["moref"], paths), None, False
    there = seen.target
    if there is None:
        raise Refused(f"nobody knows where VM {seen.name} is to go")
    marked = creation.mark(job, platform.node(), params["controller"] or "")
    point = f"point {manifest['point']} of {manifest['vm']['name']}"
    wanted = creation.spec(manifest, there, wish(params), marked, creation.unfinished_note(job, point))
    if by == VDDK:
        moref = creation.create(opened, there, wanted)
        push_unit.remember(job, vm=moref)
        paths = creation.paths(lookup.describe(opened, moref), there)
        return _by_vddk(opened, job, moref, paths), None, True
    lease = importing.begin(opened, there, wanted)
    push_unit.remember(job, lease=lease)
    ready = importing.await_ready(opened, lease, there)
    push_unit.remember(job, vm=ready.vm)
    creation.paths(lookup.describe(opened, ready.vm), there)
    targets = {key: {"transport": HTTPS, **asdict(upload)} for key, upload in ready.uploads.items()}
    return targets, {"lease": lease, "timeout": ready.timeout}, True


def _by_vddk(opened: Session, job: str, moref: str, paths: Mapping[int, str]) -> dict[int, dict[str, Any]]:
    vcenter, thumbprint = opened.vcenter, opened.thumbprint
    return {
        key: {
            "transport": VDDK,
            "server": vcenter.hostname,
            "port": vcenter.port,
            "user": vcenter.username,
            "password_file": push_unit.password_file(job),
            "thumbprint": thumbprint,
            "vm": moref,
            "snapshot": "",
            "path": path,
        }
        for key, path in paths.items()
    }


def finish(opened: Session, params: Mapping[str, Any]) -> lookup.Vm:
    """Have the VM whole, power it on if that is wished, and return it. Nothing is left when it does not become whole."""
    job, kept = params["job"], push_unit.remembered(params["job"])
    if over := kept.get("over"):
        vm = lookup.describe(opened, over)
        overwriting.finish(opened, vm, kept["tracked"])
        push_unit.remember(job, finished=True)
        return vm
    moref, name = kept["vm"], kept["name"]
    if not kept.get("finished"):
        try:
            if lease := kept.get("lease"):
                importing.complete(opened, lease)
            creation.finish(opened, moref, name, params["manifest"])
        except FAILURES as why:
            undo_after(opened, job, why)
            raise
        push_unit.remember(job, finished=True)
    if params["power_on"]:
        creation.power_on(opened, moref, name)
    return lookup.describe(opened, moref)


def undo_after(opened: Session, job: str, why: Exception) -> None:
    """Undo after a failure; should that fail too, both are told."""
    try:
        undo(opened, job)
    except FAILURES as also:
        raise SendenseError(f"{why}; and what is left of the VM could not be removed: {also}") from None


def undo(opened: Session, job: str, name: str = "") -> bool:
    """Stop the job's sending and remove its unfinished VM; whether there was something. A finished VM stays.

    *name* finds the VM when this node does not remember it. Disks that were written over stay as they are, and the mark on
    their VM then says that nobody is at work on it any more.
    """
    found = push_unit.PUSH.halt(job)
    kept = push_unit.remembered(job)
    if kept.get("finished"):
        return found
    if kept.get("over"):
        return _leave(opened, kept["over"], job) or found
    if lease := kept.get("lease"):
        importing.abort(opened, lease)
        _await_gone(opened, kept.get("vm"))
    known = [kept["vm"]] if kept.get("vm") else []
    if not known and (name or kept.get("name")):
        others = creation.named(opened, name or kept["name"])
        known = [moref for moref in others if creation.read_mark(opened, moref).get("job") == job]
        over = [moref for moref in others if creation.read_mark(opened, moref, overwriting.MARK).get("job") == job]
        left = [_leave(opened, moref, job) for moref in over]
        found = found or any(left)
    removed = [creation.remove(opened, moref, job) for moref in known]
    return any(removed) or found


def _leave(opened: Session, moref: str, job: str) -> bool:
    """Have the mark of a VM that *job* wrote over say that it ended; whether it bore that mark."""
    with suppress(lookup.Gone):
        return overwriting.end(opened, lookup.describe(opened, moref), job)
    return False


def _await_gone(opened: Session, moref: str | None) -> None:
    deadline = time.monotonic() + _GOES
    while moref and time.monotonic() < deadline:
        try:
            lookup.of_vm(opened, moref, lambda: opened.retrieve(opened.managed("VirtualMachine", moref), ["name"]))
        except lookup.Gone:
            return
        time.sleep(_PAUSE)


def clear(vcenter: VCenter, job: str, name: str) -> bool:
    """Take away what the job left at vCenter and on this node; whether there was something."""
    there = push_unit.PUSH.present(job)
    folder = jobs.make_folder(job)
    try:
        with session(vcenter, folder) as opened:
            removed = undo(opened, job, name)
            opened.end()
        cleared = push_unit.PUSH.clear(job)
    finally:
        with suppress(OSError):
            jobs.leave_folder(job)
    return there or removed or cleared
