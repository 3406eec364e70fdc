# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find one VM, and say what it is; both with as few properties and round trips as that takes."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from difflib import get_close_matches
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import hardware
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, Session, id_of

Vm = dict[str, Any]
Found = Mapping[str, Mapping[str, Any]]

_PLAIN = re.compile(r"[A-Za-z0-9._ -]+")  # a name that vCenter can only spell as we do
_MANY_FOLDERS = 100
SHOWN = 10  # candidates in a message, at most
_PROPERTIES = (
    "name", "parent", "parentVApp", "config.instanceUuid", "config.uuid", "config.template", "config.keyId", "config.ftInfo",
    "config.changeTrackingEnabled", "config.files.vmPathName", "config.hardware", "config.guestId", "config.version",
    "config.firmware", "config.bootOptions", "config.annotation", "config.extraConfig", "config.cpuHotAddEnabled",
    "config.memoryHotAddEnabled", "runtime.powerState", "runtime.connectionState", "runtime.consolidationNeeded",
    "runtime.host", "snapshot.rootSnapshotList", "layoutEx.disk", "layoutEx.file", "datastore", "network",
)  # fmt: skip


class Gone(SendenseError):
    """The VM does not exist, or no longer; or we may not see it."""


@dataclass(frozen=True)
class Place:
    """Where a VM stands in the inventory; names as vCenter spells them, with ``%2f`` for a slash."""

    path: str  # /DC0/vm/folder/name
    datacenter: str  # DC0, or folder/DC0: what /folder wants as dcPath


def find(session: Session, *, moref: str | None = None, uuid: str | None = None, path: str | None = None,
         name: str | None = None) -> str:  # fmt: skip
    """Return the moref of the one VM meant by a moref, an instance uuid, an inventory path or a name, the first given.

    Raises SendenseError when there is none (naming close ones) or more than one (listing them).
    """
    if moref:
        vm = session.managed("VirtualMachine", moref)
        of_vm(session, moref, lambda: session.retrieve(vm, ["name"]))
        return moref
    if uuid:
        return _by_uuid(session, uuid)
    wish = path or name or ""
    if known := _at(session, path) if path else _in_folders(session, wish):
        return _only(session, known, f"at {wish}" if path else f"named {wish}")
    names = {moref: values["name"] for moref, values in every(session, ["name"]).items() if "name" in values}
    last = wish.rstrip("/").rpartition("/")[2] if path else wish
    found = [each for each, its in names.items() if spelt(its) == spelt(last)]
    if path:
        found = [each for each, place in places(session, found).items() if _steps(place.path) == _steps(path)]
    if not found:
        raise SendenseError(f"{_absent(session, f'named {wish}' if name else f'at {wish}')}{_close(last, names)}")
    return _only(session, found, f"named {wish}" if name else f"at {wish}")


def spelt(name: str) -> str:
    r"""Return *name* as a person spells it: vCenter keeps ``%``, ``/`` and ``\\`` in names as ``%25``, ``%2f``, ``%5c``."""
    plain = re.sub("%(25|2f|5c)", lambda code: chr(int(code[1], 16)), name, flags=re.IGNORECASE)
    return unicodedata.normalize("NFC", plain)


def places(session: Session, morefs: Sequence[str]) -> dict[str, Place]:
    """Return where these VMs stand, by moref."""
    found = session.collect(_upwards(session, morefs), _kinds(("name", "parent", "parentVApp"))) if morefs else {}
    return {each: _place(each, found) for each in morefs if each in found}


def every(session: Session, properties: Sequence[str]) -> Found:
    """Return these properties of every VM that we may see, by moref."""
    return _all(session, "listing VMs", {vcenter.vim.VirtualMachine: properties})


def _all(session: Session, what: str, wish: Mapping[Any, Sequence[str]]) -> Found:
    """Return what is wished of all objects of some kinds, by moref."""
    vim, collector = vcenter.vim, vcenter.vmodl.query.PropertyCollector
    content = session.content
    view = session.call(what, content.viewManager.CreateContainerView, content.rootFolder, list(wish), True)
    try:
        through = collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        return session.collect([collector.ObjectSpec(obj=view, skip=True, selectSet=[through])], wish)
    finally:
        session.call(what, view.DestroyView)


def of_vm(session: Session, moref: str, reading: Callable[[], Found]) -> Found:
    """Return what *reading* of the VM returns. Raises Gone when vCenter does not know it."""
    try:
        return reading()
    except Fault as fault:
        if isinstance(fault.fault, vcenter.vmodl.fault.ManagedObjectNotFound):
            raise Gone(_absent(session, f"with moref {moref}")) from None
        raise


