# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point
short_description: Bring the restore point of a job into being, or remove what a failed job left of it
version_added: 0.1.0
description:
  - A restore point is complete or absent. It is made in a folder C(<point>.partial), and renamed once every image was
    checked, read again from the disk, found to hold what the source delivered, and is on stable storage.
  - The point is named after the start of its job. A published point is never written to and never removed here.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.job
attributes:
  check_mode:
    support: full
    details: Looks at the repository, its free space and the VM's lock, so it refuses what the run would refuse.
  diff_mode:
    support: none
options:
  repository:
    description: Folder of the repository on the hub.
    type: path
    required: true
  state:
    description:
      - With V(partial) the job holds the VM's lock, its space is reserved, and one empty image per disk is there.
      - With V(published) the point is proven and published, and the lock is released.
      - With V(absent) what the job left unpublished is removed, and its leases are released.
    type: str
    choices: [partial, published, absent]
    required: true
  vm:
    description: The VM as M(sendense.backup.vm_info) returned it before the snapshot. C(instance_uuid) suffices with O(state=absent).
    type: dict
    required: true
  snapshot:
    description: What M(sendense.backup.vm_snapshot) returned. Required with O(state=published).
    type: dict
  after:
    description: The VM as M(sendense.backup.vm_snapshot) returned it once the snapshot was gone. Required with O(state=published).
    type: dict
  copies:
    description: The C(disks) that M(sendense.backup.nbd_copy) returned. Required with O(state=published).
    type: list
    elements: dict
  facts:
    description: What else goes into the manifest, for example C(transport) and C(tools).
    type: dict
    default: {}
  remember:
    description: With O(state=absent), keep in mind the job and its O(node), so that a later run finds it and takes away what could not be now.
    type: bool
    default: false
  dead:
    description: Jobs that the caller has proven dead. With O(state=partial) they do not hold the VM.
    type: list
    elements: str
    default: []
  controller:
    description: Who runs the job, so that a later run can see whether it is gone. The controller fills it in by itself.
    type: str
    default: ""
  instead_of:
    description:
      - The controller of a run that is proven dead, whose job this one goes on with. With O(state=partial) nothing is made then;
        the lock passes to O(controller), and it is refused when the job's point is not there, or its lock is not held by that one.
    type: str
  node:
    description: Name of the node that works for the job, so that a later run cleans up there.
    type: str
    default: ""
  min_free:
    description:
      - Percent of the repository's file system that stay free. With O(state=partial) a backup that could leave less is refused.
      - What it may write is the sum of what its disks have C(allocated) on the datastore, or of their capacity when vCenter
        does not say. That much is reserved until the point is published or absent, beside what other jobs at work on this
        hub have reserved and not written yet.
    type: int
    default: 5
"""

EXAMPLES = r"""
- name: The images of the new point are there
  sendense.backup.restore_point:
    repository: /backup/repository
    job: pgtest1-5029f3ab-20261123T140102Z
    vm: "{{ look.vm }}"
    state: partial
"""

RETURN = r"""
path:
  description: Folder of the point, C(….partial) while it is not published.
  returned: always
  type: str
  sample: /backup/repository/vms/5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b/20261123T140102Z
images:
  description: One per disk, in order of device key, with the name that its export gets.
  returned: when O(state=partial)
  type: list
  elements: dict
  sample:
    - key: 2000
      image: /backup/repository/vms/5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b/20261123T140102Z.partial/disk-2000.qcow2
      name: pgtest1-5029f3ab-20261123T140102Z-disk0
      size: 21474836480
manifest:
  description: The manifest of the published point.
  returned: when O(state=published)
  type: dict
seconds:
  description: How long proving and publishing took.
  returned: when O(state=published) and the point was not published before
  type: float
