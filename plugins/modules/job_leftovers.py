#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: job_leftovers
short_description: Take away what dead jobs left on a hub or a node
version_added: 0.1.0
description:
  - Stops the systemd units of jobs, removes their folders, releases their leases and removes their unfinished restore points.
    Published points stay.
  - It believes the caller that the jobs are dead; role C(sweep) shows how that is proven, and claimed before (O(state=claimed)).
  - Each thing is tried even if the one before could not be removed; what could not be is told, and fails the task at its end.
  - The snapshot of a job is not removed here, but with M(sendense.backup.vm_snapshot). Do that before, for it uses the
    session with vCenter that the job keeps in its folder on the node; one that goes with the folder ends by itself.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  jobs:
    description: Ids of the jobs.
    type: list
    elements: str
    default: []
  repository:
    description: Folder of the repository, on a hub.
    type: path
  folders:
    description:
      - Paths in the repository that tell no owner, as RV(sendense.backup.job_info#module:unowned) lists them. They are
        looked at again, and stay if they may not go any more.
    type: list
    elements: path
    default: []
  remember:
    description:
      - Jobs of which something is left elsewhere, with the name of the node that worked for them, or an empty one. Their
        mark stays in the repository, so that they are found again.
    type: dict
    default: {}
  claims:
    description:
      - With O(state=claimed) the jobs that were judged dead. The lock of each passes to O(controller), unless another run took the job
        over or it showed that it lives since it was judged. Nobody else then goes on with it. Do this before anything of it is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      job:
        description: Id of the job.
        type: str
        required: true
      controllers:
        description: Who ran it when it was judged, as M(sendense.backup.job_info) tells.
        type: list
        elements: str
        required: true
      gone:
        description: Whether it is dead because its controller is proven gone; else it has to be dead by what this hub knows.
        type: bool
        required: true
  controller:
    description: Who claims the jobs; the action plugin fills it in.
    type: str
    default: ""
  state:
    description:
      - With V(absent) what is left of the jobs goes.
      - With V(claimed) it stays, and is kept from other runs.
    type: str
    choices: [absent, claimed]
    default: absent
seealso:
  - module: sendense.backup.job_info
"""

EXAMPLES = r"""
- name: Nothing of a dead job is left on the hub
  sendense.backup.job_leftovers:
    jobs: [pgtest1-5029f3ab-20261123T140102Z]
    repository: /backup/repository
"""

RETURN = r"""
refused:
  description: Jobs that were not claimed, and why.
  returned: when O(state=claimed)
  type: dict
  sample:
    pgtest1-5029f3ab-20261123T140102Z: another run took it over meanwhile
removed:
  description: What was removed, or would be in check mode.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: [unit sendense-export-pgtest1-5029f3ab-20261123T140102Z-2000, lease port-10100]
unable:
  description: What could not be removed, and why.
  returned: when O(state=absent)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs, leftovers
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository


def take(module: AnsibleModule, taken: leftovers.Taken) -> None:
    """Take away everything that is asked for, telling it in *taken*."""
    params, leases = module.params, Leases()
    for job in params["jobs"]:
        jobs.point_id(job)
    repository = open_repository(params["repository"]) if params["repository"] else None
    for job in params["jobs"]:
        taken.add(
            leftovers.take_away(
                job,
                repository,
                leases,
                remember=job in params["remember"],
                node=params["remember"].get(job) or "",
                predict=module.check_mode,
            )
        )
    if repository and params["folders"]:
        taken.add(leftovers.take_unowned(repository, leases, params["folders"], predict=module.check_mode))


def claim(module: AnsibleModule) -> None:
    """Claim the jobs, and tell which could not be."""
    leases, controller, refused = Leases(), module.params["controller"], {}
    claims = [leftovers.Claim(**each) for each in module.params["claims"]]
    for each in claims:
        jobs.point_id(each.job)
    for each in claims:
        if why := leftovers.claim(each, leases, controller, predict=module.check_mode):
            refused[each.job] = why
    module.exit_json(changed=len(refused) < len(claims), refused=refused)


def main() -> None:
    """Run the module."""
    claims = {
        "job": {"type": "str", "required": True},
        "controllers": {"type": "list", "elements": "str", "required": True},
        "gone": {"type": "bool", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "jobs": {"type": "list", "elements": "str", "default": []},
            "repository": {"type": "path"},
            "folders": {"type": "list", "elements": "path", "default": []},
            "remember": {"type": "dict", "default": {}},
            "claims": {"type": "list", "elements": "dict", "options": claims, "default": []},
            "controller": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["absent", "claimed"], "default": "absent"},
        },
        supports_check_mode=True,
    )
    taken = leftovers.Taken()
    try:
        if module.params["state"] == "claimed":
            claim(module)
        take(module, taken)
    except FAILURES as why:
        taken.failed.append(sentence(why))
    told = {"changed": bool(taken.removed), "removed": taken.removed, "unable": taken.failed}
    if taken.failed:
        module.fail_json(msg="; ".join(taken.failed), **told)
    module.exit_json(**told)


if __name__ == "__main__":
    main()