def describe(session: Session, moref: str) -> Vm:
    """Return everything a backup needs to know of the VM, sizes in bytes (RETURN of module vm_info is the list).

    One round trip. Raises Gone when it does not exist, and SendenseError when its configuration cannot be read.
    """
    wish = {**_kinds(_PROPERTIES), **_neighbours()}
    found = of_vm(session, moref, lambda: session.collect(_upwards(session, [moref], _around()), wish))
    own = found[moref]
    if "config.hardware" not in own:
        state = own.get("runtime.connectionState", "without a configuration")
        raise SendenseError(f"VM {own.get('name', moref)} is {state}: vCenter cannot read its configuration")
    place = _place(moref, found)
    about = session.content.about
    return {
        "name": spelt(own["name"]),
        "moref": moref,
        "instance_uuid": own.get("config.instanceUuid"),
        "bios_uuid": own.get("config.uuid"),
        "inventory_path": place.path,
        "datacenter": place.datacenter,
        "vcenter": {
            "hostname": session.vcenter.hostname,
            "instance_uuid": session.instance_uuid,
            "version": about.version,
        },
        **_states(own),
        "host": _host(own, found),
        "vmx_path": own.get("config.files.vmPathName"),
        "snapshots": list(walk(own.get("snapshot.rootSnapshotList"))),
        "datastores": [_datastore(id_of(each), found) for each in own.get("datastore", [])],
        "disks": [
            {**disk, "allocated": hardware.allocated(own.get("layoutEx.disk"), own.get("layoutEx.file"), disk["key"])}
            for disk in hardware.disks(own["config.hardware"].device)
        ],
        "skipped": [],
        "config": _config(own, found),
    }


