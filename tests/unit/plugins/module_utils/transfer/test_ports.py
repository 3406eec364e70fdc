# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import socket
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.transfer import ports

ONE, TWO = "pgtest1-5029f3ab-20261123T140102Z", "thin1-50aa0000-20261123T140102Z"
RANGE = ports.parse(ports.PORTS)


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("10100-10200", 10100, 10200), (" 10100 - 10100 ", 10100, 10100), ("1024-65535", 1024, 65535)],
)
def test_a_range_has_both_its_ends(text, first, last):
    assert (ports.parse(text)[0], ports.parse(text)[-1]) == (first, last)


@pytest.mark.parametrize("text", ["", "10100", "10200-10100", "22-80", "60000-65536", "a-b", "1-2-3", "-10100", "²-³"])
def test_what_is_no_range_is_said_so(text):
    with pytest.raises(Refused, match="is no range of ports above 1023; one looks like 10100-10200"):
        ports.parse(text)


def test_ports_are_taken_for_all_disks_and_are_nobody_elses(leases):
    one, two = ports.take(leases, ONE, [None] * 3, RANGE), ports.take(leases, TWO, [None] * 3, RANGE)
    assert len({*one, *two}) == 6
    assert set(one + two) <= set(RANGE)
    assert leases.release(ONE, "port-")
    assert not leases.of(ONE)


def test_ports_are_taken_all_or_none(leases):
    (mine,) = ports.take(leases, ONE, [None], RANGE)
    with pytest.raises(Busy, match=rf"^port {mine} on this hub cannot be had: they are leased by job {ONE} \(1\)$"):
        ports.take(leases, TWO, [None, mine], RANGE)
    assert not leases.of(TWO)


def test_who_has_the_ports_is_named(leases):
    few = range(29100, 29104)
    ports.take(leases, ONE, [None, 29103], few)
    with pytest.raises(
        Busy, match=rf"^3 of the ports 29100-29103 on this hub cannot be had: they are leased by job {ONE} \(2\)$"
    ):
        ports.take(leases, TWO, [None] * 3, few)
    assert not leases.of(TWO)
    leases.release(ONE)
    assert ports.take(leases, TWO, [None] * 3, few) == [29100, 29101, 29102]


def test_more_disks_than_there_are_ports_is_never_to_be_had(leases):
    with pytest.raises(
        Refused, match=r"^5 disks need a port each, and there are only 4 \(10100-10103\): widen sendense_ports"
    ) as why:
        ports.take(leases, ONE, [None] * 5, range(10100, 10104))
    assert not isinstance(why.value, Busy)


def test_ports_of_a_dead_job_are_free(leases, tmp_path):
    (port,) = ports.take(leases, ONE, [None], RANGE)
    path = tmp_path / "leases" / f"port-{port}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"expires": time.time() - 1}))
    assert ports.take(leases, TWO, [port], RANGE) == [port]


def test_a_damaged_lease_of_a_port_is_passed_over(leases, tmp_path):
    (first, _second) = ports.take(leases, ONE, [None, None], RANGE)
    leases.release(ONE)
    (tmp_path / "leases" / f"port-{first}").write_text("{")
    (other,) = ports.take(leases, TWO, [None], RANGE)
    assert other > first


def test_a_port_on_which_somebody_listens_is_passed_over(leases):
    (free,) = ports.take(leases, ONE, [None], RANGE)
    leases.release(ONE)
    with socket.create_server(("127.0.0.1", free)):
        (found,) = ports.take(leases, ONE, [None], RANGE)
        assert found > free
        assert ports.take(leases, TWO, [free], RANGE) == [free], "a wished port is tried, so that qemu-nbd says why"
        leases.release(TWO)
        with pytest.raises(Busy, match="cannot be had: other programs listen there"):
            ports.take(leases, "vm2-50aa0000-20261123T140102Z", [None], range(free, free + 1))


def test_the_same_port_is_not_given_twice_in_one_wish(leases):
    with pytest.raises(Refused, match="port 10177"):
        ports.take(leases, ONE, [10177, 10177], RANGE)


def _take_ports(folder, each, start, results):
    start.wait()
    results.put(ports.take(Leases(folder), f"vm{each}-5029f3ab-20261123T140102Z", [None] * 12, RANGE))


def test_of_many_at_once_no_two_get_the_same_port(tmp_path, systemd, race):
    said = race(_take_ports, tmp_path / "leases")
    assert len({port for found in said for port in found}) == 12 * 6


def test_a_port_outside_is_refused(leases):
    with pytest.raises(Refused, match=r"^port 22 is not among 10100-10200: only those are closed"):
        ports.take(leases, ONE, [None, 22], RANGE)
    assert not leases.of(ONE)
