# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.refusals import refusals

VM = {
    "name": "pgtest1",
    "connection_state": "connected",
    "template": False,
    "encrypted": False,
    "fault_tolerant": False,
    "consolidation_needed": False,
    "datastores": [{"name": "datastore1", "type": "VMFS"}, {"name": "object store", "type": "vsan"}],
    "disks": [
        {
            "key": 2000,
            "label": "Hard disk 1",
            "path": "[datastore1] pgtest1/pgtest1.vmdk",
            "mode": "persistent",
            "kind": "flat",
            "sharing": "sharingNone",
            "has_parent": False,
            "controller_key": 1000,
        },
    ],
    "config": {"controllers": [{"key": 1000, "sharing": "noSharing"}]},
}
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


@pytest.mark.parametrize("transport", [None, "https", "vddk", "client"])
def test_a_plain_vm_is_not_refused(transport):
    assert refusals(VM, transport) == []


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        pytest.param({"connection_state": "inaccessible"}, "VM pgtest1 is inaccessible", id="unreadable"),
        pytest.param({"template": True}, "VM pgtest1 is a template", id="template"),
        pytest.param({"encrypted": True}, "VM pgtest1 is encrypted", id="encrypted"),
        pytest.param({"fault_tolerant": True}, "VM pgtest1 is fault tolerant", id="fault tolerant"),
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
        pytest.param({"path": "[object store] x/x.vmdk"}, DISK + "lies on a vsan datastore", id="vSAN"),
    ],
)
def test_what_https_cannot_read_is_refused_for_https_only(changes, begins):
    (sentence,) = refusals(changed(**changes), "https")
    assert sentence.startswith(begins)
    assert sentence.endswith("use transport vddk")
    assert refusals(changed(**changes), "vddk") == refusals(changed(**changes)) == []


def test_every_reason_is_told_at_once():
    vm = changed(template=True, mode="independent_persistent", bus="physicalSharing")
    assert len(refusals(vm)) == 3
