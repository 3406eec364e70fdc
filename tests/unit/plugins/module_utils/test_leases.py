# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from dataclasses import replace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import units
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import GRACE, PORTS, TTL, Leases

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
    lock, (port,) = leases.take(LOCK, ONE), leases.take_ports(ONE, [None])
    for thing in (LOCK, f"port-{port}"):
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
        assert leases.take_ports(TWO, [port]) == [port]
        assert leases.take(LOCK, TWO).job == TWO


def test_an_export_to_which_somebody_is_connected_is_a_sign_of_life(leases, expired_export):
    lock, port = expired_export
    with socket.create_server(("127.0.0.1", port)) as server:
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert not leases.dead(lock)
            for take in (lambda: leases.take(LOCK, TWO), lambda: leases.take_ports(TWO, [port])):
                with pytest.raises(Refused):
                    take()
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


def test_ports_are_taken_for_all_disks_and_are_nobody_elses(leases):
    one, two = leases.take_ports(ONE, [None] * 3), leases.take_ports(TWO, [None] * 3)
    assert len({*one, *two}) == 6
    assert all(PORTS[0] <= port <= PORTS[1] for port in one + two)
    assert leases.release(ONE, "port-")
    assert not leases.of(ONE)


def test_ports_are_taken_all_or_none(leases):
    (mine,) = leases.take_ports(ONE, [None])
    with pytest.raises(Refused, match=f"port {mine} of this hub: leased by other jobs"):
        leases.take_ports(TWO, [None, mine])
    assert not leases.of(TWO)
    with pytest.raises(Refused, match="all ports 10100-10200"):
        leases.take_ports(TWO, [None] * (PORTS[1] - PORTS[0] + 1))
    assert not leases.of(TWO)


def test_ports_of_a_dead_job_are_free(leases, tmp_path):
    (port,) = leases.take_ports(ONE, [None])
    let_expire(tmp_path, f"port-{port}")
    assert leases.take_ports(TWO, [port]) == [port]


def test_a_port_on_which_somebody_listens_is_passed_over(leases):
    (free,) = leases.take_ports(ONE, [None])
    leases.release(ONE)
    with socket.create_server(("127.0.0.1", free)):
        (found,) = leases.take_ports(ONE, [None])
        assert found > free
        assert leases.take_ports(TWO, [free]) == [free], "a wished port is tried, so that qemu-nbd says why it cannot"


def test_the_same_port_is_not_given_twice_in_one_wish(leases):
    with pytest.raises(Refused, match="port 10177"):
        leases.take_ports(ONE, [10177, 10177])


def _take_all(folder, each, start, results):
    job, leases = f"vm{each}-5029f3ab-20261123T140102Z", Leases(folder)
    start.wait()
    ports = leases.take_ports(job, [None] * 12)
    try:
        results.put((leases.take(LOCK, job).job, ports))
    except Refused:
        results.put(("", ports))


def test_of_many_at_once_one_wins_and_no_port_is_given_twice(tmp_path, systemd):
    fork, many = multiprocessing.get_context("fork"), 6
    start, results = fork.Barrier(many), fork.Queue()
    takers = [fork.Process(target=_take_all, args=(tmp_path / "leases", each, start, results)) for each in range(many)]
    for each in takers:
        each.start()
    said = [results.get(timeout=20) for _each in takers]
    for each in takers:
        each.join()
    assert [job for job, _ports in said if job] == [Leases(tmp_path / "leases").held(LOCK).job]
    assert len({port for _job, ports in said for port in ports}) == 12 * many


def test_leases_are_renewed_for_as_long_as_something_takes(leases, tmp_path, monkeypatch):
    leases.take(LOCK, ONE)
    monkeypatch.setattr("ansible_collections.sendense.backup.plugins.module_utils.leases.TTL", 0.3)
    let_expire(tmp_path, LOCK)
    with leases.renewed(ONE):
        time.sleep(0.8)
        assert not leases.dead(leases.held(LOCK))
    time.sleep(0.5)
    assert leases.dead(leases.held(LOCK))
