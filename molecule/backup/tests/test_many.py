# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many VMs: all of group vms were backed up by converge, three at a time."""

from __future__ import annotations

import json
import re

import pytest

from tests.scenarios.site import inventory_slice

VMS = ["pgtest1", "thin1", *(f"web{number:02}" for number in range(1, 11))]


@pytest.mark.parametrize("vm", VMS)
def test_every_vm_of_the_run_holds_the_bytes_of_the_truth(site, vm):
    _manifest, disks = site.compare(vm)
    assert disks
    assert [disk.key for disk in disks if not disk.equal] == []


def test_never_more_snapshots_are_open_than_forks(site):
    assert 1 < site.ask("/stats")["max_open_snapshots"] <= 3


@pytest.mark.parametrize("transport", ["https", pytest.param("vddk", marks=pytest.mark.matrix)])
def test_every_disk_is_the_same_by_either_transport(clean, transport):
    run = clean.backup("--limit=pgtest1", "-e", f"backup_transport={transport}")
    assert run.code == 0, run.output
    assert f", by {transport} (it was asked for)" in run.line("pgtest1")
    manifest, disks = clean.compare("pgtest1")
    assert manifest["transport"] == transport
    assert len(disks) == 3
    assert [disk.key for disk in disks if not disk.equal] == []


def test_two_runs_at_once_for_different_vms_both_succeed(clean):
    before = clean.points()
    with clean.slow("web07") as (first, _jobs):
        second = clean.start("--limit=web08")
        # not for its copy: so slow, the first answer to it takes minutes
        clean.wait_for(
            "the snapshot of web08", lambda: "web08" in {each["vm"] for each in clean.ask("/snapshots")["snapshots"]}
        )
        assert first.poll() is None, "they were not at work at once"
    assert [clean.end(run).code for run in (first, second)] == [0, 0]
    assert len(clean.points()) == len(before) + 2
    for vm in ("web07", "web08"):
        assert all(disk.equal for disk in clean.compare(vm)[1])


def test_one_vm_that_fails_does_not_stop_another(clean):
    before = clean.points()
    name = json.dumps({"backup_vm": "{{ 'none' if inventory_hostname == 'web09' else inventory_hostname }}"})
    run = clean.backup("--limit=web09,web10", "-e", name)
    assert run.code != 0
    assert re.match(r"FAILED at 'The VM is looked at': no VM named none", run.line("web09")), run.output
    assert run.line("web10").startswith("ok full"), run.output
    assert "1 of 2 VM(s) are not backed up: web09" in run.told
    assert len(clean.points()) == len(before) + 1


def test_a_slice_without_hub_and_node_is_told_how_to_reach_them(clean):
    """AWX gives a slice of the inventory to each job, and the VMs then say how their hub and nodes are reached."""
    with inventory_slice("web10", backup_hub="hub1", backup_node="node1", backup_other_nodes=["node2"]) as inventory:
        run = clean.backup(inventory=str(inventory))
    assert run.code == 0, run.output
    assert run.line("web10").startswith("ok full"), run.output
