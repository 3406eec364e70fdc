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
    controller; running the task again follows the copy instead of starting another one. A copy that has failed or was
    killed is started again, and goes on from its journal.
  - The journal is of one start of each export and of one snapshot. For another one the disk is copied from its beginning.
  - A source that fails in mid-copy is opened anew after a pause. When vCenter has ended the session, the task logs in again;
    the copy waits a quarter of an hour for that, for no password for vCenter lies on the node with O(transport=https).
  - Anybody on the node can read how far the copy is in C(/run/sendense/progress/<job>.json).
  - Only what vCenter calls allocated is read when change tracking is on; otherwise the source is asked for its holes, which
    O(transport=vddk) knows, and the whole disk is read where it knows none. What is left out is sampled, and everything is
    read if there is data in it. Only what is not zero is written, so the exports must be of fresh images.
  - What the source delivers is digested on the way, before it is written. A bit that flips after that, in the memory of the
    node, in the tunnel or on the hub, shows when the image is read again and fails the disk
    (M(sendense.backup.restore_point)).
  - With O(transport=client) none of that is so. The program C(sendense-backup-client) takes a snapshot of its own, named
    C(sbak-<job>), copies every disk of the VM and removes it; it goes on from nowhere, and it tells no digests. Its exit code is
    not believed. It must have logged no error, and there must be data in every export whose disk takes room on the datastore.
    What it says is in C(/var/log/sendense/backup-<job>.log).
  - What no copier can see is what the source itself delivers wrongly, be it the datastore, the ESXi host, VMware's library
    or nbdkit, and what flips in the memory of the node before it is digested. Only a restore that is tried out tells.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.job
  - sendense.backup.vcenter
attributes:
  check_mode:
    support: full
    details: Predicts that the disks would be copied; no byte is read.
  diff_mode:
    support: none
