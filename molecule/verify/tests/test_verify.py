# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One backup of pgtest1, verified by the playbook: good, booted, damaged, good again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, scan

from lab.instance import Lab
from tests.scenarios.site import inventory_slice

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / "inventories/lab"
MARKER = "SENDENSE-GUEST-READY pgtest1"
BOOT = ("-e", json.dumps({"verify_level": "boot", "verify_boot_pattern": MARKER, "verify_boot_timeout": 400}))


def play(name, *arguments, inventory=INVENTORY):
    """Run a playbook; return its exit code and its output without line breaks."""
    done = subprocess.run(
        ["ansible-playbook", f"--inventory={inventory}", f"{PROJECT}/playbooks/{name}.yml", *arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def module(name, **arguments):
    """Return the result of a module on the hub."""
    command = [
        "ansible",
        f"--inventory={INVENTORY}",
        "hub1",
        "-m",
        f"sendense.backup.{name}",
        "-a",
        json.dumps(arguments),
    ]
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    return json.loads(done.stdout.partition(" => ")[2])


@pytest.fixture(scope="module")
def point():
    """Back up pgtest1, verified at once by the policy; return the manifest of the point, as the hub lists it."""
    code, told = play("backup", "-e", "vm_name=pgtest1", "-e", "backup_verify=image")
    assert code == 0, told
    points = module("restore_point_info", repository="/backup/repository")["points"]
    return [each for each in points if not each["error"] and each["vm"]["name"] == "pgtest1"][-1]


def shown(point):
    """Return what restore_point_info shows of the point now."""
    uuid = point["vm"]["instance_uuid"]
    points = module("restore_point_info", repository="/backup/repository", vm=uuid)["points"]
    return next(each for each in points if each["point"] == point["point"])


@pytest.fixture
def state(hub):
    """Return a function that tells what is in the point, to the bit."""
    return lambda point: hub.check_output(
        f"cd {point['path']} && stat -c '%n %s %Y %U %a' . * && cat manifest.json *.digests | sha256sum"
    )


@pytest.fixture(autouse=True)
def nothing_is_left(hub):
    yield
    left = hub.run(
        "systemctl list-units --all --plain --no-legend 'sendense-boot-*' 'sendense-run-*'; "
        "pgrep -a qemu-system; find /var/lib/sendense/boot -mindepth 1 2>/dev/null"
    )
    assert left.stdout == ""


def test_a_backup_verifies_its_point_where_policy_says_so(point):
    (found,) = point["verified"]
    assert (found["level"], found["ok"]) == ("image", True)


def test_a_good_point_passes_and_boots(point, state, hub):
    before = state(point)
    code, told = play("verify", "-e", "vm_name=pgtest1", *BOOT)
    assert code == 0, told
    assert f"pgtest1: ok {point['point']}: data is intact; it booted within" in told
    found = shown(point)["verified"][-1]
    assert (found["level"], found["boot"]["how"], found["boot"]["ok"]) == ("boot", "pattern", True)
    assert any(MARKER in line for line in found["boot"]["console"])
    picture = hub.file(found["boot"]["screenshot"])
    assert (picture.user, picture.mode) == ("sendense", 0o640)
    assert picture.content.startswith(b"\x89PNG")
    assert state(point) == before


def test_what_is_young_enough_is_not_verified_again(point):
    """With a slice of AWX, in which the VM says how its hub is reached."""
    with inventory_slice("pgtest1", backup_hub="hub1") as inventory:
        code, told = play("verify", "-e", "verify_every_days=7", "-e", "verify_level=data", inventory=inventory)
    assert code == 0, told
    assert "as seen on 20" in told


def test_the_prediction_keeps_no_result(point):
    before = shown(point)["verified"]
    code, told = play("verify", "-e", "vm_name=pgtest1", "--check")
    assert code == 0, told
    assert f"would verify {point['point']} at level data" in told
    assert shown(point)["verified"] == before


def test_damage_is_told_by_point_disk_and_range_and_shown_until_it_is_gone(point, hub):
    image, place = f"{point['path']}/disk-2001.qcow2", 3 << 20
    flip = f"f = open({image!r}, 'r+b'); f.seek({place}); b = f.read(1)[0]; f.seek({place}); f.write(bytes([b ^ 8]))"
    hub.check_output(f"python3 -c {shlex.quote(flip)}")
    try:
        code, told = play("verify", "-e", "vm_name=pgtest1")
        assert code != 0
        assert "1 of 1 VM(s) have no restore point that is proven good: pgtest1" in told
        found = re.search(
            rf"FAILED data: restore point {point['point']}, disk 2001, bytes (\d+)-(\d+) of the disk: ", told
        )
        assert found, told
        assert int(found[2]) - int(found[1]) == 65535
        assert shown(point)["distrusted"].startswith("level data on ")
        assert shown(point)["verified"][-1]["ok"] is False
    finally:
        hub.check_output(f"python3 -c {shlex.quote(flip)}")
    code, told = play("verify", "-e", "vm_name=pgtest1", "-e", "verify_level=data")
    assert code == 0, told
    assert shown(point)["distrusted"] == ""


def test_a_point_runs_at_once_without_any_rights_or_network_and_ends(point, hub, state):
    before, vm = state(point), point["vm"]["instance_uuid"]
    run = ("restore", "-e", "restore_vm=pgtest1", "-e", "restore_to=run", "-e", f"restore_point={point['point']}")
    code, told = play(*run)
    assert code == 0, told
    found = module("restore_point_run", repository="/backup/repository", vm=vm, point=point["point"])
    try:
        assert found["changed"] is False, "it runs already"
        assert f"ssh -L 5900:{found['vnc']} root@" in told
        (unit,) = found["units"]
        assert unit == f"sendense-run-{point['point']}-{vm}"
        pid = hub.check_output(f"systemctl show --property=MainPID --value {unit}")
        assert hub.check_output(f"stat -c %U /proc/{pid}") == "sendense"
        assert hub.check_output(f"nsenter --net --target {pid} ip -brief link").split()[0] == "lo"
        assert "sendense.slice" in hub.check_output(f"cat /proc/{pid}/cgroup")
        assert hub.check_output(f"stat -c %a {Path(found['vnc']).parent}") == "700"
        ask = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({found['vnc']!r}); print(s.recv(3).decode())"
        )
        assert hub.check_output(f"python3 -c {shlex.quote(ask)}") == "RFB"
    finally:
        code, told = play(*run, "-e", "restore_state=absent")
    assert code == 0, told
    assert "it does not run any more, and what it wrote is gone" in told
    assert hub.run(f"systemctl is-active {unit}").rc != 0
    assert state(point) == before


# What befell the guest before it was backed up: commands of qemu-io, the order of its disks, and what the proof then says.
BROKEN = {
    "a damaged boot loader": (["write -P 0xf4 0 440"], {2000: 2000, 2001: 2001}, "it did not boot within"),
    "a zeroed superblock": (["write -z 1M 64k"], {2000: 2000, 2001: 2001}, "it did not boot: '"),
    "disks in another order": ([], {2000: 2001, 2001: 2000}, "'No bootable device'"),
}


@pytest.fixture
def broken(point):
    """Return ``broken(commands, disks)``: a repository on the hub with a faithful point of a guest that is broken."""
    root = Lab(PROJECT).root("hub1")
    repository = root / "backup/broken"

    def make(commands, disks):
        source, target = (
            root / point["path"].lstrip("/"),
            repository / "vms" / point["vm"]["instance_uuid"] / point["point"],
        )
        target.mkdir(parents=True)
        (repository / "repository.json").write_text('{"format": 1}')
        known = {disk["key"]: disk for disk in point["disks"]}
        said = {name: value for name, value in point.items() if name not in ("path", "error", "verified", "distrusted")}
        said["disks"] = []
        for key, wanted in disks.items():
            path, raw = target / manifest.image_file(key), repository / "raw"
            shutil.copyfile(source / manifest.image_file(wanted), path)
            for command in commands if key == 2000 else []:
                subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, capture_output=True)
            subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
            content, size = raw.read_bytes(), known[wanted]["provisioned"]
            raw.unlink()
            leaves = digests.leaves(memoryview(content))
            every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
            tree = digests.tree(digests.write(target / manifest.digest_file(key), size, every), size)
            said["disks"].append(known[key] | {"provisioned": size, "root": tree.root})
        files = target.glob("disk-*")
        said["files"] = {path.name: {"size": path.stat().st_size, "sha256": scan.sha256_of(path)} for path in files}
        (target / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
        subprocess.run(["chown", "-R", "--reference", root / "backup/repository", repository], check=True)
        return {
            "repository": "/backup/broken",
            "vm": point["vm"]["instance_uuid"],
            "level": "boot",
            "boot_pattern": MARKER,
        }

    yield make
    shutil.rmtree(repository, ignore_errors=True)


@pytest.mark.parametrize(("commands", "disks", "why"), BROKEN.values(), ids=BROKEN)
def test_a_guest_that_is_broken_fails_the_proof_with_picture_and_last_lines(broken, hub, commands, disks, why):
    # what hangs is known by its time alone; the others say a word, which may take longer on a slow machine
    timeout = 30 if "within" in why else 300
    found = module("restore_point_verify", **broken(commands, disks), boot_timeout=timeout)
    assert found["result"]["ok"] is False, found
    assert why in found["msg"], found
    assert found["result"]["findings"] == [], "the point itself is what was backed up"
    assert any("Booting from Hard Disk" in line for line in found["result"]["boot"]["console"])
    assert hub.file(found["result"]["boot"]["screenshot"]).content.startswith(b"\x89PNG")


def test_a_vm_of_data_alone_is_not_bootable_and_passes(broken):
    found = module("restore_point_verify", **broken([], {2001: 2001}))
    assert found["result"]["ok"], found
    assert found["result"]["msg"] == "data is intact; not bootable: no disk has what bios starts from"


def test_all_that_a_repository_holds_is_verified(broken, point):
    broken([], {2001: 2001})
    every = json.dumps({"verify_all": True, "sendense_repository": "/backup/broken"})
    code, told = play("verify", "-e", every)
    assert code == 0, told
    assert f"{point['vm']['instance_uuid']}: ok {point['point']}: data is intact" in told
