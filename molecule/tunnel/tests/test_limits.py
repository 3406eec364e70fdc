# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a tunnel can and cannot do, whoever holds its key."""

from __future__ import annotations

import shlex
from contextlib import contextmanager

import pytest

TUNNEL = "/etc/sendense/tunnel"


@pytest.fixture(scope="module")
def address(hub, address_of):
    """Return the hub's address, as the node dials it."""
    return address_of(hub)


@contextmanager
def temporary(host):
    """Have a folder on *host* for a while."""
    folder = host.check_output("mktemp --directory")
    yield folder
    host.run_expect([0], f"rm -r {folder}")


def as_sendense(node, script):
    """Run the shell *script* on the node as the user that backups run as; the exit code is 0 or 1."""
    command = shlex.join(["runuser", "--user=sendense", "--", "timeout", "20", "sh", "-c", script])
    return node.run(f"{command} || exit 1")  # testinfra takes ssh's 255 for a failure of its own connection


def ssh(address, *options, key=f"{TUNNEL}/id_ed25519", known_hosts=f"{TUNNEL}/known_hosts"):
    """Return the command that logs in to the hub as a tunnel does."""
    settings = {
        "UserKnownHostsFile": known_hosts,
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "ExitOnForwardFailure": "yes",
    }
    words = [f"-o{name}={value}" for name, value in settings.items()]
    return shlex.join(["ssh", "-F", "none", "-i", key, *words, *options, f"sendense-tunnel@{address}"])


def fetch(node, address, target):
    """Open a tunnel from the node to *target* as the hub sees it; return what comes out of it, and what ssh says."""
    program = (
        "import socket, subprocess, sys, time\n"
        "tunnel = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE)\n"
        "for _ in range(100):\n"
        "    time.sleep(0.1)\n"
        "    try: link = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
        "    except ConnectionRefusedError: continue\n"
        "    print(link.recv(99)); link.close(); break\n"
        "tunnel.stdin.close(); tunnel.wait()"
    )
    port = 20100
    command = ssh(address, "-L", f"127.0.0.1:{port}:{target}")
    return as_sendense(node, f"python3 -c {shlex.quote(program)} {port} {command}")


@pytest.fixture
def greeter(hub):
    """Return a function that has the hub greet whoever connects to an address and port."""
    units = []

    def greet(host, port):
        unit = f"test-greeter-{port}"
        program = (
            f"import socket; s = socket.create_server(('{host}', {port}))\n"
            "while True: c, _ = s.accept(); c.sendall(b'hello'); c.close()"
        )
        hub.run_expect([0], f"systemd-run --quiet --collect --unit={unit} python3 -c {shlex.quote(program)}")
        units.append(unit)
        hub.run_expect(
            [0], f"for i in $(seq 50); do ss -Htln sport = :{port} | grep -q . && exit; sleep 0.1; done; exit 1"
        )

    yield greet
    for unit in units:
        hub.run_expect([0], f"systemctl stop {unit}")


def test_the_private_key_is_the_service_user_s_alone(hub, node):
    key = node.file(f"{TUNNEL}/id_ed25519")
    assert (key.user, key.mode) == ("sendense", 0o600)
    assert not hub.file(f"{TUNNEL}/id_ed25519").exists


def test_the_tunnel_reaches_an_export(node, address, greeter):
    greeter("127.0.0.1", 10200)  # the last port: running exports take the first ones
    done = fetch(node, address, "127.0.0.1:10200")
    assert (done.rc, done.stdout) == (0, "b'hello'\n"), done.stderr


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("127.0.0.1:10099", id="a port below those of exports"),
        pytest.param("127.0.0.1:10201", id="a port above those of exports"),
        pytest.param("127.0.0.1:22", id="sshd"),
        pytest.param("localhost:10200", id="an export by another name of loopback"),
        pytest.param("/run/systemd/private", id="a socket of the hub"),
    ],
)
def test_the_tunnel_reaches_nothing_else_on_the_hub(node, address, greeter, target):
    host, _, port = target.partition(":")
    if port not in ("", "22"):
        greeter(host, int(port))
    done = fetch(node, address, target)
    assert done.stdout in ("b''\n", ""), "something came out of the tunnel"
    assert "open failed" in done.stderr


def test_the_tunnel_reaches_no_other_machine(node, address, address_of):
    done = fetch(node, address, f"{address_of(node)}:22")
    assert "SSH-" not in done.stdout
    assert "administratively prohibited" in done.stderr


@pytest.mark.parametrize(
    "listen",
    [
        pytest.param("127.0.0.1:9082", id="a port that another node might have"),
        pytest.param("127.0.0.1:10100", id="a port of exports"),
        pytest.param("0", id="any port"),
        pytest.param("/tmp/back.sock", id="a socket"),
    ],
)
def test_the_tunnel_leads_back_by_no_other_port(node, address, listen):
    done = as_sendense(node, ssh(address, "-R", f"{listen}:127.0.0.1:22"))
    assert done.rc == 1
    assert "remote port forwarding failed" in done.stderr


@pytest.mark.parametrize(
    ("option", "words"),
    [
        pytest.param("-T", "id", id="a command"),
        pytest.param("-T", "", id="a shell"),
        pytest.param("-tt", "", id="a terminal"),
        pytest.param("-s", "sftp", id="files"),
    ],
)
def test_the_tunnel_runs_nothing(node, address, option, words):
    done = as_sendense(node, f"echo id | {ssh(address, option)} {words}")
    assert "uid=" not in done.stdout
    assert "sftp" not in done.stdout


def test_a_key_that_no_node_has_is_not_let_in(node, address):
    with temporary(node) as folder:
        node.run_expect([0], f"ssh-keygen -q -t ed25519 -N '' -f {folder}/key && chown -R sendense {folder}")
        done = as_sendense(node, ssh(address, key=f"{folder}/key"))
    assert done.rc == 1
    assert "Permission denied" in done.stderr


def test_a_hub_with_another_host_key_is_not_trusted(node, address):
    with temporary(node) as folder:
        node.run_expect([0], f"ssh-keygen -q -t ed25519 -N '' -f {folder}/other && chmod 755 {folder}")
        node.run_expect([0], f"(printf '%s ' {address}; cat {folder}/other.pub) > {folder}/known_hosts")
        done = as_sendense(node, ssh(address, known_hosts=f"{folder}/known_hosts"))
    assert done.rc == 1
    assert "Host key verification failed" in done.stderr


def test_the_account_cannot_change_its_own_keys(hub):
    assert hub.run("runuser --user=sendense-tunnel -- sh -c 'echo x >> /etc/sendense/tunnel/authorized_keys'").rc != 0
    assert hub.run("runuser --user=sendense-tunnel -- sh -c 'rm -f /etc/sendense/tunnel/authorized_keys'").rc != 0
