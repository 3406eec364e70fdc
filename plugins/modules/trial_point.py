#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trial_point
short_description: Make a restore point with known content for a trial, or take a trial away
version_added: 0.1.0
description:
  - Makes a repository beside O(repository), called C(<repository>.preflight), and in it a restore point of a VM that never was, with one
    disk of 64 MiB. Some of it is random bytes that O(trial) determines, the rest is zero. Role C(preflight) restores it and backs up what
    came of it.
  - The repository of a trial tells whose it is as long as it is there, and holds the points of the trial's backups too.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
    details: With O(state=absent) it tells what trial is there, and changes nothing.
  diff_mode:
    support: none
options:
  repository:
    description: Folder of the real repository on the hub.
    type: path
    required: true
  state:
    description:
      - With V(present) the repository of the trial and its point are there.
      - With V(absent) what jobs of the trial have on this hub is gone, and then its repository.
    type: str
    choices: [present, absent]
    default: present
  trial:
    description:
      - A uuid that no trial has had, which becomes the instance uuid of the VM that never was. Required with O(state=present).
      - With O(state=absent) only this trial is taken away; any when left out.
    type: str
  vm:
    description: Inventory path of the VM that is to be made of the point. Required with O(state=present).
    type: str
  datastore:
    description: Datastore of that VM. Required with O(state=present).
    type: str
  min_free:
    description: Percent of the file system that stay free.
    type: int
    default: 5
  controller:
    description: Who runs the trial, so that a later run can see whether it is gone. The controller fills it in by itself.
    type: str
    default: ""
seealso:
  - module: sendense.backup.trial_vm
"""

EXAMPLES = r"""
- name: There is a point whose content is known
  sendense.backup.trial_point:
    repository: /backup/repository
    trial: 1d0f3c52-8a4e-4b6f-9c1e-6f2a7b3c4d5e
    vm: /DC0/vm/tests/trial
    datastore: datastore1
"""

RETURN = r"""
path:
  description: Folder of the trial's repository.
  returned: success
  type: str
  sample: /backup/repository.preflight
trial:
  description:
    - The trial that is, or was, there, with C(trial), C(vm), C(datastore), C(controller) and its C(age) in seconds; empty when there is none.
  returned: success
  type: dict
jobs:
  description: Jobs of the trial that the hub knows of.
  returned: when O(state=absent)
  type: list
  elements: str
content:
  description: The one disk, with its C(capacity), the C(written) bytes, the number of C(pieces), its C(root) and the path of its C(image).
  returned: when O(state=present), but for check mode
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import trial
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import layout


def present(module: AnsibleModule, real: layout.Repository) -> dict:
    """Make the repository and the point unless they are there."""
    params, path = module.params, trial.place(real)
    if not layout.is_uuid(params["trial"]):
        raise Refused(f"'{params['trial']}' is no uuid, so no trial can have it")
    there = trial.find(path)
    new = not there or there.trial != params["trial"]
    wanted = trial.Trial(params["trial"], params["vm"], params["datastore"], params["controller"])
    if module.check_mode and new:
        return {"changed": True, "path": str(path), "trial": trial.told(wanted)}
    if new:
        trial.make(real, wanted, params["min_free"])
    return {
        "changed": new,
        "path": str(path),
        "trial": trial.told(wanted if new else there),
        "content": trial.content_of(path, params["trial"]),
    }


def absent(module: AnsibleModule, real: layout.Repository) -> dict:
    """Take the trial away."""
    path, leases = trial.place(real), Leases()
    there = trial.find(path)
    if not there or module.params["trial"] not in (None, there.trial):
        return {"changed": False, "path": str(path), "trial": {}, "jobs": []}
    wanted = trial.jobs_of(path, there, leases)
    if not module.check_mode:
        trial.clear(path, wanted, leases)
    return {"changed": True, "path": str(path), "trial": trial.told(there), "jobs": wanted}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "trial": {"type": "str"},
            "vm": {"type": "str"},
            "datastore": {"type": "str"},
            "min_free": {"type": "int", "default": 5},
            "controller": {"type": "str", "default": ""},
        },
        required_if=[("state", "present", ["trial", "vm", "datastore"])],
        supports_check_mode=True,
    )
    act = {"present": present, "absent": absent}[module.params["state"]]
    try:
        result = act(module, layout.open_repository(module.params["repository"]))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