def walk(roots: Iterable[Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the snapshots of a tree breadth-wise, siblings included; ``depth`` of a root is 1."""
    waiting = deque((each, 1) for each in roots or [])
    while waiting:
        each, depth = waiting.popleft()
        yield {
            "moref": id_of(each.snapshot),
            "name": spelt(each.name),
            "description": each.description,
            "created": each.createTime.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "quiesced": bool(each.quiesced),
            "depth": depth,
        }
        waiting.extend((child, depth + 1) for child in each.childSnapshotList or [])


def _at(session: Session, path: str) -> list[str]:
    """Return the VM that vCenter finds by itself at that path; none where a step is spelt in more than one way."""
    if not all(map(_PLAIN.fullmatch, path.strip("/").split("/"))):
        return []
    found = session.call("the search by path", session.content.searchIndex.FindByInventoryPath, path.strip("/"))
    return [id_of(found)] if isinstance(found, vcenter.vim.VirtualMachine) else []


def _in_folders(session: Session, name: str) -> list[str]:
    """Return the VMs of that name that vCenter finds by itself, folder by folder, which spares reading every VM's name.

    A name stands once in a folder (FindChild of SearchIndex). Nothing is found where a name is spelt in more than one way,
    where vApps hold VMs outside of folders, or where there are more folders than such a search is worth.
    """
    if not _PLAIN.fullmatch(name):
        return []
    vim = vcenter.vim
    holders = _all(session, "listing folders", {vim.Folder: ["childType"], vim.VirtualApp: ["name"]})
    folders = [moref for moref, its in holders.items() if "VirtualMachine" in map(_kind, its.get("childType", []))]
    if len(folders) > _MANY_FOLDERS or any("childType" not in its for its in holders.values()):
        return []
    search = session.content.searchIndex.FindChild
    children = (session.call("the search by name", search, session.managed("Folder", each), name) for each in folders)
    return [id_of(child) for child in children if isinstance(child, vim.VirtualMachine)]


def _kind(kind: Any) -> str:
    return str(kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def _by_uuid(session: Session, uuid: str) -> str:
    search = session.content.searchIndex.FindAllByUuid
    found = session.call("the search by uuid", search, None, uuid, True, True)
    if not found and session.call("the search by uuid", search, None, uuid, True, False):
        raise SendenseError(
            f"{_absent(session, f'with instance uuid {uuid}')}; it is the BIOS uuid of one: give its instance uuid"
        )
    if not found:
        raise SendenseError(_absent(session, f"with instance uuid {uuid}"))
    return _only(session, [id_of(each) for each in found], f"with instance uuid {uuid}")


def _only(session: Session, morefs: list[str], wish: str) -> str:
    if len(morefs) == 1:
        return morefs[0]
    shown = sorted((place.path, moref) for moref, place in places(session, morefs[:SHOWN]).items())
    listed = ", ".join(f"{path} ({moref})" for path, moref in shown)
    more = f" and {len(morefs) - SHOWN} more" if len(morefs) > SHOWN else ""
    raise SendenseError(
        f"{len(morefs)} VMs {wish} are in vCenter {session.vcenter}: {listed}{more}; choose one by its moref"
    )


def _absent(session: Session, wish: str) -> str:
    return f"no VM {wish} is in vCenter {session.vcenter}, or user {session.vcenter.username} may not see it"


def _close(wish: str, names: Mapping[str, str]) -> str:
    folded = {spelt(each).casefold(): spelt(each) for each in names.values()}
    close = [folded[each] for each in get_close_matches(spelt(wish).casefold(), folded, n=3)]
    return f"; close names: {', '.join(close)}" if close else ""


def _steps(path: str) -> list[str]:
    return [spelt(each) for each in path.strip("/").split("/")]


def _upwards(session: Session, morefs: Sequence[str], more: Sequence[Any] = ()) -> list[Any]:
    """Return ObjectSpecs that select these VMs, all their ancestors, and what *more* TraversalSpecs lead to."""
    vim, collector = vcenter.vim, vcenter.vmodl.query.PropertyCollector
    again = [collector.SelectionSpec(name="up"), collector.SelectionSpec(name="folder")]
    up = collector.TraversalSpec(name="up", type=vim.ManagedEntity, path="parent", selectSet=again)
    folder = collector.TraversalSpec(name="folder", type=vim.VirtualApp, path="parentFolder", selectSet=again)
    vapp = collector.TraversalSpec(type=vim.VirtualMachine, path="parentVApp", selectSet=again)
    return [
        collector.ObjectSpec(
            obj=session.managed("VirtualMachine", each), skip=False, selectSet=[up, folder, vapp, *more]
        )
        for each in morefs
    ]


def _kinds(properties: Sequence[str]) -> dict[Any, Sequence[str]]:
    vim = vcenter.vim
    plain = (vim.Folder, vim.Datacenter, vim.ResourcePool, vim.ComputeResource, vim.ClusterComputeResource)
    kinds: dict[Any, Sequence[str]] = dict.fromkeys(plain, ("name", "parent"))
    return {**kinds, vim.VirtualApp: ("name", "parent", "parentFolder"), vim.VirtualMachine: properties}


def _place(moref: str, found: Found) -> Place:
    steps: list[str] = []
    datacenter = ""
    here = moref
    while here in found:
        values = found[here]
        parent = values.get("parentFolder") or values.get("parent") or values.get("parentVApp")
        if (
            parent is None or "name" not in values
        ):  # the root folder, whose name stands in no path, or one we may not see
            break
        steps.insert(0, values["name"])
        if isinstance(parent, vcenter.vim.Datacenter):
            datacenter = id_of(parent)
        here = id_of(parent)
    place = "/" + "/".join(steps)
    return Place(path=place, datacenter=_place(datacenter, found).path[1:] if datacenter else "")


def _around() -> list[Any]:
    """Return TraversalSpecs from a VM to what it uses."""
    traversal, vm = vcenter.vmodl.query.PropertyCollector.TraversalSpec, vcenter.vim.VirtualMachine
    return [traversal(type=vm, path=path) for path in ("datastore", "network", "runtime.host")]


def _neighbours() -> dict[Any, Sequence[str]]:
    vim = vcenter.vim
    named = (vim.HostSystem, vim.Network, vim.OpaqueNetwork, vim.dvs.DistributedVirtualPortgroup)
    kinds: dict[Any, Sequence[str]] = dict.fromkeys(named, ("name",))
    return {**kinds, vim.Datastore: ("name", "summary.capacity", "summary.freeSpace", "summary.type")}


def _states(own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "power_state": str(own.get("runtime.powerState", "unknown")),
        "connection_state": str(own.get("runtime.connectionState", "connected")),
        "template": bool(own.get("config.template")),
        "encrypted": own.get("config.keyId") is not None or hardware.encrypted(own["config.hardware"].device),
        "fault_tolerant": own.get("config.ftInfo") is not None,
        "cbt_enabled": bool(own.get("config.changeTrackingEnabled")),
        "consolidation_needed": bool(own.get("runtime.consolidationNeeded")),
        "unfinished": hardware.unfinished(own.get("config.extraConfig")),
    }


def _host(own: Mapping[str, Any], found: Found) -> dict[str, Any] | None:
    host = own.get("runtime.host")
    return {"moref": id_of(host), "name": found.get(id_of(host), {}).get("name")} if host else None


def _datastore(moref: str, found: Found) -> dict[str, Any]:
    values = found.get(moref, {})
    return {
        "name": spelt(values.get("name", moref)),
        "moref": moref,
        "type": values.get("summary.type"),
        "capacity": values.get("summary.capacity"),
        "free": values.get("summary.freeSpace"),
    }


def _config(own: Mapping[str, Any], found: Found) -> dict[str, Any]:
    machine, boot = own["config.hardware"], own.get("config.bootOptions")
    names = {moref: spelt(values["name"]) for moref, values in found.items() if "name" in values}
    return {
        "guest_id": own.get("config.guestId"),
        "version": own.get("config.version"),
        "firmware": own.get("config.firmware") or "bios",
        "secure_boot": bool(boot and boot.efiSecureBootEnabled),
        "cpus": machine.numCPU,
        "cores_per_socket": machine.numCoresPerSocket or 1,
        "memory_mib": machine.memoryMB,
        "cpu_hot_add": bool(own.get("config.cpuHotAddEnabled")),
        "memory_hot_add": bool(own.get("config.memoryHotAddEnabled")),
        "annotation": own.get("config.annotation") or "",
        "extra_config": hardware.extra_config(own.get("config.extraConfig")),
        "controllers": hardware.controllers(machine.device),
        "nics": hardware.nics(machine.device, names),
    }
