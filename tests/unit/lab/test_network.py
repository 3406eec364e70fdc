# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from lab import network
from lab.instance import machine_number
from lab.network import Subnet, choose, foreign_routes
from lab.shell import LabError

HOME = IPv4Network("198.51.100.0/24")


def nets(*texts):
    return [IPv4Network(text) for text in texts]


@pytest.mark.parametrize(
    ("routed", "claimed", "chosen"),
    [
        pytest.param([], [], "198.51.100.0/27", id="the first of an untouched network"),
        pytest.param([], ["198.51.100.0/27"], "198.51.100.32/27", id="not the one another lab has claimed"),
        pytest.param(["198.51.100.32/28"], ["198.51.100.0/27"], "198.51.100.64/27", id="not one that is half routed"),
        pytest.param(
            ["198.51.100.40/32"], ["198.51.100.0/27"], "198.51.100.64/27", id="not one with a host route in it"
        ),
        pytest.param(["10.0.0.0/8"], ["192.0.2.0/27"], "198.51.100.0/27", id="others elsewhere do not matter"),
    ],
)
def test_a_lab_takes_the_first_free_subnet(routed, claimed, chosen):
    assert choose(HOME, nets(*routed), nets(*claimed)) == IPv4Network(chosen)


def test_a_routed_network_is_refused_and_named():
    with pytest.raises(LabError, match=r"no free /27 in 198\.51\.100\.0/24: 198\.51\.0\.0/16 already lead there"):
        choose(HOME, nets("198.51.0.0/16"), [])


def test_default_routes_and_the_labs_own_links_are_not_foreign():
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "0.0.0.0/1", "dev": "vpn"},
        {"dst": "128.0.0.0/1", "dev": "vpn"},
        {"dst": "198.51.100.0/28", "dev": "labc"},
        {"dst": "198.51.100.1", "dev": "labc"},
        {"dst": "198.51.100.77", "dev": "eth0"},
        {"dst": "192.0.2.0/24", "dev": "eth0"},
        {"type": "blackhole", "dst": "203.0.113.0/24"},
    ]
    assert foreign_routes(routes, ["labc"]) == nets("198.51.100.77/32", "192.0.2.0/24", "203.0.113.0/24")


def test_addresses_of_a_subnet_never_meet():
    net = Subnet(IPv4Network("198.51.100.32/27"))
    machines = [f"{kind}{number}" for kind in ("hub", "node") for number in range(1, 7)]
    lan = {net.address(name) for name in machines} | {net.gateway}
    vcenter = {net.address(name, "vcenter") for name in machines} | {net.vcenter_server}
    assert len(lan) == len(vcenter) == 13
    assert lan <= set(net.lan.hosts())
    assert vcenter <= set(net.vcenter.hosts())
    assert str(net.address("hub1")) == "198.51.100.34"
    assert str(net.address("node1", "vcenter")) == "198.51.100.51"


@pytest.mark.parametrize("name", ["hub", "hub0", "hub7", "node12", "hub1 ", "vcenter", "../x", ""])
def test_only_hubs_and_nodes_are_machines(name):
    with pytest.raises(LabError, match="no machine of a lab"):
        machine_number(name)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [("198.51.100.1/24", "is no network"), ("198.51.100.0/28", "too small"), ("lab", "is no network")],
)
def test_a_useless_network_wish_is_one_sentence(monkeypatch, wish, sentence):
    monkeypatch.setenv("SENDENSE_LAB_NETWORK", wish)
    with pytest.raises(LabError, match=sentence):
        network.home()


def test_names_on_the_host_fit_an_interface_and_hold_the_id(lab):
    for name in ("hub1", "node6", "vcenter"):
        for net in network.NETWORKS:
            assert len(network.cable(lab, net, name)) <= 15
            assert lab.id in network.cable(lab, net, name)
            assert lab.id in network.bridge(lab, net)


def test_hardware_addresses_are_local_and_differ(lab):
    addresses = {network.hardware_address(lab, net, number) for net in network.NETWORKS for number in range(14)}
    assert len(addresses) == 28
    assert all(address.startswith("02:") for address in addresses)
