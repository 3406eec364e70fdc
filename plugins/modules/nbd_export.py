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
  - The ports of all exports are leased for the job at once, out of O(ports).
  - An export whose qemu-nbd has died fails the task; with O(anew) it is served again, and its disk has to be copied again.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.job
attributes:
  check_mode:
    support: full
    details: Predicts the exports without their ports, and does not wait for any.
  diff_mode:
    support: none
options:
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
        description: Name of the export, C(<job>-disk<N>).
        type: str
        required: true
      size:
        description: Size in bytes that the image must have.
        type: int
        required: true
      read_only:
        description: Whether it is only read, as an image of a published point is. What it stands on is then served with it.
        type: bool
        default: false
      port:
        description: Port to serve it on. Any free one when left out.
        type: int
  anew:
    description:
      - Whether an export that has died is served again, on the port that it had. What the dead qemu-nbd had not flushed is lost,
        however clean its image checks, so an empty image takes the place of that one. The other exports go on.
      - One that is C(read_only) is never made anew; that it has died fails the task.
    type: bool
    default: false
  connections:
    description: How many connections a copier may open to each export. Two more are allowed, for those who look.
    type: int
    default: 2
  ports:
    description:
      - First and last port on which exports may be served, both included. The hub's sshd lets nodes reach these and no
        others, and its firewall keeps other users of the hub away from them; so it is the range that roles C(hub) and
        C(tunnel) were given.
    type: str
    default: "10100-10200"
  timeout:
    description: Seconds to wait for ports that other jobs have leased. The task asks again by itself until then.
    type: int
    default: 0
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
  description:
    - What is served, each by the unit C(sendense-export-<job>-<key>). The port is null in check mode.
    - C(invocation) is systemd's id of this start of qemu-nbd. What an earlier one had taken and not flushed is lost.
  returned: when O(state=present)
  type: list
  elements: dict
  sample:
    - key: 2000
      name: pgtest1-5029f3ab-20261123T140102Z-disk0
      size: 21474836480
      port: 10100
      invocation: 8f3c2d1e0b5a4f6987a6b5c4d3e2f101
ended:
  description: How each export ended; C(death) is empty for a clean stop, C(words) is what qemu-nbd said last.
  returned: when O(state=absent)
  type: list
  elements: dict
busy:
  description: Whether it failed because other jobs have leased the ports, so that asking again later may help.
  returned: on failure
  type: bool
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import job_state
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import image
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import is_draft
from ansible_collections.sendense.backup.plugins.module_utils.transfer import export, ports


def present(module: AnsibleModule) -> dict:
    """Serve the exports, unless they are served already."""
    job, wished = module.params["job"], [export.Export(**each) for each in module.params["exports"]]
    died = export.dead(job) if module.params["anew"] else []
    again = [each for each in wished if each.key in died and not each.read_only]
    served = export.kept(job) if again else export.current(job)
    if served and {(each.key, each.name, each.size, each.read_only) for each in served} != {
        (each.key, each.name, each.size, each.read_only) for each in wished
    }:
        raise Refused(f"job {job} serves other exports already; end them first with state=absent")
    if served and not again:
        return {"changed": False, "exports": [asdict(each) for each in served]}
    among = ports.parse(module.params["ports"])
    if module.check_mode:
        export.check(job, wished, among)
        predicted = [{name: value for name, value in asdict(each).items() if name != "image"} for each in wished]
        return {"changed": True, "exports": [asdict(each) for each in served] or predicted}
    leases = Leases()
    with leases.renewed(job):
        many = module.params["connections"]
        served = (
            serve_anew(job, again, many, leases, among) if again else export.start(job, wished, many, leases, among)
        )
    return {"changed": True, "exports": [asdict(each) for each in served]}


def serve_anew(
    job: str, died: list[export.Export], connections: int, leases: Leases, among: range
) -> list[export.Served]:
    """Serve those that have died over images that are empty, and return all of the job."""
    for each in died:
        path = Path(each.image)
        if not is_draft(path, job):
            raise Refused(f"disk {each.key}: {path} is of no unfinished point of job {job}; it is not emptied")
        image.empty(path)
        export.again(job, each, connections, leases, among)
    return export.current(job)


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
        "read_only": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            **job_state.OPTIONS,
            "exports": {"type": "list", "elements": "dict", "options": one},
            "anew": {"type": "bool", "default": False},
            "connections": {"type": "int", "default": 2},
            "ports": {"type": "str", "default": ports.PORTS},
            "timeout": {"type": "int", "default": 0},  # of the action plugin, which asks again while the answer is busy
        },
        required_if=[("state", "present", ["exports"])],
        supports_check_mode=True,
    )
    job_state.run(module, present, absent)


if __name__ == "__main__":
    main()
