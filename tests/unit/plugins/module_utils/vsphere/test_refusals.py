# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import refusals, without_independent
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import Transport

VM = {
    "name": "pgtest1",
    "connection_state": "connected",
    "template": False,
    "encrypted": False,
    "fault_tolerant": False,
    "consolidation_needed": False,
    "cbt_enabled": True,
    "inventory_path": "/DC0/vm/prod/pgtest1",
    "snapshots": [],
    "vmx_path": "[datastore1] pgtest1/pgtest1.vmx",
    "datastores": [
        {"name": "datastore1", "type": "VMFS", "capacity": 100 << 30, "free": 50 << 30},
        {"name": "object store", "type": "vsan", "capacity": 100 << 30, "free": 50 << 30},
        {"name": "volumes", "type": "VVOL", "capacity": 100 << 30, "free": 50 << 30},
    ],
    "disks": [
        {
            "key": 2000,
            "label": "Hard disk 1",
            "capacity": 4096,
            "path": "[datastore1] pgtest1/pgtest1.vmdk",
            "mode": "persistent",
            "kind": "flat",
            "sharing": "sharingNone",
            "has_parent": False,
            "controller_key": 1000,
        },
    ],
    "skipped": [],
    "config": {"controllers": [{"key": 1000, "sharing": "noSharing"}]},
}
HTTPS = Transport("https", "it was asked for", "", "use transport vddk")
CLIENT = Transport("client", "it was asked for", "", "use transport vddk or https")
VDDK = Transport("vddk", "it was asked for")
DISK = "disk 2000 (Hard disk 1) of VM pgtest1 "


def changed(**changes):
    """Return the VM with these things changed, those of a disk in its only disk."""
    vm = copy.deepcopy(VM)
    for name, value in changes.items():
        if name == "bus":
            vm["config"]["controllers"][0]["sharing"] = value
        else:
            (vm["disks"][0] if name in VM["disks"][0] else vm)[name] = value
    return vm


@pytest.mark.parametrize("transport", [None, HTTPS, VDDK, CLIENT], ids=["any", "https", "vddk", "client"])
def test_a_plain_vm_is_not_refused(transport):
    assert refusals(VM, transport, 50) == []


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        pytest.param({"connection_state": "inaccessible"}, "VM pgtest1 is inaccessible", id="unreadable"),
        pytest.param({"template": True}, "VM pgtest1 is a template", id="template"),
        pytest.param({"encrypted": True}, "VM pgtest1 is encrypted", id="encrypted"),
        pytest.param({"fault_tolerant": True}, "VM pgtest1 is fault tolerant", id="fault tolerant"),
        pytest.param({"unfinished": "x"}, "VM pgtest1 is what a restore has not finished", id="half a restore"),
        pytest.param({"consolidation_needed": True}, "VM pgtest1 needs consolidation", id="consolidation needed"),
        pytest.param({"disks": []}, "VM pgtest1 has no disk", id="no disk"),
        pytest.param({"kind": "rdm_physical"}, DISK + "is a physical raw device mapping", id="physical RDM"),
        pytest.param({"mode": "independent_persistent"}, DISK + "has mode independent_persistent", id="independent"),
        pytest.param({"mode": "independent_nonpersistent"}, DISK + "has mode independent_nonpers", id="non-persistent"),
        pytest.param({"sharing": "sharingMultiWriter"}, DISK + "is shared with other VMs", id="multi-writer"),
        pytest.param({"bus": "physicalSharing"}, DISK + "hangs on a controller with bus sharing", id="physical bus"),
        pytest.param({"bus": "virtualSharing"}, DISK + "hangs on a controller with bus sharing", id="virtual bus"),
    ],
)
def test_what_no_snapshot_can_hold_is_refused_with_one_sentence(changes, begins):
    (sentence,) = refusals(changed(**changes))
    assert sentence.startswith(begins)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        pytest.param({"has_parent": True}, DISK + "stands on a snapshot", id="delta"),
        pytest.param({"has_parent": True, "kind": "sesparse"}, DISK + "stands on a snapshot", id="sesparse delta"),
        pytest.param({"kind": "rdm_virtual"}, DISK + "is no flat file (rdm_virtual)", id="virtual RDM"),
        pytest.param({"kind": "sesparse"}, DISK + "is no flat file (sesparse)", id="sesparse"),
        pytest.param({"kind": "other"}, DISK + "is no flat file (other)", id="a kind that nobody knows"),
        pytest.param({"path": "[object store] x/x.vmdk"}, DISK + "lies on a vsan datastore", id="vSAN"),
        pytest.param({"path": "[volumes] x/x.vmdk"}, DISK + "lies on a vvol datastore", id="vVol"),
    ],
)
def test_what_https_cannot_read_is_refused_for_https_only(changes, begins):
    (sentence,) = refusals(changed(**changes), HTTPS)
    assert sentence.startswith(begins)
    assert sentence.endswith("use transport vddk")
    assert (
        refusals(changed(**changes), VDDK) == refusals(changed(**changes)) == refusals(changed(**changes), CLIENT) == []
    )


