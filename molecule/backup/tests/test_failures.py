# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an operator gets when it does not work: one sentence that names the cause, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest

SLOW = 15 * 1024**2  # bytes per second: a copy of pgtest1 then takes a minute, time enough to disturb it


def told(output: str) -> str:
    """Return the output with its wrapped lines joined, to look for a sentence in it."""
    return re.sub(r"\s+", " ", output)


REFUSALS = {
    "an unknown VM": (["-e", "vm_name=pgtest9"], r"no VM named pgtest9 is in vCenter"),
    "a vCenter that does not answer": (
        ["-e", "vm_name=pgtest1", "-e", "vcenter_port=4433"],
        r"vCenter \S+:4433 cannot be reached from this node",
    ),
    "a wrong password": (
        ["-e", "vm_name=pgtest1", "-e", "vcenter_password=made-up"],
        r"refuses user .*check vcenter_username and vcenter_password",
    ),
    "an untrusted certificate": (
        ["-e", "vm_name=pgtest1", "-e", '{"vcenter_ca_file": ""}'],
        r"is not trusted: .*vcenter_ca_file",
    ),
    "a repository that is not there": (
        ["-e", "vm_name=pgtest1", "-e", "backup_repository=/nowhere"],
        r"there is no repository at /nowhere",
    ),
    "an empty name": (["-e", "vm_name="], r"vm_name is empty"),
    "no VM selected": (["--limit=hub1"], r"No VM is selected"),
    "two ways to select": (["-e", "vm_name=pgtest1", "--limit=thin1"], r"not both"),
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_bad_input_is_refused_in_one_sentence(clean, arguments, sentence):
    before = clean.points()
    run = clean.backup(*arguments)
    assert run.code != 0
    assert re.search(sentence, told(run.output)), run.output
    assert "Traceback" not in run.output
    assert clean.points() == before


def test_a_repository_that_cannot_be_written_is_refused_before_the_snapshot(clean):
    before = clean.points()
    folder = "/backup/repository"
    assert clean.hub.run(f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}").rc == 0
    try:
        run = clean.backup("-e", "vm_name=pgtest1")
    finally:
        assert clean.hub.run(f"umount {folder}").rc == 0
    assert run.code != 0
    assert re.search(r"repository /backup/repository cannot be written to: Read-only file system", told(run.output)), (
        run.output
    )
    assert "The snapshot is taken" not in run.output
    assert clean.points() == before


def module(host: str, name: str, arguments: dict, project: str) -> str:
    """Return what one module says on a host."""
    command = [
        "ansible",
        f"--inventory={project}/inventories/lab",
        host,
        "-m",
        f"sendense.backup.{name}",
        "-a",
        json.dumps(arguments),
    ]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=60)
    return told(done.stdout + done.stderr)


JOB = "pgtest9-00000000-20260101T000000Z"


@pytest.fixture
def image(clean):
    """Return an image on the hub, in a folder of its own."""
    clean.hub.check_output("install -d -o sendense /backup/scratch")
    clean.hub.check_output(
        "qemu-img create -q -f qcow2 /backup/scratch/a.qcow2 1M && chown sendense /backup/scratch/a.qcow2"
    )
    yield "/backup/scratch/a.qcow2"
    module("hub1", "nbd_export", {"job": JOB, "state": "absent"}, str(clean.lab.checkout))
    clean.hub.check_output("rm -r /backup/scratch")


def test_an_export_that_does_not_start_says_why(clean, image):
    def start(**export) -> str:
        wish = {"key": 2000, "image": image, "name": "x", "size": 1048576, **export}
        return module("hub1", "nbd_export", {"job": JOB, "exports": [wish]}, str(clean.lab.checkout))

    assert "No such file or directory" in start(image="/backup/scratch/none.qcow2")
    assert "Address already in use" in start(port=22) or "Permission denied" in start(port=22)
    assert "offers 1048576 bytes where 512 were expected" in start(size=512)
    holder = clean.hub.run(
        f"systemd-run --quiet --unit=holder-of-the-test qemu-nbd -f qcow2 -t -k /run/holder-of-the-test {image}; sleep 1"
    )
    assert holder.rc == 0
    try:
        assert 'Failed to get "write" lock' in start()
    finally:
        clean.hub.check_output("systemctl stop holder-of-the-test; rm -f /run/holder-of-the-test")
    assert clean.leftovers() == {}


