# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM made anew from the manifest of a restore point: where it goes, what is refused, and the VM while it is unfinished.

docs/restored-vm.md lists what is kept, mapped and dropped. Until it is whole the VM carries a mark, by which its job, and
a later run, proves that it may be removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import datastore, hardware, inventory, lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, Session

Fact = Mapping[str, Any]

MARK, TRIAL = hardware.MADE, hardware.TRIAL
DEFAULT_CONTROLLERS = {200: ("VirtualIDEController", 0), 201: ("VirtualIDEController", 1)}  # every VM has them
MAC, UUID = "mac", "uuid"


@dataclass(frozen=True)
class Wish:
    """Where the operator wants the VM; what is empty is as the original had it."""

    name: str = ""
    folder: str = ""  # inventory path
    pool: str = ""  # name or path of a cluster, a host or a resource pool
    datastore: str = ""  # for all files that `datastores` does not map
    datastores: Mapping[str, str] = field(default_factory=dict)  # new by old
    networks: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[str] = ()
    min_free: int = 0  # percent of a datastore


@dataclass(frozen=True)
class Disk:
    """One disk of the new VM."""

    key: int  # the manifest's
    capacity: int  # bytes
    controller: int  # the manifest's key of it
    place: str  # ParaVirtualSCSIController0:1, as leases call it, without the slash
    unit: int
    mode: str
    datastore: str


@dataclass(frozen=True)
class Target:
    """Where a VM goes: names for people, morefs for vCenter."""

    name: str
    folder: str
    folder_moref: str
    pool_moref: str
    host_moref: str | None
    datastores: Mapping[str, str]  # moref by name
    networks: Mapping[str, Fact]  # new by old name: name, and moref or port group
    home: str  # datastore of the .vmx
    disks: Sequence[Disk]


@dataclass(frozen=True)
class Unfinished:
    """A VM that a restore, which makes it or writes over it, did not finish, or not yet."""

    moref: str
    name: str
    job: str
    node: str
    controller: str


def disks_of(manifest: Fact) -> list[dict[str, Any]]:
    """Return key, capacity, place, unit and mode of the manifest's disks. Raises Refused for one that hangs on nothing known."""
    buses = {each["key"]: (each["type"], each["bus_number"]) for each in manifest["vm"]["config"]["controllers"]}
    found = []
    for disk in manifest["disks"]:
        bus = buses.get(disk["controller_key"]) or DEFAULT_CONTROLLERS.get(disk["controller_key"])
        if not bus or disk["unit_number"] is None:
            raise Refused(
                f"disk {disk['key']}: the manifest has no controller {disk['controller_key']}, so nobody knows where it hung"
            )
        found.append({**disk, "place": f"{bus[0]}{bus[1]}:{disk['unit_number']}"})
    return found


def target(inv: inventory.Inventory, manifest: Fact, wish: Wish) -> tuple[Target | None, list[str]]:
    """Return where the VM goes, and one sentence for each thing that forbids it; None when one forbids to know."""
    said: list[str] = []
    vm = manifest["vm"]
    name = wish.name or vm["name"]
    try:
        folder = _folder(inv, vm, wish)
        compute, pool, host = _compute(inv, manifest, wish, folder)
    except Refused as why:
        return None, [str(why)]
    stores, networks, disks = {}, {}, []
    old = {datastore.split(each["path"])[0] for each in manifest["disks"] if each["path"]}
    home_of = datastore.split(vm["vmx_path"])[0] if vm.get("vmx_path") else next(iter(sorted(old)), "")
    for each in sorted(old | {home_of}):
        try:
            stores[each] = _store(inv, compute, each, wish)
        except Refused as why:
            said.append(str(why))
    for card in vm["config"]["nics"]:
        with_name = card["network"]
        if with_name is None or with_name in networks:
            continue
        try:
            networks[with_name] = _network(inv, compute, with_name, wish)
        except Refused as why:
            said.append(str(why))
    if said:
        return None, said
    for disk in disks_of(manifest):
        on = stores[datastore.split(disk["path"])[0]] if disk["path"] else stores[home_of]
        disks.append(
            Disk(
                disk["key"],
                disk["capacity"],
                disk["controller_key"],
                disk["place"],
                disk["unit_number"],
                disk["mode"],
                on.name,
            )
        )
    said += _bus_sharing(vm) + _room(stores, manifest, disks, wish)
    return (
        Target(
            name=name,
            folder=folder.path,
            folder_moref=folder.moref,
            pool_moref=pool,
            host_moref=host,
            datastores={each.name: each.moref for each in stores.values()},
            networks=networks,
            home=stores[home_of].name,
            disks=disks,
        ),
        said,
    )


