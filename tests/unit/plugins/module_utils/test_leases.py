# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import replace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import units
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import GRACE, PORT, TTL, Lease, Leases

ONE, TWO = "pgtest1-5029f3ab-20261123T140102Z", "thin1-50aa0000-20261123T140102Z"
LOCK = "vm-5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


def let_expire(tmp_path, thing, ago=1):
    path = tmp_path / "leases" / thing
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires": time.time() - ago}))


def test_one_thing_has_one_holder(leases):
    taken = leases.take(LOCK, ONE, "boot/ns/1/2")
    assert taken == leases.held(LOCK)
    assert TTL - 5 < taken.expires - time.time() <= TTL
    with pytest.raises(Refused, match=f"{LOCK} is held by job {ONE}"):
        leases.take(LOCK, TWO)
    assert leases.held(LOCK) == taken
    assert leases.release(ONE)
    assert leases.take(LOCK, TWO).job == TWO


def test_the_holder_may_take_it_again(leases, tmp_path):
    leases.take(LOCK, ONE)
    let_expire(tmp_path, LOCK)
    assert leases.take(LOCK, ONE).expires > time.time()


def test_an_expired_lease_is_dead_once_no_unit_of_its_job_runs(leases, tmp_path, systemd):
    leases.take(LOCK, ONE)
    assert not leases.dead(leases.held(LOCK))
    let_expire(tmp_path, LOCK)
    assert leases.dead(leases.held(LOCK))
    assert leases.take(LOCK, TWO).job == TWO


@pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
def test_an_expired_lease_lives_as_long_as_a_unit_of_its_job(leases, tmp_path, systemd, state):
    leases.take(LOCK, ONE)
    let_expire(tmp_path, LOCK)
    systemd(f"sendense-other-{ONE}", active=state)
    assert not leases.dead(leases.held(LOCK))
    with pytest.raises(Refused, match="not proven dead"):
        leases.take(LOCK, TWO)
    assert leases.held(LOCK).job == ONE