def test_an_export_outlives_the_connection_that_started_it(clean, image):
    wish = {"key": 2000, "image": image, "name": "x", "size": 1048576}
    assert "port: 10100" in module("hub1", "nbd_export", {"job": JOB, "exports": [wish]}, str(clean.lab.checkout))
    again = module("hub1", "nbd_export", {"job": JOB, "exports": [wish]}, str(clean.lab.checkout))
    assert "changed: false" in again
    assert "running: true" in module("hub1", "nbd_export_info", {"job": JOB}, str(clean.lab.checkout))


DEATHS = {
    "qemu-nbd is killed": (
        "hub",
        "sendense-export-{job}-16000",
        r"disk 16000.*sendense-export-\S+-16000 killed by SIGKILL",
    ),
    "the tunnel is killed": ("node", "sendense-tunnel-{job}", r"disk \d+: the export hung up"),
    "the copy is killed": ("node", "sendense-copy-{job}", r"the copy killed by SIGKILL|the copy was killed by SIGKILL"),
}


@pytest.mark.parametrize(("where", "unit", "sentence"), DEATHS.values(), ids=DEATHS)
def test_a_death_in_mid_copy_is_named_and_cleaned_up(clean, where, unit, sentence):
    before = clean.points()
    with clean.knobs(folder_bytes_per_second=SLOW):
        run = clean.start("-e", "vm_name=pgtest1")
        job = clean.wait_for_copy("pgtest1")
        getattr(clean, where).check_output(f"systemctl kill --signal=KILL {unit.format(job=job)}")
        output, _nothing = run.communicate(timeout=300)
    assert run.returncode != 0
    assert re.search(sentence, told(output)), output
    assert clean.points() == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_the_next_run_cleans_up_after_a_controller_that_is_gone(clean, end):
    before = clean.points()
    with clean.knobs(folder_bytes_per_second=SLOW):
        run = clean.start("-e", "vm_name=pgtest1")
        job = clean.wait_for_copy("pgtest1")
        os.killpg(run.pid, end)
        run.communicate(timeout=60)
    assert any(job in left for left in clean.leftovers().values()), "the test disturbed nothing"
    again = clean.backup("-e", "vm_name=pgtest1")
    assert again.code == 0, again.output
    assert len(clean.points()) == len(before) + 1
    _manifest, disks = clean.compare("pgtest1")
    assert all(disk.equal for disk in disks)


def test_a_second_run_for_the_same_vm_is_refused(clean):
    with clean.knobs(folder_bytes_per_second=SLOW):
        run = clean.start("-e", "vm_name=pgtest1")
        job = clean.wait_for_copy("pgtest1")
        second = clean.backup("-e", "vm_name=pgtest1")
        assert second.code != 0
        assert f"is being backed up by job {job}" in told(second.output)
        assert run.poll() is None, "the second run ended the first"
        os.killpg(run.pid, signal.SIGINT)
        run.communicate(timeout=60)
    assert clean.backup("-e", "vm_name=pgtest1").code == 0


def test_a_snapshot_that_cannot_be_removed_is_told_and_removed_by_the_next_run(clean):
    before = clean.points()
    with clean.knobs(faults={"RemoveSnapshot_Task": "NoPermission"}):
        run = clean.backup("-e", "vm_name=thin1")
    assert run.code != 0
    assert re.search(r"FAILED at 'The snapshot is gone': .* could not be cleaned up: .*lacks", told(run.output)), (
        run.output
    )
    assert "vCenter: snapshots" in clean.leftovers()
    assert clean.points() == before
    again = clean.backup("-e", "vm_name=thin1")
    assert again.code == 0, again.output
    assert len(clean.points()) == len(before) + 1


def test_one_vm_that_fails_does_not_stop_another(clean):
    before = clean.points()
    run = clean.backup(
        "--limit=vms", "-e", "{\"backup_vm\": \"{{ 'thin1' if inventory_hostname == 'thin1' else 'none' }}\"}"
    )
    assert run.code != 0
    assert re.search(r"pgtest1: FAILED at 'The VM is looked at': no VM named none", told(run.output)), run.output
    assert re.search(r"thin1: ok full", told(run.output)), run.output
    assert len(clean.points()) == len(before) + 1
