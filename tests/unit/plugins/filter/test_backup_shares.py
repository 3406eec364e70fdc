# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.backup_shares import FilterModule, backup_shares

VM = {
    "host": {"moref": "host-12", "name": "esx1.example.com"},
    "datastores": [{"moref": "datastore-14"}, {"moref": "datastore-15"}],
    "disks": [{"key": 2000}, {"key": 2001}, {"key": 16000}],
}


@pytest.mark.parametrize(
    ("vm", "limits", "shares"),
    [
        pytest.param(
            VM,
            {"disks": 24, "snapshots": 8},
            [("disks-host-12", 3, 24), ("snapshots-datastore-14", 1, 8), ("snapshots-datastore-15", 1, 8)],
            id="while the disks are read",
        ),
        pytest.param(
            VM,
            {"removals": "2"},
            [("removals-datastore-14", 1, 2), ("removals-datastore-15", 1, 2)],
            id="while the snapshot goes, the limit being a string as surveys give it",
        ),
        pytest.param(VM | {"host": None}, {"disks": 24}, [], id="a VM that no host holds"),
    ],
)
def test_a_vm_shares_what_it_stands_on(vm, limits, shares):
    assert [(each["thing"], each["amount"], each["limit"]) for each in backup_shares(vm, **limits)] == shares


def test_roles_use_this_name():
    assert FilterModule().filters() == {"backup_shares": backup_shares}
