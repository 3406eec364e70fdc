#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_restore
short_description: Make a VM in vCenter from a restore point
version_added: 0.1.0
description:
  - Makes a new VM from the configuration in a point's manifest and fills its disks from the exports of the hub. It is whole or gone;
    until it is whole it carries a mark and a note. What it has of the original stands in C(docs/restored-vm.md).
  - Or writes disks over those of an existing VM, when O(over) names it.
  - What is read from the hub is digested on the way, and the VM becomes whole only when every disk came to its root in the manifest.
  - The sending is a systemd unit of its own on the node, C(sendense-push-<job>). Running the task again follows it.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.vm_target
  - sendense.backup.job
  - sendense.backup.attributes
  - sendense.backup.attributes.actiongroup_vcenter
attributes:
  check_mode:
    support: full
    details: Everything is looked at and refused as it would be; nothing is made.
  diff_mode:
    support: none
options:
  state:
    description:
      - With V(present) the VM is made when the job has not made it, and followed until it is whole.
      - With V(absent) what the job keeps on the node goes, and its VM if it is not whole. A whole VM stays. That of O(over)
        stays as it is, and can be written over again.
    type: str
    choices: [present, absent]
    default: present
  manifest:
    description: Manifest of the restore point, as M(sendense.backup.restore_point_info) returns it. Required with O(state=present).
  transport:
    description: How the node writes, see M(sendense.backup.vm_restore_info).
    type: str
    choices: [auto, vddk, https]
    default: auto
  sources:
    description: Where the node reads the disks, as M(sendense.backup.ssh_tunnel) returns its forwards. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      key:
        description: Device key of the disk.
        type: int
        required: true
      uri:
        description: NBD URI of its export.
        type: str
        required: true
  power_on:
    description: Whether the VM is switched on once it is whole.
    type: bool
    default: false
  controller:
    description: Who runs the job; the action plugin fills it in.
    type: str
    default: ""
  wait:
    description: Seconds to follow the sending within one call. The task calls again by itself until it has ended.
    type: int
    default: 10
seealso:
  - module: sendense.backup.vm_restore_info
"""

EXAMPLES = r"""
- name: The VM is there
  sendense.backup.vm_restore:
    job: "{{ look.job }}"
    manifest: "{{ point.manifest }}"
    name: pgtest1-restored
    sources: "{{ tunnel.forwards }}"
  delegate_to: node1
"""

RETURN = r"""
vm:
  description: The VM, as M(sendense.backup.vm_info) describes it; none while it is not whole, and in check mode.
  returned: when O(state=present)
  type: dict
transfer:
  description: The sending as it ended, or as it stands after O(wait) seconds, with C(state), C(error) and C(disks).
  returned: when O(state=present)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import job_state, jobs, restoring
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import push_unit
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import OPTIONS, VCenter, session


def predict(module: AnsibleModule) -> dict:
    """Look as the restore would, and refuse what it would."""
    params = module.params
    by = restoring.transport(params["transport"], params["over"])
    with session(VCenter.of(params)) as opened:
        seen = restoring.look(opened, params, by)
    if seen.refusals:
        raise Refused("; ".join(seen.refusals))
    return {"changed": True, "vm": None, "transfer": {"state": "predicted", "error": "", "disks": []}}


def present(module: AnsibleModule) -> dict:
    """Make the VM unless the job has begun it, follow it, and have it whole."""
    params, job = module.params, module.params["job"]
    new = not push_unit.PUSH.started(job)
    if module.check_mode and new:
        return predict(module)
    with session(VCenter.of(params), jobs.make_folder(job)) as opened:
        if new:
            restoring.begin(opened, params, {each["key"]: each["uri"] for each in params["sources"]})
        status = push_unit.PUSH.follow(job, params["wait"])
        if status["state"] == "failed":
            over = push_unit.remembered(job).get("over")
            why = SendenseError(
                status["error"] + ("; the disks are neither what they were nor the point's" if over else "")
            )
            restoring.undo_after(opened, job, why)
            raise why
        vm = restoring.finish(opened, params) if status["state"] == "done" else None
    return {"changed": new, "vm": vm, "transfer": status}


def absent(module: AnsibleModule) -> dict:
    """Take away what is not whole."""
    params, job = module.params, module.params["job"]
    if module.check_mode:
        return {"changed": push_unit.PUSH.present(job)}
    return {"changed": restoring.clear(VCenter.of(params), job, params["name"])}


def main() -> None:
    """Run the module."""
    source = {"key": {"type": "int", "required": True, "no_log": False}, "uri": {"type": "str", "required": True}}
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **job_state.OPTIONS,
            **restoring.OPTIONS,
            "transport": {"type": "str", "choices": ["auto", "vddk", "https"], "default": "auto"},
            "sources": {"type": "list", "elements": "dict", "options": source},
            "power_on": {"type": "bool", "default": False},
            "controller": {"type": "str", "default": ""},
            "wait": {"type": "int", "default": 10},
        },
        required_if=[("state", "present", ["manifest", "sources"])],
        supports_check_mode=True,
    )
    job_state.run(module, present, absent)


if __name__ == "__main__":
    main()
