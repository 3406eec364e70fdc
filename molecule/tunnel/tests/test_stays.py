# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A connection that stays: what it leads to, who may use it, that it comes back; and that provisioning puts keys right."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from lab.instance import Lab
from lab.machine import ssh

SERVICE = "sendense-tunnel"
BACK = 9081  # as host_vars of this scenario say
LAST = 10200
PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
TUNNEL = "/etc/sendense/tunnel"


def soon(state):
    """Return the first truth that *state* gives within half a minute."""
    deadline = time.monotonic() + 30
    while not (found := state()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def found_at_the_end(hub):
    """Return the host keys of whoever answers at the end of the way back."""
    said = hub.run(f"ssh-keyscan -T 5 -p {BACK} 127.0.0.1").stdout
    return {" ".join(line.split()[1:]) for line in said.splitlines() if not line.startswith("#")}


def test_the_hub_s_port_leads_to_this_node(hub, node):
    own = node.check_output("cat /etc/ssh/ssh_host_*_key.pub")
    assert found_at_the_end(hub) == {" ".join(line.split()[:2]) for line in own.splitlines()}
    assert hub.check_output(f"ss -Htln sport = :{BACK}").split()[3] == f"127.0.0.1:{BACK}"


def test_an_operator_logs_in_to_the_node_by_it():
    """As an inventory does it: through the hub, to its own loopback."""
    lab = Lab(PROJECT)
    through = shlex.join([*ssh(lab, "hub1"), "-W", f"127.0.0.1:{BACK}"])
    words = [*ssh(lab, "node1"), f"-oProxyCommand={through}", "hostname"]
    assert subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.strip() == "node1"


@pytest.fixture(scope="module")
def export(hub):
    """Serve something on the hub's last port of exports."""
    hub.check_output(
        "systemd-run --quiet --collect --unit=export-of-the-test --uid=sendense "
        f"qemu-nbd --persistent --export-name=a --bind=127.0.0.1 --port={LAST} --image-opts driver=null-co,size=512"
    )
    hub.check_output(f"for i in $(seq 50); do ss -Htln sport = :{LAST} | grep -q . && exit; sleep 0.1; done; exit 1")
    yield
    hub.check_output("systemctl stop export-of-the-test")


def ask(node, user):
    """Ask the export, on the node's own loopback, as a user."""
    program = f"import nbd; h = nbd.NBD(); h.connect_uri('nbd://127.0.0.1:{LAST}/a'); print(h.get_size())"
    return node.run(shlex.join(["runuser", f"--user={user}", "--", "/usr/bin/python3", "-c", program]))


def test_a_program_on_the_node_finds_the_exports_on_its_own_loopback(node, export):
    assert ask(node, "sendense").stdout == "512\n"
    assert "Connection refused" in ask(node, "nobody").stderr


def test_nothing_but_loopback_listens(hub, node):
    for host in (hub, node):
        listens = [line.split()[3] for line in host.check_output("ss -Htln").splitlines()]
        assert {each for each in listens if not each.startswith("127.0.0.1:")} <= {"0.0.0.0:22", "[::]:22"}


def test_the_connection_has_a_session(hub):
    """Without one every request waits for Nagle's algorithm; its command reads until its input ends."""
    assert hub.check_output("pgrep --count --uid sendense-tunnel --exact cat") != "0"


def test_it_comes_back_when_it_ends(hub, node):
    before = node.check_output(f"systemctl show --property=MainPID --value {SERVICE}")
    node.check_output(f"kill -9 {before}")
    assert soon(lambda: found_at_the_end(hub) and node.service(SERVICE).is_running)
    assert node.check_output(f"systemctl show --property=MainPID --value {SERVICE}") not in (before, "0")
    assert node.service(SERVICE).is_enabled


def test_the_service_runs_without_privileges(node):
    shown = ["User", "NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "Slice"]
    said = node.check_output(f"systemctl show {' '.join(f'--property={each}' for each in shown)} {SERVICE}")
    assert dict(line.partition("=")[::2] for line in said.splitlines()) == {
        "User": "sendense",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "Slice": "sendense.slice",
    }


def test_two_nodes_with_one_way_back_are_refused(provision, tmp_path):
    more = tmp_path / "more.json"
    nodes = {"node1": {"tunnel_reverse_port": BACK}, "node9": {"tunnel_reverse_port": BACK}}
    more.write_text(json.dumps({"nodes": {"hosts": nodes}}), encoding="utf-8")
    code, output = provision(f"--inventory={more}", "--limit=hub1", "--tags=tunnel_configure")
    assert code != 0
    assert re.search(
        f"tunnel_reverse_port {BACK} is given to node[19] and node[19]; each node needs a port of its own", output
    )


def test_a_hub_that_does_not_let_the_node_in_is_named_with_ssh_s_words(provision):
    code, output = provision("--limit=node1", "--tags=tunnel_configure", "--extra-vars=tunnel_port=2222")
    assert code != 0
    assert re.search(
        r"node1 cannot log in to hub1 as sendense-tunnel: ssh: connect to .* 2222: Connection refused", output
    )


def test_what_no_longer_holds_is_put_right_and_nothing_stays_that_is_not_asked_for(hub, node, provision):
    """provision.yml does not know the settings of this scenario: so the connection goes, with all that it may do."""
    keys = f"{TUNNEL}/authorized_keys"
    old = node.check_output(f"cut -d' ' -f2 {TUNNEL}/id_ed25519.pub")
    node.check_output(f"rm {TUNNEL}/id_ed25519")  # the node is installed anew
    node.check_output(f"sed -i 's|AAAA[^ ]*$|{old}|' {TUNNEL}/known_hosts")  # the hub had other keys
    hub.check_output(f"sed -n 's/node:node1$/node:node9/p' {keys} >> {keys}")  # a node has left
    assert "node9" in hub.file(keys).content_string

    code, output = provision("--tags=tunnel_configure")
    assert code == 0, output

    line = hub.check_output(f"grep node:node1$ {keys}")
    assert old not in hub.file(keys).content_string
    assert node.check_output(f"ssh-keygen -y -f {TUNNEL}/id_ed25519 | cut -d' ' -f2") in line
    assert "node9" not in hub.file(keys).content_string
    assert "AAAA" in node.file(f"{TUNNEL}/known_hosts").content_string
    assert old not in node.file(f"{TUNNEL}/known_hosts").content_string

    assert 'permitlisten="127.0.0.1:1"' in line
    assert str(BACK) not in hub.file("/etc/ssh/sshd_config.d/10-sendense-tunnel.conf").content_string
    assert not node.file(f"/etc/systemd/system/{SERVICE}.service").exists
    assert soon(lambda: not hub.run(f"ss -Htln sport = :{BACK}").stdout)
    assert node.run("nft list table inet sendense_tunnel").rc != 0
    assert node.run(f"systemctl is-failed {SERVICE}").rc != 0
