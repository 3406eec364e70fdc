# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import shares
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Lease, Leases
from ansible_collections.sendense.backup.plugins.module_utils.shares import Share

ONE, TWO = "pgtest1-5029f3ab-20261123T140102Z", "thin1-50aa0000-20261123T140102Z"
DISKS, OPEN, GOING = "disks-host-12", "snapshots-datastore-14", "removals-datastore-14"


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


def test_jobs_hold_together_what_the_limit_allows(leases):
    shares.hold(leases, ONE, [Share(DISKS, 20, 24)])
    shares.hold(leases, TWO, [Share(DISKS, 4, 24)])
    assert (shares.held(leases, ONE), shares.held(leases, TWO)) == ({DISKS: 20}, {DISKS: 4})


def test_what_others_hold_is_busy_and_they_are_named(leases):
    shares.hold(leases, ONE, [Share(DISKS, 20, 24)])
    with pytest.raises(
        Busy,
        match=rf"^open disks of host host-12: 5 cannot be had, because 20 of at most 24 are held by job {ONE} \(20\)$",
    ):
        shares.hold(leases, TWO, [Share(DISKS, 5, 24)])
    leases.release(ONE)
    shares.hold(leases, TWO, [Share(DISKS, 5, 24)])


def test_shares_are_had_all_or_none(leases):
    shares.hold(leases, ONE, [Share(OPEN, 1, 1)])
    shares.hold(leases, TWO, [Share(GOING, 1, 2)])
    with pytest.raises(Busy, match="^open snapshots on datastore datastore-14: 1 cannot be had"):
        shares.hold(leases, TWO, [Share(DISKS, 3, 24), Share(OPEN, 1, 1)])
    assert shares.held(leases, TWO) == {GOING: 1}


def test_an_exchange_takes_the_new_and_gives_the_old_back(leases):
    shares.hold(leases, ONE, [Share(DISKS, 3, 24), Share(OPEN, 1, 1)])
    shares.hold(leases, ONE, [Share(OPEN, 1, 1), Share(GOING, 1, 2)])
    assert shares.held(leases, ONE) == {GOING: 1, OPEN: 1}
    shares.hold(leases, ONE, [])
    shares.hold(leases, TWO, [Share(OPEN, 1, 1)])


def test_what_is_no_share_of_ours_to_give_stays(leases):
    leases.take("vm-x", ONE)
    leases.take("port-10100", ONE)
    with leases.locked():
        leases.put(Lease("space-7", ONE, amount=1 << 30))
    shares.hold(leases, ONE, [Share(DISKS, 3, 24)])
    shares.hold(leases, ONE, [])
    assert [lease.thing for lease in leases.of(ONE)] == ["port-10100", "space-7", "vm-x"]


def test_a_dead_job_does_not_count(leases, tmp_path):
    shares.hold(leases, ONE, [Share(OPEN, 8, 8)])
    path = tmp_path / "leases" / f"{OPEN}@{ONE}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires": time.time() - 1}))
    shares.hold(leases, TWO, [Share(OPEN, 8, 8)])
    assert shares.held(leases, TWO) == {OPEN: 8}


def test_who_asks_is_alive(leases, tmp_path):
    leases.take("vm-x", TWO)
    (lock := tmp_path / "leases" / "vm-x").write_text(json.dumps(json.loads(lock.read_text()) | {"expires": 1}))
    shares.hold(leases, ONE, [Share(OPEN, 1, 1)])
    with pytest.raises(Busy):
        shares.hold(leases, TWO, [Share(OPEN, 1, 1)])
    assert leases.held("vm-x").expires > time.time()


@pytest.mark.parametrize(
    ("wished", "sentence"),
    [
        pytest.param([Share("vm-x", 1, 1)], "'vm-x' is nothing to share", id="a lock"),
        pytest.param([Share("space-7", 1, 1)], "'space-7' is nothing to share", id="space"),
        pytest.param([Share(DISKS, 0, 1)], "open disks of host host-12: a share of 0 is none", id="nothing"),
        pytest.param([Share(DISKS, 1, 9)] * 2, f"{DISKS} is named more than once", id="one thing twice"),
        pytest.param(
            [Share(DISKS, 30, 24)],
            "open disks of host host-12: the job needs 30 at once, and all jobs together may have 24; raise the limit",
            id="more than there is",
        ),
    ],
)
def test_what_can_never_be_had_is_refused_at_once(leases, wished, sentence):
    with pytest.raises(Refused, match=sentence) as why:
        shares.hold(leases, ONE, wished)
    assert not isinstance(why.value, Busy)
    assert leases.of(ONE) == []


def _grab(folder, each, start, results):
    job = f"vm{each}-5029f3ab-20261123T140102Z"
    start.wait()
    try:
        shares.hold(Leases(folder), job, [Share(DISKS, 5, 24), Share(OPEN, 1, 3)])
        results.put(job)
    except Busy:
        results.put("")


def test_of_many_at_once_no_more_get_a_share_than_there_are(tmp_path, systemd, race):
    for turn in range(5):
        folder = tmp_path / f"leases{turn}"
        winners = {job for job in race(_grab, folder) if job}
        assert len(winners) == 3
        assert {lease.job for lease in Leases(folder).shares(OPEN)} == winners
        assert {lease.job for lease in Leases(folder).shares(DISKS)} == winners
