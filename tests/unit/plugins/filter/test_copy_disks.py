# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.sendense.backup.plugins.filter.copy_disks import FilterModule, copy_disks


def disk(key):
    return {"key": key, "capacity": key * 512, "path": f"[ds] {key}.vmdk", "backing_uuid": "u", "change_id": "c"}


def forward(key):
    return {"key": key, "uri": f"nbd+unix:///j?socket=/run/{key}.sock", "also": [f"{key}-1"], "invocation": "5f3c"}


def test_each_disk_goes_to_the_export_of_its_own_key():
    assert copy_disks([disk(2000), disk(16000)], [forward(16000), forward(2000)]) == [
        {
            "key": 2000,
            "capacity": 1024000,
            "path": "[ds] 2000.vmdk",
            "target": "nbd+unix:///j?socket=/run/2000.sock",
            "also": ["2000-1"],
            "invocation": "5f3c",
        },
        {
            "key": 16000,
            "capacity": 8192000,
            "path": "[ds] 16000.vmdk",
            "target": "nbd+unix:///j?socket=/run/16000.sock",
            "also": ["16000-1"],
            "invocation": "5f3c",
        },
    ]


@pytest.mark.parametrize(
    ("disks", "forwards"),
    [
        pytest.param([2000, 2001], [2000], id="a disk came after the look"),
        pytest.param([2000], [2000, 2001], id="a disk went after the look"),
        pytest.param([2000], [2001], id="a disk was exchanged"),
    ],
)
def test_disks_that_do_not_match_their_exports_are_an_error(disks, forwards):
    with pytest.raises(AnsibleFilterError, match="the VM was changed between the look and the snapshot"):
        copy_disks([disk(key) for key in disks], [forward(key) for key in forwards])


def test_exports_are_their_own_way_where_a_tunnel_stays():
    export = {"key": 2000, "name": "j-disk0", "size": 1024000, "port": 10100, "read_only": False, "invocation": "5f3c"}
    (found,) = copy_disks([disk(2000)], [export])
    assert (found["target"], found["also"], found["invocation"]) == ("nbd://127.0.0.1:10100/j-disk0", [], "5f3c")
    predicted = {name: value for name, value in export.items() if name != "invocation"} | {"port": None}
    assert copy_disks([disk(2000)], [predicted])[0]["invocation"] == ""


def test_playbooks_use_this_name():
    assert FilterModule().filters() == {"copy_disks": copy_disks}
