# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a vCenter has besides VMs, read at once: folders, hosts, pools, datastores and networks. Names as people spell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session, id_of

SHOWN = 10  # names in a message, at most
READ_ONLY = "readOnly"


@dataclass(frozen=True)
class Thing:
    """One object of the inventory."""

    moref: str
    kind: str  # Folder, Datacenter, Compute, ResourcePool, HostSystem, Datastore, Network, Portgroup
    path: str  # /DC0/vm/prod
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name, as a person spells it."""
        return lookup.spelt(self.values.get("name", self.moref))

    def holds(self, what: str) -> list[str]:
        """Return the morefs in a property that is a list of objects."""
        return [id_of(each) for each in self.values.get(what, [])]


class Inventory:
    """The things of a vCenter by moref."""

    def __init__(self, things: Mapping[str, Thing]) -> None:
        self.things = things

    def of_kind(self, kind: str) -> list[Thing]:
        """Return all of a kind, by path."""
        return sorted((each for each in self.things.values() if each.kind == kind), key=lambda each: each.path)

    def above(self, moref: str, kind: str) -> Thing | None:
        """Return the thing of that kind that *moref* lies in, or is."""
        here = self.things.get(moref)
        while here and here.kind != kind:
            parent = here.values.get("parent")
            here = self.things.get(id_of(parent)) if parent else None
        return here

    def one(self, kind: str, wish: str, among: Callable[[Thing], bool], what: str) -> Thing:
        """Return the thing of that kind with that name or inventory path, *among* those that qualify.

        Raises Refused when there is none or more than one, naming what there is; *what* says which things were looked at.
        """
        there = [each for each in self.of_kind(kind) if among(each)]
        found = [each for each in there if lookup.spelt(wish) in (each.name, lookup.spelt(each.path))]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(sorted({each.path if kind == "Folder" else each.name for each in there})[:SHOWN]) or "none"
        if found:
            raise Refused(f"{len(found)} {what} are named {wish}: {', '.join(each.path for each in found)}")
        raise Refused(f"there is no {wish} among the {what}; there are: {listed}")


def read(session: Session) -> Inventory:
    """Return everything but VMs that we may see, in one round trip."""
    vim, collector = vcenter.vim, vcenter.vmodl.query.PropertyCollector
    named = ("name", "parent")
    compute = (*named, "resourcePool", "host", "datastore", "network")
    wish: dict[Any, tuple[str, ...]] = {
        vim.Folder: (*named, "childType"),
        vim.Datacenter: (*named, "vmFolder"),
        vim.ComputeResource: compute,
        vim.ClusterComputeResource: compute,
        vim.ResourcePool: (*named, "owner"),
        vim.HostSystem: (*named, "runtime.connectionState", "runtime.inMaintenanceMode"),
        vim.Datastore: (
            *named,
            "summary.freeSpace",
            "summary.capacity",
            "summary.accessible",
            "summary.maintenanceMode",
            "host",
        ),
        vim.Network: named,
        vim.dvs.DistributedVirtualPortgroup: (*named, "key", "config.distributedVirtualSwitch"),
        vim.DistributedVirtualSwitch: (*named, "uuid"),
    }
    content, what = session.content, "reading the inventory"
    view = session.call(what, content.viewManager.CreateContainerView, content.rootFolder, list(wish), True)
    try:
        through = collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        found = session.collect(
            [collector.ObjectSpec(obj=view, skip=True, selectSet=[through])],
            wish,
        )
    finally:
        session.call(what, view.DestroyView)
    return Inventory(
        {moref: Thing(moref, _kind(values), _path(moref, found), values) for moref, values in found.items()}
    )


# By a property that only things of that kind have; what answers to none is a network.
_MARKS = {
    "childType": "Folder",
    "vmFolder": "Datacenter",
    "resourcePool": "Compute",
    "owner": "ResourcePool",
    "runtime.connectionState": "HostSystem",
    "summary.accessible": "Datastore",
    "key": "Portgroup",
    "uuid": "Switch",
}


def _kind(values: Mapping[str, Any]) -> str:
    return next((kind for mark, kind in _MARKS.items() if mark in values), "Network")


def _path(moref: str, found: lookup.Found) -> str:
    steps: list[str] = []
    here = moref
    while "name" in (values := found.get(here, {})):
        if "parent" not in values:  # the root folder, whose name stands in no path
            break
        steps.insert(0, values["name"])
        here = id_of(values["parent"])
    return "/" + "/".join(steps)


def children(session: Session, folder: str, names: Sequence[str] = ("name",)) -> dict[str, dict[str, Any]]:
    """Return these properties of the VMs that lie in a folder itself, by moref."""
    vim, collector = vcenter.vim, vcenter.vmodl.query.PropertyCollector
    inside = collector.TraversalSpec(type=vim.Folder, path="childEntity")
    start = collector.ObjectSpec(obj=session.managed("Folder", folder), skip=True, selectSet=[inside])
    return session.collect([start], {vim.VirtualMachine: list(names)})
