# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hub, by what the people and programs on it can and cannot do."""

from __future__ import annotations

import json
import shlex

import pytest

PORT = 10199  # running exports take the first ones


def test_the_repository_belongs_to_the_service_user(hub):
    folder = hub.file("/backup/repository")
    assert (folder.user, folder.group, folder.mode) == ("sendense", "sendense", 0o750)
    assert json.loads(hub.file("/backup/repository/repository.json").content_string) == {"format": 1}
    assert hub.run("runuser --user=sendense -- touch /backup/repository/x").rc == 0
    assert hub.run("runuser --user=sendense -- rm /backup/repository/x").rc == 0


def test_the_folders_of_running_jobs_come_back_after_a_boot(hub):
    """Seen in a mount namespace with an empty /run: the real folder may be in use."""
    boot = (
        "mount -t tmpfs tmpfs /run && systemd-tmpfiles --create --prefix=/run/sendense "
        "&& stat -c '%U %a' /run/sendense/leases"
    )
    assert hub.check_output(f'unshare --mount sh -c "{boot}"') == "root 755"


def test_logs_are_there_for_administrators_until_they_are_old(hub):
    folder = hub.file("/var/log/sendense")
    assert (folder.user, folder.group, folder.mode) == ("sendense", "adm", 0o750)
    hub.check_output("touch /var/log/sendense/new && touch --date='100 days ago' /var/log/sendense/old")
    hub.check_output(
        "unshare --mount systemd-tmpfiles --clean /etc/tmpfiles.d/sendense-hub.conf"
    )  # looks at the change time too
    assert hub.file("/var/log/sendense/new").exists
    hub.check_output("rm -f /var/log/sendense/new /var/log/sendense/old")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("qemu-nbd --version && qemu-img --version", id="the hub can make and serve images"),
        pytest.param("/usr/bin/python3 -c 'import nbd'", id="the hub can speak NBD"),
    ],
)
def test_the_hub_has_its_tools(hub, command):
    hub.run_expect([0], command)


def test_nobody_logs_in_as_the_service_user(hub):
    assert hub.user("sendense").shell == "/usr/sbin/nologin"
    assert hub.user("sendense").home == "/var/lib/sendense"


def test_passwords_do_not_fit_the_account_of_tunnels(hub):
    assert hub.check_output("getent shadow sendense-tunnel").split(":")[1] == "*"


def test_what_backups_may_use_is_said_in_one_place(hub):
    assert hub.check_output("systemctl show --property=CPUWeight --value sendense.slice") == "50"


@pytest.fixture(scope="module")
def export(hub):
    """Serve an image on loopback as backups do; return how a user asks for it and what it is."""
    hub.check_output("install -d -o sendense /backup/scratch")
    hub.check_output("runuser --user=sendense -- qemu-img create -q -f qcow2 /backup/scratch/a.qcow2 1M")
    hub.check_output(
        "systemd-run --quiet --collect --unit=export-of-the-test --slice=sendense.slice --uid=sendense "
        f"qemu-nbd --format=qcow2 --persistent --export-name=a --bind=127.0.0.1 --port={PORT} /backup/scratch/a.qcow2"
    )
    hub.check_output(f"for i in $(seq 50); do ss -Htln sport = :{PORT} | grep -q . && exit; sleep 0.1; done; exit 1")
    program = (
        "import nbd; h = nbd.NBD(); "
        f"h.connect_uri('nbd://127.0.0.1:{PORT}/a'); h.pwrite(b'x' * 512, 0); print(h.get_size())"
    )

    def ask(user):
        return hub.run(shlex.join(["runuser", f"--user={user}", "--", "/usr/bin/python3", "-c", program]))

    yield ask
    hub.check_output("systemctl stop export-of-the-test && rm -r /backup/scratch")


@pytest.mark.parametrize("user", ["root", "sendense", "sendense-tunnel"])
def test_who_serves_and_who_tunnels_reaches_an_export(export, user):
    assert export(user).stdout == "1048576\n"


def test_nobody_else_reaches_an_export(export):
    done = export("nobody")
    assert done.rc != 0
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_on_both_loopbacks_the_ports_are_closed_to_others(hub, family):
    """A listener of root's own on the last port, since qemu-nbd itself serves 127.0.0.1 alone."""
    program = (
        "import os, socket\n"
        f"six = socket.AF_INET6 if ':' in '{family}' else socket.AF_INET\n"
        f"s = socket.create_server(('{family}', 10200), family=six)\n"
        "def ask():\n"
        f"    with socket.socket(six) as c: return c.connect_ex(('{family}', 10200))\n"
        "before = ask(); os.setgid(65534); os.setuid(65534); print(before, ask())"
    )
    refused = 111
    assert hub.check_output(f"python3 -c {shlex.quote(program)}") == f"0 {refused}"


SHAKES = {
    "nftables is loaded anew": "systemctl start nftables && systemctl reload nftables",
    "nftables is started again": "systemctl restart nftables",
    "nftables is stopped": "systemctl start nftables && systemctl stop nftables",
    "the hub boots": "nft delete table inet sendense && systemctl restart sendense-firewall",
}


@pytest.mark.parametrize("shake", SHAKES.values(), ids=SHAKES)
def test_the_rule_outlives_what_flushes_all_rules(hub, export, shake):
    try:
        hub.check_output(shake)
        assert export("nobody").rc != 0
        assert export("sendense").rc == 0
    finally:
        hub.check_output("systemctl stop nftables; systemctl start sendense-firewall")
    assert hub.service("sendense-firewall").is_enabled


def test_the_site_keeps_its_own_rules(hub):
    assert hub.check_output("dpkg --verify nftables") == ""