"""

import time
from datetime import UTC, datetime

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import commands, jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, point, space
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import (
    Draft,
    Repository,
    open_repository,
)


def partial(module: AnsibleModule, repository: Repository) -> dict:
    """Take the VM's lock, reserve the space and make the images."""
    params, job, uuid = module.params, module.params["job"], module.params["vm"]["instance_uuid"]
    disks = {disk["key"]: disk["capacity"] for disk in sorted(params["vm"]["disks"], key=lambda disk: disk["key"])}
    draft = Draft(
        instance_uuid=uuid,
        job=job,
        disks=disks,
        need=space.need(params["vm"]["disks"]),
        min_free=params["min_free"],
        controller=params["controller"],
        node=params["node"],
        dead=params["dead"],
        vcenter={name: params["vm"].get("vcenter", {}).get(name) for name in ("instance_uuid", "hostname")},
    )
    folder, leases = repository.partial_folder(uuid, job), Leases()
    if params["instead_of"] is not None:
        point.take_over(repository, draft, leases, params["instead_of"], predict=module.check_mode)
        changed = True
    elif (changed := point.plan(repository, draft, leases)) and not module.check_mode:
        point.begin(repository, draft, leases)
    images = [
        {"key": key, "image": str(folder / manifest.image_file(key)), "name": jobs.export_name(job, rank), "size": size}
        for rank, (key, size) in enumerate(disks.items())
    ]
    return {"changed": changed, "path": str(folder), "images": images}


def published(module: AnsibleModule, repository: Repository) -> dict:
    """Prove and publish the point."""
    params, job, uuid = module.params, module.params["job"], module.params["vm"]["instance_uuid"]
    folder = repository.point_folder(uuid, job)
    if folder.exists():
        return {"changed": False, "path": str(folder), "manifest": manifest.load(folder)}
    if module.check_mode:
        return {"changed": True, "path": str(folder), "manifest": {}}
    facts = params["facts"] | {
        "tools": params["facts"].get("tools", {})
        | {"qemu-img": commands.run(["qemu-img", "--version"]).splitlines()[0]},
        "times": {"started": jobs.point_id(job), "published": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")},
    }
    began, leases = time.monotonic(), Leases()
    run = manifest.Run(job, params["vm"], params["snapshot"], params["after"], params["copies"], facts)
    with leases.renewed(job):  # no unit of the job runs any more that would show it alive
        point.publish(repository, run, leases)
    leases.release(job)
    return {
        "changed": True,
        "path": str(folder),
        "manifest": manifest.load(folder),
        "seconds": round(time.monotonic() - began, 2),
    }


def absent(module: AnsibleModule, repository: Repository) -> dict:
    """Remove what the job left unpublished."""
    job, uuid, leases = module.params["job"], module.params["vm"]["instance_uuid"], Leases()
    folder = repository.partial_folder(uuid, job)
    if module.check_mode:
        there = point.left(repository, uuid, job, remember=module.params["remember"])
        return {"changed": there or bool(leases.of(job)), "path": str(folder)}
    changed = point.remove(
        repository, uuid, job, leases, remember=module.params["remember"], node=module.params["node"]
    )
    return {"changed": changed, "path": str(folder)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "job": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["partial", "published", "absent"], "required": True},
            "vm": {"type": "dict", "required": True},
            "snapshot": {"type": "dict"},
            "after": {"type": "dict"},
            "copies": {"type": "list", "elements": "dict"},
            "facts": {"type": "dict", "default": {}},
            "remember": {"type": "bool", "default": False},
            "dead": {"type": "list", "elements": "str", "default": []},
            "controller": {"type": "str", "default": ""},
            "instead_of": {"type": "str"},
            "node": {"type": "str", "default": ""},
            "min_free": {"type": "int", "default": 5},
        },
        required_if=[("state", "published", ["snapshot", "after", "copies"])],
        supports_check_mode=True,
    )
    act = {"partial": partial, "published": published, "absent": absent}[module.params["state"]]
    try:
        jobs.point_id(module.params["job"])
        if not module.params["vm"].get("instance_uuid"):
            raise SendenseError("option vm has no instance_uuid; give what sendense.backup.vm_info returned as vm")
        module.exit_json(**act(module, open_repository(module.params["repository"])))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))


if __name__ == "__main__":
    main()
