# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_info
short_description: List the restore points of a repository
version_added: 0.1.0
description:
  - Lists the published restore points, and the jobs that are at work on a VM or died at it.
  - Finds the point that a restore means. The repository alone is asked; neither vCenter nor the VM has to be there.
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
    description:
      - The VM by its instance uuid, or as the repository knows it from its last backup, by its name or inventory path.
      - A name that several VMs bear is refused, and they are listed. All VMs of the repository when left out.
    type: str
  point:
    description:
      - The point to be found, by its id or as V(latest). It needs O(vm), and fails when there is no such point.
      - With V(latest) it is the newest one of which everything is there that its disks stand on, and in which no verification found
        damage. No data is read for that.
    type: str
  disks:
    description: Device keys of the disks that O(point) must have. All that it has when empty.
    type: list
    elements: int
    default: []
"""

EXAMPLES = r"""
- name: The points of one VM are known
  sendense.backup.restore_point_info:
    repository: /backup/repository
    vm: 5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b

- name: The newest point of a VM is found
  sendense.backup.restore_point_info:
    repository: /backup/repository
    vm: pgtest1
    point: latest
"""

RETURN = r"""
points:
  description:
    - Manifests of the published points, oldest first, each with its C(path); a damaged one has an C(error).
    - C(verified) is what M(sendense.backup.restore_point_verify) found, the newest result of each level, oldest first, and
      C(distrusted) why the point is not to be believed, or empty.
  returned: always
  type: list
  elements: dict
point:
  description:
    - Manifest of the point that was found, with its C(path), its C(instance_uuid), in C(passed_over) why newer ones were not taken,
      and in C(distrusted) the damage that a verification found in one that was named.
  returned: when O(point) is given
  type: dict
unfinished:
  description:
    - Jobs that hold a VM's lock or left a partial point. C(dead) tells whether this hub has proof that the job is dead,
      C(controller) whom to ask otherwise, C(node) which node works for it; both are empty when nobody knows.
  returned: always
  type: list
  elements: dict
  sample:
    - job: pgtest1-5029f3ab-20261123T140102Z
      controller: ""
      node: node1.example.com
      dead: true
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import choice, evidence, layout


def points_of(repository: layout.Repository, vm: str) -> list[dict]:
    """Return the points of a VM, each with what verifications found of it, and why it is not to be believed."""
    verified = evidence.every(repository, vm)
    found = [(point, verified.get(point["point"], [])) for point in repository.points(vm)]
    return [point | {"verified": results, "distrusted": evidence.doubt(results)} for point, results in found]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "vm": {"type": "str"},
            "point": {"type": "str"},
            "disks": {"type": "list", "elements": "int", "default": []},
        },
        required_by={"point": ["vm"]},
        supports_check_mode=True,
    )
    vm, point, found = module.params["vm"], module.params["point"], {}
    try:
        repository = layout.open_repository(module.params["repository"])
        if vm and not (layout.is_uuid(vm) and not point):  # of a VM that was never backed up nothing is listed
            vm = choice.find_vm(repository, vm)
        if point:
            made = choice.find_point(repository, vm, point, module.params["disks"])
            found = {"point": made | {"instance_uuid": vm}}
        vms = [vm] if vm else repository.vms()
        points = [point for vm in vms for point in points_of(repository, vm)]
        unfinished = [job for vm in vms for job in layout.unfinished(repository, vm, Leases())]
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(changed=False, points=points, unfinished=unfinished, **found)


if __name__ == "__main__":
    main()
