#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
short_description: Describe one VMware VM as a backup needs it
version_added: 0.1.0
description:
  - Finds one VM by moref, instance uuid, inventory path or name, and returns its identity, disks, snapshots and place.
  - A name that several VMs bear is an error that lists them. So is a VM that is not there.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.vcenter
  - sendense.backup.attributes.info_module
  - sendense.backup.attributes.actiongroup_vcenter
options:
  moref:
    description:
      - Managed object reference of the VM, such as V(vm-62). Inventories name it C(moid).
      - Exactly one of O(moref), O(uuid), O(path) and O(name) is given.
    type: str
  uuid:
    description: Instance uuid of the VM (not its BIOS uuid).
    type: str
  path:
    description:
      - Inventory path of the VM, from the datacenter or its folder on, such as V(/DC0/vm/prod/pgtest1).
      - A slash within a name is written V(%2f), as vCenter does.
    type: str
  name:
    description:
      - Name of the VM, spelt as people or as vCenter do (V(a/b) or V(a%2fb)), upper and lower case told apart.
    type: str
  transport:
    description:
      - How its disks are going to be read, by the host that runs this module. RV(refusals) says also what it lacks for this
        transport, and what cannot be read by it.
      - V(auto) is V(vddk) where this host has nbdkit's plugin and a library that loads, else V(https). It never is V(client),
        the program C(sendense-backup-client), whose password stands in a command line and whose copy cannot be proven.
    type: str
    choices: [auto, vddk, https, client]
    default: auto
  quiesce:
    description: Whether the guest is going to be brought to rest, as M(sendense.backup.vm_snapshot) takes it. O(transport=client) cannot promise it.
    type: str
    choices: [require, prefer, "off"]
    default: prefer
  cbt:
    description: Whether change tracking may be turned on. O(transport=client) does that by itself, so with V(leave) a VM without it is refused.
    type: str
    choices: [enable, leave]
    default: leave
  independent:
    description:
      - What becomes of disks that take no part in snapshots, which are independent disks and physical raw device mappings.
      - V(fail) refuses a VM that has some, V(skip) leaves them out of RV(vm.disks) and tells them in RV(vm.skipped).
        A VM that has nothing else is refused.
    type: str
    choices: [fail, skip]
    default: fail
  datastore_min_free:
    description:
      - Percent of each datastore with disks of the VM, or its configuration, that must be free, because its snapshot grows there.
      - A datastore whose size or free space vCenter does not know is not judged.
    type: int
    default: 10
  dead:
    description:
      - Jobs whose snapshots are going to be removed before the backup. The VM is described without these snapshots, and its
        disks, when it has no other ones, without parents; their paths stay those of now.
    type: list
    elements: str
    default: []
seealso:
  - module: sendense.backup.vm_snapshot
"""

EXAMPLES = r"""
- name: The VM is looked at
  sendense.backup.vm_info:
    name: pgtest1
    vcenter_hostname: vcenter.example.com
    vcenter_username: backup@vsphere.local
    vcenter_password: "{{ vault_vcenter_password }}"
    vcenter_ca_file: /etc/sendense/vcenter-ca.pem
  delegate_to: node1
  register: look

- name: It can be backed up
  ansible.builtin.assert:
    that: look.refusals | length == 0
    fail_msg: "{{ look.refusals | join('; ') }}"
