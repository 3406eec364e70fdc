#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Take and remove the snapshot of one backup job
version_added: 0.1.0
description:
  - Takes one snapshot of all disks of a VM, without memory, and gives it the name and the mark of a job.
  - Removes that snapshot again, and only that one. One that has the name but not the mark is refused.
  - Waits for vCenter to end its work, however long that takes.
  - Keeps the session with vCenter in C(/run/sendense/<job>/session) for the other modules of the job. Removing the snapshot ends it.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes
  - sendense.backup.attributes.actiongroup_vcenter
attributes:
  check_mode:
    support: full
    details:
      - A predicted snapshot has no moref and no change ids, and the files that the VM writes to now.
  diff_mode:
    support: full
options:
  job:
    description: Id of the job that owns the snapshot, as M(sendense.backup.vm_info) gives it.
    type: str
    required: true
  vm:
    description: Managed object reference of the VM, such as V(vm-62).
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot, unless the job has it already.
      - V(absent) removes it, and one that C(sendense-backup-client) took for the job and left (C(sbak-<job>)). A VM that is gone
        has none.
    type: str
    choices: [present, absent]
    default: present
  quiesce:
    description:
      - Whether the guest is asked to bring its file systems in order first, by VMware Tools.
      - V(require) fails when that does not succeed, V(prefer) then takes a plain snapshot and says why, V(off) does not ask.
      - A VM that is powered off has nothing to quiesce, and satisfies all three.
    type: str
    choices: [require, prefer, "off"]
    default: prefer
  independent:
    description:
      - What becomes of disks that take no part in snapshots, which are independent disks and physical raw device mappings.
      - V(fail) takes no snapshot of a VM that has some, V(skip) takes one of the others.
    type: str
    choices: [fail, skip]
    default: fail
  disks:
    description:
      - The disks as RV(sendense.backup.vm_info#module:vm.disks) told them, when something was made to fit them.
      - A snapshot that holds others, or others in size or place, is refused; one that was taken is removed again.
      - With O(state=absent) it is a failure if the VM has others afterwards, or others in size or place.
    type: list
    elements: dict
seealso:
  - module: sendense.backup.vm_info
  - module: sendense.backup.vm_snapshot_info
"""

EXAMPLES = r"""
- name: The snapshot is there
  sendense.backup.vm_snapshot:
    job: "{{ look.job }}"
    vm: "{{ look.vm.moref }}"
    disks: "{{ look.vm.disks }}"
    quiesce: prefer
  delegate_to: node1

- name: The snapshot is gone
  sendense.backup.vm_snapshot:
    job: "{{ look.job }}"
    vm: "{{ look.vm.moref }}"
    state: absent
  delegate_to: node1
"""

RETURN = r"""
snapshot:
  description: The snapshot of the job.
  returned: when O(state=present)
  type: dict
  contains:
    moref: {description: 'Its managed object reference, none when it is predicted.', type: str, sample: snapshot-101}
    name: {description: Its name., type: str, sample: sendense-pgtest1-5029f3ab-20261123T140102Z}
    created: {description: 'When vCenter took it, UTC, none when it is predicted.', type: str, sample: '2026-11-23T14:01:05Z'}
    quiesce_requested: {description: What O(quiesce) was when it was taken., type: str}
    quiesce_achieved: {description: 'Whether vCenter says that the guest was quiesced, none when it is predicted.', type: bool}
    quiesce_reason: {description: Why the guest was not quiesced although that was asked for., type: str}
    disks:
      description: The disks of the snapshot's own configuration, that is the files which stay as they are while it exists.
      type: list
      elements: dict
      contains:
        key: {description: The device key., type: int, sample: 2000}
        label: {description: Label., type: str, sample: Hard disk 1}
        capacity: {description: Size in bytes., type: int}
        path: {description: Datastore path of the frozen file., type: str, sample: '[datastore1] pgtest1/pgtest1.vmdk'}
        backing_uuid: {description: Identity of the disk behind the path., type: str}
        change_id: {description: 'Change id at the snapshot, none without change tracking.', type: str}
    skipped:
      description: The disks that take no part in it, each with C(key), C(label), C(capacity) and the C(reason).
      type: list
      elements: dict
vm:
  description:
    - The VM after the removal, as M(sendense.backup.vm_info) describes it, none when it is gone.
    - Also in check mode, where it is the VM as it is.
  returned: when O(state=absent)
  type: dict
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import Gone, Vm, describe
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import without_independent
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    Session,
    VCenter,
    of_job,
    session,
)


def look(opened: Session, params: dict[str, Any]) -> tuple[Vm, snapshot.Snapshot | None]:
    """Return the VM, without the disks that are to be skipped, and the snapshot of the job if it has one."""
    vm = describe(opened, params["vm"])
    has = snapshot.choose(vm["snapshots"], params["job"])
    before = snapshot.read(opened, params["vm"], params["job"]) if has else None
    return without_independent(vm) if params["independent"] == "skip" else vm, before


def present(opened: Session, params: dict[str, Any], *, predict: bool) -> dict[str, Any]:
    """Take the snapshot unless it is there."""
    job, quiesce, looked = params["job"], params["quiesce"], params["disks"]
    vm, before = look(opened, params)
    if looked is not None:
        snapshot.check_unchanged(looked, before.disks if before else vm["disks"])
    if before:
        after = snapshot.keep(before, quiesce)
    elif predict:
        after = snapshot.predict(vm, job, quiesce)
    else:
        after = snapshot.create(opened, vm, job, quiesce, looked)
    return {"changed": not before, "snapshot": asdict(after), "diff": diff(before, after)}


def absent(opened: Session, params: dict[str, Any], *, predict: bool) -> dict[str, Any]:
    """Remove the snapshot if it is there, and hold the disks afterwards against those that were looked at, if given."""
    job, moref = params["job"], params["vm"]
    try:
        before = snapshot.read(opened, moref, job)
        changed = bool(before) if predict else snapshot.remove(opened, moref, job)
        after = describe(opened, moref)
    except Gone:
        return {"changed": False, "vm": None, "diff": diff(None, None)}
    if params["disks"] is not None and not predict:
        snapshot.check_unchanged(params["disks"], after["disks"])
    return {"changed": changed, "vm": after, "diff": diff(before, None)}


def diff(*states: snapshot.Snapshot | None) -> dict[str, Any]:
    """Return the difference between two states, as Ansible shows it."""
    before, after = ({"snapshot": each.name, "disks": each.disks} if each else {} for each in states)
    return {"before": before, "after": after}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "job": {"type": "str", "required": True},
            "vm": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "quiesce": {"type": "str", "choices": ["require", "prefer", "off"], "default": "prefer"},
            "independent": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
            "disks": {"type": "list", "elements": "dict"},
        },
        supports_check_mode=True,
    )
    params, check = module.params, module.check_mode
    act = {"present": present, "absent": absent}[params["state"]]
    try:
        jobs.point_id(params["job"])  # refuses what is no job id
        vcenter = VCenter.of(params)
        own = session(vcenter) if check else of_job(vcenter, params["job"], last=params["state"] == "absent")
        with own as opened:
            result = act(opened, params, predict=check)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
