# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was copied before something died is not copied again, in the same run or in the next one for the VM.

The VM's disk is filled, so that 32 MiB are read and written. At half of it vCenter is made so slow that next to nothing moves between
the last flush and the death; at full size the few seconds between two flushes are as little.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.scenarios.matrix import cases

VM = "nocbt1"
FAST, SLOW = ({"folder_bytes_per_second": speed, "nfc_bytes_per_second": speed} for speed in (4 * 1024**2, 256 * 1024))


@pytest.fixture(scope="module", autouse=True)
def _filled(site: Any) -> Iterator[None]:
    """Fill the disk of the VM while these tests last."""
    pieces = range(0, 32 * 1024**2, 4 * 1024**2)
    with site.restoring(VM, [(2000, offset, 4 * 1024**2) for offset in pieces]):
        for offset in pieces:
            site.write(VM, 2000, offset, random.Random(offset).randbytes(4 * 1024**2))
        yield


def status(site: Any, job: str) -> dict[str, Any]:
    """Return the status of the copy as it stands on the node; empty when there is none."""
    seen = site.node.run(f"cat /run/sendense/{job}/copy/status.json").stdout
    return json.loads(seen) if seen else {}


@contextmanager
def half_done(site: Any, *arguments: str) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Back the VM up, and yield playbook, job and disk when half of it is safe and hardly anything moves; then it is fast."""
    with site.knobs(**FAST):
        run = site.start("-e", f"vm_name={VM}", *arguments)
        job = site.wait_for_copy(VM)

        def disk() -> dict[str, Any]:
            return (status(site, job).get("disks") or [{}])[0]

        site.wait_for("half of the copy", lambda: disk().get("read", 0) * 2 >= disk()["planned"])
        site.turn(SLOW)

        def flushed() -> dict[str, Any]:
            found = disk()
            return found if found["read"] - found["safe"] <= 512 * 1024 else {}

        yield run, job, site.wait_for("a flush of that", flushed)


def assert_whole(site: Any, before: dict[str, Any], points: list[str]) -> dict[str, Any]:
    """Hold the newest point against the truth and against what had been read; return its disk."""
    manifest, disks = site.compare(VM)
    assert all(disk.equal for disk in disks)
    assert len(site.points()) == len(points) + 1
    disk: dict[str, Any] = manifest["disks"][0]
    assert disk["resumed"] + disk["fetched"] == before["planned"]
    assert disk["fetched"] <= before["planned"] - before["read"] + before["planned"] * 0.05, (
        "more than what was missing"
    )
    return disk


DEATHS = {
    "the tunnel is killed": "systemctl kill --signal=KILL sendense-tunnel-{job}",
    "the copy is killed": "systemctl kill --signal=KILL sendense-copy-{job}",
    "the node is booted": "nohup sh -c 'sleep 1; systemctl --force --force reboot' >/dev/null 2>&1 &",
}


def booted(site: Any, job: str) -> bool:
    """Whether the node is there again, without what it kept in memory."""
    with suppress(RuntimeError):  # which is how testinfra says that ssh does not connect
        return site.node.run(f"test -e /run/sendense/{job}/copy/password").rc == 1
    return False


@pytest.mark.parametrize("death", cases(DEATHS, {"the copy is killed", "the node is booted"}))
def test_a_run_goes_on_after_a_death_in_mid_copy(clean, death):
    points = clean.points()
    with half_done(clean) as (run, job, disk):
        clean.node.run(death.format(job=job))
        if "reboot" in death:
            clean.wait_for("the next boot", lambda: booted(clean, job))
    ended = clean.end(run)
    clean.ask_to("/sessions/kill")  # of a node that was booted one is left, which vCenter would end by itself
    assert ended.code == 0, ended.output
    assert_whole(clean, disk, points)
    assert "went on after 1 interruption(s)" in ended.line(VM)


def test_an_export_that_is_killed_costs_its_own_disk_only(clean):
    points = clean.points()
    with clean.knobs(**FAST):
        run = clean.start("-e", "vm_name=pgtest1")
        job = clean.wait_for_copy("pgtest1")
        clean.wait_for("a flush of each disk", lambda: all(disk["safe"] for disk in status(clean, job)["disks"]))
        clean.hub.check_output(f"systemctl kill --signal=KILL sendense-export-{job}-16000")
    ended = clean.end(run)
    assert ended.code == 0, ended.output
    assert "went on after 1 interruption(s)" in ended.line("pgtest1")
    manifest, disks = clean.compare("pgtest1")
    assert all(each.equal for each in disks)
    assert len(clean.points()) == len(points) + 1
    for disk in manifest["disks"]:
        assert (disk["resumed"] == 0) is (disk["key"] == 16000), disk
        assert disk["resumed"] + disk["fetched"] == disk["read"]


def test_the_next_run_follows_a_copy_whose_controller_was_killed(clean):
    points = clean.points()
    with half_done(clean) as (run, job, disk):
        clean.end(run, signal.SIGKILL)
    ended = clean.backup("-e", f"vm_name={VM}")
    assert ended.code == 0, ended.output
    manifest, disks = clean.compare(VM)
    assert all(each.equal for each in disks)
    assert (manifest["job"], len(clean.points())) == (job, len(points) + 1)
    assert manifest["disks"][0]["fetched"] == disk["planned"], "one copy has read it all"
    assert f"went on with {job}" in ended.line(VM)


def test_the_next_run_goes_on_where_a_killed_copy_of_a_killed_controller_ended(clean):
    points = clean.points()
    with half_done(clean) as (run, job, disk):
        clean.end(run, signal.SIGKILL)
        clean.node.check_output(f"systemctl kill --signal=KILL sendense-copy-{job} sendense-tunnel-{job}")
    ended = clean.backup("-e", f"vm_name={VM}")
    assert ended.code == 0, ended.output
    assert_whole(clean, disk, points)
    assert f"went on with {job}" in ended.line(VM)


def test_without_its_exports_a_run_begins_anew_and_says_why(clean):
    points = clean.points()
    with half_done(clean) as (run, job, disk):
        clean.end(run, signal.SIGKILL)
        clean.hub.check_output(f"systemctl kill --signal=KILL sendense-export-{job}-2000")
    ended = clean.backup("-e", f"vm_name={VM}")
    assert ended.code == 0, ended.output
    manifest, disks = clean.compare(VM)
    assert all(each.equal for each in disks)
    assert (len(clean.points()), manifest["disks"][0]["fetched"]) == (len(points) + 1, disk["planned"])
    assert re.search(rf"began anew instead of going on with {job}: its exports stand no more", ended.line(VM))


def test_the_next_run_publishes_what_a_killed_controller_had_read(clean):
    """The copy had ended and the snapshot was gone; what is left to do is to prove and to publish."""
    points = clean.points()
    with clean.knobs(remove_snapshot_ms=4000):
        run = clean.start("-e", f"vm_name={VM}")
        job = clean.wait_for_copy(VM)
        clean.wait_for(
            "the end of the snapshot",
            lambda: clean.node.run(f"grep -l after /var/lib/sendense/jobs/{job}/kept.json").rc == 0,
        )
        clean.end(run, signal.SIGKILL)
    assert clean.points() == points, "it was killed too late"
    ended = clean.backup("-e", f"vm_name={VM}")
    assert ended.code == 0, ended.output
    manifest, disks = clean.compare(VM)
    assert all(each.equal for each in disks)
    assert (manifest["job"], len(clean.points())) == (job, len(points) + 1)
    assert f"went on with {job}" in ended.line(VM)
