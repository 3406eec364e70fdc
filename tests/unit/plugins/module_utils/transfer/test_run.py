# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import stat
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL
from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect
from ansible_collections.sendense.backup.plugins.module_utils.transfer import disk_run, engine, reader
from ansible_collections.sendense.backup.plugins.module_utils.transfer import run as runner
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import REQUEST, STATUS
from ansible_collections.sendense.backup.plugins.module_utils.transfer.disk_run import Disk, DiskRun
from ansible_collections.sendense.backup.plugins.module_utils.transfer.journal import Journal
from ansible_collections.sendense.backup.plugins.module_utils.transfer.run import copy

SIZE = (3 << 20) + 1536


@pytest.fixture
def places(tmp_path):
    for name in ("job", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "job", tmp_path / "work"


@pytest.fixture
def disk(datastore, qemu_nbd, tmp_path):
    """Return ``disk(key, size=SIZE, areas=None, target=None) -> Disk`` whose content is in the datastore."""

    def make(key, size=SIZE, areas=None, target=None, **settings):
        content = random.Random(key).randbytes(min(size, SIZE))
        with (datastore.folder / f"{key}.vmdk").open("wb") as file:
            file.write(content)
            file.truncate(size)
        image = tmp_path / f"{key}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        target = target or qemu_nbd("--format=qcow2", image).uri
        return Disk(
            key, size, datastore.source(f"{key}.vmdk"), target, None if areas is None else Areas(areas), **settings
        )

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


def test_what_is_left_is_a_status_file_and_what_another_start_goes_on_with(disk, places):
    status = copy([disk(2000)], *places)
    folder, work = places
    assert [path.name for path in folder.iterdir()] == [STATUS]
    assert stat.S_IMODE((folder / STATUS).stat().st_mode) == 0o600
    assert json.loads((folder / STATUS).read_text()) == json.loads(json.dumps(status))
    assert sorted(path.name for path in work.iterdir()) == ["disk-2000.journal", "disk-2000.leaves"], (
        "for another start"
    )


@dataclass(frozen=True)
class Slow(reader.HttpsSource):
    """A disk that takes its time to be opened, which nbdkit does within the handshake."""

    def words(self):
        return ["--filter=delay", *super().words(), "delay-open=1"]


def test_a_disk_may_take_longer_to_be_opened_than_a_server_to_answer(datastore, disk, places, tmp_path, monkeypatch):
    monkeypatch.setattr(connect.__wrapped__, "__defaults__", (0.5,))  # else 10 s, which this would take
    one = disk(2000)
    status = copy([replace(one, source=Slow(**asdict(one.source)))], *places)
    assert (status["state"], status["error"]) == ("done", "")
    assert status["disks"][0]["waited_source"] >= 1
    assert identical(datastore, tmp_path, 2000)


def test_the_status_file_can_be_read_at_any_moment(disk, places, monkeypatch):
    monkeypatch.setattr(runner, "_EVERY", 0.02)
    seen, over = [], threading.Event()

    def look():
        while not over.is_set():
            if (places[0] / STATUS).exists():
                seen.append(json.loads((places[0] / STATUS).read_text()))

    reader = threading.Thread(target=look)
    reader.start()
    copy([disk(2000)], *places, rate=SIZE)
    over.set()
    reader.join()
    assert seen[0]["state"] == "running"
    assert max(status["disks"][0]["read"] for status in seen if status["state"] == "running") > 0
    assert all(status["disks"][0]["tree"] is None for status in seen if status["state"] == "running")


@pytest.mark.parametrize("size", [SIZE + 512, SIZE - 512], ids=["longer", "shorter"])
@pytest.mark.parametrize("wrong", ["source", "export"])
def test_a_size_that_does_not_fit_is_refused_before_anything_is_copied(datastore, disk, nbdkit, places, wrong, *, size):
    if wrong == "source":
        one = disk(2000)
        with (datastore.folder / "2000.vmdk").open("r+b") as file:
            file.truncate(size)
    else:
        one = disk(2000, target=nbdkit("memory", str(size)).uri)
    status = copy([one], *places)
    assert status["state"] == "failed"
    expected = f"disk 2000: the {wrong} has {size} bytes where the snapshot says {SIZE}; nothing was copied"
    assert status["error"].startswith(expected)
    assert status["disks"][0]["read"] == status["disks"][0]["written"] == 0
    assert datastore.asked == []


def test_a_source_that_gives_less_than_it_announced_fails_the_disk(datastore, disk, places, monkeypatch):
    patient = reader.command
    monkeypatch.setattr(reader, "command", lambda *given: [*patient(*given), "retries=0"])
    monkeypatch.setattr(disk_run, "PAUSES", (0.1, 0.1))
    one = disk(2000)
    with (datastore.folder / "2000.vmdk").open("r+b") as file:
        file.truncate(SIZE - (1 << 20))
    datastore.announced = SIZE
    status = copy([one], *places)
    assert status["state"] == "failed"
    # some versions of nbdkit's curl plugin do not survive it
    assert re.match("disk 2000: the source (failed to read|hung up) .*; nbdkit said: ", status["error"])
    assert status["disks"][0]["tree"] is None


def test_an_export_that_takes_no_data_is_refused_before_anything_is_read(datastore, disk, qemu_nbd, places, tmp_path):
    one = disk(2000, target="-")
    one = replace(one, target=qemu_nbd("--format=qcow2", "--read-only", tmp_path / "2000.qcow2").uri)
    status = copy([one], *places)
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert status["error"] == "disk 2000: the export is read-only; nothing was copied"
    assert datastore.asked == []


def test_a_hub_that_gets_full_in_mid_copy_fails_the_vm_and_no_other(
    datastore, disk, qemu_nbd, places, small_filesystem
):
    """Its room is given back with its images, and what another VM has written there meanwhile is whole."""
    size = 160 << 20
    full, other = disk(2000, size, target="-"), disk(2016)
    (datastore.folder / "2000.vmdk").write_bytes(random.Random(9).randbytes(size))
    images = [small_filesystem / f"{key}.qcow2" for key in (2000, 2016)]
    servers = []
    for image, each in zip(images, (full, other), strict=True):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(each.capacity)], check=True)
        servers.append(qemu_nbd("--format=qcow2", image))
    free = os.statvfs(small_filesystem).f_bavail
    status = copy([replace(full, target=servers[0].uri)], *places)
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert re.match(r"disk 2000: the export failed to (write at \d+|flush).*No space left on device", status["error"])
    servers[0].stop()
    images[0].unlink()
    assert free - os.statvfs(small_filesystem).f_bavail <= 16
    assert copy([replace(other, target=servers[1].uri)], *places)["state"] == "done"
    raw = datastore.folder / "2016.vmdk"
    command = ["qemu-img", "compare", "--force-share", "-f", "raw", "-F", "qcow2", raw, images[1]]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_fails_stops_the_others_and_is_the_one_that_is_named(disk, nbdkit, places):
    slow = nbdkit("--filter=delay", "memory", str(64 << 20), "wdelay=5")
    full = nbdkit("--filter=error", "memory", str(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    disks = [disk(2000, size=64 << 20, target=slow.uri), disk(2016, target=full.uri)]
    status = copy(disks, *places)
    assert status["state"] == "failed"
    assert status["error"].startswith("disk 2016: the export failed to write at ")
    assert "No space left on device" in status["error"]
    assert status["disks"][0]["tree"] is None
    assert not status["resumable"], "a full target stays full"


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


def started(one, places, identity="5f3c snapshot-2", **options):
    """Copy a disk whose export was started once and has that identity; return its status."""
    status = copy([replace(one, identity=identity)], *places, **options)
    assert status["state"] == "done", status["error"]
    return status["disks"][0]


def test_another_start_goes_on_where_the_journal_ends(datastore, disk, places, tmp_path):
    one = disk(2000)
    whole = started(one, places)
    (journal,) = places[1].glob("*.journal")
    done = Journal(tmp_path / "other.journal", "5f3c snapshot-2 by sha256", SIZE)
    done.add([(0, 1 << 20), (2 << 20, 1 << 20)])
    done.close()
    (tmp_path / "other.journal").rename(journal)
    datastore.asked.clear()
    again = started(one, places)
    assert (again["resumed"], again["fetched"], again["read"]) == (2 << 20, SIZE - (2 << 20), SIZE)
    assert (again["written"], again["tree"], again["anew"]) == (whole["written"], whole["tree"], "")
    assert {offset >> 20 for offset, length in datastore.asked if length > 512} <= {1, 3}, "only what was missing"
    assert identical(datastore, tmp_path, 2000)
    assert started(one, places)["fetched"] == 0, "all of it was safe then"


def test_that_a_map_left_data_out_is_not_forgotten(datastore, disk, places, tmp_path, monkeypatch):
    """The samples of another start may miss what those of the first one hit."""
    one = disk(2000, areas=[(0, 1 << 20)])
    started(one, places)
    (journal,) = places[1].glob("*.journal")
    done = Journal(tmp_path / "other.journal", "5f3c snapshot-2 by sha256", SIZE)
    done.add([(0, 2 << 20)])
    done.close()
    (tmp_path / "other.journal").rename(journal)
    monkeypatch.setattr(disk_run, "samples", lambda *_given: [])
    again = started(one, places)
    assert (again["map"], again["read"], again["fetched"]) == ("refuted", SIZE, SIZE - (2 << 20))
    assert identical(datastore, tmp_path, 2000)


def test_progress_does_not_go_back_when_a_copy_is_started_again(nbdkit, disk, places, monkeypatch):
    monkeypatch.setattr(runner, "_EVERY", 0.02)
    seen, write = [], runner.Status.write
    monkeypatch.setattr(runner.Status, "write", lambda *given: seen.append(write(*given)) or seen[-1])
    one = disk(2000, target=nbdkit("--filter=delay", "memory", str(SIZE), "wdelay=200ms").uri)
    assert started(one, places, told={"2000": {"read": 2 << 20, "planned": SIZE}})["read"] == SIZE
    told = [status["disks"][0]["read"] for status in seen]
    assert told[0] == 2 << 20
    assert told == sorted(told)


@pytest.mark.parametrize("lost", ["export", "digest", "leaves", "journal"])
def test_without_what_it_stands_on_nothing_is_resumed(disk, places, lost):
    one = disk(2000)
    first = started(one, places)
    for path in places[1].glob(f"*.{lost}"):
        path.unlink()
    one = replace(one, algorithm="blake2b" if lost == "digest" else "sha256")
    again = started(one, places, "77aa snapshot-2" if lost == "export" else "5f3c snapshot-2")
    assert (again["resumed"], again["fetched"]) == (0, SIZE)
    told = "its export, its snapshot or its digest is another one now"
    assert again["anew"] == (told if lost in ("export", "digest") else "")
    assert (again["tree"] == first["tree"]) is (lost != "digest")
    assert again["tree"]["algorithm"] == one.algorithm


@pytest.mark.parametrize("when", ["in mid-copy", "after it had taken all"])
def test_an_export_that_is_killed_costs_its_own_disk_only(
    datastore, disk, qemu_nbd, tmp_path, places, *, monkeypatch, when
):
    """The role serves an empty image in the place of that one; so does this test."""
    monkeypatch.setattr(engine, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(runner, "_EVERY", 0.05)
    sizes = {2000: (8 if when == "in mid-copy" else 1) << 20, 2016: 8 << 20}
    disks = [replace(disk(key, size, target="-"), identity=f"start 1 of {key}") for key, size in sizes.items()]
    for key, size in sizes.items():
        (datastore.folder / f"{key}.vmdk").write_bytes(random.Random(key).randbytes(size))
    servers = [qemu_nbd("--format=qcow2", tmp_path / f"{key}.qcow2") for key in sizes]
    disks = [replace(each, target=server.uri) for each, server in zip(disks, servers, strict=True)]
    seen = []
    copying = threading.Thread(target=lambda: seen.append(copy(disks, *places, rate=6 << 20)))
    copying.start()

    def safe():
        with contextlib.suppress(FileNotFoundError):
            return [each["safe"] for each in json.loads((places[0] / STATUS).read_text())["disks"]]
        return [0, 0]

    enough = [min(size, 2 << 20) for size in sizes.values()]
    while any(has < least for has, least in zip(safe(), enough, strict=True)):
        assert copying.is_alive()
        time.sleep(0.02)
    servers[0].process.kill()
    copying.join()
    [status] = seen
    assert (status["state"], status["resumable"]) == ("failed", True)
    assert status["error"].startswith("disk 2000: ")
    kept = status["disks"][1]["safe"]
    assert kept >= 2 << 20

    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "2000.qcow2", str(sizes[2000])], check=True)
    again = qemu_nbd("--format=qcow2", tmp_path / "2000.qcow2")
    status = copy([replace(disks[0], target=again.uri, identity="start 2 of 2000"), disks[1]], *places)
    assert status["state"] == "done", status["error"]
    one, other = status["disks"]
    assert (one["resumed"], one["fetched"]) == (0, sizes[2000])
    assert one["anew"] == "its export, its snapshot or its digest is another one now"
    assert (other["resumed"], other["fetched"], other["anew"]) == (kept, sizes[2016] - kept, "")
    assert identical(datastore, tmp_path, 2000)
    assert identical(datastore, tmp_path, 2016)


def test_a_session_that_ended_is_waited_for_and_the_copy_goes_on(datastore, disk, places, tmp_path):
    one = disk(2000)
    good = datastore.cookie_file.read_text()
    datastore.cookie_file.write_text("vmware_soap_session=old", encoding="utf-8")

    def log_in_again():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                if json.loads((places[0] / STATUS).read_text())["disks"][0]["wants"] == "session":
                    datastore.cookie_file.write_text(good, encoding="utf-8")
                    return
            time.sleep(0.05)

    follower = threading.Thread(target=log_in_again)
    follower.start()
    assert started(one, places)["wants"] == ""
    follower.join()
    assert identical(datastore, tmp_path, 2000)


def test_a_session_that_nobody_renews_ends_the_copy_which_can_go_on_later(datastore, disk, places, monkeypatch):
    monkeypatch.setattr(disk_run, "RENEWAL", 0.2)
    one = disk(2000)
    datastore.cookie_file.write_text("vmware_soap_session=old", encoding="utf-8")
    status = copy([one], *places)
    assert (status["state"], status["resumable"]) == ("failed", True)
    assert status["error"].startswith("disk 2000: vCenter ended the session while the disk was read; ")
    assert status["error"].endswith("no run was there to log in again within 0 s")


def test_a_source_that_fails_in_mid_copy_is_opened_anew(datastore, disk, places, tmp_path, monkeypatch):
    patient = reader.command
    monkeypatch.setattr(reader, "command", lambda *given: [*patient(*given), "retries=0"])
    monkeypatch.setattr(disk_run, "PAUSES", (0.2, 0.2))
    one = disk(2000)
    datastore.broken_from = 2 << 20

    def mend():
        while not any(offset >= 2 << 20 for offset, _length in list(datastore.asked)):
            time.sleep(0.01)
        datastore.broken_from = 1 << 62

    mender = threading.Thread(target=mend)
    mender.start()
    done = started(one, places)
    mender.join()
    assert done["read"] == SIZE
    assert identical(datastore, tmp_path, 2000)


def test_a_source_that_fails_at_one_place_again_and_again_is_given_up(datastore, disk, places, monkeypatch):
    """What lies before that place is read each time, and that is no progress."""
    patient = reader.command
    monkeypatch.setattr(reader, "command", lambda *given: [*patient(*given), "retries=0"])
    monkeypatch.setattr(disk_run, "PAUSES", (0.1, 0.1))
    datastore.broken_from = 2 << 20
    over = threading.Event()
    timer = threading.Timer(60, over.set)
    timer.start()
    status = copy([replace(disk(2000), identity="5f3c snapshot-2")], *places)
    assert status["state"] == "failed"
    timer.cancel()
    assert not over.is_set(), "it went on for ever"


def test_nothing_moving_for_too_long_is_a_failure_with_a_sentence(datastore, disk, places):
    datastore.hung = {"2000.vmdk"}
    status = copy([disk(2000)], *places, stall=1.5)
    assert status["error"].startswith(
        "disk 2000: nothing has moved for 2 s (backup_stall): the source gives nothing; look at"
    )
    assert not status["resumable"]


def test_of_what_stalls_the_sentence_names_the_one_that_does_now(disk, nbdkit, places, tmp_path, monkeypatch):
    """A source that is slow makes the copy wait long, and then the export hangs."""
    size = 64 << 20
    (tmp_path / "slow").write_bytes(random.Random(3).randbytes(size))
    slow = ["--filter=delay", "file", str(tmp_path / "slow"), "rdelay=1"]
    monkeypatch.setattr(reader.HttpsSource, "words", lambda _self: slow)
    takes = f"pwrite=if [ $4 -ge {48 << 20} ]; then sleep 10; fi; cat >/dev/null"
    target = nbdkit("eval", f"get_size=echo {size}", "can_write=exit 0", "can_flush=exit 0", "pread=exit 1", takes)
    status = copy([disk(2000, size=size, target=target.uri)], *places, stall=2)
    assert status["disks"][0]["waited_source"] > status["disks"][0]["waited_target"]
    assert status["error"].startswith(
        "disk 2000: nothing has moved for 2 s (backup_stall): the export takes nothing; look at"
    )


def test_an_export_that_is_out_of_reach_is_an_interruption(disk, places):
    status = copy([disk(2000, target="nbd+unix:///x?socket=/nowhere/2000.sock")], *places)
    assert status["resumable"]


def test_what_anybody_may_read_tells_how_far_it_is_and_nothing_else(disk, places, tmp_path):
    shown = tmp_path / "progress.json"
    copy([disk(2000), disk(2016)], *places, public=shown)
    assert stat.S_IMODE(shown.stat().st_mode) == 0o644
    said = json.loads(shown.read_text())
    assert (said["state"], said["percent"], said["planned"], said["read"], said["eta"]) == (
        "done", 100.0, 2 * SIZE, 2 * SIZE, 0,
    )  # fmt: skip
    assert [each["key"] for each in said["disks"]] == [2000, 2016]
    assert str(tmp_path) not in shown.read_text()


def test_it_runs_from_a_request_file_as_its_unit_does(datastore, disk, places, tmp_path):
    folder, work = places
    disks = [disk(2000), disk(2016, areas=[(0, SIZE)])]
    request = runner.request(disks, work)
    assert runner.parse(json.loads(json.dumps(request))) == disks
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", runner.__name__, folder / REQUEST],
        env={"PYTHONPATH": str(Path(runner.__file__).parents[6]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads((folder / STATUS).read_text())
    assert (said["state"], said["error"]) == ("done", "")
    assert identical(datastore, tmp_path, 2000)


@pytest.fixture
def knows_holes(monkeypatch):
    """Let the source be one whose server knows its holes: nbdkit's file plugin, where another reads over HTTPS."""
    monkeypatch.setattr(
        reader.HttpsSource, "words", lambda self: ["file", str(self.cookie_file).replace("cookie", "holes")]
    )


def sparse(path, size):
    """Make a file with data at both ends of a hole, and another in the middle of its last MiB."""
    with path.open("wb") as file:
        file.write(b"x" * CELL)
        file.seek(size - CELL)
        file.write(b"y" * CELL)
    return path


@pytest.mark.parametrize("fresh", [True, False])
def test_what_the_source_calls_a_hole_is_not_read(tmp_path, places, disk, knows_holes, fresh):
    size = 64 << 20
    one = disk(2000, size=size, fresh=fresh)
    raw = sparse(Path(one.source.cookie_file.replace("cookie", "holes")), size)
    if not fresh:
        with connect(one.target) as handle:
            handle.pwrite(b"old" * 1000, 32 << 20)
    status = copy([one], *places)
    assert (status["state"], status["error"]) == ("done", "")
    [found] = status["disks"]
    assert (found["map"], found["planned"], found["read"]) == ("source", 2 * CELL, 2 * CELL)
    command = ["qemu-img", "compare", "--force-share", "-f", "raw", "-F", "qcow2", raw, tmp_path / "2000.qcow2"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_progress_does_not_go_back_while_holes_are_not_known_again(disk, places, knows_holes, monkeypatch):
    size, seen, looked = 64 << 20, [], threading.Event()
    write, ask = runner.Status.write, DiskRun._ask
    monkeypatch.setattr(runner.Status, "write", lambda *given: seen.append(write(*given)) or looked.set() or seen[-1])
    monkeypatch.setattr(DiskRun, "_ask", lambda *given: looked.wait(20) and ask(*given))
    one = disk(2000, size=size)
    sparse(Path(one.source.cookie_file.replace("cookie", "holes")), size)
    assert started(one, places, told={"2000": {"read": CELL, "planned": 2 * CELL}})["map"] == "source"
    assert (seen[0]["disks"][0]["percent"], seen[-1]["disks"][0]["percent"]) == (50.0, 100.0)


@pytest.mark.parametrize(("offers", "many"), [("auto", disk_run.SOURCES), ("disable", 1)])
def test_a_source_is_read_by_several_connections_if_it_offers_that(
    disk, places, tmp_path, monkeypatch, offers, *, many
):
    one, log, raw = disk(2000), tmp_path / "log", tmp_path / "datastore" / "2000.vmdk"
    words = ["--filter=log", "--filter=multi-conn", "file", raw, f"multi-conn-mode={offers}", f"logfile={log}"]
    monkeypatch.setattr(reader.HttpsSource, "words", lambda _self: list(map(str, words)))
    assert copy([one], *places)["state"] == "done"
    readers = {line.partition("connection=")[2].split()[0] for line in log.read_text().splitlines() if " Read " in line}
    assert len(readers) == many
    command = ["qemu-img", "compare", "--force-share", "-f", "raw", "-F", "qcow2", raw, tmp_path / "2000.qcow2"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_all_disks_together_keep_to_the_rate(disk, places):
    began = time.monotonic()
    status = copy([disk(2000), disk(2016)], *places, rate=3 << 20)
    assert status["state"] == "done"
    assert 1.2 < time.monotonic() - began < 20


@pytest.fixture
def counted(nbdkit, qemu_nbd, tmp_path):
    """Return ``counted(image) -> (uri, written)``: a qemu-nbd of that image, slow, and who counts what it was given and took."""

    def make(image):
        log = tmp_path / "writes.log"
        behind = qemu_nbd("--format=qcow2", image)
        front = nbdkit(
            "--filter=log", "--filter=delay", "nbd", f"uri={behind.uri}", f"logfile={log}", "wdelay=200ms"
        )  # fmt: skip
        taken, begun, words = 0, {}, log.open(encoding="utf-8")

        def written():
            nonlocal taken
            for line in words:
                found = re.search(r"(\.\.\.)?Write id=(\d+) (?:offset=\w+ count=(\w+)|return=0)", line)
                if found and found[3]:
                    begun[found[2]] = int(found[3], 16)
                elif found:
                    taken += begun.pop(found[2])
            return taken

        return front.uri, written

    return make


def test_the_progress_of_all_disks_does_not_go_back_when_more_of_one_is_planned(disk, places, tmp_path, monkeypatch):
    """The map of a disk that begins late turns out to be wrong, so all of it is read."""
    monkeypatch.setattr(runner, "_EVERY", 0.05)
    shown, percents, write, doubt = tmp_path / "progress.json", [], runner.Status.write, DiskRun._doubt
    done = threading.Event()

    def told(*given):
        status = write(*given)
        percents.append(json.loads(shown.read_text())["percent"])
        if status["disks"][0]["tree"]:
            done.set()
        return status

    monkeypatch.setattr(runner.Status, "write", told)
    monkeypatch.setattr(
        DiskRun, "_doubt", lambda *given: (given[0].name != "disk-2016" or done.wait(20)) and doubt(*given)
    )
    status = copy([disk(2000), disk(2016, size=32 << 20, areas=[(0, CELL)])], *places, public=shown)
    assert status["disks"][1]["map"] == "refuted"
    assert percents == sorted(percents)
    assert percents[-1] == 100


def test_progress_is_what_the_export_has_taken_and_never_goes_back(
    counted, disk, knows_holes, places, tmp_path, *, monkeypatch
):
    monkeypatch.setattr(runner, "_EVERY", 0.05)
    size, shown, samples, write = 64 << 20, tmp_path / "progress.json", [], runner.Status.write
    one = disk(2000, size=size, target="-")
    Path(one.source.cookie_file.replace("cookie", "holes")).write_bytes(random.Random(7).randbytes(size))
    uri, written = counted(tmp_path / "2000.qcow2")

    def sampled(*given):
        least, status, said = written(), write(*given), json.loads(shown.read_text())
        samples.append((least, round(said["percent"] * size / 100), said["written"], written()))
        return status

    monkeypatch.setattr(runner.Status, "write", sampled)
    assert copy([replace(one, target=uri)], *places, rate=16 << 20, public=shown)["state"] == "done"
    assert len(samples) > 20
    for least, *progress, most in samples:
        assert all(least - size / 50 <= each <= most + size / 50 for each in progress), samples
    assert [each[1] for each in samples] == sorted(each[1] for each in samples)
    assert samples[-1] == (size, size, size, size)
