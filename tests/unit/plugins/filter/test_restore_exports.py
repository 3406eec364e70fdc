# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.sendense.backup.plugins.filter.restore_exports import FilterModule

JOB = "restore-pgtest1-5029f3ab-20261123T140102Z"


def test_each_disk_is_served_read_only_under_the_job():
    disks = [
        {"key": 2000, "image": "disk-2000.qcow2", "capacity": 512, "label": "x"},
        {"key": 16000, "image": "disk-16000.qcow2", "capacity": 1024},
    ]
    found = FilterModule().filters()["restore_exports"](disks, "/r/vms/u/p", JOB)
    assert found == [
        {"key": 2000, "image": "/r/vms/u/p/disk-2000.qcow2", "name": f"{JOB}-disk0", "size": 512, "read_only": True},
        {"key": 16000, "image": "/r/vms/u/p/disk-16000.qcow2", "name": f"{JOB}-disk1", "size": 1024, "read_only": True},
    ]
