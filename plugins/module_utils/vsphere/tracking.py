# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changed block tracking turned on and off, of a VM and each of its disks.

What is set takes effect when the VM is stunned, as by a snapshot, and only a disk that tells a change id is tracked
(VMware KB 1020128 and KB 1031873).
"""

from __future__ import annotations

from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import lookup, snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import part, without_independent
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session

Tracking = dict[str, Any]
_NODES = (("NVME", "nvme"), ("AHCI", "sata"), ("SATA", "sata"), ("IDE", "ide"))  # in a controller's type; else SCSI


def of(vm: lookup.Vm) -> Tracking:
    """Return whether tracking is ``enabled`` on the VM as described, and the change ids of its ``disks`` in snapshots."""
    disks = [{name: disk[name] for name in ("key", "label", "change_id")} for disk in part(vm["disks"])[0]]
    return {"enabled": vm["cbt_enabled"], "disks": disks}


def predict(vm: lookup.Vm, enabled: bool) -> Tracking:
    """Return what turn would return, with the change ids of now. Raises Refused as turn does."""
    now = of(vm)
    if as_wished(now, enabled):
        return now
    if vm["snapshots"]:
        names = ", ".join(each["name"] for each in vm["snapshots"])
        raise Refused(
            f"change tracking of VM {vm['name']} is not turned {_word(enabled)} while it has snapshots ({names}), because "
            "vSphere would then tell wrong changes; remove them first"
        )
    snapshot.check_allowed(without_independent(vm))
    return {"enabled": enabled, "disks": [{**disk, "change_id": None} for disk in now["disks"]]}


def as_wished(tracking: Tracking, enabled: bool) -> bool:
    """Whether the VM and each of its disks are tracked, or none of them."""
    tracked = [tracking["enabled"], *(bool(disk["change_id"]) for disk in tracking["disks"])]
    return all(each is enabled for each in tracked)


def turn(session: Session, vm: lookup.Vm, job: str, enabled: bool) -> Tracking:
    """Turn tracking on or off for the VM as described and all its disks, and return it as it then is.

    For that a snapshot with the job's mark is taken and removed. Raises Refused for a VM with snapshots or one that cannot
    have any, and SendenseError when vCenter fails, or a disk is not as wished afterwards.
    """
    predict(vm, enabled)
    if as_wished(of(vm), enabled):
        return of(vm)
    what = f"turning change tracking of VM {vm['name']} {_word(enabled)}"
    machine, spec = session.managed("VirtualMachine", vm["moref"]), _spec(vm, enabled)
    session.wait(session.call(what, machine.ReconfigVM_Task, spec), what)
    snapshot.stun(session, without_independent(vm), job)
    after = of(lookup.describe(session, vm["moref"]))
    if not as_wished(after, enabled):
        wrong = [
            f"{disk['key']} ({disk['label']})" for disk in after["disks"] if bool(disk["change_id"]) is not enabled
        ]
        raise SendenseError(
            f"change tracking of VM {vm['name']} was turned {_word(enabled)}, but is not so "
            f"{'on disk ' + ', '.join(wrong) if wrong else 'for the VM'}: look at the ctkEnabled settings of the VM"
        )
    return after


def _spec(vm: lookup.Vm, enabled: bool) -> Any:
    """Return the ConfigSpec: the VM's own setting, and that of each disk which is not as wished."""
    controllers = {each["key"]: each for each in vm["config"]["controllers"]}
    settings = [
        vcenter.vim.option.OptionValue(
            key=f"{_node(controllers[disk['controller_key']])}:{disk['unit_number']}.ctkEnabled",
            value=str(enabled).upper(),
        )
        for disk in part(vm["disks"])[0]
        if bool(disk["change_id"]) is not enabled and disk["controller_key"] in controllers
    ]
    return vcenter.vim.vm.ConfigSpec(changeTrackingEnabled=enabled, extraConfig=settings)


def _node(controller: dict[str, Any]) -> str:
    """Return how a .vmx file calls the controller, such as ``scsi0``."""
    kind = controller["type"].upper()
    return next((node for part_of, node in _NODES if part_of in kind), "scsi") + str(controller["bus_number"])


def _word(enabled: bool) -> str:
    return "on" if enabled else "off"