@pytest.fixture
def expired_export(leases, tmp_path, systemd):
    """Return the lock and the port of a job whose leases have expired while its export runs."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    lock, _port = leases.take(LOCK, ONE), leases.take(f"{PORT}{port}", ONE)
    for thing in (LOCK, f"{PORT}{port}"):
        let_expire(tmp_path, thing, ago=GRACE + 1)
    systemd(f"sendense-export-{ONE}-2000")
    return replace(lock, expires=leases.held(LOCK).expires), port


def test_a_job_whose_exports_stand_may_wait_for_its_snapshot_to_go(leases, expired_export, tmp_path):
    let_expire(tmp_path, LOCK, ago=GRACE - 60)
    assert not leases.dead(leases.held(LOCK))
    with pytest.raises(Refused):
        leases.take(LOCK, TWO)


def test_an_export_to_which_nobody_is_connected_is_no_sign_of_life_for_ever(leases, expired_export):
    lock, port = expired_export
    with socket.create_server(("127.0.0.1", port)):
        assert leases.dead(lock)
        assert leases.take(f"{PORT}{port}", TWO).job == TWO
        assert leases.take(LOCK, TWO).job == TWO


def test_an_export_to_which_somebody_is_connected_is_a_sign_of_life(leases, expired_export):
    lock, port = expired_export
    with socket.create_server(("127.0.0.1", port)) as server:
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert not leases.dead(lock)
            for thing in (LOCK, f"{PORT}{port}"):
                with pytest.raises(Refused):
                    leases.take(thing, TWO)
            assert leases.held(LOCK) == lock
        assert leases.dead(lock)


def test_a_connection_to_another_port_is_no_sign_of_life(leases, expired_export):
    lock, _port = expired_export
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert leases.dead(lock)


def test_a_connection_to_the_port_of_an_export_that_has_died_is_no_sign_of_life(leases, expired_export, systemd):
    lock, port = expired_export
    units.stop(f"sendense-export-{ONE}-2000")
    with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        assert leases.dead(lock)


def test_two_runs_of_one_second_are_told_apart_by_their_controllers(leases, tmp_path):
    mine = leases.take(LOCK, ONE, "boot/ns/1/2")
    with pytest.raises(Refused, match=f"{LOCK} is held by job {ONE}"):
        leases.take(LOCK, ONE, "boot/ns/3/4")
    assert leases.held(LOCK) == mine
    assert leases.taken(LOCK, ONE, "boot/ns/3/4") == mine
    assert leases.taken(LOCK, ONE, "boot/ns/1/2") is None
    let_expire(tmp_path, LOCK)
    assert leases.take(LOCK, ONE, "boot/ns/3/4").controller == "boot/ns/3/4"


def test_something_is_done_only_by_the_holder(leases, tmp_path):
    done = []
    for holder in (None, TWO):
        if holder:
            leases.take(LOCK, holder)
        with pytest.raises(Refused, match=f"job {ONE} holds {LOCK} no more"):
            leases.while_held(LOCK, ONE, lambda: done.append(1))
    leases.release(TWO)
    leases.take(LOCK, ONE)
    let_expire(tmp_path, LOCK)  # as long as nobody else took it
    leases.while_held(LOCK, ONE, lambda: done.append(2))
    assert done == [2]


@pytest.mark.parametrize("how", ["while_held", "release"])
def test_what_is_done_with_a_lease_and_the_lease_change_in_one_step(leases, tmp_path, how):
    leases.take(LOCK, ONE)
    other, seen = Leases(tmp_path / "leases"), []
    taker = threading.Thread(target=lambda: seen.append(other.take("vm-other", TWO)))

    def act():
        taker.start()
        taker.join(0.3)
        seen.append("acted")

    if how == "release":
        assert leases.release(ONE, act=act)
    else:
        leases.while_held(LOCK, ONE, act)
    taker.join()
    assert seen == ["acted", other.held("vm-other")]


def test_a_job_renews_and_releases_only_its_own(leases, tmp_path):
    leases.take(LOCK, ONE, "who")
    leases.take("vm-other", TWO)
    let_expire(tmp_path, LOCK)
    let_expire(tmp_path, "vm-other")
    leases.renew(ONE)
    assert leases.held(LOCK).expires > time.time() > leases.held("vm-other").expires
    assert leases.held(LOCK).controller == "who"
    assert leases.release(ONE)
    assert not leases.release(ONE)
    assert [lease.thing for lease in leases.of(TWO)] == ["vm-other"]


def test_what_is_known_of_a_job_survives_its_renewal(leases, tmp_path):
    leases.take(LOCK, ONE, "who", "node1.example.com")
    share(leases, "disks-host-12", ONE, 3)
    for name in (LOCK, f"disks-host-12@{ONE}"):
        let_expire(tmp_path, name)
    leases.renew(ONE)
    (disks, lock) = leases.of(ONE)
    assert (lock.controller, lock.node, lock.amount) == ("who", "node1.example.com", None)
    assert (disks.thing, disks.amount) == ("disks-host-12", 3)
    assert min(disks.expires, lock.expires) > time.time()


def share(leases, thing, job, amount):
    with leases.locked():
        return leases.put(Lease(thing, job, amount=amount))


def test_several_jobs_have_a_share_of_one_thing_and_the_dead_ones_do_not_count(leases, tmp_path):
    odd = "disks-10.0.0.1:/vol/*[a]@%"  # a standalone host may name a datastore like that
    mine, theirs = share(leases, odd, ONE, 3), share(leases, odd, TWO, 5)
    share(leases, "disks-10.0.0.1:/vol/b", ONE, 7)
    assert leases.shares(odd) == [mine, theirs]
    assert leases.shares(odd, but=ONE) == [theirs]
    assert leases.held(odd) is None
    (path,) = (tmp_path / "leases").glob(f"*%25@{TWO}")
    let_expire(tmp_path, path.name)
    assert leases.shares(odd) == [mine]
    assert leases.release(ONE)
    assert leases.shares(odd) == []
    assert [lease.thing for lease in leases.of(TWO)] == [odd], "a dead job's share goes with its job"


def test_a_share_counts_for_as_long_as_its_job_copies(leases, expired_export, tmp_path):
    share(leases, "disks-host-12", ONE, 3)
    let_expire(tmp_path, f"disks-host-12@{ONE}", ago=GRACE + 1)
    _lock, port = expired_export
    with socket.create_server(("127.0.0.1", port)) as server:
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert [lease.amount for lease in leases.shares("disks-host-12", but=TWO)] == [3]
        assert leases.shares("disks-host-12", but=TWO) == []


def test_nobody_but_root_can_forge_a_lease(leases, tmp_path):
    leases.take(LOCK, ONE)
    found = (tmp_path / "leases" / LOCK).stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o600)


DAMAGES = {
    "cut off": '{"thing": "vm-',
    "no object": "[]",
    "no job": '{"controller": "", "expires": 1}',
    "another's folder": '{"job": "../../etc", "controller": "", "expires": 1}',
    "no time": f'{{"job": "{ONE}", "controller": "", "expires": "soon"}}',
    "no text": "\udcff",
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_lease_is_nobodys_and_runs_out(leases, tmp_path, content):
    leases.take("vm-other", TWO)
    share(leases, "disks-host-12", TWO, 3)
    for name in (LOCK, f"disks-host-12@{ONE}"):
        (tmp_path / "leases" / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    assert leases.held(LOCK).job == ""
    with pytest.raises(Refused, match=f"{LOCK} is held by a job that its damaged lease '{LOCK}' does not name"):
        leases.take(LOCK, ONE)
    leases.renew(TWO)
    assert [lease.thing for lease in leases.of(TWO)] == ["disks-host-12", "vm-other"], "others go on"
    assert [lease.amount for lease in leases.shares("disks-host-12", but=ONE)] == [0, 3]
    for name in (LOCK, f"disks-host-12@{ONE}"):
        os.utime(tmp_path / "leases" / name, (1, time.time() - TTL - 1))
    assert leases.take(LOCK, ONE) == leases.held(LOCK)
    assert [lease.amount for lease in leases.shares("disks-host-12")] == [3]


def test_a_lease_of_another_version_is_read(leases, tmp_path):
    leases.take(LOCK, ONE, "who")
    path = tmp_path / "leases" / LOCK
    said = json.loads(path.read_text())
    path.write_text(json.dumps({key: said[key] for key in ("thing", "job", "controller", "expires")}))
    assert leases.held(LOCK) == Lease(LOCK, ONE, "who", said["expires"])
    path.write_text(json.dumps(said | {"more": 1}))
    assert leases.held(LOCK) == Lease(LOCK, ONE, "who", said["expires"])


def _take(folder, each, start, results):
    job, leases = f"vm{each}-5029f3ab-20261123T140102Z", Leases(folder)
    start.wait()
    try:
        results.put(leases.take(LOCK, job).job)
    except Refused:
        results.put("")


def test_of_many_at_once_one_wins(tmp_path, systemd, race):
    said = race(_take, tmp_path / "leases")
    assert [job for job in said if job] == [Leases(tmp_path / "leases").held(LOCK).job]


def test_leases_are_renewed_for_as_long_as_something_takes(leases, tmp_path, monkeypatch):
    leases.take(LOCK, ONE)
    monkeypatch.setattr("ansible_collections.sendense.backup.plugins.module_utils.leases.TTL", 0.3)
    let_expire(tmp_path, LOCK)
    with leases.renewed(ONE):
        time.sleep(0.8)
        assert not leases.dead(leases.held(LOCK))
    time.sleep(0.5)
    assert leases.dead(leases.held(LOCK))