options:
  state:
    description:
      - With V(present) the copy is started when it was not, and followed until it ends.
      - With V(absent) it is stopped, and what it keeps on the node is removed.
    type: str
    choices: [present, absent]
    default: present
  transport:
    description:
      - How the node reads. V(https) reads the datastore over HTTPS with nbdkit's curl plugin, which serves disks that are one
        flat file. V(vddk) reads any disk from the ESXi host, with nbdkit's vddk plugin and VMware's library, which must be in
        C(/opt/sendense/vddk/current) and is not part of this collection.
      - V(client) lets the program C(sendense-backup-client) do all of it, which dials the exports by TCP.
      - That program takes the password of vCenter in its command line and in no other way. While it runs, every user of the
        node can read it there, unless C(/proc) is mounted with C(hidepid). It verifies no certificate, either; this module does,
        before it starts the program.
    type: str
    choices: [https, vddk, client]
    default: https
  vm:
    description: Managed object id of the VM. Required with O(state=present), but with O(follow).
    type: str
  snapshot:
    description: >-
      Managed object id of the snapshot. Required with O(state=present), but with O(follow), but for check mode, and but with
      O(transport=client).
    type: str
  datacenter:
    description: Inventory path of the VM's datacenter. Required with O(state=present), but with O(follow); only O(transport=https) needs it known.
    type: str
  disks:
    description: The disks to copy. Required with O(state=present), but with O(follow).
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
        description: Path of the frozen disk in the datastore, C([datastore] folder/disk.vmdk), as the snapshot's own
          configuration says.
        type: str
        required: true
      target:
        description: NBD URI of the export that takes the data.
        type: str
        required: true
      also:
        description: Further NBD URIs of the same export. They are used when its server lets several connections write at once.
        type: list
        elements: str
        default: []
      invocation:
        description:
          - Which start of the export that is, as M(sendense.backup.nbd_export) tells it. Without it nothing is resumed.
        type: str
        default: ""
  rate:
    description: Bytes per second that all disks together read at most. With V(0) there is no limit.
    type: int
    default: 0
  digest:
    description:
      - By what the 64 KiB cells of the disks are digested. The manifest says it, and whoever verifies or restores goes by that.
      - V(sha256) is the fastest one on processors with instructions for it, which most have; V(blake2b) or V(sha512) where not.
      - A copy that goes on with another one than it began with begins anew.
    type: str
    choices: [sha256, sha512, sha3_256, blake2b]
    default: sha256
  follow:
    description:
      - Only follow a copy that was started; one that is not there or has failed is a failure. Options that say what is copied
        are not needed then, and O(keep) replaces what was kept. In check mode it is looked at once.
    type: bool
    default: false
  quiesce:
    description: Whether O(transport=client) asks for a snapshot with the guest brought to rest. It does not tell whether it got it.
    type: bool
    default: true
  stall:
    description:
      - Seconds without anything read or written after which a disk fails.
      - With O(transport=client) these are seconds without a word of it and without anything new in an export, while vCenter
        takes or removes no snapshot of the VM.
    type: int
    default: 300
  keep:
    description: What is kept with the copy and returned as RV(kept), for a run that takes over from this one.
    type: dict
  wait:
    description: Seconds to follow the copy within one call. The task calls again by itself until the copy has ended.
    type: int
    default: 10
  patience:
    description: Seconds after which the task ends although the copy runs, so that something else can be done meanwhile.
      With V(0) it ends with the copy.
    type: int
    default: 0
  reconnect:
    description: Seconds that the task asks again when the host does not answer, because it may be booting; then the task fails.
    type: int
    default: 90
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
          was to be had, but for the holes that the V(source) told of, or the map was the V(client)'s own affair; C(seconds), and
          how many of them were spent waiting
          for the source, the target, both, the digests or the rate limit (C(waited_*));
          C(read) is what was read and is in its place, so it is not ahead of the export; C(fetched) is what the source gave, and
          how much an earlier start had copied is C(resumed); why what it had copied was not believed is
          C(anew); C(percent), C(rate) in bytes per second and the seconds that are left (C(eta), null while nobody knows);
          and C(tree), the Merkle C(root) over the 64 KiB cells by its C(algorithm), with the nodes of its C(sections).
        - With O(transport=client) C(allocated) is what the disk's files take on the datastore, C(read) and C(written) are what
          of the export holds data, and C(tree) is null.
      type: list
      elements: dict
      returned: always
resumable:
  description: Whether it failed for want of a way to the export, or was killed, so that it can go on.
  returned: on failure
  type: bool
tunnel:
  description: >-
    Once the copy is done, what the job's tunnel has moved since it was opened, in bytes C(sent) and C(received), and for how
    many seconds its busiest stream was C(busy). Empty where that is not known.
  returned: when O(state=present)
  type: dict
kept:
  description: What O(keep) gave when the copy was started.
  returned: when O(state=present)
  type: dict
tools:
  description: >-
    Versions of what reads, C(nbdkit), its C(plugin), with O(transport=vddk) VMware's C(library), and with O(transport=client) the
    C(client).
  returned: when O(state=present)
  type: dict
"""

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import job_state, jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import ALGORITHM, ALGORITHMS
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import client, copy_unit, tunnel
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import (
    HttpsSource,
    Source,
    VddkSource,
    versions,
)
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import cbt, datastore, lookup, snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    OPTIONS,
    Session,
    VCenter,
    session,
)

NEEDED = ("vm", "datacenter", "disks")
HTTPS_PORT = 443


def by_https(opened: Session, params: dict) -> Callable[[dict], Source]:
    """Return how disks are read over HTTPS, under the job's session."""
    cookie_file = copy_unit.keep(params["job"], "cookie", opened.cookie)
    return lambda disk: HttpsSource(
        url=datastore.flat_extent_url(opened, params["datacenter"], disk["path"], disk["capacity"]),
        cookie_file=cookie_file,
        ca_file=opened.vcenter.ca_file,
        validate_certs=opened.vcenter.validate_certs,
    )


