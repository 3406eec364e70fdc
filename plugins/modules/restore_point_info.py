# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_info
short_description: List the restore points of a repository
version_added: 0.1.0
description:
  - Lists the published restore points, and the jobs that are at work on a VM or died at it.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  repository:
    description: Folder of the repository on the hub.
    type: path
    required: true
  vm:
    description: Instance uuid of the VM. All VMs of the repository when left out.
    type: str
"""

EXAMPLES = r"""
- name: The points of one VM are known
  sendense.backup.restore_point_info:
    repository: /backup/repository
    vm: 5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b
"""

RETURN = r"""
points:
  description: Manifests of the published points, oldest first, each with its C(path); a damaged one has an C(error).
  returned: always
  type: list
  elements: dict
unfinished:
  description:
    - Jobs that hold a VM's lock or left a partial point. C(dead) tells whether this hub has proof that the job is dead,
      C(controller) whom to ask otherwise.
  returned: always
  type: list
  elements: dict
  sample:
    - job: pgtest1-5029f3ab-20261123T140102Z
      controller: ""
      dead: true
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import store


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"repository": {"type": "path", "required": True}, "vm": {"type": "str"}},
        supports_check_mode=True,
    )
    try:
        repository = store.open_repository(module.params["repository"])
        vms = [module.params["vm"]] if module.params["vm"] else repository.vms()
        points = [point for vm in vms for point in repository.points(vm)]
        unfinished = [job for vm in vms for job in store.unfinished(repository, vm, Leases())]
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(changed=False, points=points, unfinished=unfinished)


if __name__ == "__main__":
    main()
