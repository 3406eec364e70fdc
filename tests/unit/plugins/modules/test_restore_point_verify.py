# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules on a point of a bootable VM, made as a run publishes it; QEMU is the real one, systemd is not."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

UUID, POINT = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "20261123T140102Z"
SIZE = 2 << 20
CELL = 65536


def of_utils(name):
    """Return a test module of the utils: its guests are of use here, too."""
    path = Path(__file__).parents[1] / "module_utils/repository" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"utils_{name}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def site(tmp_path):
    """Return ``site(disk)``: a repository with one point of a VM that has this disk, and its folder."""
    from ansible_collections.sendense.backup.plugins.module_utils import digests
    from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, point

    def make(content):
        folder = tmp_path / "r/vms" / UUID / POINT
        folder.mkdir(parents=True)
        (tmp_path / "r/repository.json").write_text('{"format": 1}')
        (folder.parent / "vm.json").write_text(json.dumps({"name": "web1", "inventory_path": "/DC0/vm/web1"}))
        raw = bytearray(SIZE)
        for sector, data in content.items():
            raw[sector * 512 : sector * 512 + len(data)] = data
        (tmp_path / "raw").write_bytes(raw)
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", folder / "disk-2000.qcow2"]
        subprocess.run(command, check=True)
        leaves = digests.leaves(memoryview(bytes(raw)))
        every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
        root = digests.tree(digests.write(folder / "disk-2000.digests", SIZE, every), SIZE).root
        controllers = [{"key": 1000, "type": "ParaVirtualSCSIController", "bus_number": 0}]
        config = {"cpus": 1, "memory_mib": 64, "firmware": "bios", "controllers": controllers}
        disk = {
            "key": 2000,
            "type": "full",
            "provisioned": SIZE,
            "root": root,
            "controller_key": 1000,
            "unit_number": 0,
        }
        said = {
            "format": 1, "point": POINT, "job": f"web1-5029f3ab-{POINT}", "type": "full", "parent": None,
            "vm": {"name": "web1", "instance_uuid": UUID, "config": config}, "disks": [disk],
            "files": {path.name: point._file_facts(path) for path in folder.glob("disk-*")},
        }  # fmt: skip
        (folder / "manifest.json").write_text(manifest.text(manifest.sealed(said)))
        return {"repository": str(tmp_path / "r"), "vm": "web1"}, folder

    return make


@pytest.fixture
def guests():
    return of_utils("test_boot")


@pytest.fixture(autouse=True)
def no_kvm(monkeypatch, tmp_path):
    """Have a QEMU whose KVM fails at once: the probe would take its time where guests hang."""
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$*" in *"-accel kvm"*) exit 1 ;; esac\nexec /usr/bin/qemu-system-x86_64 "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{__import__('os').environ['PATH']}")


@pytest.fixture
def scratch():
    import tempfile

    with tempfile.TemporaryDirectory(prefix="s-") as path:
        yield path


def info(run_module, args, private_run):
    found = run_module("restore_point_info", {"repository": args["repository"]}, prefix=private_run)
    return found["points"][0]


def tree(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", ["metadata", "image", "data"])
def test_a_good_point_passes_and_the_result_is_shown(run_module, private_run, site, level):
    args, folder = site({0: b"data"})
    before = tree(folder)
    predicted = run_module("restore_point_verify", {**args, "level": level}, check=True)
    assert (predicted["changed"], predicted["result"], predicted["point"]) == (True, {}, POINT)
    assert info(run_module, args, private_run)["verified"] == []
    found = run_module("restore_point_verify", {**args, "level": level})
    assert (found["failed"], found["changed"], found["result"]["msg"]) == (False, True, f"{level} is intact")
    assert info(run_module, args, private_run)["verified"] == [found["result"]]
    again = run_module("restore_point_verify", {**args, "level": level, "max_age": 7})
    assert (again["changed"], again["result"]) == (False, found["result"])
    assert run_module("restore_point_verify", {**args, "level": level})["changed"]
    assert tree(folder) == before


def test_damage_fails_with_point_disk_and_range_and_is_shown(run_module, private_run, site):
    args, folder = site({0: b"data" * 20000})
    content = bytearray((folder / "disk-2000.qcow2").read_bytes())
    content[content.index(b"datadata") + 7] ^= 4
    (folder / "disk-2000.qcow2").write_bytes(content)
    found = run_module("restore_point_verify", args)
    assert found["failed"]
    assert found["msg"] == (
        f"restore point {POINT}, disk 2000, bytes 0-{CELL - 1} of the disk: it does not hold what was backed up"
    )
    assert found["result"]["findings"][0]["ranges"] == [[0, CELL]]
    shown = info(run_module, args, private_run)
    assert shown["verified"][0]["ok"] is False
    assert shown["distrusted"].startswith("level data on ")
    assert (folder / "disk-2000.qcow2").read_bytes() == content
    assert run_module("restore_point_verify", {**args, "level": "image", "max_age": 7})["changed"], (
        "it is looked at again"
    )


def test_a_damaged_manifest_is_told_and_kept_beside_it(run_module, private_run, site):
    args, folder = site({0: b"data"})
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("64", "65", 1))
    found = run_module("restore_point_verify", {**args, "level": "metadata"})
    assert found["failed"]
    assert f"restore point {POINT}, all of its disks, bytes 0-" in found["msg"]
    assert info(run_module, args, private_run)["distrusted"]


