# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks of a restore point as files, by the real main() on real chains."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FULL, CHILD = "20261123T140102Z", "20261124T140102Z"


@pytest.fixture
def export(run_module, points, tmp_path):
    """Return ``export(check=False, **options)``: of the VM's newest point into ``tmp_path/out``, unless told otherwise."""

    def run(check=False, **options):
        prefix = options.pop("prefix", ())
        args = {"repository": str(points.repository), "vm": "pgtest1", "path": str(tmp_path / "out"), **options}
        return run_module("restore_point_export", args, check=check, prefix=prefix)

    return run


def read(path, image_format):
    """Return what an image reads as."""
    raw = path.with_name("read.raw")
    subprocess.run(["qemu-img", "convert", "-f", image_format, "-O", "raw", path, raw], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
@pytest.mark.parametrize("point", [FULL, CHILD, "latest"])
def test_every_byte_of_every_disk_is_in_a_file_that_stands_alone(export, points, tmp_path, point, image_format):
    done = export(point=point, format=image_format)
    assert done["changed"], done
    truth = points.truth[CHILD if point == "latest" else point]
    assert {each["key"]: each["file"] for each in done["disks"]} == {key: f"disk-{key}.{image_format}" for key in truth}
    shutil.rmtree(points.repository)
    for key, content in truth.items():
        assert read(tmp_path / "out" / f"disk-{key}.{image_format}", image_format) == content
    if image_format == "vmdk":
        info = ["qemu-img", "info", "-f", "vmdk", "--output=json", tmp_path / "out" / "disk-2000.vmdk"]
        told = json.loads(subprocess.run(info, check=True, capture_output=True).stdout)
        assert told["format-specific"]["data"]["create-type"] == "streamOptimized"


def test_predict_do_repeat(export, points, tmp_path):
    out = tmp_path / "out"
    predicted = export(check=True, disks=[16000], format="raw")
    assert (predicted["changed"], predicted["point"], out.exists()) == (True, CHILD, False)
    assert not (tmp_path / "out.partial").exists()
    done = export(disks=[16000], format="raw")
    assert done["changed"]
    assert (
        [each["file"] for each in done["disks"]] == [each["file"] for each in predicted["disks"]] == ["disk-16000.raw"]
    )
    assert sorted(path.name for path in out.iterdir()) == ["disk-16000.raw", "restored.json"]
    assert ((out / "disk-16000.raw").stat().st_mode & 0o777, out.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (out / "disk-16000.raw").stat().st_blocks * 512 < 1 << 20, "what is zero is a hole"
    for check in (True, False):
        again = export(check=check, disks=[16000], format="raw")
        assert (again["changed"], again["disks"]) == (False, done["disks"])
    record = json.loads((out / "restored.json").read_text())
    assert (record["complete"], record["vm"], record["wish"]["point"]) == (True, "pgtest1", CHILD)


def test_files_belong_to_whom_one_says(export, tmp_path):
    if os.geteuid():
        assert "Operation not permitted" in export(owner="root")["msg"]
        return
    assert export(owner="nobody")["changed"]
    assert {path.owner() for path in (tmp_path / "out", *(tmp_path / "out").iterdir())} == {"nobody"}
    assert not export(owner="nobody")["changed"]


@pytest.mark.parametrize(
    ("spoil", "changes", "said"),
    [
        pytest.param(None, {"vm": "pgtest2"}, "knows no VM named pgtest2; it knows pgtest1", id="a VM that is not known"),
        pytest.param(None, {"vm": "5029f3ab-0000-4e3f-8a9b-0c1d2e3f4a5b"}, "holds nothing of a VM", id="a uuid that is not known"),
        pytest.param(None, {"point": "20261125T140102Z"}, f"has no restore point 20261125T140102Z; the newest are {FULL}, {CHILD}",
                     id="a point that is not there"),
        pytest.param(None, {"disks": [2001]}, "has no disk 2001, only 2000 (Hard disk 2000), 16000 (Hard disk 16000)",
                     id="a disk that is not there"),
        pytest.param(None, {"path": "{tmp_path}/no/out"}, "there is no folder {tmp_path}/no on this hub", id="a place that is not there"),
        pytest.param(None, {"path": "{tmp_path}/repository/vms/out"}, "lies within the repository", id="a place within the repository"),
        pytest.param(None, {"path": "out/../out"}, "is not an absolute path", id="a place that moves"),
        pytest.param(None, {"owner": "no-such-user"}, "there is no user no-such-user", id="an owner that is not there"),
        pytest.param(lambda points: shutil.rmtree(points.folder(FULL)), {"point": CHILD},
                     f"restore point {FULL} (which restore point {CHILD} stands on), disk 2000: there is no restore point {FULL}",
                     id="a point without the parent that it needs"),
        pytest.param(lambda points: os.truncate(points.image(FULL, 2000), 4 << 16), {"point": CHILD},
                     "disk-2000.qcow2 has 262144 bytes where its manifest says", id="an image that was cut off"),
        pytest.param(lambda points: shutil.rmtree(points.folder(FULL)), {},
                     f"no restore point of VM 5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b is whole: restore point {FULL}", id="no point that is whole"),
        pytest.param(lambda points: (points.repository.parent / "out").mkdir(), {}, "is there already and is no whole restore of ours",
                     id="a folder that is there already"),
        pytest.param(lambda points: (points.repository.parent / "out.partial/x").mkdir(parents=True), {},
                     "out.partial is there already, and no restore made it", id="a folder at the place of the partial one"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_made(export, points, spoil, changes, said):
    tmp_path = points.repository.parent
    if spoil:
        spoil(points)
    given = {key: value.format(tmp_path=tmp_path) if key == "path" else value for key, value in changes.items()}
    before = sorted(tmp_path.rglob("*"))
    for check in (True, False):
        refused = export(check=check, **given)
        assert refused["failed"], refused
        assert said.format(tmp_path=tmp_path) in refused["msg"]
    assert sorted(tmp_path.rglob("*")) == before


def test_latest_passes_over_what_is_not_whole(run_module, export, points):
    points.image(CHILD, 2000).unlink()
    asked = {"repository": str(points.repository), "vm": "pgtest1", "point": "latest"}
    found = run_module("restore_point_info", asked)["point"]
    assert (found["point"], found["instance_uuid"]) == (FULL, points.uuid)
    assert f"restore point {CHILD}, disk 2000: " in found["passed_over"][0]
    assert run_module("restore_point_info", {**asked, "disks": [16000]})["point"]["point"] == CHILD
    assert export()["point"] == FULL


def test_latest_passes_over_what_a_verification_found_damaged(run_module, export, points):
    points.image(CHILD, 2000).write_bytes(points.image(CHILD, 2000).read_bytes()[:-1] + b"x")
    asked = {"repository": str(points.repository), "vm": points.uuid}
    assert run_module("restore_point_info", {**asked, "point": "latest"})["point"]["point"] == CHILD, "it is not read"
    assert run_module("restore_point_verify", {**asked, "point": CHILD, "level": "data"})["failed"]
    found = run_module("restore_point_info", {**asked, "point": "latest"})["point"]
    assert found["point"] == FULL
    assert f"restore point {CHILD} is damaged: level data on " in found["passed_over"][0]
    assert export()["point"] == FULL
    named = run_module("restore_point_info", {**asked, "point": CHILD})["point"]
    assert named["point"] == CHILD, "asked for by name"
    assert named["distrusted"].startswith("level data on "), "but not in silence"
    assert found["distrusted"] == ""


def test_a_name_that_two_vms_bear_lists_them(export, points):
    other = points.uuid.replace("5029f3ab", "5029aaaa")
    shutil.copytree(points.folder(FULL).parent, points.repository / "vms" / other)
    (points.repository / "vms" / other / "vm.json").write_text(
        '{"name": "pgtest1", "inventory_path": "/DC1/vm/pgtest1"}'
    )
    refused = export(check=True)
    assert refused["failed"]
    assert refused["msg"].endswith(
        f"are named pgtest1: {other} (/DC1/vm/pgtest1); {points.uuid} (/DC0/vm/pgtest1); say which by its uuid"
    )
    assert export(check=True, vm=other)["changed"]
    assert export(check=True, vm="/DC1/vm/pgtest1")["changed"]


def test_a_vm_is_known_by_its_manifests_too(export, points):
    (points.folder(FULL).parent / "vm.json").unlink()
    assert export(check=True)["point"] == CHILD


def test_there_is_no_room(export, small_filesystem):
    (small_filesystem / "filler").write_bytes(bytes(98 << 20))
    refused = export(path=str(small_filesystem / "out"))
    assert refused["failed"]
    assert "has no room for this restore: it needs up to 5 MiB, and " in refused["msg"]
    assert [path.name for path in small_filesystem.iterdir()] == ["filler"]


def test_a_place_that_cannot_be_written_to(export, private_run, tmp_path):
    (tmp_path / "ro").mkdir()
    prefix = [
        *private_run,
        "sh",
        "-c",
        'mount -o bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"',
        str(tmp_path / "ro"),
    ]
    refused = export(path=str(tmp_path / "ro" / "out"), prefix=prefix)
    assert refused["failed"]
    assert refused["msg"] == f"{tmp_path}/ro cannot be written to: its file system is read-only"


def test_room_that_runs_out_leaves_nothing(export, points, tmp_path, small_filesystem):
    """A manifest that says less than is there, so that the look beforehand is deceived."""
    for key in (2000, 16000):
        subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", points.image(FULL, key), "4M"], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4M", points.image(FULL, key)], check=True)
        told = json.loads((points.folder(FULL) / "manifest.json").read_text())
        for disk in told["disks"]:
            disk["provisioned"] = 4 << 20
        told["files"] = {}
        (points.folder(FULL) / "manifest.json").write_text(json.dumps(told))
    free = os.statvfs(small_filesystem)
    (small_filesystem / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - (3 << 20)))
    script = "import sys; sys.argv = ['x']; from ansible_collections.sendense.backup.plugins.module_utils.repository import delivery, flatten, layout\n"
    script += f"from pathlib import Path; r = layout.open_repository({str(points.repository)!r}); p = r.points({points.uuid!r})[0]\n"
    script += f"d = flatten.disks(r, {points.uuid!r}, p, []); w = flatten.wish({points.uuid!r}, p, d, 'raw', Path({str(small_filesystem / 'out')!r}))\n"
    script += "flatten.make(w, d, 'raw', {})\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": collections()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SendenseError: disk 2000: it cannot be written to" in done.stderr
    assert "No space left on device" in done.stderr
    assert [path.name for path in small_filesystem.iterdir()] == ["filler"]


def collections():
    return next(path for path in sys.path if path.endswith("collections"))


def test_a_point_that_rotted_is_not_restored(export, points, tmp_path):
    told = json.loads(subprocess.run(
        ["qemu-img", "map", "-f", "qcow2", "--output=json", points.image(FULL, 2000)], check=True, capture_output=True
    ).stdout)  # fmt: skip
    with points.image(FULL, 2000).open("r+b") as image:
        image.seek(told[0]["offset"] + 4711)
        byte = image.read(1)
        image.seek(-1, os.SEEK_CUR)
        image.write(bytes([byte[0] ^ 1]))
    for form in ("raw", "qcow2", "vmdk"):
        failed = export(point=FULL, format=form)
        assert failed["failed"]
        assert failed["msg"].startswith(f"disk 2000: {points.image(FULL, 2000)} does not hold what the manifest says")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_what_was_restored_is_not_overwritten(export, tmp_path):
    export(format="raw")
    refused = export(format="qcow2")
    assert refused["failed"]
    assert refused["msg"].startswith(f"{tmp_path}/out holds another restore already (format raw); ")
    assert export(point=FULL, format="raw")["failed"]
    with (tmp_path / "out" / "disk-2000.raw").open("r+b") as file:
        file.write(b"used")
    changed = export(format="raw")
    assert changed["failed"]
    assert changed["msg"].startswith(f"{tmp_path}/out was restored before, and disk-2000.raw changed since; ")


@pytest.fixture
def stuck(points, tmp_path):
    """Return an export that hangs in its first disk, and the pid of its qemu-img."""
    real = shutil.which("qemu-img")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-img").write_text(
        f'#!/bin/sh\n[ "$1" = convert ] || exec {real} "$@"\nfor last; do :; done\nhead -c 1000 /dev/zero > "$last"\n'
        f"echo $$ > {tmp_path}/pid\nexec sleep 600\n"
    )
    (tmp_path / "bin" / "qemu-img").chmod(0o755)
    args = {"repository": str(points.repository), "vm": "pgtest1", "path": str(tmp_path / "out"), "format": "raw"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ansible_collections.sendense.backup.plugins.modules.restore_point_export"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": collections()},
    )  # fmt: skip
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": args | {"_ansible_remote_tmp": "/tmp"}}))
    process.stdin.close()
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    yield process, pid
    process.kill()
    process.wait(20)
    if alive(pid):
        os.kill(pid, signal.SIGKILL)


