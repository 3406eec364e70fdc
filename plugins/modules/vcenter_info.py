#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vcenter_info
short_description: Check whether vCenter and its hosts let VMs be backed up
version_added: 0.1.0
description:
  - Looks from a node at the way to vCenter and to its ESXi hosts, at vCenter's certificate, version, licence and clock, at the
    privileges of the user, at the VMs and their change tracking, and at their datastores.
  - Nothing is changed. What is wrong is told as a check that failed; the task itself does not fail for it.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes.info_module
  - sendense.backup.attributes.actiongroup_vcenter
options:
  vms:
    description: Names of the VMs that are to be backed up. Privileges and datastores are looked at for these, without any for all that the user sees.
    type: list
    elements: str
    default: []
  uses:
    description: What the user needs the privileges for. Those for the transport are asked for with V(backup).
    type: list
    elements: str
    choices: [backup, cbt, restore]
    default: [backup]
  transport:
    description: How the node is to read. With V(auto) it is V(vddk) where the node has VMware's library, else V(https).
    type: str
    choices: [auto, vddk, https, client]
    default: auto
  datastore_min_free:
    description: Percent that must be free on the datastores of the VMs.
    type: int
    default: 10
seealso:
  - module: sendense.backup.host_info
"""

EXAMPLES = r"""
- name: VCenter is looked at
  sendense.backup.vcenter_info:
    vms: [web1, db1]
  delegate_to: node1
  register: look

- name: The user may do all that backups need
  ansible.builtin.assert:
    that: look.checks | selectattr('name', 'match', 'privilege') | selectattr('state', 'eq', 'failed') | length == 0
"""

RETURN = r"""
checks:
  description: What was looked at.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: What it is., type: str, sample: privilege Global.DisableMethods}
    state: {description: 'V(ok), V(warning) or V(failed).', type: str}
    seen: {description: What was seen., type: str}
    remedy: {description: 'What to do, empty when there is nothing to do.', type: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import preflight
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import readiness
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import OPTIONS, VCenter, session


def look(where: VCenter, wish: readiness.Wish) -> list[preflight.Check]:
    """Return the checks, those after the login only when there is one."""
    checks, go_on = readiness.before_login(where)
    if go_on:
        try:
            with session(where) as opened:
                checks += readiness.look(opened, wish)
        except FAILURES as why:
            checks.append(preflight.failed("login at vCenter", sentence(why), "see the sentence itself"))
    return checks


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "vms": {"type": "list", "elements": "str", "default": []},
            "uses": {"type": "list", "elements": "str", "choices": ["backup", "cbt", "restore"], "default": ["backup"]},
            "transport": {"type": "str", "choices": ["auto", "vddk", "https", "client"], "default": "auto"},
            "datastore_min_free": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    wish = readiness.Wish(params["vms"], params["uses"], params["transport"], params["datastore_min_free"])
    try:
        checks = look(VCenter.of(params), wish)
    except FAILURES as why:  # an option that is missing or senseless
        checks = [preflight.failed("options of vCenter", sentence(why), "give them in the inventory")]
    module.exit_json(changed=False, checks=preflight.told(checks))


if __name__ == "__main__":
    main()
