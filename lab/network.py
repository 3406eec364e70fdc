# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's two networks: a LAN with the way out through the host, and vCenter's, which only nodes reach.

A machine lives in a network namespace of its own; the host ends of its cables are ports of the lab's bridges.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from lab.image import mirror
from lab.instance import STATE_HOME, Lab, all_labs, is_node, machine_number, read_json, write
from lab.process import mounts
from lab.shell import LabError, run, say, succeeds

NETWORKS = {"lan": "l", "vcenter": "v"}
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
NETNS = Path("/run/netns")


@dataclass(frozen=True)
class Subnet:
    """A lab's /27: the first half is its LAN, the second vCenter's network."""

    network: IPv4Network

    @property
    def lan(self) -> IPv4Network:
        return next(self.network.subnets(new_prefix=28))

    @property
    def vcenter(self) -> IPv4Network:
        return list(self.network.subnets(new_prefix=28))[1]

    @property
    def gateway(self) -> IPv4Address:
        return self.lan[1]

    @property
    def vcenter_server(self) -> IPv4Address:
        return self.vcenter[1]

    def address(self, machine: str, network: str = "lan") -> IPv4Address:
        return (self.lan if network == "lan" else self.vcenter)[machine_number(machine)]


def home() -> IPv4Network:
    """The network all labs of this host take their subnets from."""
    wish = os.environ.get("SENDENSE_LAB_NETWORK") or "198.51.100.0/24"
    try:
        network = IPv4Network(wish)
    except ValueError as why:
        raise LabError(f"SENDENSE_LAB_NETWORK is no network: {why}") from None
    if network.prefixlen > 27:
        raise LabError(f"SENDENSE_LAB_NETWORK {network} is too small: a lab takes a /27")
    return network


def choose(candidates: IPv4Network, routed: Iterable[IPv4Network], claimed: Iterable[IPv4Network]) -> IPv4Network:
    """The first /27 that no route leads to and no other lab has claimed."""
    routed, claimed = list(routed), list(claimed)
    for subnet in candidates.subnets(new_prefix=27):
        if not any(subnet.overlaps(other) for other in [*routed, *claimed]):
            return subnet
    taken = ", ".join(str(network) for network in [*routed, *claimed] if network.overlaps(candidates))
    raise LabError(
        f"no free /27 in {candidates}: {taken} already lead there; "
        "end another lab with `make lab-down` or set SENDENSE_LAB_NETWORK to a network without routes"
    )


def foreign_routes(routes: Iterable[dict[str, Any]], own: Iterable[str]) -> list[IPv4Network]:
    """The destinations a host has routes to, except default routes (halves of everything too) and a lab's own links."""
    own = set(own)
    found = []
    for route in routes:
        if route.get("dev") in own or route["dst"] == "default":
            continue
        network = IPv4Network(route["dst"], strict=False)
        if network.prefixlen > 1:
            found.append(network)
    return found


def claim(lab: Lab) -> Subnet:
    """The lab's subnet: the one it had, if the host still leaves it free, or a free one, remembered."""
    with all_labs():
        routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
        routed = foreign_routes(routes, [bridge(lab, network) for network in NETWORKS])
        claimed = [
            IPv4Network(known["subnet"])
            for path in STATE_HOME.glob("*/state.json")
            if path.parent != lab.state and (known := read_json(path)) and known.get("subnet")
        ]
        had = lab.remembered().get("subnet")
        if had and IPv4Network(had).subnet_of(home()):
            if not any(IPv4Network(had).overlaps(other) for other in [*routed, *claimed]):
                return Subnet(IPv4Network(had))
            raise LabError(
                f"this lab's subnet {had} has since been routed elsewhere; run `make lab-down`, then `make lab`"
            )
        chosen = choose(home(), routed, claimed)
        lab.remember(subnet=str(chosen))
        return Subnet(chosen)


def subnet(lab: Lab) -> Subnet:
    known = lab.remembered().get("subnet")
    if not known:
        raise LabError("the lab is not up; `make lab` raises it")
    return Subnet(IPv4Network(known))


def bridge(lab: Lab, network: str) -> str:
    return f"{NETWORKS[network]}{lab.id}"


