#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_cbt
short_description: Turn changed block tracking of a VM and its disks on or off
version_added: 0.1.0
description:
  - Turns changed block tracking of a VM and of each of its disks on or off, and looks whether each disk is then as wished.
  - It takes effect when the VM is stunned. Therefore a snapshot with the mark of the job is taken and removed at once; one that
    is left behind by a run that died is removed with the job.
  - A VM that has snapshots is refused, unless nothing has to be done.
  - Keeps the session with vCenter in C(/run/sendense/<job>/session) for the other modules of the job, as
    M(sendense.backup.vm_snapshot) does.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes
  - sendense.backup.attributes.actiongroup_vcenter
attributes:
  check_mode:
    support: full
    details:
      - Change ids that are only to come are none then.
  diff_mode:
    support: full
options:
  job:
    description: Id of the job whose mark the snapshot bears, as M(sendense.backup.vm_info) gives it.
    type: str
    required: true
  vm:
    description: Managed object reference of the VM, such as V(vm-62).
    type: str
    required: true
  state:
    description: Whether changes are tracked. Disks that take no part in snapshots are left as they are.
    type: str
    choices: [enabled, disabled]
    default: enabled
  dead:
    description: Jobs whose snapshots are going to be removed before, for a check that foresees it; they do not count.
    type: list
    elements: str
    default: []
notes:
  - Needs the privilege VirtualMachine.Config.ChangeTracking, VirtualMachine.Config.AdvancedConfig for the settings of disks, and those for snapshots.
seealso:
  - module: sendense.backup.vm_info
  - module: sendense.backup.vm_snapshot
"""

EXAMPLES = r"""
- name: Changes of the VM are tracked
  sendense.backup.vm_cbt:
    job: "{{ look.job }}"
    vm: "{{ look.vm.moref }}"
    state: enabled
  delegate_to: node1
"""

RETURN = r"""
cbt:
  description: How the VM is tracked.
  returned: success
  type: dict
  contains:
    enabled: {description: Whether tracking is on for the VM., type: bool}
    disks:
      description: The disks that take part in snapshots.
      type: list
      elements: dict
      contains:
        key: {description: The device key., type: int, sample: 2000}
        label: {description: Label., type: str, sample: Hard disk 1}
        change_id: {description: 'Change id of now, none when it is not tracked, or not yet known.', type: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot, tracking
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import describe
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    VCenter,
    of_job,
    session,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "job": {"type": "str", "required": True},
            "vm": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["enabled", "disabled"], "default": "enabled"},
            "dead": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    job, enabled = module.params["job"], module.params["state"] == "enabled"
    try:
        jobs.point_id(job)  # refuses what is no job id
        vcenter = VCenter.of(module.params)
        with session(vcenter) if module.check_mode else of_job(vcenter, job) as opened:
            vm = snapshot.without(describe(opened, module.params["vm"]), module.params["dead"])
            before = tracking.of(vm)
            after = tracking.predict(vm, enabled) if module.check_mode else tracking.turn(opened, vm, job, enabled)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(
        changed=not tracking.as_wished(before, enabled), cbt=after, diff={"before": before, "after": after}
    )


if __name__ == "__main__":
    main()
