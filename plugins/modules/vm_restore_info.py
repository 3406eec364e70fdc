#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_restore_info
short_description: Look whether a restore point can become a VM
version_added: 0.1.0
description:
  - Finds folder, pool, datastores and networks for a VM that is restored from a point, and everything that forbids it.
  - Nothing is made. M(sendense.backup.vm_restore) looks in the same way again before it begins.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.vm_target
  - sendense.backup.attributes
  - sendense.backup.attributes.info_module
  - sendense.backup.attributes.actiongroup_vcenter
options:
  manifest:
    required: true
  transport:
    description:
      - How the node is to write. V(vddk) has VMware's library fill the disks of a VM that is there, V(https) has vSphere import a VM
        and sends each disk as a stream.
      - V(auto) is V(vddk) where the node has it, otherwise V(https).
    type: str
    choices: [auto, vddk, https]
    default: auto
seealso:
  - module: sendense.backup.vm_restore
"""

EXAMPLES = r"""
- name: The target is looked at
  sendense.backup.vm_restore_info:
    manifest: "{{ point.manifest }}"
    name: pgtest1-restored
    networks:
      VM Network: isolated
  delegate_to: node1
"""

RETURN = r"""
job:
  description: Id of a job that would restore the VM now.
  returned: always
  type: str
  sample: restore-pgtest1-5029f3ab-20261123T140102Z
refusals:
  description: One sentence for each thing that forbids the restore.
  returned: always
  type: list
  elements: str
unfinished:
  description: VMs of that name in that folder, or the one of O(over), that a restore has not finished, each with C(moref), C(job),
    C(node) and C(controller).
  returned: always
  type: list
  elements: dict
transport:
  description: The C(name) of the transport, and the C(reason) why it is that one.
  returned: always
  type: dict
target:
  description: Where the VM goes; none for disks of an existing VM, and when something forbids to know.
  returned: always
  type: dict
disks:
  description: The disks of the point that are restored, in order of their key.
  returned: always
  type: list
  elements: dict
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs, restoring
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import OPTIONS, VCenter, session


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **restoring.OPTIONS,
            "manifest": {"type": "dict", "required": True},
            "transport": {"type": "str", "choices": ["auto", "vddk", "https"], "default": "auto"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        by = restoring.transport(params["transport"], params["over"])
        disks = restoring.chosen(params["manifest"], params["disks"])["disks"]
        with session(VCenter.of(params)) as opened:
            seen = restoring.look(opened, params, by)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(
        changed=False,
        job=jobs.job_id(f"restore-{seen.name}", params["manifest"]["vm"]["instance_uuid"]),
        refusals=seen.refusals,
        unfinished=[asdict(each) for each in seen.unfinished],
        transport={"name": by.name, "reason": by.reason},
        target=asdict(seen.target) if seen.target else None,
        disks=disks,
    )


if __name__ == "__main__":
    main()
