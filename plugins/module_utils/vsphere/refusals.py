# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Why a VM cannot be backed up: one table, pure, over the dictionary that lookup.describe returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Fact = Mapping[str, Any]

_VM: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (
        lambda vm: vm["connection_state"] != "connected",
        "is {connection_state}: bring its host back or register it again",
    ),
    (lambda vm: vm["template"], "is a template: convert it to a VM, or leave it out"),
    (lambda vm: vm["encrypted"], "is encrypted, and its backup would lie readable in the repository"),
    (lambda vm: vm["fault_tolerant"], "is fault tolerant, and vSphere takes no disk-only snapshot of such a VM"),
    (lambda vm: vm["consolidation_needed"], "needs consolidation of its disks: consolidate them in vCenter first"),
    (lambda vm: not vm["disks"], "has no disk"),
)
_DISK: tuple[tuple[Callable[[Fact], bool], str], ...] = (
    (lambda disk: disk["kind"] == "rdm_physical", "is a physical raw device mapping, which takes no part in snapshots"),
    (
        lambda disk: disk["mode"].startswith("independent"),
        "has mode {mode}, so it takes no part in snapshots: set it to dependent",
    ),
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
        "stands on a snapshot, and transport https reads base disks only: remove the VM's snapshots",
    ),
    (lambda disk: disk["kind"] != "flat", "is no flat file ({kind}), and transport https reads only those"),
    (lambda disk: disk["store"] in ("vsan", "vvol"), "lies on a {store} datastore, which transport https cannot read"),
)


def refusals(vm: Fact, transport: str | None = None) -> list[str]:
    """Return one sentence for each thing that forbids a backup of *vm*, by *transport* when it is given; none is fine."""
    found = [f"VM {vm['name']} {text.format(**vm)}" for applies, text in _VM if applies(vm)]
    buses = {each["key"]: each["sharing"] for each in vm["config"]["controllers"]}
    stores = {each["name"]: str(each["type"]).lower() for each in vm["datastores"]}
    for disk in vm["disks"]:
        store = str(disk["path"]).partition("[")[2].partition("]")[0]
        seen = {**disk, "bus": buses.get(disk["controller_key"], "noSharing"), "store": stores.get(store, "")}
        start = f"disk {disk['key']} ({disk['label']}) of VM {vm['name']}"
        found += [f"{start} {text.format(**seen)}" for applies, text in _DISK if applies(seen)]
        if transport == "https":
            found += [
                f"{start} {text.format(**seen)}, or use transport vddk" for applies, text in _HTTPS if applies(seen)
            ][:1]
    return found
