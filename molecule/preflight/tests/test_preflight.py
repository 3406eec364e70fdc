# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab is well; and each thing that is broken is named, all of them at once."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, nullcontext

import pytest

from tests.scenarios.matrix import cases
from tests.scenarios.site import SLOW

VCENTER = "vCenter, from node1"


def test_the_lab_is_well_and_nothing_is_changed(clean):
    before = clean.state("web01")
    code, output, report = clean.preflight("-e", "backup_cbt=enable")
    assert code == 0, output
    assert report["count"]["failed"] == 0
    wheres = {check["where"] for check in report["checks"]}
    assert wheres == {"hub1", "node1", VCENTER}
    names = {check["name"] for check in report["checks"]}
    assert names >= {
        "transport vddk",
        "tunnel to hub1",
        "way to ESXi host DC0_C0_H0",
        "privileges for vddk",
        "privileges for cbt",
        "files of datastores",
    }
    assert clean.state("web01") == before
    text = (clean.folder / "report.md").read_text()
    assert "| hub1 | repository |" in text
    password = clean.lab_json["vcenter"]["password_file"].read_text().strip()
    assert password not in text + output + (clean.folder / "report.json").read_text()


def told(report):
    """Return name and state of the checks of a trial."""
    return [(check["name"], check["state"]) for check in report["checks"] if check["where"] == "trial"]


def test_a_trial_takes_away_one_that_was_killed_and_every_byte_it_wrote_comes_back(clean):
    killed = clean.begin_trial("trial1")
    with clean.knobs(**SLOW):
        job = clean.wait_for_copy("trial1")
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    assert {f"sendense-{job}", "trial1"} <= {
        each["name"] for each in clean.ask("/snapshots")["snapshots"]
    } | clean.vms().keys()
    code, output, report = clean.preflight(*clean.trial("trial2"))
    assert code == 0, output
    assert told(report) == [
        ("what an earlier trial left", "ok"),
        ("write", "ok"),
        ("backup 1 over vddk", "ok"),
        ("backup 2 over https", "ok"),
        ("cleaning up", "ok"),
    ]
    text = (clean.folder / "report.md").read_text()
    assert (
        text.count(f"all {64 << 20} bytes are those that were written, by qemu-img compare and by their SHA-256") == 2
    )


def test_bytes_that_are_not_those_that_were_written_are_found(clean):
    running = clean.begin_trial("trial3")
    clean.write("trial3", 2000, 0, b"somebody")
    code, output, report = clean.ended(running)
    assert code != 0, output
    assert told(report) == [
        ("write", "ok"), ("backup 1 over vddk", "failed"), ("backup 2 over https", "failed"), ("cleaning up", "ok"),
    ]  # fmt: skip
    seen = [check["seen"] for check in report["checks"] if check["name"].startswith("backup ")]
    said = "qemu-img compare says: Content mismatch at offset 0!; the SHA-256 of the disk is another one"
    assert seen == [f"what was read is not what was written: {said}"] * 2


def test_a_trial_never_touches_a_vm_that_is_there(clean):
    before = clean.state("web01")["vms"]
    found = clean.failed(*clean.trial("web01"))
    assert set(found) == {("trial", "trial")}
    assert "there is a VM named web01 in /DC0/vm/prod already" in found["trial", "trial"]["seen"]
    assert clean.state("web01")["vms"] == before


@contextmanager
def privilege_and_clock(site):
    with site.knobs(lacks=["VirtualMachine.State.CreateSnapshot"], clock_skew_seconds=3600):
        yield


@contextmanager
def no_hosts(site):
    """Have the names of the ESXi hosts lead to where nothing listens on port 902."""
    site.node.check_output(
        "cp /etc/hosts /etc/hosts.kept && sed -i 's/ DC0_C0_H0 DC0_C0_H1//; 1s/$/ DC0_C0_H0 DC0_C0_H1/' /etc/hosts"
    )
    try:
        yield
    finally:
        site.node.check_output("mv /etc/hosts.kept /etc/hosts")


@contextmanager
def no_way_to_the_hub(site):
    site.word("cut", "node1", "hub1")
    try:
        yield
    finally:
        site.word("heal", "node1")


def no_vddk(site):
    return site.moved(site.node, "/opt/sendense/vddk/current")


def no_repository(site):
    return site.moved(site.hub, "/backup/repository/repository.json")


@contextmanager
def hub_away(site):
    site.word("cut", "hub1", "lan")
    try:
        yield
    finally:
        site.word("heal", "hub1")
        site.wait_for("hub1", lambda: site.hub.run("true").rc == 0)


BROKEN = {
    "a privilege is missing and the clock is wrong": (
        privilege_and_clock, [],
        {(VCENTER, "privilege VirtualMachine.State.CreateSnapshot"), (VCENTER, "clock of vCenter")},
    ),
    "vCenter's port is closed": (nullcontext, ["-e", "preflight_vcenter_port=444"], {(VCENTER, "way to vCenter")}),
    "port 902 of the hosts is closed": (
        no_hosts, [], {(VCENTER, "way to ESXi host DC0_C0_H0"), (VCENTER, "way to ESXi host DC0_C0_H1")},
    ),
    "the node does not reach the hub": (no_way_to_the_hub, [], {("node1", "tunnel to hub1")}),
    "there is no VDDK": (no_vddk, ["-e", "preflight_transport=vddk"], {("node1", "transport vddk")}),
    "there is no repository": (no_repository, [], {("hub1", "repository")}),
    "the hub is away": (hub_away, [], {("hub1", "look at the host"), ("node1", "tunnel to hub1")}),
}  # fmt: skip

SAMPLE = {
    "a privilege is missing and the clock is wrong",
    "port 902 of the hosts is closed",
    "there is no VDDK",
    "the hub is away",
}


@pytest.mark.parametrize(("broken", "arguments", "expected"), cases(BROKEN, SAMPLE))
def test_what_is_broken_is_named(clean, broken, arguments, expected):
    with broken(clean):
        found = clean.failed(*arguments)
    assert set(found) == expected
    assert all(check["remedy"] for check in found.values())