"""

RETURN = r"""
vm:
  description: The VM. Sizes are bytes, names are spelt as people do unless said otherwise.
  returned: success
  type: dict
  contains:
    name: {description: Its name., type: str, sample: pgtest1}
    moref: {description: Its managed object reference., type: str, sample: vm-62}
    instance_uuid: {description: What identifies it within this vCenter., type: str, sample: 5029f3ab-0a1b-4c2d-8e3f-5a6b7c8d9e0f}
    bios_uuid: {description: The uuid that its guest sees., type: str}
    inventory_path: {description: 'Where it stands, names as vCenter spells them.', type: str, sample: /DC0/vm/prod/pgtest1}
    datacenter: {description: Inventory path of its datacenter without a leading slash., type: str, sample: DC0}
    vcenter:
      description: The vCenter that was asked.
      type: dict
      contains:
        hostname: {description: Its name as given., type: str}
        instance_uuid: {description: 'Its identity, none for an ESXi host.', type: str}
        version: {description: Its version., type: str, sample: 8.0.3}
    power_state: {description: 'V(poweredOn), V(poweredOff) or V(suspended).', type: str}
    connection_state: {description: 'V(connected), or what keeps vCenter from it.', type: str}
    template: {description: Whether it is a template., type: bool}
    encrypted: {description: Whether it or one of its disks is encrypted., type: bool}
    fault_tolerant: {description: Whether Fault Tolerance is set up., type: bool}
    cbt_enabled: {description: Whether changed block tracking is on., type: bool}
    consolidation_needed: {description: Whether vCenter says that its disks need consolidation., type: bool}
    unfinished: {description: What a restore that has not finished says of itself; empty otherwise., type: str}
    host:
      description: The ESXi host it runs on.
      type: dict
      sample: {moref: host-21, name: esx1.example.com}
    vmx_path: {description: Datastore path of its configuration file., type: str, sample: '[datastore1] pgtest1/pgtest1.vmx'}
    snapshots:
      description: All its snapshots, siblings included, roots first.
      type: list
      elements: dict
      contains:
        moref: {description: Managed object reference., type: str}
        name: {description: Name., type: str}
        description: {description: Description., type: str}
        created: {description: 'When it was taken, UTC.', type: str, sample: '2026-11-23T14:01:02Z'}
        quiesced: {description: Whether vCenter says that the guest was quiesced for it., type: bool}
        depth: {description: 'Its level in the tree, 1 for a root.', type: int}
    datastores:
      description: The datastores that it uses.
      type: list
      elements: dict
      contains:
        name: {description: Name., type: str}
        moref: {description: Managed object reference., type: str}
        type: {description: 'Kind of file system, such as V(VMFS), V(NFS), V(vsan) or V(VVOL).', type: str}
        capacity: {description: Size., type: int}
        free: {description: Free space as vCenter last saw it., type: int}
    disks:
      description: Its disks in order of their key.
      type: list
      elements: dict
      contains:
        key: {description: The device key., type: int, sample: 2000}
        label: {description: Label., type: str, sample: Hard disk 1}
        capacity: {description: Size., type: int}
        path: {description: Datastore path of the file that takes writes now., type: str, sample: '[datastore1] pgtest1/pgtest1.vmdk'}
        backing_uuid: {description: Identity of the disk behind the path., type: str}
        mode: {description: 'Disk mode, such as V(persistent).', type: str}
        controller_key: {description: Key of its controller., type: int}
        unit_number: {description: Its number on the controller., type: int}
        thin: {description: Whether it is thin provisioned., type: bool}
        change_id: {description: 'Change id of now, none without change tracking.', type: str}
        kind: {description: 'V(flat), V(sesparse), V(rdm_physical), V(rdm_virtual) or V(other).', type: str}
        sharing: {description: 'V(sharingNone) or V(sharingMultiWriter).', type: str}
        has_parent: {description: 'Whether it stands on another file, as under a snapshot.', type: bool}
        allocated: {description: 'What its files take on the datastore, none when vCenter does not say.', type: int}
    skipped:
      description: The disks that O(independent=skip) left out.
      type: list
      elements: dict
      contains:
        key: {description: The device key., type: int, sample: 2001}
        label: {description: Label., type: str, sample: Hard disk 2}
        capacity: {description: Size., type: int}
        reason: {description: Why., type: str, sample: 'has mode independent_persistent, so it takes no part in snapshots'}
    config:
      description: What it takes to make such a VM again.
      type: dict
      contains:
        guest_id: {description: Guest operating system identifier., type: str}
        version: {description: Hardware version., type: str, sample: vmx-19}
        firmware: {description: 'V(bios) or V(efi).', type: str}
        secure_boot: {description: Whether EFI secure boot is on., type: bool}
        cpus: {description: Number of virtual CPUs., type: int}
        cores_per_socket: {description: Cores of each socket., type: int}
        memory_mib: {description: Memory in MiB., type: int}
        controllers:
          description: Controllers that disks can hang on.
          type: list
          elements: dict
          sample: [{key: 1000, type: ParaVirtualSCSIController, bus_number: 0, sharing: noSharing}]
        nics:
          description: Network cards.
          type: list
          elements: dict
          sample: [{key: 4000, type: VirtualVmxnet3, network: VM Network, mac_address: '00:50:56:01:02:03'}]
job:
  description: The id that a backup of this VM carries when it starts now.
  returned: success
  type: str
  sample: pgtest1-5029f3ab-20261123T140102Z
transport:
  description: How the disks of this VM are going to be read.
  returned: success
  type: dict
  contains:
    name: {description: 'V(vddk), V(https) or V(client).', type: str, sample: vddk}
    reason: {description: Why this one., type: str, sample: VDDK 8.0.2 is installed on the node}
refusals:
  description: One sentence for each thing that forbids a backup of this VM. Empty when nothing does.
  returned: success
  type: list
  elements: str
  sample: ["VM gold is a template: convert it to a VM, or leave it out"]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import describe, find
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import refusals, without_independent
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    VCenter,
    session,
)
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import choose

WAYS = ["moref", "uuid", "path", "name"]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            "moref": {"type": "str"},
            "uuid": {"type": "str"},
            "path": {"type": "str"},
            "name": {"type": "str"},
            "transport": {"type": "str", "choices": ["auto", "vddk", "https", "client"], "default": "auto"},
            "quiesce": {"type": "str", "choices": ["require", "prefer", "off"], "default": "prefer"},
            "cbt": {"type": "str", "choices": ["enable", "leave"], "default": "leave"},
            "independent": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
            "datastore_min_free": {"type": "int", "default": 10},
            "dead": {"type": "list", "elements": "str", "default": []},
        },
        mutually_exclusive=[WAYS],
        required_one_of=[WAYS],
        supports_check_mode=True,
    )
    params = module.params
    try:
        with session(VCenter.of(params)) as vcenter:
            vm = snapshot.without(
                describe(vcenter, find(vcenter, **{way: params[way] for way in WAYS})), params["dead"]
            )
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    if params["independent"] == "skip":
        vm = without_independent(vm)
    transport = choose(params["transport"], reader.versions)
    module.exit_json(
        changed=False,
        vm=vm,
        job=jobs.job_id(vm["name"], vm["instance_uuid"]),
        transport={"name": transport.name, "reason": transport.reason},
        refusals=refusals(vm, transport, params["datastore_min_free"], quiesce=params["quiesce"], cbt=params["cbt"]),
    )


if __name__ == "__main__":
    main()