def test_an_interrupted_export_looks_like_nothing_and_is_begun_anew(export, points, stuck, tmp_path):
    process, pid = stuck
    busy = export(format="raw")
    assert (busy["failed"], busy["busy"]) == (True, True)
    assert "out.partial is being made by another restore, which is at work now" in busy["msg"]
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    wait_for(lambda: not alive(pid))
    assert (tmp_path / "out.partial" / "disk-2000.raw").exists()
    assert not (tmp_path / "out").exists()
    assert json.loads((tmp_path / "out.partial" / "restored.json").read_text())["complete"] is False
    (tmp_path / "out.partial").rename(tmp_path / "out")
    assert "is no whole restore of ours" in export(format="raw")["msg"], "whatever its name"
    (tmp_path / "out").rename(tmp_path / "out.partial")
    (tmp_path / "out.partial" / "disk-9.raw").write_text("of a wish before")
    done = export(format="raw")
    assert done["changed"]
    assert not (tmp_path / "out.partial").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "disk-16000.raw",
        "disk-2000.raw",
        "restored.json",
    ]
    assert (tmp_path / "out" / "disk-2000.raw").read_bytes() == points.truth[CHILD][2000]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for(state):
    deadline = time.monotonic() + 60
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_repository_alone_suffices(export, run_module, points, tmp_path):
    shutil.copytree(points.repository, tmp_path / "elsewhere")
    shutil.rmtree(points.repository)
    listed = run_module("restore_point_info", {"repository": str(tmp_path / "elsewhere")})["points"]
    assert [(each["point"], each["error"]) for each in listed] == [(FULL, ""), (CHILD, "")]
    for point in (FULL, CHILD):
        done = export(repository=str(tmp_path / "elsewhere"), point=point, path=str(tmp_path / point), format="raw")
        assert done["changed"]
        for key, content in points.truth[point].items():
            assert (tmp_path / point / f"disk-{key}.raw").read_bytes() == content