def cable(lab: Lab, network: str, name: str) -> str:
    """The host end of a machine's cable; at most 15 characters."""
    return f"{NETWORKS[network]}{lab.id}-{name}"


def namespace(lab: Lab, name: str) -> str:
    return f"sendense-{lab.id}-{name}"


def hardware_address(lab: Lab, network: str, number: int) -> str:
    """A fixed one per port, so that a fresh machine at an old address is not looked for at the gone one's."""
    octets = bytes.fromhex(lab.id) + bytes([list(NETWORKS).index(network), number])
    return ":".join(f"{octet:02x}" for octet in b"\x02" + octets)


def raise_bridges(lab: Lab, net: Subnet) -> None:
    """The bridges, the host's address in the LAN and the way out are as wished."""
    for network in NETWORKS:
        name = bridge(lab, network)
        if not exists(name):
            run(["ip", "link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0"])
            run(["ip", "link", "set", name, "address", hardware_address(lab, network, 0)])
        # No link-local address of the host may stand in vCenter's network, nor a second way out of the LAN.
        ipv6 = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        if ipv6.exists():
            ipv6.write_text("1")
        run(["ip", "link", "set", name, "up"])
    run(["ip", "address", "replace", f"{net.gateway}/{net.lan.prefixlen}", "dev", bridge(lab, "lan")])
    forward(True)
    run(["nft", "-f", "-"], stdin=rules(lab, net), what="loading the lab's address translation")


def table_name(lab: Lab) -> str:
    return f"sendense_lab_{lab.id}"


def rules(lab: Lab, net: Subnet) -> str:
    """The lab's own tables: the LAN reaches the world by the host's address, but no other lab and no vCenter.

    In the bridge's table stand the pairs of addresses that `cut` keeps apart; loading it anew heals them.
    """
    table = table_name(lab)
    lan = bridge(lab, "lan")
    return f"""
table ip {table}
delete table ip {table}
table ip {table} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {net.lan} ip daddr != {net.lan} masquerade
    }}
    chain forward {{
        type filter hook forward priority filter
        iifname "{lan}" ip daddr {home()} ip daddr != {net.lan} reject
    }}
}}
table bridge {table}
delete table bridge {table}
table bridge {table} {{
    set apart {{
        type ipv4_addr . ipv4_addr
    }}
    chain forward {{
        type filter hook forward priority filter
        ip saddr . ip daddr @apart drop
    }}
}}
"""


def forward(on: bool) -> None:
    """Let the host forward while labs are up, and put back what was there when the last one goes."""
    before = STATE_HOME / "ip_forward"
    with all_labs(keep=on):
        now = FORWARDING.read_text().strip()
        if on and now != "1":
            if not before.exists():
                write(before, now)
            FORWARDING.write_text("1")
        elif not on and before.exists() and not any(STATE_HOME.glob("*/state.json")):
            FORWARDING.write_text(before.read_text())
            before.unlink()


def connect(lab: Lab, net: Subnet, name: str, networks: Iterable[str]) -> None:
    """A namespace for this machine, with an address in each network and the LAN's gateway as the way out."""
    space = namespace(lab, name)
    if NETNS / space not in mounts("nsfs"):
        (NETNS / space).unlink(missing_ok=True)
        run(["ip", "netns", "add", space])
    run(["ip", "-n", space, "link", "set", "lo", "up"])
    for network in networks:
        port, inside = cable(lab, network, name), f"{network}0"
        address = net.vcenter_server if name == "vcenter" else net.address(name, network)
        if not exists(port):
            hardware = hardware_address(lab, network, int(address) - int(net.network[0]))
            peer = ["peer", "name", inside, "address", hardware, "netns", space]
            run(["ip", "link", "add", port, "type", "veth", *peer])
        run(["ip", "link", "set", port, "master", bridge(lab, network), "up"])
        run(["ip", "-n", space, "address", "replace", f"{address}/28", "dev", inside])
        run(["ip", "-n", space, "link", "set", inside, "up"])
        if network == "lan":
            run(["ip", "-n", space, "route", "replace", "default", "via", str(net.gateway)])


