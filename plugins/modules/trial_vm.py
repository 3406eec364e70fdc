#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trial_vm
short_description: Take away the VM of a trial, and what its jobs left on a node
version_added: 0.1.0
description:
  - Deletes the VM that was restored from the point of M(sendense.backup.trial_point), with its snapshots and files. It is known by a setting
    of its .vmx, C(sendense.trial), which only that restore gives; a VM without it is never touched, whatever its name.
  - Before that, jobs of the trial end on this node, and their sessions with vCenter.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes
  - sendense.backup.attributes.actiongroup_vcenter
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  trial:
    description: The trial's uuid.
    type: str
    required: true
  name:
    description: Name of the VM.
    type: str
    required: true
  jobs:
    description: Jobs of the trial, as M(sendense.backup.trial_point) told them.
    type: list
    elements: str
    default: []
  state:
    description: What a trial made can only be absent; M(sendense.backup.vm_restore) makes it.
    type: str
    choices: [absent]
    default: absent
seealso:
  - module: sendense.backup.trial_point
"""

EXAMPLES = r"""
- name: The VM of the trial is gone
  sendense.backup.trial_vm:
    trial: 1d0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e
    name: trial
  delegate_to: node1
"""

RETURN = r"""
vms:
  description: Managed object references of the VMs that were deleted, or would be.
  returned: success
  type: list
  elements: str
jobs:
  description: Jobs of the trial that had something on this node.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs, leftovers, restoring, trial
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.transfer import push_unit
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import creation
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    VCenter,
    of_job,
    session,
)


def end(vcenter: VCenter, job: str, name: str) -> None:
    """Take away what *job* has on this node, and its session with vCenter."""
    if push_unit.PUSH.present(job):
        restoring.clear(vcenter, job, name)
    if (jobs.folder(job) / leftovers.SESSION).exists():
        with of_job(vcenter, job, last=True):
            pass
    taken = leftovers.take_away(job, None, Leases())
    if taken.failed:
        raise SendenseError("; ".join(taken.failed))


def absent(module: AnsibleModule) -> dict:
    """Take all of it away."""
    params, vcenter = module.params, VCenter.of(module.params)
    known = {each.job for each in leftovers.look(None, Leases())}
    wanted = sorted(known & set(params["jobs"]) | set(trial.here(params["trial"], Leases())))
    for job in wanted if not module.check_mode else []:
        end(vcenter, job, params["name"])
    act = creation.of_trial if module.check_mode else creation.remove_of_trial
    with session(vcenter) as opened:
        found = act(opened, params["trial"], params["name"])
    return {"changed": bool(found or wanted), "vms": found, "jobs": wanted}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "trial": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "jobs": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["absent"], "default": "absent"},
        },
        supports_check_mode=True,
    )
    try:
        result = absent(module)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