def by_vddk(opened: Session, params: dict) -> Callable[[dict], Source]:
    """Return how disks are read by VMware's library, which logs in by itself at the vCenter that the session has proven."""
    vcenter, thumbprint = opened.vcenter, opened.thumbprint
    password_file = copy_unit.keep(params["job"], "password", vcenter.password)
    return lambda disk: VddkSource(
        server=vcenter.hostname,
        port=vcenter.port,
        user=vcenter.username,
        password_file=password_file,
        thumbprint=thumbprint,
        vm=params["vm"],
        snapshot=params["snapshot"],
        path=disk["path"],
    )


def identity(params: dict, disk: dict) -> str:
    """Return what the journal of a disk is of: this start of its export, and this snapshot; empty when nobody knows."""
    return f"{disk['invocation']} {params['snapshot']} {disk['path']}" if disk["invocation"] else ""


def find_disks(params: dict) -> list[Disk]:
    """Return the disks with where each is read and what of it holds data."""
    with session(VCenter.of(params), jobs.make_folder(params["job"])) as opened:
        source = (by_vddk if params["transport"] == "vddk" else by_https)(opened, params)
        return [
            Disk(
                key=disk["key"],
                capacity=disk["capacity"],
                source=source(disk),
                target=disk["target"],
                also=disk["also"],
                identity=identity(params, disk),
                algorithm=params["digest"],
                areas=cbt.allocated_areas(opened, params["vm"], params["snapshot"], disk["key"], disk["capacity"]),
            )
            for disk in params["disks"]
        ]


def start_client(params: dict) -> None:
    """Start the program that copies by itself, having looked at what it will find."""
    with session(VCenter.of(params), jobs.make_folder(params["job"])) as opened:
        vm, vcenter = lookup.describe(opened, params["vm"]), opened.vcenter
    allocated = {disk["key"]: disk["allocated"] for disk in vm["disks"]}
    wish = client.Wish(
        job=params["job"],
        endpoint=vcenter.hostname if vcenter.port == HTTPS_PORT else f"{vcenter.hostname}:{vcenter.port}",
        username=vcenter.username,
        password_file=copy_unit.keep(params["job"], "password", vcenter.password),
        path=vm["inventory_path"],
        quiesce=params["quiesce"],
        disks=[
            client.Disk(disk["key"], disk["capacity"], disk["target"], allocated.get(disk["key"]))
            for disk in params["disks"]
        ],
        stall=params["stall"],
    )
    copy_unit.start_client(wish, params["keep"] or {})


def renew(params: dict) -> None:
    """Log in to vCenter again and put the new cookie where the copy reads it."""
    with session(VCenter.of(params), jobs.make_folder(params["job"])) as opened:
        copy_unit.keep(params["job"], "cookie", opened.cookie)


def is_due(params: dict) -> bool:
    """Whether the copy is to be started: it was not, or has failed, or one of its exports was served anew since."""
    job = params["job"]
    if not copy_unit.COPY.started(job):
        return True
    if params["transport"] == "client":
        return False  # it is started once
    if copy_unit.COPY.status(job)["state"] == "failed":
        return True
    identities = {disk["key"]: identity(params, disk) for disk in params["disks"]}
    return all(identities.values()) and not copy_unit.is_of(job, identities, params["digest"])


def vcenter_at_work(params: dict) -> bool:
    """Whether vCenter is why nothing moves."""
    with session(VCenter.of(params), jobs.make_folder(params["job"])) as opened:
        return snapshot.at_work(opened, params["vm"] or copy_unit.kept(params["job"])["vm"]["moref"])


