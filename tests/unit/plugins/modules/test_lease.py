# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

JOB, OTHER = "pgtest1-5029f3ab-20261123T140102Z", "thin1-50aa0000-20261123T140102Z"
DISKS, OPEN = "disks-host-12", "snapshots-datastore-14"


@pytest.fixture
def lease(run_module, private_run, systemd):
    """Return ``lease(job, *shares, check=False)``, each share a thing, an amount and a limit."""

    def run(job, *shares, check=False, **options):
        wished = [{"thing": thing, "amount": amount, "limit": limit} for thing, amount, limit in shares]
        return run_module("lease", {"job": job, "shares": wished, **options}, check=check, prefix=private_run)

    return run


def test_predict_hold_repeat_exchange_release(lease, tmp_path):
    both = [(DISKS, 3, 24), (OPEN, 1, 8)]
    told = lease(JOB, *both, check=True)
    assert (told["changed"], told["shares"]) == (True, {DISKS: 3, OPEN: 1})
    assert not list((tmp_path / "run").iterdir())
    assert lease(JOB, *both)["changed"]
    assert not lease(JOB, *both)["changed"]
    told = lease(JOB, (DISKS, 4, 24))
    assert told["diff"] == {"before": {DISKS: 3, OPEN: 1}, "after": {DISKS: 4}}
    assert lease(JOB, state="absent", check=True)["changed"]
    assert lease(JOB, state="absent")["changed"]
    told = lease(JOB, state="absent")
    assert (told["changed"], told["shares"]) == (False, {})


def test_what_others_hold_may_be_had_later(lease):
    lease(OTHER, (OPEN, 1, 1))
    told = lease(JOB, (OPEN, 1, 1))
    assert (told["failed"], told["busy"]) == (True, True)
    assert told["msg"] == (
        f"open snapshots on datastore datastore-14: 1 cannot be had, because 1 of at most 1 are held by job {OTHER} (1)"
    )
    assert not lease(JOB, (OPEN, 1, 1), check=True)["failed"], "the run would wait"
    lease(OTHER, state="absent")
    assert not lease(JOB, (OPEN, 1, 1))["failed"]


@pytest.mark.parametrize("check", [True, False])
def test_what_can_never_be_had_is_refused_at_once(lease, check):
    told = lease(JOB, (DISKS, 30, 24), check=check)
    assert (told["failed"], told["busy"]) == (True, False)
    assert "all jobs together may have 24; raise the limit" in told["msg"]


def test_what_is_no_job_is_refused(lease):
    assert "is not a job id" in lease("../x")["msg"]