def disconnect(lab: Lab, name: str) -> None:
    """Take a machine's cables and namespace away, with all that was configured in it."""
    for network in NETWORKS:
        port = cable(lab, network, name)
        if exists(port):
            run(["ip", "link", "delete", port])
    space = namespace(lab, name)
    if (NETNS / space).exists() and not succeeds(["ip", "netns", "delete", space]):
        (NETNS / space).unlink(missing_ok=True)


def connected(lab: Lab) -> list[str]:
    """The names that have cables or namespaces of this lab, known to its state or not."""
    names = {path.name.removeprefix(namespace(lab, "")) for path in NETNS.glob(namespace(lab, "*"))}
    for network in NETWORKS:
        prefix = cable(lab, network, "")
        names |= {link.removeprefix(prefix) for link in links() if link.startswith(prefix)}
    return sorted(names)


def take_down(lab: Lab) -> None:
    """No cable, namespace, bridge or table of this lab is left."""
    for name in connected(lab):
        disconnect(lab, name)
    for network in NETWORKS:
        if exists(bridge(lab, network)):
            run(["ip", "link", "delete", bridge(lab, network)])
    for family in ("ip", "bridge"):
        table = f"table {family} {table_name(lab)}"
        run(["nft", "-f", "-"], stdin=f"{table}\ndelete {table}\n", what=f"removing nft {table}")


def set_cable(lab: Lab, name: str, networks: Iterable[str], up: bool) -> None:
    """Plug or pull a machine's cables at the host's end: the machine sees its carrier go."""
    for network in networks:
        if network == "vcenter" and not is_node(name):
            raise LabError(f"{name} has no cable to vcenter's network; only nodes have one")
        port = cable(lab, network, name)
        if not exists(port):
            raise LabError(f"{name} is not up, so it has no cable to {'plug' if up else 'pull'}")
        run(["ip", "link", "set", port, "up" if up else "down"])


def set_apart(lab: Lab, net: Subnet, name: str, other: str, apart: bool) -> None:
    """Lose every packet between two machines on the way, or no longer; their cables stay plugged."""
    for machine in (name, other):
        if not exists(cable(lab, "lan", machine)):
            raise LabError(f"{machine} is not up, so nothing is between it and another machine")
    one, two = net.address(name), net.address(other)
    if one == two:
        raise LabError(f"{name} cannot be cut from itself")
    change = [f"element bridge {table_name(lab)} apart {{ {a} . {b} }}\n" for a, b in ((one, two), (two, one))]
    # Adding what is there is no error, deleting what is not is one: so it is added first.
    lines = [f"add {line}" for line in change] + ([] if apart else [f"delete {line}" for line in change])
    run(["nft", "-f", "-"], stdin="".join(lines), what=f"{'cutting' if apart else 'healing'} {name} and {other}")


def kept_apart(lab: Lab, net: Subnet) -> set[tuple[str, str]]:
    """The pairs of machines that are cut from one another."""
    listed = json.loads(run(["nft", "--json", "list", "set", "bridge", table_name(lab), "apart"]))
    found = next(entry["set"] for entry in listed["nftables"] if "set" in entry)
    names = {str(net.address(name)): name for name in lab.machines()}
    pairs = [element["concat"] for element in found.get("elem", [])]
    return {(first, second) for one, two in pairs if (first := names[one]) < (second := names[two])}


def cable_up(lab: Lab, network: str, name: str) -> bool:
    """Whether a cable is there and plugged."""
    port = cable(lab, network, name)
    return exists(port) and "UP" in json.loads(run(["ip", "-json", "link", "show", port]))[0]["flags"]


def exists(link: str) -> bool:
    return link in links()


def links() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def warn_when_shut_in(lab: Lab, name: str) -> None:
    """Say so when a machine cannot reach the outside, since only then a role's package install would tell."""
    host = mirror().split("//")[-1].split("/")[0]
    address, _, port = host.partition(":")
    probe = f"import socket; socket.create_connection(({address!r}, {int(port or 80)}), 5)"
    # The probe runs in the machine's network with the host's resolver, which is the one the machine gets too.
    if not succeeds(["ip", "netns", "exec", namespace(lab, name), "/usr/bin/python3", "-c", probe]):
        say(
            f"warning: {name} cannot reach {host}; if the host itself can, a firewall of the host "
            f"stops what {bridge(lab, 'lan')} forwards, and roles cannot install packages"
        )