def _folder(inv: inventory.Inventory, vm: Fact, wish: Wish) -> inventory.Thing:
    path = wish.folder.rstrip("/") or str(vm["inventory_path"]).rpartition("/")[0]
    return inv.one("Folder", path, lambda each: "VirtualMachine" in each.values.get("childType", []), "folders of VMs")


def _compute(
    inv: inventory.Inventory, manifest: Fact, wish: Wish, folder: inventory.Thing
) -> tuple[inventory.Thing, str, str | None]:
    """Return compute resource, resource pool and, where one is wanted, host."""
    datacenter = inv.above(folder.moref, "Datacenter")

    def near(each: inventory.Thing) -> bool:
        return inv.above(each.moref, "Datacenter") == datacenter

    if not wish.pool:
        return _usual_compute(inv, manifest, near)
    kinds = ("Compute", "ResourcePool", "HostSystem")
    for kind in kinds:
        with suppress(Refused):
            found = inv.one(kind, wish.pool, near, "pools")
            compute = found if kind == "Compute" else inv.above(found.moref, "Compute")
            if compute and kind == "HostSystem":
                return compute, _pool_of(compute), found.moref
            if compute:
                return compute, _pool_of(compute) if kind == "Compute" else found.moref, None
    there = ", ".join(
        sorted({each.name for kind in kinds for each in inv.of_kind(kind) if near(each)})[: inventory.SHOWN]
    )
    raise Refused(
        f"there is no {wish.pool}, or more than one, among the clusters, hosts and resource pools beside folder {folder.path}; "
        f"there are: {there or 'none'}"
    )


def _usual_compute(inv: inventory.Inventory, manifest: Fact, near: Any) -> tuple[inventory.Thing, str, str | None]:
    known = {str((manifest.get("host") or {}).get(when, {}).get("name")) for when in ("before", "after")}
    hosts = [each for each in inv.of_kind("HostSystem") if near(each) and each.name in known]
    of = {each.moref: each for host in hosts if (each := inv.above(host.moref, "Compute"))}
    there = list(of.values()) or [each for each in inv.of_kind("Compute") if near(each)]
    if len(there) != 1:
        raise Refused(
            "no cluster or host is known for the VM, because the host it ran on is not here; choose one as pool: "
            f"{', '.join(each.name for each in there) or 'there is none'}"
        )
    return there[0], _pool_of(there[0]), None


def _pool_of(compute: inventory.Thing) -> str:
    return vcenter.id_of(compute.values["resourcePool"])


def _store(inv: inventory.Inventory, compute: inventory.Thing, old: str, wish: Wish) -> inventory.Thing:
    new = wish.datastores.get(old) or wish.datastore or old
    found = inv.one(
        "Datastore", new, lambda each: each.moref in compute.holds("datastore"), f"datastores that {compute.name} has"
    )
    start = f"datastore {found.name}"
    if found.values.get("summary.accessible") is False:
        raise Refused(f"{start} is not accessible")
    if str(found.values.get("summary.maintenanceMode") or "normal") != "normal":
        raise Refused(f"{start} is in maintenance mode")
    ours = [each for each in found.values.get("host", []) if vcenter.id_of(each.key) in compute.holds("host")]
    if ours and all(str(each.mountInfo.accessMode) == inventory.READ_ONLY for each in ours):
        raise Refused(f"{start} is read-only on every host of {compute.name}; choose another one")
    return found


