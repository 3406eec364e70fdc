#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot_info
short_description: List the snapshots of VMs, and whose they are
version_added: 0.1.0
description:
  - Lists the snapshots with the name and the mark of a job of this collection, of one VM or of all that the user may see.
  - Snapshots of anybody else are told apart.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes.info_module
  - sendense.backup.attributes.actiongroup_vcenter
options:
  vm:
    description: Managed object reference of the VM, such as V(vm-62). Without it all VMs are looked at.
    type: str
seealso:
  - module: sendense.backup.vm_snapshot
"""

EXAMPLES = r"""
- name: Snapshots of jobs are known
  sendense.backup.vm_snapshot_info:
  delegate_to: node1
  register: found

- name: None is older than a day
  ansible.builtin.assert:
    that: found.snapshots | selectattr('age', '>', 86400) | length == 0
"""

RETURN = r"""
snapshots:
  description: The snapshots, oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    job: {description: The job that owns it., type: str, sample: pgtest1-5029f3ab-20261123T140102Z}
    vm:
      description: The VM that has it.
      type: dict
      sample: {moref: vm-62, name: pgtest1}
    moref: {description: Managed object reference., type: str, sample: snapshot-101}
    name: {description: Name., type: str, sample: sendense-pgtest1-5029f3ab-20261123T140102Z}
    created: {description: 'When vCenter took it, UTC.', type: str, sample: '2026-11-23T14:01:05Z'}
    age: {description: Seconds since then by the clock of vCenter., type: int, sample: 42}
    quiesce_requested: {description: 'V(require), V(prefer) or V(off).', type: str}
    quiesced: {description: Whether vCenter says that the guest was quiesced for it., type: bool}
others:
  description: The snapshots of anybody else, likewise, each with C(why) it is not that of a job.
  returned: success
  type: list
  elements: dict
vcenter:
  description: Host name and instance uuid of the vCenter.
  returned: success
  type: dict
  sample: {hostname: vcenter.example.com, instance_uuid: 8b1f4b0a-3c54-4c0e-9d3e-0f4f3f8f4c11}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import OPTIONS, VCenter, session


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={**OPTIONS, "vm": {"type": "str"}}, supports_check_mode=True)
    try:
        with session(VCenter.of(module.params)) as vcenter:
            found, others = snapshot.listed(vcenter, module.params["vm"])
            where = {"hostname": vcenter.vcenter.hostname, "instance_uuid": vcenter.instance_uuid}
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(changed=False, snapshots=found, others=others, vcenter=where)


if __name__ == "__main__":
    main()
