# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: nbd_copy
short_description: Copy the disks of a snapshotted VM into NBD exports
version_added: 0.1.0
description:
  - Reads all disks of a VM as they are frozen under a snapshot and writes them, in parallel, into the exports of the hub.
  - The copy is a systemd unit of its own on the node, C(sendense-copy-<job>). It outlives the task, its connection and the
    controller; running the task again follows the copy instead of starting another one.
  - Only what vCenter calls allocated is read when change tracking is on, otherwise the whole disk. The rest is sampled, and
    everything is read if there is data in it. Only what is not zero is written,
    so the exports must be of fresh images.
  - What the source delivers is digested on the way. What the source itself delivers wrongly cannot be seen by a copier.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.vcenter
attributes:
  check_mode:
    support: full
    details: Predicts that the disks would be copied; no byte is read.
  diff_mode:
    support: none
options:
  job:
    description: Id of the job.
    type: str
    required: true
  state:
    description:
      - With V(present) the copy is started when it was not, and followed until it ends.
      - With V(absent) it is stopped, and what it keeps on the node is removed.
    type: str
    choices: [present, absent]
    default: present
  transport:
    description: How the node reads. V(https) reads the datastore over HTTPS with nbdkit's curl plugin.
    type: str
    choices: [https]
    default: https
  vm:
    description: Managed object id of the VM. Required with O(state=present).
    type: str
  snapshot:
    description: Managed object id of the snapshot. Required with O(state=present), but for check mode.
    type: str
  datacenter:
    description: Inventory path of the VM's datacenter. Required with O(state=present).
    type: str
  disks:
    description: The disks to copy. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      key:
        description: Device key of the disk.
        type: int
        required: true
      capacity:
        description: Size of the disk in bytes, as the snapshot's own configuration says.
        type: int
        required: true
      path:
        description: Path of the frozen disk in the datastore, C([datastore] folder/disk.vmdk).
        type: str
        required: true
      target:
        description: NBD URI of the export that takes the data.
        type: str
        required: true
  wait:
    description: Seconds to follow the copy within one call. The task calls again by itself until the copy has ended.
    type: int
    default: 10
"""

EXAMPLES = r"""
- name: The disks are copied
  sendense.backup.nbd_copy:
    job: pgtest1-5029f3ab-20261123T140102Z
    vm: vm-42
    snapshot: snapshot-43
    datacenter: /DC0
    disks:
      - key: 2000
        capacity: 21474836480
        path: "[datastore1] pgtest1/pgtest1.vmdk"
        target: nbd+unix:///pgtest1-5029f3ab-20261123T140102Z-disk0?socket=/run/sendense/pgtest1-5029f3ab-20261123T140102Z/2000.sock
    vcenter_hostname: vcenter.example.com
    vcenter_username: backup@vsphere.local
    vcenter_password: "{{ vault_vcenter_password }}"
"""

RETURN = r"""
transfer:
  description: The copy as it ended, or as it stands after O(wait) seconds.
  returned: when O(state=present)
  type: dict
  contains:
    state:
      description: V(running), V(done) or V(failed); V(predicted) in check mode.
      type: str
      returned: always
    error:
      description: The disk that failed and why; empty otherwise.
      type: str
      returned: always
    disks:
      description:
        - Per disk its C(key); C(provisioned), C(allocated) (null when nobody knows), C(planned), C(read), C(written) and
          C(zeroed) in bytes; whether vCenter's C(map) of what is allocated was V(used), V(refuted) by a sample, or V(none)
          was to be had; C(seconds), and how many of them were spent waiting for the source, the target or both
          (C(waited_*)); and C(tree), the Merkle C(root) over the 64 KiB cells with the nodes of its C(sections).
      type: list
      elements: dict
      returned: always
tools:
  description: Versions of the tools that read.
  returned: when O(state=present)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.transfer import copy_unit
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource
from ansible_collections.sendense.backup.plugins.module_utils.transfer.run import Disk
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import cbt, datastore
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    VCenter,
    session,
)


def find_disks(params: dict) -> list[Disk]:
    """Return the disks with where each is read and what of it holds data; the job's session serves both."""
    job, vcenter = params["job"], VCenter.of(params)
    with session(vcenter, jobs.make_folder(job)) as opened:
        cookie_file = copy_unit.keep_cookie(job, opened.cookie)
        return [
            Disk(
                key=disk["key"],
                capacity=disk["capacity"],
                source=HttpsSource(
                    url=datastore.flat_extent_url(opened, params["datacenter"], disk["path"], disk["capacity"]),
                    cookie_file=cookie_file,
                    ca_file=vcenter.ca_file,
                    validate_certs=vcenter.validate_certs,
                ),
                target=disk["target"],
                areas=cbt.allocated_areas(opened, params["vm"], params["snapshot"], disk["key"], disk["capacity"]),
            )
            for disk in params["disks"]
        ]


def present(module: AnsibleModule) -> dict:
    """Start the copy unless it was started, follow it, and return the result."""
    job, new = module.params["job"], not copy_unit.started(module.params["job"])
    tools = copy_unit.tools()
    if module.check_mode and new:
        return {"changed": True, "transfer": {"state": "predicted", "error": "", "disks": []}, "tools": tools}
    if new:
        copy_unit.start(job, find_disks(module.params))
    status = copy_unit.follow(job, module.params["wait"])
    if status["state"] == "failed":
        module.fail_json(msg=status["error"], transfer=status)
    return {"changed": new, "transfer": status, "tools": tools}


def absent(module: AnsibleModule) -> dict:
    """Stop the copy and remove what it kept."""
    job = module.params["job"]
    if module.check_mode:
        return {"changed": copy_unit.present(job)}
    return {"changed": copy_unit.stop(job)}


def main() -> None:
    """Run the module."""
    disk = {
        "key": {"type": "int", "required": True, "no_log": False},
        "capacity": {"type": "int", "required": True},
        "path": {"type": "str", "required": True},
        "target": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "job": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "transport": {"type": "str", "choices": ["https"], "default": "https"},
            "vm": {"type": "str"},
            "snapshot": {"type": "str"},
            "datacenter": {"type": "str"},
            "disks": {"type": "list", "elements": "dict", "options": disk},
            "wait": {"type": "int", "default": 10},
        },
        required_if=[("state", "present", ["vm", "datacenter", "disks"])],
        supports_check_mode=True,
    )
    try:
        jobs.point_id(module.params["job"])
        module.exit_json(**(present if module.params["state"] == "present" else absent)(module))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))


if __name__ == "__main__":
    main()