def _network(inv: inventory.Inventory, compute: inventory.Thing, old: str, wish: Wish) -> Fact:
    new = wish.networks.get(old, old)
    at = set(compute.holds("network"))
    there = [each for kind in ("Network", "Portgroup") for each in inv.of_kind(kind) if each.moref in at]
    found = [each for each in there if each.name == lookup.spelt(new)]
    if len(found) != 1:
        listed = ", ".join(sorted(each.name for each in there)[: inventory.SHOWN]) or "none"
        raise Refused(
            f"{'there is no' if not found else 'there is more than one'} network {new} at {compute.name}; map {old} to one of: {listed}"
        )
    if found[0].kind == "Network":
        return {"name": found[0].name, "moref": found[0].moref}
    switch = inv.things[vcenter.id_of(found[0].values["config.distributedVirtualSwitch"])]
    return {"name": found[0].name, "portgroup": found[0].values["key"], "switch": switch.values["uuid"]}


def _bus_sharing(vm: Fact) -> list[str]:
    return [
        f"controller {each['key']} ({each['type']}) shares its bus ({each['sharing']}), and a restored VM shares none"
        for each in vm["config"]["controllers"]
        if each["sharing"] != "noSharing"
    ]


def _room(stores: Mapping[str, inventory.Thing], manifest: Fact, disks: Sequence[Disk], wish: Wish) -> list[str]:
    needs = {each["key"]: size_of(each) for each in manifest["disks"]}
    said = []
    for store in {each.name: each for each in stores.values()}.values():
        free, capacity = store.values.get("summary.freeSpace"), store.values.get("summary.capacity")
        need = sum(needs[disk.key] for disk in disks if disk.datastore == store.name)
        keep = int(capacity * wish.min_free / 100) if capacity else 0
        if free is not None and free - need < keep:
            said.append(
                f"datastore {store.name} has {free} bytes free, and the VM brings {need}"
                + (f" where {keep} have to stay free" if keep else "")
                + "; make room or choose another one"
            )
    return said


def size_of(disk: Fact) -> int:
    """Return the bytes that a disk of a manifest takes on a datastore where it is thin: what was written of it, else all."""
    written = disk.get("written") if disk.get("type") == "full" else disk.get("allocated")
    return int(disk["capacity"] if written is None else min(written, disk["capacity"]))


def taken(session: Session, there: Target) -> tuple[list[str], list[Unfinished]]:
    """Return who has the name in the folder already: a sentence for a VM, and those that a restore did not finish."""
    said, unfinished = [], []
    for moref, values in inventory.children(session, there.folder_moref).items():
        if lookup.spelt(values.get("name", "")).casefold() != there.name.casefold():
            continue
        if mark := read_mark(session, moref):
            unfinished.append(Unfinished(moref, there.name, **mark))
        else:
            said.append(
                f"there is a VM named {there.name} in {there.folder} already ({moref}), and a restore never overwrites one: give another name"
            )
    return said, unfinished


def read_mark(session: Session, moref: str, key: str = MARK) -> dict[str, str]:
    """Return job, node and controller of the restore that has not finished this VM, from its setting *key*; else nothing."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(setting(session, moref, key))
        return {name: str(said[name]) for name in ("job", "node", "controller")}
    return {}


def setting(session: Session, moref: str, key: str) -> str:
    """Return a setting of a VM's .vmx; empty when it has none."""
    found = session.retrieve(session.managed("VirtualMachine", moref), ["config.extraConfig"]).get(moref, {})
    return next((str(each.value) for each in found.get("config.extraConfig", []) if each.key == key), "")


def mark(job: str, node: str, controller: str) -> str:
    """Return the value of the setting that proves a VM to be this job's, and not whole."""
    return json.dumps({"job": job, "node": node, "controller": controller, "state": "unfinished"})


def unfinished_note(job: str, point: str) -> str:
    """Return what people read about the VM while it is not whole."""
    return f"UNFINISHED: job {job} is restoring this VM from {point}. Do not power it on; it is removed if that fails."


