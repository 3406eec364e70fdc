# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Single disks of a restore point over those of an existing VM, which stays what it is otherwise; never deleted, never running."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.vsphere import hardware
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.creation import Unfinished
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import VDDK

Fact = Mapping[str, Any]

MARK = hardware.OVERWRITTEN  # while the disks are half old, half restored
_RUNS, _ENDED = "unfinished", "ended"  # its state: whether the job is at work, as far as anybody has seen

_VM: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (lambda vm: vm["connection_state"] != "connected", "is {connection_state}: bring its host back first"),
    (lambda vm: vm["power_state"] != "poweredOff", "is {power_state}: switch it off first"),
    (lambda vm: bool(vm["snapshots"]), "has snapshots, and what is written below them spoils them: remove them first"),
    (lambda vm: vm["template"], "is a template"),
    (lambda vm: vm["encrypted"], "is encrypted"),
    (lambda vm: vm["consolidation_needed"], "needs consolidation of its disks: consolidate them first"),
    (
        lambda vm: bool(vm.get("unfinished")) and not _mark(vm),
        "is being made by a restore that is not finished",
    ),
)
_DISK: tuple[tuple[Callable[[Fact], bool], str], ...] = (  # what no backup of ours holds, so it has come since
    (lambda disk: disk["sharing"] != "sharingNone", "is shared with other VMs ({sharing}), which may be running"),
    (lambda disk: disk["bus"] != "noSharing", "hangs on a controller with bus sharing ({bus})"),
    (lambda disk: disk["kind"] == "rdm_physical", "is a physical raw device mapping"),
)


def refusals(vm: Fact, manifest: Fact, transport: str) -> list[str]:
    """Return one sentence for each thing that forbids to write the manifest's disks over those of *vm*."""
    said = [f"VM {vm['name']} {text.format(**vm)}" for applies, text in _VM if applies(vm)]
    if transport != VDDK:
        said.append(f"transport {transport} only makes new VMs; disks of VM {vm['name']} are written by transport vddk")
    buses = {each["key"]: each["sharing"] for each in vm["config"]["controllers"]}
    there = {each["key"]: {**each, "bus": buses.get(each["controller_key"], "noSharing")} for each in vm["disks"]}
    for disk in manifest["disks"]:
        start = f"disk {disk['key']} ({disk['label']}) of the point"
        its = there.get(disk["key"])
        if not its:
            said.append(f"{start} has no counterpart in VM {vm['name']}, which has {', '.join(map(str, there))}")
        elif its["capacity"] != disk["capacity"]:
            said.append(f"{start} has {disk['capacity']} bytes, that of VM {vm['name']} {its['capacity']}")
        else:
            told = f"disk {its['key']} ({its['label']}) of VM {vm['name']}"
            said += [f"{told} {text.format(**its)}" for applies, text in _DISK if applies(its)]
    return said


def begin(session: Session, vm: Fact, job: str, controller: str) -> None:
    """Mark the VM, and end its change tracking: what is written from outside is in no list of changes."""
    said = {"job": job, "node": platform.node(), "controller": controller, "tracked": tracked(vm), "state": _RUNS}
    _set(session, vm, json.dumps(said), False)


def tracked(vm: Fact) -> bool:
    """Whether the VM's changes are tracked, or were before a restore over it that was interrupted."""
    return bool(vm["cbt_enabled"] or _mark(vm).get("tracked"))


def unfinished(vm: Fact) -> list[Unfinished]:
    """Return the restore over the VM that has not ended, if there is one."""
    said = _mark(vm)
    who = {name: str(said.get(name, "")) for name in ("job", "node", "controller")}
    return [Unfinished(vm["moref"], vm["name"], **who)] if said.get("state") == _RUNS else []


def end(session: Session, vm: Fact, job: str) -> bool:
    """Have the mark say that *job* is at work no more, so that anybody may write over the VM again; whether it said so."""
    if not any(each.job == job for each in unfinished(vm)):
        return False
    _set(session, vm, json.dumps({**_mark(vm), "state": _ENDED}), None)
    return True


def _mark(vm: Fact) -> dict[str, Any]:
    """Return what the VM's mark says; nothing without one, and for that of a VM which a restore makes."""
    with suppress(ValueError, TypeError):
        said = json.loads(vm.get("unfinished") or "")
        return dict(said) if "tracked" in said else {}
    return {}


def finish(session: Session, vm: Fact, was_tracked: bool) -> None:
    """Take the mark away; change tracking begins anew where it was on."""
    _set(session, vm, "", True if was_tracked else None)


def _set(session: Session, vm: Fact, mark: str, tracking: bool | None) -> None:
    vim, what = vcenter.vim, f"marking VM {vm['name']}"
    wanted = vim.vm.ConfigSpec(
        changeTrackingEnabled=tracking, extraConfig=[vim.option.OptionValue(key=MARK, value=mark)]
    )
    managed = session.managed("VirtualMachine", vm["moref"])
    session.wait(session.call(what, managed.ReconfigVM_Task, wanted), what)