@pytest.mark.parametrize("transport", [HTTPS, VDDK, CLIENT], ids=["https", "vddk", "client"])
@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        pytest.param({"encrypted": True}, "by whichever transport: back it up from within the guest", id="encrypted"),
        pytest.param({"kind": "rdm_physical"}, "back it up from within the guest", id="physical RDM"),
    ],
)
def test_what_no_transport_reads_is_sent_to_none(changes, remedy, transport):
    sentence = refusals(changed(**changes), transport)[0]
    assert remedy in sentence
    assert "use transport" not in sentence


SBAK = [{"name": "by hand"}, {"name": "sbak-backup-pgtest1-1759901526"}]
SKIPPED = [{"key": 2001, "label": "Hard disk 2", "capacity": 4096, "reason": "has mode independent_persistent"}]


@pytest.mark.parametrize(
    ("changes", "wishes", "begins"),
    [
        pytest.param({"skipped": SKIPPED}, {}, "has disks that are to be left out, and", id="a disk is left out"),
        pytest.param(
            {"snapshots": SBAK}, {}, "has snapshots named sbak-…, which", id="a snapshot that it would delete"
        ),
        pytest.param({"inventory_path": "/DC0/vm/web [old]"}, {}, "stands at /DC0/vm/web [old], which", id="a pattern"),
        pytest.param({"cbt_enabled": False}, {}, "has change tracking off, and", id="it would change the VM"),
        pytest.param({}, {"quiesce": "require"}, "is to be brought to rest, and", id="rest is required"),
    ],
)
def test_what_a_client_would_do_wrong_is_refused_for_it_only(changes, wishes, begins):
    (sentence,) = refusals(changed(**changes), CLIENT, **wishes)
    assert sentence.startswith(f"VM pgtest1 {begins}")
    assert sentence.endswith("use transport vddk or https")
    assert "transport client" in sentence
    assert refusals(changed(**changes), VDDK, **wishes) == []


def test_a_client_may_turn_change_tracking_on_where_that_is_wished():
    assert refusals(changed(cbt_enabled=False), CLIENT, cbt="enable") == []


def test_every_reason_is_told_at_once():
    vm = changed(template=True, mode="independent_persistent", bus="physicalSharing")
    assert len(refusals(vm)) == 3


def test_a_remedy_is_one_that_this_node_has():
    without = Transport("https", "no VDDK", "", "use transport vddk, which needs more than is here: no VDDK")
    (sentence,) = refusals(changed(has_parent=True), without)
    assert sentence.endswith("remove the VM's snapshots, or use transport vddk, which needs more than is here: no VDDK")


def test_what_the_node_lacks_is_refused():
    assert refusals(VM, Transport("vddk", "it was asked for", "no VDDK is here")) == [
        "transport vddk cannot be used: no VDDK is here"
    ]


def with_two(**changes):
    """Return the VM with a second disk that is changed so."""
    return {**VM, "disks": [*VM["disks"], {**VM["disks"][0], "key": 2001, "label": "Hard disk 2", **changes}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"mode": "independent_persistent"}, "has mode independent_persistent", id="independent"),
        pytest.param({"kind": "rdm_physical"}, "is a physical raw device mapping", id="physical RDM"),
    ],
)
def test_a_disk_outside_of_snapshots_is_refused_or_left_out(changes, reason):
    (sentence,) = refusals(with_two(**changes))
    assert sentence.startswith(f"disk 2001 (Hard disk 2) of VM pgtest1 {reason}")
    assert sentence.endswith("or leave such disks out (independent: skip)")
    left = without_independent(with_two(**changes))
    assert refusals(left) == []
    assert left["disks"] == VM["disks"]
    (skipped,) = left["skipped"]
    assert skipped.pop("reason").startswith(reason)
    assert skipped == {"key": 2001, "label": "Hard disk 2", "capacity": 4096}


def test_a_vm_of_which_nothing_is_left_is_refused():
    assert refusals(without_independent(changed(mode="independent_persistent"))) == [
        "VM pgtest1 has no disk left to back up: none of its disks takes part in snapshots"
    ]


def stores(**values):
    return {**VM, "datastores": [{**VM["datastores"][0], **values}, *VM["datastores"][1:]]}


def test_a_datastore_below_its_minimum_is_refused():
    (sentence,) = refusals(stores(free=9 << 30), None, 10)
    assert sentence == (
        "datastore datastore1 of VM pgtest1 has 9.0 GiB free of 100.0 GiB, and datastore_min_free wants 10 %, "
        "which is 10.0 GiB: make room, because its snapshot grows there"
    )
    assert refusals(stores(free=9 << 30), None, 9) == []


@pytest.mark.parametrize(
    "vm",
    [
        pytest.param(stores(free=None), id="free space unknown"),
        pytest.param(stores(capacity=None, free=0), id="size unknown"),
        pytest.param(stores(capacity=0, free=0), id="nothing at all"),
        pytest.param(
            {**VM, "datastores": [*VM["datastores"], {"name": "iso", "type": "NFS", "capacity": 9, "free": 0}]},
            id="another datastore, with the disc in the drive",
        ),
    ],
)
def test_what_says_nothing_of_the_snapshots_room_refuses_nothing(vm):
    assert refusals(vm, None, 10) == []
