# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_verify
short_description: Prove that a restore point is intact, and that it boots
version_added: 0.1.0
description:
  - Holds a published restore point, and all that it stands on, against what was recorded when it was published. It reads and
    repairs nothing; damage is told by point, disk and range of bytes.
  - The result is kept beside the point, in the folder C(<point>.verified), one for each level, with the screenshot of a boot.
    M(sendense.backup.restore_point_info) shows it.
  - The task fails when the point is damaged or does not boot.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
    details: Finds the point and whether it is to be verified; reads none of its data, boots nothing and keeps no result.
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
    description: The restore point. The newest one when left out.
    type: str
  level:
    description:
      - What is proven. Each level includes those before it.
      - With V(metadata) that the manifest is what was written, that the chain is complete, and that all files are there in their size.
      - With V(image) that the headers of the images say what the manifest says, and that C(qemu-img check) finds nothing.
      - With V(data) that every byte of every file, and every 64 KiB of every disk, is what was backed up, read from the disk
        and not from the page cache.
      - With V(boot) that QEMU boots the VM, without any network, on overlays that are thrown away. A VM of which no disk has
        anything to boot from is not bootable, which is no failure.
    type: str
    choices: [metadata, image, data, boot]
    default: data
  max_age:
    description: Days for which a good result of that level, or of one beyond it, is enough. With V(0) the point is always verified.
    type: float
    default: 0
  boot_pattern:
    description:
      - Regular expression that the serial console has to match. Without it a guest agent that answers, or a screen that has come
        to rest and shows none of the sentences that a failing boot ends with, is taken for a guest that has booted.
    type: str
    default: ""
  boot_timeout:
    description: Seconds that a boot may take. Where KVM does not work QEMU emulates the processor, and is slow.
    type: int
    default: 600
  boot_settle:
    description: Seconds that the screen has to stay as it is.
    type: int
    default: 30
  boot_memory:
    description: MiB of memory that the VM gets at most.
    type: int
    default: 2048
  scratch:
    description: Folder for what a booted VM writes, on the hub.
    type: path
    default: /var/lib/sendense/boot
"""

EXAMPLES = r"""
- name: The newest point of a VM is intact
  sendense.backup.restore_point_verify:
    repository: /backup/repository
    vm: web1

- name: It boots, and was seen to within the last week
  sendense.backup.restore_point_verify:
    repository: /backup/repository
    vm: web1
    level: boot
    max_age: 7
    boot_pattern: "login:"
"""

RETURN = r"""
vm:
  description: Instance uuid of the VM.
  returned: success
  type: str
point:
  description: The point.
  returned: success
  type: str
result:
  description: What was found now, or the younger result for which nothing had to be done. Empty in check mode.
  returned: always when a point was found
  type: dict
  contains:
    level: {description: The level., type: str}
    date: {description: 'When it began, UTC.', type: str, sample: '2026-11-23T14:01:02Z'}
    ok: {description: Whether the point passed., type: bool}
    msg: {description: The same in a sentence or more., type: str}
    seconds: {description: How long it took., type: float}
    findings:
      description: Each damage with C(point), C(disk), C(file), C(what) and C(ranges), pairs of offset and length in bytes.
      type: list
      elements: dict
    boot:
      description:
        - What came of the boot, none at other levels or when the point is damaged. C(how) is V(pattern), V(agent) or V(screen),
          C(console) the last lines of the serial console and the screen, C(accelerator) V(kvm) or V(tcg), C(screenshot) its file.
      type: dict
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.repository import (
    boot,
    chain,
    choice,
    evidence,
    machine,
    verification,
)
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Repository, open_repository


def verify(module: AnsibleModule, repository: Repository, uuid: str, point: str) -> dict:
    """Verify the point, keep the result and return it."""
    params, date, began, screenshot = module.params, evidence.now(), time.monotonic(), b""
    findings = verification.verify(repository, uuid, point, params["level"])
    told, booted = [each.sentence for each in findings], None
    if params["level"] == "boot" and not findings:
        outcome = boots(module, repository, uuid, point)
        booted, screenshot = outcome.facts, outcome.screenshot
        booted["screenshot"] = str(evidence.folder(repository, uuid, point) / evidence.SCREENSHOT) if screenshot else ""
        if not outcome.ok and outcome.bootable:
            shown = " / ".join(outcome.console[-3:]) or "nothing"
            told = [
                f"restore point {point}: {outcome.why}; last on its console: {shown}; {booted['screenshot'] or 'no screenshot'}"
            ]
    good = words(params["level"], booted or {})
    result = {
        "level": params["level"], "date": date, "ok": not told, "msg": "; ".join(told) or good, "boot": booted,
        "findings": [each.facts for each in findings], "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    evidence.keep(repository, uuid, point, result, screenshot)
    return result


def boots(module: AnsibleModule, repository: Repository, uuid: str, point: str) -> boot.Outcome:
    """Boot the point, unless nothing in it can be booted."""
    params, said = module.params, chain.open_point(repository, uuid, point)
    layers = {disk["key"]: chain.layers(repository, uuid, point, disk["key"]) for disk in said["disks"]}
    unit = boot.unit_name(uuid, point)
    wanted = machine.of(said, layers, Path(params["scratch"]) / unit, params["boot_memory"])
    if not boot.bootable(layers, wanted.firmware):
        return boot.Outcome(bootable=False, why=f"not bootable: no disk has what {wanted.firmware} starts from")
    wish = boot.Wish(params["boot_pattern"], params["boot_settle"], params["boot_timeout"])
    return boot.prove(wanted, unit, wish)


def words(level: str, booted: dict) -> str:
    """Return a good result in words."""
    if booted and not booted["bootable"]:
        return f"data is intact; {booted['why']}"
    if booted:
        return f"data is intact; it booted within {booted['seconds']:.0f} s ({booted['how']}, {booted['accelerator']})"
    return f"{level} is intact"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "vm": {"type": "str", "required": True},
            "point": {"type": "str"},
            "level": {"type": "str", "choices": list(verification.LEVELS), "default": "data"},
            "max_age": {"type": "float", "default": 0},
            "boot_pattern": {"type": "str", "default": ""},
            "boot_timeout": {"type": "int", "default": 600},
            "boot_settle": {"type": "int", "default": 30},
            "boot_memory": {"type": "int", "default": 2048},
            "scratch": {"type": "path", "default": "/var/lib/sendense/boot"},
        },
        supports_check_mode=True,
    )
    try:
        boot.check(module.params["boot_pattern"])
        repository = open_repository(module.params["repository"])
        uuid = choice.find_vm(repository, module.params["vm"])
        point = verification.named(repository, uuid, module.params["point"])
        found = evidence.results(repository, uuid, point)
        done = evidence.fresh(found, module.params["level"], module.params["max_age"])
        result = done or ({} if module.check_mode else verify(module, repository, uuid, point))
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    if result and not result["ok"]:
        module.fail_json(msg=result["msg"], changed=True, vm=uuid, point=point, result=result)
    module.exit_json(changed=not done, vm=uuid, point=point, result=result)


if __name__ == "__main__":
    main()
