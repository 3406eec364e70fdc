# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether vCenter and its ESXi hosts, as this node sees them, let VMs be backed up. Only looking; nothing is changed.

What privileges are for what stands in docs/privileges.md, which a test holds against PRIVILEGES.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import readiness
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.preflight import (
    Check,
    attempt,
    failed,
    free,
    ok,
    skew,
    warning,
)
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import datastore, lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session, VCenter, id_of

NFC = 902  # the port of ESXi hosts from which the VDDK reads
EXPIRES_SOON = 30  # days
OLDEST = (6, 5)  # the first with CreateSnapshotEx
AT_ONCE = 100  # things for which vCenter is asked at once whether there are privileges on them
SHOWN = 10  # names in a sentence, at most

VM, STORE, ROOT = "VM", "datastore", "vCenter"
# privilege by what it is for: and what it must be had on. VMware's "Virtual Disk Development Kit Programming Guide" and the
# API reference are the source.
PRIVILEGES: dict[str, dict[str, str]] = {
    "backup": {
        "VirtualMachine.State.CreateSnapshot": VM,
        "VirtualMachine.State.RemoveSnapshot": VM,
        "VirtualMachine.Provisioning.DiskRandomRead": VM,
    },
    "vddk": {
        "VirtualMachine.Provisioning.GetVmFiles": VM,
        "Global.DisableMethods": ROOT,
        "Global.EnableMethods": ROOT,
    },
    "https": {
        "Datastore.Browse": STORE,
        "Datastore.FileManagement": STORE,
    },
    "cbt": {
        "VirtualMachine.Config.ChangeTracking": VM,
        "VirtualMachine.Config.AdvancedConfig": VM,
    },
    "restore": {
        "VApp.Import": ROOT,
        "VirtualMachine.Inventory.Create": ROOT,
        "VirtualMachine.Inventory.Delete": ROOT,
        "VirtualMachine.Config.AddNewDisk": ROOT,
        "VirtualMachine.Config.AddRemoveDevice": ROOT,
        "VirtualMachine.Config.AdvancedConfig": ROOT,
        "VirtualMachine.Provisioning.DiskRandomAccess": ROOT,
        "VirtualMachine.Provisioning.PutVmFiles": ROOT,
        "Resource.AssignVMToPool": ROOT,
        "Network.Assign": ROOT,
        "Datastore.AllocateSpace": STORE,
    },
}
_VM = (
    "name",
    "config.changeTrackingEnabled",
    "config.template",
    "config.files.vmPathName",
    "datastore",
    "runtime.connectionState",
)
_HOST = ("name", "summary.config.product.fullName", "runtime.connectionState", "runtime.inMaintenanceMode")
_STORE = ("name", "summary.capacity", "summary.freeSpace", "summary.accessible", "summary.type")


@dataclass(frozen=True)
class Wish:
    """What the site is meant to do."""

    vms: Sequence[str] = ()  # names, as the inventory has them
    uses: Sequence[str] = ("backup",)
    transport: str = "auto"
    datastore_min_free: int = 10  # percent


def before_login(where: VCenter) -> tuple[list[Check], bool]:
    """Return the checks of the way to vCenter and of its certificate, and whether a login can be tried."""
    there = readiness.reach(
        "way to vCenter",
        where.hostname,
        where.port,
        "check vcenter_hostname, vcenter_port, DNS and firewalls between node and vCenter",
    )
    if there.state != "ok":
        return [there], False
    checks = [there, *attempt("certificate of vCenter", lambda: _certificate(where), "see the sentence itself")]
    return checks, all(check.state != "failed" for check in checks)


def look(session: Session, wish: Wish) -> list[Check]:
    """Return the checks of what vCenter says of itself, its hosts, and the VMs and privileges that are wished for."""
    checks = [ok("login at vCenter", f"user {session.vcenter.username} is let in"), _version(session)]
    checks += attempt("licence", lambda: _licence(session), "ask who licenses this ESXi host")
    checks += attempt("clock of vCenter", lambda: _clock(session), "check vCenter")
    checks += attempt(
        "ESXi hosts", lambda: _hosts(session, wish), "give the user System.View and System.Read on the hosts"
    )
    return checks + attempt(
        "VMs", lambda: _of_vms(session, wish), "give the user System.View and System.Read on the VMs"
    )


def _certificate(where: VCenter) -> Check:
    shown = vcenter.certificate(where)
    if not shown:
        return warning(
            "certificate of vCenter",
            "it is not verified, by vcenter_validate_certs",
            "give its authority as node_vcenter_ca instead",
        )
    days = int((ssl.cert_time_to_seconds(shown["notAfter"]) - time.time()) / 86400)
    names = ", ".join(name for _kind, name in shown.get("subjectAltName", ()))
    seen = f"trusted, made out to {names or where.hostname}, valid for {days} days"
    if days < EXPIRES_SOON:
        return warning("certificate of vCenter", seen, "renew it in time: no backup is made once it has expired")
    return ok("certificate of vCenter", seen)


