# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a VM, or a disk of it, cannot be backed up: tables, pure, over the dictionary that lookup.describe returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import CLIENT, HTTPS, Transport

Fact = Mapping[str, Any]

BY_CLIENT = "sbak-"  # how names of snapshots begin that sendense-backup-client takes, and deletes

_VM: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (
        lambda vm: vm["connection_state"] != "connected",
        "is {connection_state}: bring its host back or register it again",
    ),
    (lambda vm: vm["template"], "is a template: convert it to a VM, or leave it out"),
    (
        lambda vm: vm["encrypted"],
        "is encrypted, and its backup would lie readable in the repository, by whichever transport: back it up from within the guest",
    ),
    (lambda vm: vm["fault_tolerant"], "is fault tolerant, and vSphere takes no disk-only snapshot of such a VM"),
    (lambda vm: vm["consolidation_needed"], "needs consolidation of its disks: consolidate them in vCenter first"),
    (
        lambda vm: bool(vm.get("unfinished")),
        "is what a restore has not finished, and its backup would pass for whole ({unfinished}): restore it again, or delete it",
    ),
    (lambda vm: not vm["disks"] and not vm["skipped"], "has no disk"),
    (
        lambda vm: not vm["disks"] and vm["skipped"],
        "has no disk left to back up: none of its disks takes part in snapshots",
    ),
)
_APART: tuple[tuple[Callable[[Fact], bool], str, str], ...] = (
    (
        lambda disk: disk["kind"] == "rdm_physical",
        "is a physical raw device mapping, which takes no part in snapshots",
        "back it up from within the guest",
    ),
    (
        lambda disk: disk["mode"].startswith("independent"),
        "has mode {mode}, so it takes no part in snapshots",
        "set it to dependent",
    ),
)
_DISK: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (
        lambda disk: disk["sharing"] != "sharingNone",
        "is shared with other VMs ({sharing}), so no snapshot can be taken",
    ),
    (
        lambda disk: disk["bus"] != "noSharing",
        "hangs on a controller with bus sharing ({bus}), so no snapshot can be taken",
    ),
)
_HTTPS: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (
        lambda disk: disk["has_parent"],
        "stands on a snapshot, and transport https reads base disks only: remove the VM's snapshots, or",
    ),
    (lambda disk: disk["kind"] != "flat", "is no flat file ({kind}), and transport https reads only those:"),
    (lambda disk: disk["store"] in ("vsan", "vvol"), "lies on a {store} datastore, which transport https cannot read:"),
)


# What the client does, and how, is its own choice; so these are of the whole VM.
_CLIENT: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (
        lambda vm: bool(vm["skipped"]),
        "has disks that are to be left out, and transport client leaves none out:",
    ),
    (
        lambda vm: any(each["name"].startswith(BY_CLIENT) for each in vm["snapshots"]),
        "has snapshots named sbak-…, which transport client would delete: see whose they are and remove them, or",
    ),
    (
        lambda vm: any(sign in vm["inventory_path"] for sign in "*?[\\"),
        "stands at {inventory_path}, which transport client takes for a pattern:",
    ),
    (
        lambda vm: not vm["cbt_enabled"] and vm["cbt"] != "enable",
        "has change tracking off, and transport client turns it on by itself: let that be (backup_cbt: enable), or",
    ),
    (
        lambda vm: vm["quiesce"] == "require",
        "is to be brought to rest, and transport client does not tell whether it was: do not require it, or",
    ),
)


def without_independent(vm: Fact) -> dict[str, Any]:
    """Return *vm* with the disks that take no part in snapshots told in ``skipped``, with the reason, and not in ``disks``."""
    disks, skipped = part(vm["disks"])
    return {**vm, "disks": disks, "skipped": skipped}


def part(disks: Sequence[Fact]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the disks that a snapshot holds, and key, label, capacity and reason of those that take no part in it."""
    held, apart = [], []
    for disk in disks:
        reason = next((text.format(**disk) for applies, text, _remedy in _APART if applies(disk)), None)
        if reason:
            apart.append({**{name: disk[name] for name in ("key", "label", "capacity")}, "reason": reason})
        else:
            held.append(dict(disk))
    return held, apart


def refusals(
    vm: Fact, transport: Transport | None = None, min_free: int = 0, *, quiesce: str = "prefer", cbt: str = "leave"
) -> list[str]:
    """Return one sentence for each thing that forbids a backup of *vm*; none is fine.

    With *transport* also for what the node lacks for it, or it cannot read, or not as *quiesce* and *cbt* wish; and for
    each datastore of its files with less than *min_free* percent of it free, because a snapshot grows there.
    """
    found = [f"VM {vm['name']} {text.format(**vm)}" for applies, text in _VM if applies(vm)]
    buses = {each["key"]: each["sharing"] for each in vm["config"]["controllers"]}
    stores = {each["name"]: str(each["type"]).lower() for each in vm["datastores"]}
    for disk in vm["disks"]:
        seen = {
            **disk,
            "bus": buses.get(disk["controller_key"], "noSharing"),
            "store": stores.get(_store(disk["path"]), ""),
        }
        start = f"disk {disk['key']} ({disk['label']}) of VM {vm['name']}"
        found += [
            f"{start} {text.format(**seen)}: {remedy}, or leave such disks out (independent: skip)"
            for applies, text, remedy in _APART
            if applies(seen)
        ]
        found += [f"{start} {text.format(**seen)}" for applies, text in _DISK if applies(seen)]
        if transport and transport.name == HTTPS:
            unread = [text.format(**seen) for applies, text in _HTTPS if applies(seen)]
            found += [f"{start} {text} {transport.other}" for text in unread[:1]]
    if transport and transport.name == CLIENT:
        wished = {**vm, "quiesce": quiesce, "cbt": cbt}
        found += [
            f"VM {vm['name']} {text.format(**wished)} {transport.other}" for applies, text in _CLIENT if applies(wished)
        ]
    if transport and transport.lacks:
        found.append(f"transport {transport.name} cannot be used: {transport.lacks}")
    return found + _full(vm, min_free)


def _full(vm: Fact, min_free: int) -> list[str]:
    used = {_store(path) for path in (vm["vmx_path"], *(disk["path"] for disk in vm["disks"]))}
    return [
        f"datastore {each['name']} of VM {vm['name']} has {_gib(each['free'])} free of {_gib(each['capacity'])}, and "
        f"datastore_min_free wants {min_free} %, which is {_gib(each['capacity'] * min_free / 100)}: make room, because its "
        "snapshot grows there"
        for each in vm["datastores"]
        # a datastore that is not accessible says neither
        if each["name"] in used and None not in (each["free"], each["capacity"])
        if each["free"] * 100 < each["capacity"] * min_free
    ]


def _store(path: str | None) -> str:
    return str(path).partition("[")[2].partition("]")[0]


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
