# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path

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


def test_a_disk_is_reached_behind_the_sockets_of_its_key():
    folder = f"nbd+unix:///{JOB}-disk1?socket=/run/sendense/{JOB}"
    assert tunnel.uris(JOB, FORWARDS[1], 2) == [f"{folder}/16000.sock", f"{folder}/16000-1.sock"]


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_each_stream_carries_each_disk_once_and_disks_begin_with_different_ones(streams):
    ways = {}
    for stream in range(streams):
        words = [word for word in tunnel.command(JOB, HUB, FORWARDS, stream, streams) if word.startswith("-L")]
        sockets = [word.removeprefix("-L").split(":")[0] for word in words]
        assert [word.rsplit(":", 1)[1] for word in words] == ["10100", "10103"]
        ways |= dict.fromkeys(sockets, stream)
    expected = {str(tunnel.socket_path(JOB, each.key, way)) for each in FORWARDS for way in range(streams)}
    assert set(ways) == expected
    first = [ways[str(tunnel.socket_path(JOB, each.key))] for each in FORWARDS]
    assert len(set(first)) == min(streams, 2)


@pytest.fixture
def folder(monkeypatch, systemd):
    with tempfile.TemporaryDirectory() as run:  # the path of a socket is at most 107 bytes long
        monkeypatch.setattr(jobs, "RUN", Path(run))
        yield jobs.make_folder(JOB)


def test_a_tunnel_carries_what_answers_through_it_as_it_should(folder, qemu_nbd, tmp_path, systemd):
    one = FORWARDS[0]
    assert not tunnel.carries(JOB, [one], 1)
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", tmp_path / "raw", "512"], check=True)
    server = qemu_nbd("--format=raw", f"--export-name={one.name}", tmp_path / "raw")
    (folder / "2000.sock").symlink_to(server.socket)
    assert not tunnel.carries(JOB, [one], 1), "its unit does not run"
    systemd(tunnel.unit_name(JOB))
    assert tunnel.carries(JOB, [one], 1)
    assert not tunnel.carries(JOB, [Forward(2000, 10100, one.name, 1024)], 1), "another size"
    assert not tunnel.carries(JOB, [Forward(2000, 10100, f"{JOB}-disk7", 512)], 1), "another name"
    assert not tunnel.carries(JOB, FORWARDS, 1), "one of two"
    (folder / "2000-1.sock").symlink_to(server.socket)
    assert not tunnel.carries(JOB, [one], 2), "the second stream does not run"
    systemd(tunnel.unit_name(JOB, 1))
    assert tunnel.carries(JOB, [one], 2)
    (folder / "2000-1.sock").unlink()
    assert not tunnel.carries(JOB, [one], 2), "nothing comes through the second stream"


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


def test_what_went_through_is_counted_by_the_sockets_of_its_own_ssh(systemd, tmp_path):
    """The stand-in of systemd calls every program of ours pid 1, and ``ss`` here lists one socket of it and one of another."""
    systemd(tunnel.unit_name(JOB))
    ss = tmp_path / "systemd" / "ss"
    ss.write_text(
        "#!/bin/sh\n"
        "echo 'ESTAB 0 0 a:1 b:22 users:((\"ssh\",pid=1,fd=3)) bytes_sent:5000 bytes_acked:4000 bytes_received:700 busy:1500ms'\n"
        "echo 'ESTAB 0 0 a:2 b:22 users:((\"ssh\",pid=11,fd=3)) bytes_sent:9 bytes_received:9 busy:9ms'\n",
        encoding="utf-8",
    )
    ss.chmod(0o755)
    assert tunnel.traffic(JOB) == {"sent": 5000, "received": 700, "busy": 1.5}
    ss.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert tunnel.traffic(JOB) == {}, "not known"
