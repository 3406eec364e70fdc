#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: job_info
short_description: Tell what jobs have on a hub or a node
version_added: 0.1.0
description:
  - Lists the jobs of which this host has something - systemd units, folders, leases, unfinished restore points - and says
    whether they are dead, as far as this host can know.
  - Also tells what lies among these things and belongs to no job.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes.info_module
options:
  repository:
    description: Folder of the repository, on a hub. Without it only what jobs have elsewhere on this host is looked at.
    type: path
  jobs:
    description: Jobs to be told in any case, also when this host has nothing of them but their published point, or nothing at all.
    type: list
    elements: str
    default: []
seealso:
  - module: sendense.backup.job_leftovers
"""

EXAMPLES = r"""
- name: What jobs have on the hub is known
  sendense.backup.job_info:
    repository: /backup/repository
  register: look
"""

RETURN = r"""
jobs:
  description: The jobs, in order of their ids.
  returned: success
  type: list
  elements: dict
  contains:
    job: {description: Its id., type: str, sample: pgtest1-5029f3ab-20261123T140102Z}
    age: {description: Seconds since it began by the clock of this host., type: int}
    vm: {description: 'Instance uuid of its VM, where its lock or its point tells; else empty.', type: str}
    vcenter: {description: Instance uuid of the vCenter in which an earlier point of the VM was made; else empty., type: str}
    vcenter_name: {description: Host name of that vCenter., type: str}
    units: {description: 'Its systemd units, running or failed.', type: list, elements: str}
    running: {description: Those that run., type: list, elements: str}
    folders: {description: Its folders in C(/run/sendense) and C(/var/lib/sendense/jobs)., type: list, elements: str}
    session: {description: Whether it keeps a session with vCenter here., type: bool}
    leases: {description: What it holds., type: list, elements: str}
    points: {description: Its unfinished points., type: list, elements: str}
    strangers: {description: Files in these that no job makes., type: list, elements: str}
    controllers: {description: Who runs it., type: list, elements: str}
    nodes: {description: Who works for it., type: list, elements: str}
    published: {description: Whether its restore point is published., type: bool}
    dead: {description: Whether it is proven dead by what this host knows; null when this host cannot know., type: bool}
    why: {description: Why so., type: str}
unowned:
  description: What lies among the unfinished points and tells no owner, each with C(path), C(removable) and C(why).
  returned: success
  type: list
  elements: dict
strangers:
  description: What lies where jobs keep their things and is none of theirs, each with C(path) and C(why).
  returned: success
  type: list
  elements: dict
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs, leftovers
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path"},
            "jobs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    path, leases = module.params["repository"], Leases()
    try:
        for job in module.params["jobs"]:
            jobs.point_id(job)
        repository = open_repository(path) if path else None
        known = leftovers.look(repository, leases, module.params["jobs"])
        unowned = leftovers.unowned(repository, leases) if repository else []
        strangers = leftovers.strangers(repository)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(
        changed=False,
        jobs=[{**asdict(each), "age": int(leftovers.age(each.job))} for each in known],
        unowned=[asdict(each) for each in unowned],
        strangers=strangers,
    )


if __name__ == "__main__":
    main()
