# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import random
import stat
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL
from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader
from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner
from ansible_collections.sendense.backup.plugins.module_utils.transfer.run import Disk, copy

SIZE = (3 << 20) + 1536


@pytest.fixture
def places(tmp_path):
    for name in ("job", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "job", tmp_path / "work"


@pytest.fixture
def disk(datastore, qemu_nbd, tmp_path):
    """Return ``disk(key, size=SIZE, areas=None, target=None) -> Disk`` whose content is in the datastore."""

    def make(key, size=SIZE, areas=None, target=None):
        content = random.Random(key).randbytes(min(size, SIZE))
        with (datastore.folder / f"{key}.vmdk").open("wb") as file:
            file.write(content)
            file.truncate(size)
        image = tmp_path / f"{key}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        target = target or qemu_nbd("--format=qcow2", image).uri
        return Disk(key, size, datastore.source(f"{key}.vmdk"), target, areas)

    return make


def identical(datastore, tmp_path, key):
    raw, image = datastore.folder / f"{key}.vmdk", tmp_path / f"{key}.qcow2"
    # --force-share: its server still runs, but has been told to flush
    command = ["qemu-img", "compare", "--force-share", "-f", "raw", "-F", "qcow2", raw, image]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_all_disks_arrive_and_the_status_tells_of_each(datastore, disk, places, tmp_path):
    disks = [disk(2000), disk(2016, size=16 << 20, areas=[(0, SIZE)])]
    status = copy(disks, *places)
    assert (status["state"], status["error"]) == ("done", "")
    assert identical(datastore, tmp_path, 2000)
    assert identical(datastore, tmp_path, 2016)
    one, two = status["disks"]
    assert (one["key"], one["provisioned"], one["allocated"], one["planned"]) == (2000, SIZE, None, SIZE)
    assert (two["provisioned"], two["allocated"], two["planned"]) == (16 << 20, SIZE, (3 << 20) + CELL)
    assert two["read"] == two["planned"], "only what is allocated is read"
    leaves = digests.leaves(memoryview((datastore.folder / "2000.vmdk").read_bytes()))
    whole = digests.tree(((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32)), SIZE)
    assert one["tree"] == asdict(whole)


def test_a_map_that_leaves_data_out_is_not_believed(datastore, disk, places, tmp_path):
    status = copy([disk(2000, areas=[(0, 1 << 20)])], *places)
    assert status["state"] == "done"
    assert status["disks"][0]["map"] == "refuted"
    assert status["disks"][0]["read"] == SIZE
    assert identical(datastore, tmp_path, 2000)


def test_a_map_that_holds_is_used(disk, places):
    status = copy([disk(2016, size=16 << 20, areas=[(0, SIZE)]), disk(2000)], *places)
    assert [each["map"] for each in status["disks"]] == ["used", "none"]


def test_nothing_is_left_but_the_status_file(disk, places):
    status = copy([disk(2000)], *places)
    folder, work = places
    assert [path.name for path in folder.iterdir()] == [runner.STATUS]
    assert stat.S_IMODE((folder / runner.STATUS).stat().st_mode) == 0o600
    assert json.loads((folder / runner.STATUS).read_text()) == json.loads(json.dumps(status))
    assert not list(work.iterdir())


def test_the_status_file_can_be_read_at_any_moment(nbdkit, disk, places, monkeypatch):
    monkeypatch.setattr(runner, "_EVERY", 0.02)
    slow = nbdkit("--filter=delay", "memory", str(SIZE), "wdelay=500ms")
    seen, over = [], threading.Event()

    def look():
        while not over.is_set():
            if (places[0] / runner.STATUS).exists():
                seen.append(json.loads((places[0] / runner.STATUS).read_text()))

    reader = threading.Thread(target=look)
    reader.start()
    copy([disk(2000, target=slow.uri)], *places)
    over.set()
    reader.join()
    assert seen[0]["state"] == "running"
    assert max(status["disks"][0]["read"] for status in seen if status["state"] == "running") > 0
    assert all(status["disks"][0]["tree"] is None for status in seen if status["state"] == "running")


@pytest.mark.parametrize("wrong", ["source", "export"])
def test_a_size_that_does_not_fit_is_refused_before_anything_is_copied(datastore, disk, nbdkit, places, wrong):
    if wrong == "source":
        one = disk(2000)
        with (datastore.folder / "2000.vmdk").open("r+b") as file:
            file.truncate(SIZE + 512)
    else:
        one = disk(2000, target=nbdkit("memory", str(SIZE + 512)).uri)
    status = copy([one], *places)
    assert status["state"] == "failed"
    expected = f"disk 2000: the {wrong} has {SIZE + 512} bytes where the snapshot says {SIZE}; nothing was copied"
    assert status["error"].startswith(expected)
    assert status["disks"][0]["read"] == status["disks"][0]["written"] == 0
    assert datastore.asked == []


def test_a_disk_that_fails_stops_the_others_and_is_the_one_that_is_named(disk, nbdkit, places):
    slow = nbdkit("--filter=delay", "memory", str(64 << 20), "wdelay=5")
    full = nbdkit("--filter=error", "memory", str(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    disks = [disk(2000, size=64 << 20, target=slow.uri), disk(2016, target=full.uri)]
    status = copy(disks, *places)
    assert status["state"] == "failed"
    assert status["error"].startswith("disk 2016: the export failed to write at ")
    assert "No space left on device" in status["error"]
    assert status["disks"][0]["tree"] is None
    assert not list(places[1].iterdir())


def test_a_source_that_answers_no_more_does_not_hold_the_failure_of_another_back(datastore, disk, nbdkit, places):
    datastore.hung = {"2000.vmdk"}
    full = nbdkit("--filter=error", "memory", str(SIZE), "error-pwrite=EIO", "error-pwrite-rate=100%")
    began = time.monotonic()
    status = copy([disk(2000), disk(2016, target=full.uri)], *places)
    assert status["error"].startswith("disk 2016: the export failed to write")
    assert time.monotonic() - began < 20


def test_a_server_that_breaks_is_quoted(datastore, disk, places, monkeypatch):
    patient = reader.command  # its three retries take 14 s
    monkeypatch.setattr(reader, "command", lambda *given: [*patient(*given), "retries=0"])
    one = disk(2000)
    datastore.broken_from = 0
    status = copy([one], *places)
    assert status["state"] == "failed"
    assert status["error"].startswith("disk 2000: the source failed to read")
    assert "nbdkit said: " in status["error"]
    assert "500" in status["error"]


def test_a_target_that_is_not_there_is_named(disk, places):
    status = copy([disk(2000, target="nbd+unix:///x?socket=/nowhere/2000.sock")], *places)
    assert status["error"].startswith("disk 2000: nbd+unix:///x?socket=/nowhere/2000.sock: ")
    assert "No such file" in status["error"]


def test_it_runs_from_a_request_file_as_its_unit_does(datastore, disk, places, tmp_path):
    folder, work = places
    disks = [disk(2000), disk(2016, areas=[(0, SIZE)])]
    request = {"work": str(work), "disks": [asdict(each) for each in disks]}
    assert runner.parse(json.loads(json.dumps(request))) == disks
    (folder / runner.REQUEST).write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", runner.__name__, folder / runner.REQUEST],
        env={"PYTHONPATH": str(Path(runner.__file__).parents[6]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads((folder / runner.STATUS).read_text())
    assert (said["state"], said["error"]) == ("done", "")
    assert identical(datastore, tmp_path, 2000)