def _version(session: Session) -> Check:
    about = session.content.about
    try:
        found = tuple(int(part) for part in str(about.apiVersion).split(".")[:2])
    except ValueError:
        found = (0, 0)
    if found < OLDEST:
        return failed("version of vCenter", about.fullName, "update it: snapshots as taken here are known from 6.5 on")
    return ok("version of vCenter", f"{about.fullName}, API {about.apiVersion}, pyvmomi {_pyvmomi()}")


def _pyvmomi() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("pyvmomi")
    except PackageNotFoundError:
        return "of unknown version"


def _licence(session: Session) -> Check:
    """A free ESXi host, asked directly, has an API that only reads; its licence says ``esxBasic``."""
    if session.content.about.apiType != "HostAgent":
        return ok("licence", "the API is that of a vCenter, which may write")
    manager = session.content.licenseManager
    found = session.retrieve(manager, ["licenses"])
    editions = [each.editionKey for values in found.values() for each in values.get("licenses", [])]
    if any(edition.lower().startswith("esxbasic") for edition in editions):
        return failed(
            "licence",
            "the licence of this ESXi host lets its API only read: no snapshot can be taken",
            "license it, or use a vCenter",
        )
    return ok("licence", f"ESXi host with {', '.join(editions) or 'no licence told'}")


def _clock(session: Session) -> Check:
    began = time.time()
    service = session.managed("ServiceInstance", "ServiceInstance")
    said: datetime = session.call("asking the time", service.CurrentTime)
    return skew("clock of vCenter", "the node's", said.astimezone(UTC).timestamp() - (began + time.time()) / 2)


def _hosts(session: Session, wish: Wish) -> list[Check]:
    found = _every(session, vcenter.vim.HostSystem, _HOST)
    if not found:
        return [failed("ESXi hosts", "the user sees none", "give the user System.View and System.Read on the hosts")]
    wants_nfc = readiness.reads_with(wish.transport) == "vddk"
    checks = []
    for values in found.values():
        name = str(values.get("name", "?"))
        state = str(values.get("runtime.connectionState", "connected"))
        seen = f"{values.get('summary.config.product.fullName', 'of unknown version')}, {state}"
        if state != "connected":
            checks.append(warning(f"ESXi host {name}", seen, "its VMs cannot be backed up until it is connected"))
        else:
            quiet = ", in maintenance mode" if values.get("runtime.inMaintenanceMode") else ""
            checks.append(ok(f"ESXi host {name}", seen + quiet))
        if wants_nfc:
            remedy = f"let the node resolve {name} and reach port {NFC} of it: the VDDK reads disks there"
            checks.append(readiness.reach(f"way to ESXi host {name}", name, NFC, remedy))
    return checks


def _of_vms(session: Session, wish: Wish) -> list[Check]:
    every = lookup.every(session, _VM)
    named: dict[str, list[str]] = {}
    for moref, values in every.items():
        named.setdefault(lookup.spelt(str(values.get("name", ""))), []).append(moref)
    wished = {name: named.get(lookup.spelt(name), []) for name in wish.vms}
    chosen = {morefs[0]: name for name, morefs in wished.items() if len(morefs) == 1} or dict.fromkeys(every, "")
    stores = {id_of(each): each for moref in chosen for each in every[moref].get("datastore", [])}
    checks = [_found(session, wished, len(every)), _tracked(every, chosen)]
    checks += attempt(
        "datastores", lambda: _stores(session, list(stores.values()), wish.datastore_min_free), "check the datastores"
    )
    checks += _privileges(session, wish, list(chosen), list(stores.values()))
    files = attempt(
        "files of datastores",
        lambda: _folder(session, every, list(chosen)),
        "give Datastore.Browse and .FileManagement",
    )
    if readiness.reads_with(wish.transport) != "https":
        files = [
            warning(each.name, each.seen, f"{each.remedy}; only transport https needs it")
            if each.state == "failed"
            else each
            for each in files
        ]
    return checks + files


def _found(session: Session, wished: Mapping[str, Sequence[str]], many: int) -> Check:
    absent = [name for name, morefs in wished.items() if not morefs]
    doubled = [name for name, morefs in wished.items() if len(morefs) > 1]
    if absent:
        remedy = "mend the inventory, or let the user see them"
        return failed("VMs of the inventory", f"vCenter {session.vcenter} does not show {_some(absent)}", remedy)
    if doubled:
        return failed(
            "VMs of the inventory",
            f"more than one VM is named {_some(doubled)}",
            "choose each by its moref: backup_moref",
        )
    return ok("VMs of the inventory", f"{len(wished)} of {len(wished)} are found; the user sees {many} VMs")