def present(module: AnsibleModule) -> dict:
    """Start the copy unless it runs or is done, follow it, and return the result."""
    params, job, check = module.params, module.params["job"], module.check_mode
    by_client = params["transport"] == "client"
    if not params["follow"] and (missing := [name for name in NEEDED if params[name] is None]):
        raise SendenseError(f"a copy is started by its options, and there is no {', '.join(missing)}")
    due = not params["follow"] and is_due(params)
    tools = {"tools": versions(params["transport"])}
    if check and not params["follow"]:
        return {"changed": due, "transfer": {"state": "predicted", "error": "", "disks": []}, "kept": {}, **tools}
    kept = copy_unit.kept(job).get("snapshot") or {}
    if not due and params["snapshot"] and kept.get("moref", params["snapshot"]) != params["snapshot"]:
        raise SendenseError(
            f"the copy of job {job} reads snapshot {kept['moref']}, which is not {params['snapshot']}: it went meanwhile, "
            "so what was read is not to be believed; run the backup again"
        )
    if due and by_client:
        start_client(params)
    elif due:
        copy_unit.COPY.halt(job)
        copy_unit.start(job, find_disks(params), params["rate"], stall=params["stall"], kept=params["keep"] or {})
    elif params["keep"] and not check:
        copy_unit.keep_with(job, params["keep"])
    status = copy_unit.COPY.status(job) if check else follow(params)
    moved = tunnel.traffic(job) if status["state"] == "done" else {}
    result = {"transfer": status, "kept": copy_unit.kept(job), "tunnel": moved, **tools}
    if status["state"] == "failed":
        module.fail_json(msg=status["error"], resumable=status["resumable"] and not by_client, **result)
    return {"changed": due, **result}


def follow(params: dict) -> dict:
    """Return the status after the wait, having logged in again if that was what the copy waited for."""
    job = params["job"]
    if not copy_unit.COPY.started(job):  # /run was emptied by a reboot
        safe = "run the backup again" if params["transport"] == "client" else "but what was copied is safe"
        lost = f"the node has lost the copy in a reboot, {safe}"
        return {"state": "failed", "error": lost, "resumable": True, "disks": []}
    status = copy_unit.COPY.follow(job, params["wait"])
    wants = copy_unit.wants(job) if status["state"] == "running" else ""
    try:
        if wants == "session":
            renew(params)
        elif wants == client.WORD and not vcenter_at_work(params):
            copy_unit.COPY.halt(job)
            return status | {"state": "failed", "error": client.stalled(job, params["stall"]), "resumable": False}
    except SendenseError as why:  # the copy waits, and the next look tries again
        status["waits"] = str(why)
    return status


def absent(module: AnsibleModule) -> dict:
    """Stop the copy and remove what it kept."""
    job = module.params["job"]
    if module.check_mode:
        return {"changed": copy_unit.COPY.present(job)}
    return {"changed": copy_unit.stop(job)}


def main() -> None:
    """Run the module."""
    disk = {
        "key": {"type": "int", "required": True, "no_log": False},
        "capacity": {"type": "int", "required": True},
        "path": {"type": "str", "required": True},
        "target": {"type": "str", "required": True},
        "also": {"type": "list", "elements": "str", "default": []},
        "invocation": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            **OPTIONS,
            **job_state.OPTIONS,
            "transport": {"type": "str", "choices": ["https", "vddk", "client"], "default": "https"},
            "vm": {"type": "str"},
            "snapshot": {"type": "str"},
            "datacenter": {"type": "str"},
            "disks": {"type": "list", "elements": "dict", "options": disk},
            "rate": {"type": "int", "default": 0},
            "digest": {"type": "str", "choices": list(ALGORITHMS), "default": ALGORITHM},
            "follow": {"type": "bool", "default": False},
            "quiesce": {"type": "bool", "default": True},
            "stall": {"type": "int", "default": 300},
            "keep": {"type": "dict"},
            "wait": {"type": "int", "default": 10},
            "patience": {"type": "int", "default": 0},  # this and the next are of the action plugin, which calls again
            "reconnect": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    job_state.run(module, present, absent)


if __name__ == "__main__":
    main()
