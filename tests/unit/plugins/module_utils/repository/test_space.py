# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import point, space
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Draft, Repository, lock_name

MIB = 1 << 20
UUIDS = [f"5029f3a{each}-1c2d-4e3f-8a9b-0c1d2e3f4a5b" for each in range(6)]
JOBS = [f"vm{each}-5029f3a{each}-20261123T140102Z" for each in range(6)]


def draft(number, need, **more):
    return Draft(UUIDS[number], JOBS[number], {2000: 64 * MIB}, need=need, **more)


@pytest.fixture
def repository(tmp_path, small_filesystem):
    """Return a repository on a file system of its own, of 100 MiB."""
    return Repository(small_filesystem)


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


def fill(folder, size):
    """Take *size* bytes of the file system, as data that was written does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"disk-{len(list(folder.iterdir()))}.qcow2").write_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        ({"capacity": 1 << 30, "allocated": None}, 1 << 30),
        ({"capacity": 1 << 30}, 1 << 30),
        ({"capacity": 1 << 30, "allocated": 10 << 20}, 10 << 20),
        ({"capacity": 1 << 30, "allocated": 0}, 0),
        ({"capacity": 1 << 30, "allocated": 2 << 30}, 1 << 30),
    ],
)
def test_what_is_needed_is_what_may_be_data_and_little_more(disk, expected):
    assert expected < space.need([disk]) <= expected + expected // 1000 + 2 * MIB
    assert space.need([disk] * 3) == 3 * space.need([disk])


def test_an_image_full_of_data_takes_no_more_than_is_needed(tmp_path):
    """A point of one disk of nothing but data, with digests of the size that proof writes."""
    size = 48 * MIB
    (raw := tmp_path / "raw").write_bytes(os.urandom(size))
    (folder := tmp_path / "point").mkdir()
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk-2000.qcow2"]
    subprocess.run(convert, check=True)
    (folder / "disk-2000.digests").write_bytes(bytes(size // 65536 * 41 + 200))
    taken = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert size < taken <= space.need([{"capacity": size}])


def test_what_fits_is_reserved(repository, leases):
    space.reserve(repository, draft(0, 60 * MIB, min_free=5), leases)
    (lease,) = leases.of(JOBS[0])
    assert (lease.thing, lease.amount) == (f"space-{repository.path.stat().st_dev}", 60 * MIB)


def test_what_is_too_large_for_the_file_system_is_refused(repository, leases):
    with pytest.raises(Refused) as why:
        space.reserve(repository, draft(0, 120 * MIB, min_free=5), leases)
    assert str(why.value) == (
        f"the repository {repository.path} is too small for this backup: it needs up to 120.0 MiB, "
        "100.0 MiB of 100.0 MiB are free, and 5 % (5.0 MiB) are to stay free; make room there"
    )
    assert leases.of(JOBS[0]) == []


def test_what_is_to_stay_free_is_not_given_away(repository, leases):
    space.check(repository, draft(0, 80 * MIB, min_free=20), leases)
    with pytest.raises(Refused, match=r"is too small for this backup: .* and 21 % \(21.0 MiB\) are to stay free"):
        space.check(repository, draft(0, 80 * MIB, min_free=21), leases)


def test_what_is_small_only_because_of_another_job_is_said_so(repository, leases):
    leases.take(lock_name(UUIDS[0]), JOBS[0])
    space.reserve(repository, draft(0, 60 * MIB), leases)
    for act in (space.check, space.reserve):
        with pytest.raises(Refused) as why:
            act(repository, draft(1, 50 * MIB, min_free=5), leases)
        assert str(why.value) == (
            f"the repository {repository.path} is too small for this backup beside those that run: it needs up to 50.0 MiB, "
            "100.0 MiB of 100.0 MiB are free, and 5 % (5.0 MiB) are to stay free, while of the free space "
            f"60.0 MiB by job {JOBS[0]} are reserved; make room there, or run again once they have ended"
        )
    assert not isinstance(why.value, Busy), "what has been written is not given back when its job ends well"
    leases.release(JOBS[0])
    space.reserve(repository, draft(1, 50 * MIB, min_free=5), leases)


def test_what_was_reserved_and_written_by_now_is_counted_once(repository, leases):
    leases.take(lock_name(UUIDS[0]), JOBS[0])
    space.reserve(repository, draft(0, 60 * MIB), leases)
    folder = repository.partial_folder(UUIDS[0], JOBS[0])
    fill(folder, 45 * MIB)  # 55 are free, 15 of them reserved
    space.check(repository, draft(1, 40 * MIB), leases)
    with pytest.raises(Refused, match=r"55.0 MiB of 100.0 MiB are free, .* 15.0 MiB by job vm0-.* are reserved"):
        space.check(repository, draft(1, 41 * MIB), leases)
    folder.rename(repository.point_folder(UUIDS[0], JOBS[0]))  # its leases go a moment later
    space.check(repository, draft(1, 40 * MIB), leases)


def test_who_wrote_more_than_it_reserved_gives_nothing_back(repository, leases):
    leases.take(lock_name(UUIDS[0]), JOBS[0])
    space.reserve(repository, draft(0, 10 * MIB), leases)
    fill(repository.partial_folder(UUIDS[0], JOBS[0]), 30 * MIB)
    space.check(repository, draft(1, 70 * MIB), leases)
    with pytest.raises(Refused, match="is too small for this backup: it needs"):
        space.check(repository, draft(1, 71 * MIB), leases)


def test_what_the_job_itself_has_written_is_not_needed_again(repository, leases):
    space.reserve(repository, draft(0, 80 * MIB), leases)
    fill(repository.partial_folder(UUIDS[0], JOBS[0]), 70 * MIB)
    space.reserve(repository, draft(0, 80 * MIB), leases)


def test_a_dead_job_reserves_nothing(repository, leases, tmp_path, systemd):
    leases.take(lock_name(UUIDS[0]), JOBS[0])
    space.reserve(repository, draft(0, 60 * MIB), leases)
    (path,) = (tmp_path / "leases").glob("space-*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires": time.time() - 1}), encoding="utf-8")
    systemd(f"sendense-other-{JOBS[0]}")
    with pytest.raises(Refused, match="beside those that run"):
        space.check(repository, draft(1, 50 * MIB), leases)
    systemd(f"sendense-other-{JOBS[0]}", active="inactive")
    space.check(repository, draft(1, 50 * MIB), leases)


def test_what_a_dead_job_wrote_is_room_for_who_takes_it_away_first(repository, leases):
    fill(repository.partial_folder(UUIDS[0], JOBS[0]), 80 * MIB)
    mine = draft(0, 60 * MIB)
    again = Draft(UUIDS[0], "vm0-5029f3a0-20261124T140102Z", mine.disks, need=mine.need)
    with pytest.raises(Refused, match="too small"):
        space.check(repository, again, leases)
    space.check(repository, replace(again, dead=(JOBS[0],)), leases)


def _begin(folder, path, each, start, results):
    leases = Leases(folder)
    start.wait()
    try:
        point.begin(Repository(path), draft(each, 40 * MIB, min_free=5), leases)
        results.put(JOBS[each])
    except Refused as why:
        results.put(str(why))


def test_of_many_at_once_no_more_begin_than_there_is_room_for(repository, tmp_path, systemd, race):
    said = race(_begin, tmp_path / "leases", repository.path)
    winners, losers = [each for each in said if each in JOBS], [each for each in said if each not in JOBS]
    assert len(winners) == 2
    assert all("beside those that run" in each for each in losers)
    held = {lease.job for job in JOBS for lease in Leases(tmp_path / "leases").of(job)}
    assert held == set(winners), "who did not get the space holds no lock"
    assert len(list((repository.path / "vms").iterdir())) == 2, "and leaves nothing"
