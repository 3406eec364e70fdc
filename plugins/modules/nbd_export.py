# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: nbd_export
short_description: Serve the images of a job over NBD
version_added: 0.1.0
description:
  - Starts one qemu-nbd per image, each in a systemd unit of its own, on the loopback interface of the hub only.
  - All exports of the list are served, or none. An export is served once an NBD handshake was done that offered its name
    and its size; when qemu-nbd fails to start, its own words are in the message.
  - Ports are leased for the job from 10100 to 10200, all at once.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
    details: Predicts the exports without their ports.
  diff_mode:
    support: none
options:
  job:
    description: Id of the job.
    type: str
    required: true
  state:
    description:
      - With V(present) the exports are served.
      - With V(absent) every export of the job is stopped cleanly and its port released. One that had died, or had to be
        killed, fails the task, after all of them were dealt with; what it had not written yet is lost.
    type: str
    choices: [present, absent]
    default: present
  exports:
    description: What to serve. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      key:
        description: Device key of the disk, by which its unit is named.
        type: int
        required: true
      image:
        description: QCOW2 image to serve.
        type: path
        required: true
      name:
        description: Name of the export.
        type: str
        required: true
      size:
        description: Size in bytes that the image must have.
        type: int
        required: true
      port:
        description: Port to serve it on. Any free one when left out.
        type: int
  connections:
    description: How many connections a copier may open to each export. Two more are allowed, for those who look.
    type: int
    default: 2
"""

EXAMPLES = r"""
- name: The images are served
  sendense.backup.nbd_export:
    job: pgtest1-5029f3ab-20261123T140102Z
    exports:
      - key: 2000
        image: /backup/repository/vms/5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b/20261123T140102Z.partial/disk-2000.qcow2
        name: pgtest1-5029f3ab-20261123T140102Z-disk0
        size: 21474836480
"""

RETURN = r"""
exports:
  description: What is served, each by the unit C(sendense-export-<job>-<key>). The port is null in check mode.
  returned: when O(state=present)
  type: list
  elements: dict
  sample:
    - key: 2000
      name: pgtest1-5029f3ab-20261123T140102Z-disk0
      size: 21474836480
      port: 10100
ended:
  description: How each export ended; C(death) is empty for a clean stop, C(words) is what qemu-nbd said last.
  returned: when O(state=absent)
  type: list
  elements: dict
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.transfer import export


def present(module: AnsibleModule) -> dict:
    """Serve the exports, unless they are served already."""
    job, wished = module.params["job"], [export.Export(**each) for each in module.params["exports"]]
    served = export.current(job)
    if served and {(each.key, each.name, each.size) for each in served} != {
        (each.key, each.name, each.size) for each in wished
    }:
        raise Refused(f"job {job} serves other exports already; end them first with state=absent")
    if served:
        return {"changed": False, "exports": [asdict(each) for each in served]}
    if module.check_mode:
        predicted = [{"key": each.key, "name": each.name, "size": each.size, "port": each.port} for each in wished]
        return {"changed": True, "exports": predicted}
    leases = Leases()
    with leases.renewed(job):
        served = export.start(job, wished, module.params["connections"], leases)
    return {"changed": True, "exports": [asdict(each) for each in served]}


def absent(module: AnsibleModule) -> dict:
    """Stop the exports of the job."""
    job = module.params["job"]
    if module.check_mode:
        return {"changed": bool(export.known(job)), "ended": []}
    leases = Leases()
    with leases.renewed(job):  # the last flush of a large image may take its time
        ended = export.stop(job, leases)
    if dead := [each for each in ended if each.death]:
        told = "; ".join(f"{each.unit} {each.death}" + (f" ({each.words})" if each.words else "") for each in dead)
        module.fail_json(
            msg=f"not every export ended cleanly, so its image cannot be trusted: {told}",
            ended=[asdict(each) for each in ended],
        )
    return {"changed": bool(ended), "ended": [asdict(each) for each in ended]}


def main() -> None:
    """Run the module."""
    one = {
        "key": {"type": "int", "required": True, "no_log": False},
        "image": {"type": "path", "required": True},
        "name": {"type": "str", "required": True},
        "size": {"type": "int", "required": True},
        "port": {"type": "int"},
    }
    module = AnsibleModule(
        argument_spec={
            "job": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "exports": {"type": "list", "elements": "dict", "options": one},
            "connections": {"type": "int", "default": 2},
        },
        required_if=[("state", "present", ["exports"])],
        supports_check_mode=True,
    )
    try:
        jobs.point_id(module.params["job"])
        module.exit_json(**(present if module.params["state"] == "present" else absent)(module))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))


if __name__ == "__main__":
    main()
