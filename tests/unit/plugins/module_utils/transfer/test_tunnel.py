# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket
import subprocess

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.transfer import tunnel
from ansible_collections.sendense.backup.plugins.module_utils.transfer.tunnel import Forward, Hub

JOB = "pgtest1-5029f3ab-20261123T140102Z"
HUB = Hub("hub.example.com", 2222, "sendense-tunnel", "/etc/k", "/etc/known")
FORWARDS = [Forward(2000, 10100, f"{JOB}-disk0", 512), Forward(16000, 10103, f"{JOB}-disk1", 1024)]


def test_ssh_understands_it_as_it_is_meant():
    ssh, *words = tunnel.command(JOB, HUB, FORWARDS)
    shown = subprocess.run([ssh, "-G", *words], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {
        "hostname hub.example.com",
        "port 2222",
        "user sendense-tunnel",
        "identityfile /etc/k",
        "userknownhostsfile /etc/known",
        "globalknownhostsfile /dev/null",
        "stricthostkeychecking true",
        "batchmode yes",
        "identitiesonly yes",
        "exitonforwardfailure yes",
        "streamlocalbindmask 0177",
        "requesttty false",
        f"localforward /run/sendense/{JOB}/2000.sock [127.0.0.1]:10100",
        f"localforward /run/sendense/{JOB}/16000.sock [127.0.0.1]:10103",
    } <= set(shown)
    assert not [line for line in shown if line.startswith(("remoteforward", "dynamicforward"))]


def test_it_has_a_session():
    assert "-N" not in tunnel.command(JOB, HUB, FORWARDS), "without one every request waits for Nagle"


def test_a_disk_is_reached_behind_the_socket_of_its_key():
    assert tunnel.uri(JOB, FORWARDS[1]) == f"nbd+unix:///{JOB}-disk1?socket=/run/sendense/{JOB}/16000.sock"


@pytest.fixture
def folder(tmp_path, monkeypatch, systemd):
    monkeypatch.setattr(jobs, "RUN", tmp_path)
    return jobs.make_folder(JOB)


def test_a_tunnel_carries_what_answers_through_it_as_it_should(folder, qemu_nbd, tmp_path, systemd):
    one = FORWARDS[0]
    assert not tunnel.carries(JOB, [one])
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", tmp_path / "raw", "512"], check=True)
    server = qemu_nbd("--format=raw", f"--export-name={one.name}", tmp_path / "raw")
    (folder / "2000.sock").symlink_to(server.socket)
    assert not tunnel.carries(JOB, [one]), "its unit does not run"
    systemd(tunnel.unit_name(JOB))
    assert tunnel.carries(JOB, [one])
    assert not tunnel.carries(JOB, [Forward(2000, 10100, one.name, 1024)]), "another size"
    assert not tunnel.carries(JOB, [Forward(2000, 10100, f"{JOB}-disk7", 512)]), "another name"
    assert not tunnel.carries(JOB, FORWARDS), "one of two"


def test_what_is_left_is_seen_and_goes(folder, systemd):
    assert not tunnel.present(JOB)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "2000.sock"))
    (folder / "session").touch()
    assert tunnel.present(JOB)
    tunnel.stop(JOB)
    assert not tunnel.present(JOB)
    assert [path.name for path in folder.iterdir()] == ["session"], "what other modules keep stays"
    systemd(tunnel.unit_name(JOB), active="failed", result="exit-code", code="1", status="255")
    assert tunnel.present(JOB)