def _tracked(every: lookup.Found, chosen: Mapping[str, str]) -> Check:
    plain = {moref for moref in chosen if not every[moref].get("config.template")}
    without = sorted(
        str(every[moref].get("name")) for moref in plain if not every[moref].get("config.changeTrackingEnabled")
    )
    if without:
        remedy = "all of their disks is read each time; backup_cbt: enable turns it on"
        return warning("change tracking", f"off for {len(without)} of {len(plain)} VMs: {_some(without)}", remedy)
    return ok("change tracking", f"on for all {len(plain)} VMs")


def _stores(session: Session, stores: Sequence[Any], least: int) -> list[Check]:
    checks = []
    for values in session.retrieve(stores, _STORE).values():
        name = lookup.spelt(str(values.get("name", "?")))
        what = f"space of datastore {name}"
        if values.get("summary.accessible") is False:
            checks.append(failed(what, "it is not accessible", "bring it back"))
        else:
            checks.append(
                free(what, name, values.get("summary.freeSpace", 0), values.get("summary.capacity", 0), least)
            )
    return checks


def _privileges(session: Session, wish: Wish, vms: Sequence[str], stores: Sequence[Any]) -> list[Check]:
    uses = [*wish.uses, *([readiness.reads_with(wish.transport)] if "backup" in wish.uses else [])]
    entities = {
        VM: [session.managed("VirtualMachine", moref) for moref in vms],
        STORE: list(stores),
        ROOT: [session.content.rootFolder],
    }
    return [
        check
        for use in uses
        for check in attempt(
            f"privileges for {use}", _privilege_check(session, use, entities), "see docs/privileges.md"
        )
    ]


def _privilege_check(session: Session, use: str, entities: Mapping[str, Sequence[Any]]) -> Callable[[], list[Check]]:
    return lambda: _granted(session, use, entities)


def _granted(session: Session, use: str, entities: Mapping[str, Sequence[Any]]) -> list[Check]:
    lacking: dict[str, list[str]] = {}
    for kind, those in entities.items():
        wanted = [privilege for privilege, on in PRIVILEGES[use].items() if on == kind]
        if not wanted or not those:
            continue
        ask, user = session.content.authorizationManager.HasUserPrivilegeOnEntities, _user(session)
        for some in (list(those[at : at + AT_ONCE]) for at in range(0, len(those), AT_ONCE)):
            for entity in session.call("asking for privileges", ask, some, user, wanted):
                for each in entity.privAvailability:
                    if not each.isGranted:
                        lacking.setdefault(each.privId, []).append(id_of(entity.entity))
    if not lacking:
        return [ok(f"privileges for {use}", f"{', '.join(PRIVILEGES[use])}: all granted")]
    return [
        failed(
            f"privilege {privilege}",
            f"user {session.vcenter.username} lacks it on {PRIVILEGES[use][privilege]} {_some(where)}; it is needed for {use}",
            "give it in a role: docs/privileges.md",
        )
        for privilege, where in lacking.items()
    ]


def _user(session: Session) -> str:
    """Return the name under which vCenter knows the user that is logged in."""
    manager = session.content.sessionManager
    found = next(iter(session.retrieve(manager, ["currentSession"]).values()), {})
    current = found.get("currentSession")
    return str(current.userName) if current else session.vcenter.username


def _folder(session: Session, every: lookup.Found, morefs: Sequence[str]) -> Check:
    """One file of one VM is asked for: what answers for one answers for all."""
    where = lookup.places(session, morefs)
    path = next(
        (
            str(every[moref]["config.files.vmPathName"])
            for moref in morefs
            if every[moref].get("config.files.vmPathName")
        ),
        "",
    )
    moref = next((each for each in morefs if every[each].get("config.files.vmPathName") == path), "")
    if not path or moref not in where:
        raise SendenseError("no VM tells where its files lie")
    store, file = datastore.split(path)
    status = 0
    for times in datastore.quotings(where[moref].datacenter, store):
        status, _content = session.fetch(datastore.folder_path(where[moref].datacenter, store, file, times), 1)
        if status != 404:
            break
    if status == 200:
        return ok("files of datastores", f"{path} can be read over HTTPS")
    remedy = (
        "transport https needs Datastore.Browse and Datastore.FileManagement"
        if status in (401, 403)
        else "ask vCenter why"
    )
    return failed("files of datastores", f"{path} cannot be read over HTTPS (HTTP {status})", remedy)


def _every(session: Session, kind: Any, properties: Sequence[str]) -> lookup.Found:
    collector, content = vcenter.vmodl.query.PropertyCollector, session.content
    view = session.call("listing", content.viewManager.CreateContainerView, content.rootFolder, [kind], True)
    try:
        through = collector.TraversalSpec(type=vcenter.vim.view.ContainerView, path="view", skip=False)
        return session.collect([collector.ObjectSpec(obj=view, skip=True, selectSet=[through])], {kind: properties})
    finally:
        session.call("listing", view.DestroyView)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more
