# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_run
short_description: Run a restore point at once, on the hub
version_added: 0.1.0
description:
  - Boots the VM of a restore point with QEMU, on overlays that are thrown away when it is ended. The point stays as it is.
  - It has no network. Its screen (VNC) and its serial console are unix sockets on the hub, which only root and the service user
    may open.
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
    description: The VM, by its instance uuid, its inventory path or its name.
    type: str
    required: true
  point:
    description: The restore point. With O(state=present) the newest one when left out, with O(state=absent) all that run of the VM.
    type: str
  state:
    description:
      - With V(present) it runs.
      - With V(absent) it does not, and what it wrote is gone.
    type: str
    choices: [present, absent]
    default: present
  memory:
    description: MiB of memory that the VM gets at most.
    type: int
    default: 4096
  scratch:
    description: Folder for what the VM writes, on the hub. It needs room for that.
    type: path
    default: /var/lib/sendense/boot
"""

EXAMPLES = r"""
- name: The newest point of the VM runs
  sendense.backup.restore_point_run:
    repository: /backup/repository
    vm: web1
  register: running

- name: It does not run any more
  sendense.backup.restore_point_run:
    repository: /backup/repository
    vm: web1
    state: absent
"""

RETURN = r"""
units:
  description: The units, C(sendense-run-<point>-<instance uuid>), that run, or ran until now.
  returned: success
  type: list
  elements: str
vnc:
  description: Socket of its screen. C(ssh -L 5900:<socket> hub) brings it to a VNC viewer.
  returned: when O(state=present)
  type: str
  sample: /var/lib/sendense/boot/sendense-run-20261123T140102Z-5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b/vnc
serial:
  description: Socket of its serial console. C(socat -,raw,echo=0 UNIX-CONNECT:<socket>) talks to it.
  returned: when O(state=present)
  type: str
accelerator:
  description: V(kvm), or V(tcg) where KVM does not work. Empty in check mode, and when it ran already.
  returned: when O(state=present)
  type: str
substituted:
  description: Disks that hang on another controller than in vSphere.
  returned: when O(state=present)
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.repository import (
    boot,
    chain,
    choice,
    machine,
    verification,
)
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository, open_repository


def present(module: AnsibleModule, repository: Repository, uuid: str) -> dict:
    """Have the point run."""
    params = module.params
    point = verification.named(repository, uuid, params["point"])
    said = chain.open_point(repository, uuid, point)
    layers = {disk["key"]: chain.layers(repository, uuid, point, disk["key"]) for disk in said["disks"]}
    unit = boot.unit_name(uuid, point, boot.RUN)
    wanted = machine.of(said, layers, Path(params["scratch"]) / unit, params["memory"])
    changed, way = not boot.runs(unit), ""
    if changed and not module.check_mode:
        way = boot.run(wanted, unit)
    return {
        "changed": changed, "units": [unit], "vnc": f"{wanted.folder}/vnc", "serial": f"{wanted.folder}/serial.sock",
        "accelerator": way, "substituted": machine.substituted(wanted),
    }  # fmt: skip


def absent(module: AnsibleModule, repository: Repository, uuid: str) -> dict:
    """Have the point, or all of the VM, not run."""
    scratch = Path(module.params["scratch"])
    found = boot.running(scratch, uuid, module.params["point"])
    if not module.check_mode:
        for unit in found:
            boot.end(scratch / unit, unit)
    return {"changed": bool(found), "units": found}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "vm": {"type": "str", "required": True},
            "point": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "memory": {"type": "int", "default": 4096},
            "scratch": {"type": "path", "default": "/var/lib/sendense/boot"},
        },
        supports_check_mode=True,
    )
    try:
        repository = open_repository(module.params["repository"])
        uuid = choice.find_vm(repository, module.params["vm"])
        result = (present if module.params["state"] == "present" else absent)(module, repository, uuid)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