def note(manifest: Fact) -> str:
    """Return the notes of the VM once it is whole: the original's, or else where it comes from."""
    return (
        manifest["vm"]["config"].get("annotation")
        or f"Restored from {manifest['vm']['name']}, point {manifest['point']}"
    )


def spec(manifest: Fact, there: Target, wish: Wish, marked: str, notes: str) -> Any:
    """Return the vim.vm.ConfigSpec of the unfinished VM."""
    vim, config = vcenter.vim, manifest["vm"]["config"]
    extra = {**(config.get("extra_config") or {}), MARK: marked}
    wanted = vim.vm.ConfigSpec(
        name=escaped(there.name),
        annotation=notes,
        guestId=config["guest_id"],
        version=config["version"],
        firmware=config["firmware"],
        numCPUs=config["cpus"],
        numCoresPerSocket=config["cores_per_socket"],
        memoryMB=config["memory_mib"],
        cpuHotAddEnabled=bool(config.get("cpu_hot_add")),
        memoryHotAddEnabled=bool(config.get("memory_hot_add")),
        changeTrackingEnabled=bool(manifest["vm"].get("cbt_enabled")),
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=bool(config["secure_boot"])),
        files=vim.vm.FileInfo(vmPathName=f"[{there.home}]"),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in extra.items()],
        deviceChange=_devices(config, there, wish),
    )
    if UUID in wish.keep and manifest["vm"].get("bios_uuid"):
        wanted.uuid = manifest["vm"]["bios_uuid"]
    return wanted


