# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Allocated areas and extents as the lab's vCenter serves them from real files."""

from __future__ import annotations

import urllib.request

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import cbt, datastore, snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.lookup import describe
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, VCenter, session

pytest.importorskip("pyVmomi")
JOB = "pgtest1-5029f3ab-20261123T140102Z"
GRAIN = 65536


@pytest.fixture
def opened(lab):
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as one:
        yield one


@pytest.fixture
def taken(lab, opened):
    """Take the job's snapshot of pgtest1, and remove it at the end."""
    vm = describe(opened, lab.vm("pgtest1")["moref"])
    yield snapshot.create(opened, vm, JOB, "off")
    lab.ask("POST", "/cbt", {"vm": "pgtest1", "enabled": True})
    snapshot.remove(opened, vm["moref"], JOB)


def ask(lab, opened, taken, key):
    capacity = next(disk["capacity"] for disk in taken.disks if disk["key"] == key)
    found = cbt.allocated_areas(opened, lab.vm("pgtest1")["moref"], taken.moref, key, capacity)
    return None if found is None else list(found)


@pytest.mark.parametrize(
    "knobs", [{}, {"cbt_areas": 1}, {"cbt_bytes": 1 << 20}], ids=["one window", "by areas", "by bytes"]
)
def test_exactly_the_written_cells_are_allocated(lab, opened, taken, knobs):
    lab.knobs(**knobs)
    found = ask(lab, opened, taken, 16000)
    lab.knobs(cbt_areas=64, cbt_bytes=8 << 30)
    assert found == [(0, GRAIN), (3 * GRAIN, GRAIN), ((48 << 20) - GRAIN, GRAIN)]


def test_an_odd_disk_is_not_exceeded(lab, opened, taken):
    offset, length = ask(lab, opened, taken, 2001)[-1]
    assert offset + length <= (1 << 20) + 1536


def test_without_change_tracking_nothing_is_known(lab, opened):
    lab.ask("POST", "/cbt", {"vm": "pgtest1", "enabled": False})
    vm = describe(opened, lab.vm("pgtest1")["moref"])
    assert vm["cbt_enabled"] is False
    taken = snapshot.create(opened, vm, JOB, "off")
    assert [disk["change_id"] for disk in taken.disks] == [None, None, None]
    assert ask(lab, opened, taken, 16000) is None
    lab.ask("POST", "/cbt", {"vm": "pgtest1", "enabled": True})
    snapshot.remove(opened, vm["moref"], JOB)


def test_a_snapshot_that_is_gone_is_an_error_and_not_unknown(lab, opened, taken):
    with pytest.raises(Fault):
        cbt.allocated_areas(opened, lab.vm("pgtest1")["moref"], "snapshot-9999", 2000, 1 << 20)


@pytest.mark.parametrize("key", [2000, 2001, 16000])
def test_the_url_of_a_frozen_disk_serves_its_bytes(lab, opened, taken, key):
    disk = next(disk for disk in taken.disks if disk["key"] == key)
    url = datastore.flat_extent_url(opened, "DC0", disk["path"], disk["capacity"])
    request = urllib.request.Request(url, headers={"Cookie": opened.cookie, "Range": f"bytes=0-{2 * GRAIN - 1}"})
    with urllib.request.urlopen(request, context=opened._context) as response:
        assert response.status == 206
        assert int(response.headers["Content-Range"].rpartition("/")[2]) == disk["capacity"]
        served = response.read()
    truth = lab.truth / "pgtest1" / taken.name / f"disk-{key}.raw"
    assert served == truth.read_bytes()[: 2 * GRAIN]


def test_the_disk_that_a_running_vm_writes_to_is_a_delta(lab, opened, taken):
    now = describe(opened, lab.vm("pgtest1")["moref"])
    with pytest.raises(Refused, match=r"is a delta on top of an older snapshot.*vddk"):
        datastore.flat_extent_url(opened, "DC0", now["disks"][0]["path"])


def test_a_disk_of_another_size_is_refused(opened, taken):
    with pytest.raises(Refused, match="describes 1048576 bytes where the disk of the snapshot has 512"):
        datastore.flat_extent_url(opened, "DC0", taken.disks[0]["path"], 512)


def test_a_file_that_is_not_there_is_said(opened):
    with pytest.raises(SendenseError, match=r"does not serve \[data store 2\] no such/x.vmdk \(HTTP 404\)"):
        datastore.flat_extent_url(opened, "DC0", "[data store 2] no such/x.vmdk")


def test_an_unknown_datacenter_is_said(opened):
    with pytest.raises(SendenseError, match=r"needs System[.]View"):
        datastore.flat_extent_url(opened, "", "[datastore1] pgtest1/pgtest1.vmdk")
