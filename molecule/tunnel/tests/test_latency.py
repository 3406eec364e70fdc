# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long one request through the tunnel takes, beside TCP on loopback in the same run.

An sshd that leaves Nagle's algorithm on, as it may do for want of a session, makes every request take 40 ms: two hundred
times what loopback takes. Beside that, what the tunnel's own processes take is nothing.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.transfer import tunnel

JOB = "pgtest9-00000000-20260101T000000Z"
PORT, SIZE = 10199, 16 << 20
LOCAL = 10998  # on the node, where the tunnel that stays listens on the ports of exports
READS = 60
MARGIN = 100

# Reads by both ways in turns, so that whatever else the machine does meets both.
PROGRAM = f"""
import json, statistics, subprocess, sys, time, nbd
socket, command = json.loads(sys.argv[1])
local = ["nbdkit", "--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", "--port={LOCAL}", "memory", "{SIZE}"]
ways = [subprocess.Popen(words, stdin=subprocess.PIPE) for words in (command, local)]
handles = []
for uri in ("nbd+unix:///a?socket=" + socket, "nbd://127.0.0.1:{LOCAL}"):
    for _turn in range(100):
        handle = nbd.NBD()
        try: handle.connect_uri(uri); break
        except nbd.Error: time.sleep(0.1)
    handle.pwrite(bytes(range(1, 129)) * ({SIZE} // 128), 0)
    handles.append(handle)
seconds = [[], []]
for number in range({READS}):
    for handle, kept in zip(handles, seconds):
        began = time.perf_counter()
        handle.pread(65536, number * 65536 % {SIZE})
        kept.append(time.perf_counter() - began)
print(json.dumps([statistics.median(kept) for kept in seconds]))
for handle in handles: handle.shutdown()
for way in ways: way.terminate(); way.wait()
"""


@pytest.fixture
def export(hub):
    """Serve an image in memory on a port of exports."""
    image = hub.check_output("mktemp /dev/shm/latency.XXXXXX")
    hub.check_output(f"truncate --size={SIZE} {image} && chown sendense: {image}")
    hub.check_output(
        "systemd-run --quiet --collect --unit=export-of-latency --uid=sendense "
        f"qemu-nbd --persistent --shared=4 --format=raw --export-name=a --bind=127.0.0.1 --port={PORT} {image}"
    )
    hub.check_output(f"for i in $(seq 50); do ss -Htln sport = :{PORT} | grep -q . && exit; sleep 0.1; done; exit 1")
    yield
    hub.check_output(f"systemctl stop export-of-latency && rm {image}")


@pytest.fixture
def folder(node):
    """Have a folder of the service user on the node."""
    path = node.check_output("mktemp --directory")
    node.check_output(f"chown sendense: {path}")
    yield path
    node.check_output(f"rm -r {path}")


@pytest.mark.usefixtures("export")
def test_a_request_does_not_wait_for_another(hub, node, address_of, folder, monkeypatch):
    monkeypatch.setattr(jobs, "RUN", Path(folder))
    key = Path("/etc/sendense/tunnel")
    way = tunnel.Hub(address_of(hub), 22, "sendense-tunnel", str(key / "id_ed25519"), str(key / "known_hosts"))
    node.check_output(f"install -d -o sendense {folder}/{JOB}")
    command = tunnel.command(JOB, way, [tunnel.Forward(2000, PORT, "a", SIZE)])
    asked = json.dumps([str(tunnel.socket_path(JOB, 2000)), command])
    words = ["runuser", "--user=sendense", "--", "timeout", "60", "/usr/bin/python3", "-c", PROGRAM, asked]
    done = node.run(shlex.join(words))
    assert done.rc == 0, done.stderr
    ours, direct = json.loads(done.stdout)
    assert ours < MARGIN * direct, f"{ours * 1000:.2f} ms, by loopback {direct * 1000:.2f} ms"