def escaped(name: str) -> str:
    r"""Return *name* as vCenter keeps it: ``%``, ``/`` and ``\`` are ``%25``, ``%2f`` and ``%5c`` in names."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def _devices(config: Fact, there: Target, wish: Wish) -> list[Any]:
    vim = vcenter.vim
    spec, disk = vim.vm.device.VirtualDeviceSpec, vim.vm.device.VirtualDisk
    used = {each.controller for each in there.disks}
    found = [
        spec(operation="add", device=_controller(each))
        for each in config["controllers"]
        if each["key"] not in DEFAULT_CONTROLLERS and (each["key"] in used or "IDE" not in each["type"])
    ]
    for rank, each in enumerate(there.disks):
        backing = disk.FlatVer2BackingInfo(
            fileName=f"[{each.datastore}]",
            datastore=vim.Datastore(there.datastores[each.datastore]),
            diskMode=each.mode,
            thinProvisioned=True,
        )
        made = disk(
            key=-100 - rank, controllerKey=each.controller, unitNumber=each.unit, backing=backing,
            capacityInBytes=each.capacity, capacityInKB=each.capacity // 1024,
        )  # fmt: skip
        found.append(spec(operation="add", fileOperation="create", device=made))
    for rank, card in enumerate(config["nics"]):
        found.append(spec(operation="add", device=_card(card, rank, there, wish)))
    return found


def _controller(each: Fact) -> Any:
    kind = getattr(vcenter.vim.vm.device, each["type"])
    made = kind(key=each["key"], busNumber=each["bus_number"])
    if issubclass(kind, vcenter.vim.vm.device.VirtualSCSIController):
        made.sharedBus = "noSharing"
    return made


def _card(card: Fact, rank: int, there: Target, wish: Wish) -> Any:
    device = vcenter.vim.vm.device
    made = getattr(device, card["type"])(key=-200 - rank)
    network = there.networks.get(card["network"]) if card["network"] is not None else None
    if network and "portgroup" in network:
        port = vcenter.vim.dvs.PortConnection(switchUuid=network["switch"], portgroupKey=network["portgroup"])
        made.backing = device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(port=port)
    else:
        made.backing = device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network["name"] if network else "")
    made.addressType = "generated"
    if MAC in wish.keep and card.get("mac_address"):
        made.addressType, made.macAddress = "manual", card["mac_address"]
    made.connectable = device.VirtualDevice.ConnectInfo(
        startConnected=bool(card.get("start_connected", True)) and network is not None,
        allowGuestControl=True,
        connected=False,
    )
    return made


def create(session: Session, there: Target, wanted: Any) -> str:
    """Make the VM with its empty disks and return its moref."""
    vim = vcenter.vim
    what = f"making VM {there.name} in {there.folder}"
    task = session.call(
        what,
        session.managed("Folder", there.folder_moref).CreateVM_Task,
        config=wanted,
        pool=vim.ResourcePool(there.pool_moref),
        host=vim.HostSystem(there.host_moref) if there.host_moref else None,
    )
    return vcenter.id_of(session.wait(task, what))


def paths(vm: Fact, there: Target) -> dict[int, str]:
    """Return the datastore path of each disk of the new VM, by the manifest's key.

    Raises SendenseError when vCenter made something else than was asked for: a disk elsewhere, or of another size.
    """
    buses = {each["key"]: f"{each['type']}{each['bus_number']}" for each in vm["config"]["controllers"]}
    buses = {key: f"{kind}{bus}" for key, (kind, bus) in DEFAULT_CONTROLLERS.items()} | buses
    made = {f"{buses.get(each['controller_key'])}:{each['unit_number']}": each for each in vm["disks"]}
    found = {}
    for disk in there.disks:
        its = made.get(disk.place)
        if not its or its["capacity"] != disk.capacity or not its["path"]:
            raise SendenseError(
                f"vCenter made VM {there.name} without a disk of {disk.capacity} bytes at {disk.place}: it has {sorted(made)}"
            )
        found[disk.key] = str(its["path"])
    return found


def finish(session: Session, moref: str, name: str, manifest: Fact) -> None:
    """Take the mark away: the VM is whole."""
    vim, what = vcenter.vim, f"finishing VM {name}"
    wanted = vim.vm.ConfigSpec(annotation=note(manifest), extraConfig=[vim.option.OptionValue(key=MARK, value="")])
    vm = session.managed("VirtualMachine", moref)
    session.wait(session.call(what, vm.ReconfigVM_Task, wanted), what)


def power_on(session: Session, moref: str, name: str) -> None:
    """Switch the VM on."""
    what = f"switching on VM {name}"
    session.wait(session.call(what, session.managed("VirtualMachine", moref).PowerOnVM_Task), what)


def remove(session: Session, moref: str, job: str) -> bool:
    """Delete the unfinished VM of *job* with its files; whether it was there. Raises Refused for one without its mark."""
    try:
        found = lookup.of_vm(
            session, moref, lambda: session.retrieve(session.managed("VirtualMachine", moref), ["name"])
        )
        marked = read_mark(session, moref)
    except lookup.Gone:
        return False
    name = lookup.spelt(found[moref].get("name", moref))
    if marked.get("job") != job:
        raise Refused(f"VM {name} ({moref}) does not carry the mark of job {job}, so it is left alone")
    _destroy(session, moref, f"removing the unfinished VM {name}")
    return True


def _destroy(session: Session, moref: str, what: str) -> None:
    try:
        session.wait(session.call(what, session.managed("VirtualMachine", moref).Destroy_Task), what)
    except Fault as fault:
        if not isinstance(fault.fault, vcenter.vmodl.fault.ManagedObjectNotFound):
            raise


def of_trial(session: Session, trial: str, name: str) -> list[str]:
    """Return the VMs named *name* that this trial made, wherever they stand."""
    return [moref for moref in named(session, name) if setting(session, moref, TRIAL) == trial]


def remove_of_trial(session: Session, trial: str, name: str) -> list[str]:
    """Delete the VMs named *name* that this trial made, with their files, and return them."""
    found = of_trial(session, trial, name)
    for moref in found:
        _destroy(session, moref, f"removing VM {name} of the trial")
    return found


def named(session: Session, name: str) -> list[str]:
    """Return the VMs of that name, wherever they stand."""
    return [
        moref for moref, values in lookup.every(session, ["name"]).items()
        if lookup.spelt(values.get("name", "")).casefold() == name.casefold()
    ]  # fmt: skip
