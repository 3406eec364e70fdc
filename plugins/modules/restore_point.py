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
attributes:
  check_mode:
    support: full
    details: Looks at the repository and at the VM's lock, so it refuses what the run would refuse.
  diff_mode:
    support: none
options:
  repository:
    description: Folder of the repository on the hub.
    type: path
    required: true
  job:
    description: Id of the job.
    type: str
    required: true
  state:
    description:
      - With V(partial) the job holds the VM's lock, and one empty image per disk is there.
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
  keep_lock:
    description: With O(state=absent), keep the VM's lock, so that a later run finds the job and takes away what could not be now.
    type: bool
    default: false
  controller:
    description: Who runs the job, so that a later run can see whether it is gone. The controller fills it in by itself.
    type: str
    default: ""
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
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, store


def partial(module: AnsibleModule, repository: store.Repository) -> dict:
    """Take the VM's lock and make the images."""
    params, job, uuid = module.params, module.params["job"], module.params["vm"]["instance_uuid"]
    disks = {disk["key"]: disk["capacity"] for disk in sorted(params["vm"]["disks"], key=lambda disk: disk["key"])}
    folder, leases = repository.partial_folder(uuid, job), Leases()
    changed = store.plan_partial(repository, uuid, job, disks, leases, controller=params["controller"])
    if changed and not module.check_mode:
        leases.take(store.lock_name(uuid), job, params["controller"])
        try:
            store.make_partial(repository, uuid, job, disks)
        except SendenseError:
            store.remove_partial(repository, uuid, job, leases)
            raise
    images = [
        {"key": key, "image": str(folder / manifest.image_file(key)), "name": jobs.export_name(job, rank), "size": size}
        for rank, (key, size) in enumerate(disks.items())
    ]
    return {"changed": changed, "path": str(folder), "images": images}


def published(module: AnsibleModule, repository: store.Repository) -> dict:
    """Prove and publish the point."""
    params, job, uuid = module.params, module.params["job"], module.params["vm"]["instance_uuid"]
    point = repository.point_folder(uuid, job)
    changed = not point.exists()
    if not changed:
        return {"changed": False, "path": str(point), "manifest": manifest.load(point)}
    if module.check_mode:
        return {"changed": True, "path": str(point), "manifest": {}}
    facts = params["facts"] | {
        "tools": params["facts"].get("tools", {})
        | {"qemu-img": commands.run(["qemu-img", "--version"]).splitlines()[0]},
        "times": {"started": jobs.point_id(job), "published": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")},
    }
    began, leases = time.monotonic(), Leases()
    run = manifest.Run(job, params["vm"], params["snapshot"], params["after"], params["copies"], facts)
    with leases.renewed(job):  # no unit of the job runs any more that would show it alive
        store.publish(repository, run, leases)
    leases.release(job)
    return {
        "changed": True,
        "path": str(point),
        "manifest": manifest.load(point),
        "seconds": round(time.monotonic() - began, 2),
    }


def absent(module: AnsibleModule, repository: store.Repository) -> dict:
    """Remove what the job left unpublished."""
    job, uuid, leases = module.params["job"], module.params["vm"]["instance_uuid"], Leases()
    folder = repository.partial_folder(uuid, job)
    if module.check_mode:
        return {"changed": folder.exists() or bool(leases.of(job)), "path": str(folder)}
    changed = store.remove_partial(repository, uuid, job, leases, keep_lock=module.params["keep_lock"])
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
            "keep_lock": {"type": "bool", "default": False},
            "controller": {"type": "str", "default": ""},
        },
        required_if=[("state", "published", ["snapshot", "after", "copies"])],
        supports_check_mode=True,
    )
    act = {"partial": partial, "published": published, "absent": absent}[module.params["state"]]
    try:
        jobs.point_id(module.params["job"])
        if not module.params["vm"].get("instance_uuid"):
            raise SendenseError("option vm has no instance_uuid; give what sendense.backup.vm_info returned as vm")
        module.exit_json(**act(module, store.open_repository(module.params["repository"])))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))


if __name__ == "__main__":
    main()
