# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs, readiness
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader

HUB = readiness.Hub("hub1", "192.0.2.10", 22)


def state(checks, name):
    return next((check.state, check.seen) for check in checks if check.name == name)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return ``programs(name, script)``, which puts a program before all others."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def put(name, script):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    return put


def test_a_hub_tells_its_tools_and_its_repository(tmp_path):
    checks = readiness.hub(str(tmp_path), 0)
    assert state(checks, "qemu-img")[0] == "ok"
    assert state(checks, "qemu-img")[1].startswith("qemu-img version ")
    assert state(checks, "repository") == (
        "failed", f"there is no repository at {tmp_path} on this hub ({tmp_path}/repository.json is missing); run the provision playbook",
    )  # fmt: skip
    (tmp_path / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    checks = readiness.hub(str(tmp_path), 0)
    assert state(checks, "repository")[0] == "ok"
    assert state(checks, "space of the repository")[0] == "ok"
    assert state(readiness.hub(str(tmp_path), 101), "space of the repository")[0] == "failed"


def test_a_hub_without_tools_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(readiness.hub("/nowhere", 5), "qemu-nbd") == (
        "failed", "qemu-nbd is not installed on this host; run the provision playbook",
    )  # fmt: skip


def test_a_host_tells_its_clock_and_what_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "missing")
    monkeypatch.setattr(jobs, "USER", "nobody-of-that-name")
    checks = readiness.everywhere(time.time() - 3600)
    assert state(checks, "clock") == ("failed", "3600 s ahead of the controller's")
    assert state(checks, "service user") == ("failed", "there is no user nobody-of-that-name")
    assert state(checks, "folder of jobs")[0] == "failed"
    assert state(readiness.everywhere(time.time()), "clock")[0] == "ok"


NO_VDDK = {
    "auto": {"transport https": "ok", "transport vddk": "warning"},
    "vddk": {"transport vddk": "failed"},
    "https": {"transport https": "ok"},
}


@pytest.mark.parametrize(("wish", "expected"), NO_VDDK.items(), ids=NO_VDDK)
def test_a_node_without_vddk_is_well_unless_it_was_asked_for(monkeypatch, wish, expected):
    def versions(transport):
        if transport == "vddk":
            raise SendenseError("there is no VDDK on this node")
        return {"nbdkit": "nbdkit 1.42.3", "plugin": "curl 1.42.3"}

    monkeypatch.setattr(reader, "versions", versions)
    checks = readiness.node(wish, [])
    assert {check.name: check.state for check in checks if check.name.startswith("transport")} == expected
    if wish != "vddk":
        assert state(checks, "transport https")[1] == "nbdkit 1.42.3, plugin curl 1.42.3"
    assert readiness.reads_with("auto") == "https"


def test_a_client_is_looked_for_where_it_was_asked_for(monkeypatch):
    def lacks(transport):
        raise SendenseError(f"there is no {transport} on this node")

    monkeypatch.setattr(reader, "versions", lacks)
    checks = [check for check in readiness.node("client", []) if check.name.startswith("transport")]
    assert [(check.name, check.state, check.seen) for check in checks] == [
        ("transport client", "failed", "there is no client on this node"),
    ]
    assert checks[0].remedy.startswith("give node_client_binary, node_vddk_archive and tunnel_client_ports, and run")
    assert readiness.reads_with("client") == "vddk", "it needs the port and the privileges of that one"


def test_a_port_answers_or_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert readiness.reach("way", "127.0.0.1", port, "").state == "ok"
    check = readiness.reach("way", "127.0.0.1", port, "open it")
    assert (check.state, check.seen, check.remedy) == (
        "failed",
        f"127.0.0.1 cannot be reached on port {port}: Connection refused",
        "open it",
    )
    assert readiness.reach("way", "no-such-host.invalid", 1, "").state == "failed"


def test_a_tunnel_is_tried_by_a_login(programs, tmp_path):
    programs("runuser", f'echo "$@" > {tmp_path}/asked')
    assert readiness.tunnel(HUB).state == "ok"
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert "-p 22 sendense-tunnel@192.0.2.10" in asked
    assert "StrictHostKeyChecking=yes" in asked
    programs("runuser", "echo 'Permission denied (publickey).' >&2; exit 255")
    check = readiness.tunnel(HUB)
    assert (check.state, check.seen) == (
        "failed",
        "no login at 192.0.2.10 port 22 as sendense-tunnel: Permission denied (publickey).",
    )
