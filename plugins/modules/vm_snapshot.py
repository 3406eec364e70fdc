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
      - V(absent) removes it. A VM that is gone has none.
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
seealso:
  - module: sendense.backup.vm_info
"""

EXAMPLES = r"""
- name: The snapshot is there
  sendense.backup.vm_snapshot:
    job: "{{ look.job }}"
    vm: "{{ look.vm.moref }}"
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
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import describe, exists
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    VCenter,
    end_session,
    session,
)


def present(vcenter: VCenter, job: str, vm: str, quiesce: str) -> dict[str, Any]:
    """Take the snapshot unless it is there. The session stays for the job's other modules, but not after a failure."""
    folder = jobs.make_folder(job)
    try:
        with session(vcenter, folder) as opened:
            before = snapshot.read(opened, vm, job)
            after = (
                snapshot.keep(before, quiesce)
                if before
                else snapshot.create(opened, describe(opened, vm), job, quiesce)
            )
    except SendenseError:
        leave(vcenter, job)
        raise
    return {"changed": not before, "snapshot": asdict(after), "diff": diff(before, after)}


def absent(vcenter: VCenter, job: str, vm: str) -> dict[str, Any]:
    """Remove the snapshot if it is there, and end the job's session in any case."""
    try:
        with session(vcenter, jobs.make_folder(job)) as opened:
            if not exists(opened, vm):
                return {"changed": False, "vm": None, "diff": diff(None, None)}
            before = snapshot.read(opened, vm, job)
            changed = snapshot.remove(opened, vm, job)
            after = describe(opened, vm)
    finally:
        leave(vcenter, job)
    return {"changed": changed, "vm": after, "diff": diff(before, None)}


def predicted(vcenter: VCenter, job: str, vm: str, state: str, quiesce: str) -> dict[str, Any]:
    """Return what a run would change, under a session of its own that leaves nothing behind."""
    with session(vcenter) as opened:
        if state == "absent" and not exists(opened, vm):
            return {"changed": False, "vm": None, "diff": diff(None, None)}
        before, now = snapshot.read(opened, vm, job), describe(opened, vm)
    if state == "absent":
        return {"changed": bool(before), "vm": now, "diff": diff(before, None)}
    after = snapshot.keep(before, quiesce) if before else snapshot.predict(now, job, quiesce)
    return {"changed": not before, "snapshot": asdict(after), "diff": diff(before, after)}


def leave(vcenter: VCenter, job: str) -> None:
    """End the job's session, and remove the job's folder when nothing else is in it."""
    end_session(vcenter, jobs.folder(job))
    jobs.leave_folder(job)


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
        },
        supports_check_mode=True,
    )
    job, vm, state, quiesce = (module.params[name] for name in ("job", "vm", "state", "quiesce"))
    try:
        jobs.point_id(job)  # refuses what is no job id
        vcenter = VCenter.of(module.params)
        if module.check_mode:
            result = predicted(vcenter, job, vm, state, quiesce)
        else:
            result = present(vcenter, job, vm, quiesce) if state == "present" else absent(vcenter, job, vm)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