@pytest.mark.usefixtures("host_units")
def test_a_point_that_boots_keeps_its_picture(run_module, private_run, site, guests, scratch):
    args, folder = site(guests.system_disk())
    before = tree(folder)
    wish = {**args, "level": "boot", "boot_pattern": "STAGE TWO", "boot_timeout": 60, "scratch": scratch}
    found = run_module("restore_point_verify", wish)
    assert not found["failed"], found
    booted = found["result"]["boot"]
    assert (booted["how"], booted["accelerator"]) == ("pattern", "tcg")
    assert Path(booted["screenshot"]).read_bytes().startswith(b"\x89PNG")
    assert info(run_module, args, private_run)["verified"] == [found["result"]]
    assert tree(folder) == before
    assert list(Path(scratch).iterdir()) == []


@pytest.mark.usefixtures("host_units")
def test_a_point_that_does_not_boot_fails_with_picture_and_last_lines(run_module, private_run, site, guests, scratch):
    args, _folder = site(guests.system_disk(second=bytes(512)))
    wish = {**args, "level": "boot", "boot_pattern": "STAGE TWO", "boot_timeout": 60, "scratch": scratch}
    found = run_module("restore_point_verify", wish)
    assert found["failed"]
    assert f"restore point {POINT}: it did not boot: 'Missing operating system'; last on its console: " in found["msg"]
    assert found["msg"].endswith(found["result"]["boot"]["screenshot"])
    assert Path(found["result"]["boot"]["screenshot"]).read_bytes().startswith(b"\x89PNG")
    shown = info(run_module, args, private_run)
    assert (shown["verified"][0]["ok"], shown["distrusted"]) == (False, "")


def test_a_vm_of_data_alone_is_not_bootable_and_that_is_no_failure(run_module, private_run, site, scratch):
    args, _folder = site({9: b"data"})
    found = run_module("restore_point_verify", {**args, "level": "boot", "scratch": scratch})
    assert not found["failed"], found
    assert found["result"]["msg"] == "data is intact; not bootable: no disk has what bios starts from"
    assert found["result"]["boot"]["bootable"] is False


@pytest.mark.parametrize(("change", "told"), [
    ({"vm": "nobody"}, "knows no VM named nobody"),
    ({"point": "20201123T140102Z"}, f"has no restore point 20201123T140102Z; the newest are {POINT}"),
    ({"repository": "/nowhere"}, "there is no repository at /nowhere"),
])  # fmt: skip
@pytest.mark.parametrize("module", ["restore_point_verify", "restore_point_run"])
def test_what_is_not_there_is_told(run_module, site, module, change, told):
    args, _folder = site({0: b"data"})
    found = run_module(module, args | change)
    assert found["failed"]
    assert told in found["msg"]


def test_a_pattern_that_is_none_is_refused_before_anything_is_read(run_module, site):
    args, _folder = site({0: b"data"})
    found = run_module("restore_point_verify", {**args, "level": "boot", "boot_pattern": "("})
    assert found["failed"]
    assert "'(' is no regular expression: " in found["msg"]


def test_a_point_runs_at_once_and_ends_without_a_trace(run_module, site, guests, host_units, scratch):
    args, folder = site(guests.system_disk())
    args, before = {**args, "scratch": scratch}, tree(folder)
    unit = f"sendense-run-{POINT}-{UUID}"
    predicted = run_module("restore_point_run", args, check=True)
    assert (predicted["changed"], predicted["units"]) == (True, [unit])
    assert list(Path(scratch).iterdir()) == []
    found = run_module("restore_point_run", args)
    assert (found["failed"], found["changed"], found["accelerator"]) == (False, True, "tcg"), found
    assert Path(found["vnc"]).is_socket()
    assert Path(found["serial"]).is_socket()
    assert run_module("restore_point_run", args)["changed"] is False
    gone = {**args, "state": "absent"}
    assert run_module("restore_point_run", gone, check=True)["units"] == [unit]
    assert Path(found["vnc"]).is_socket()
    assert run_module("restore_point_run", gone)["changed"]
    assert run_module("restore_point_run", gone)["changed"] is False
    assert list(Path(scratch).iterdir()) == []
    assert tree(folder) == before
