# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import handshake, tcp_uri
from ansible_collections.sendense.backup.plugins.module_utils.transfer import export, ports
from ansible_collections.sendense.backup.plugins.module_utils.transfer.export import Export, Served

JOB = "pgtest1-5029f3ab-20261123T140102Z"
PORTS = range(10100, 10201)
SIZE = (1 << 20) + 1536


@pytest.fixture
def hub(tmp_path, systemd, monkeypatch):
    """Return the leases of a hub whose systemd-run really starts what it is told, without its sandbox."""
    folder = tmp_path / "systemd"
    (folder / "systemd-run").write_text(
        f"""#!/bin/bash
for word; do case $word in --unit=*) unit={folder}/${{word#--unit=}}.service ;; esac; done
while [ "$1" != -- ]; do shift; done
shift
tell() {{ printf '%s\\n' ActiveState=$1 SubState=x Result=$2 ExecMainCode=$3 ExecMainStatus=$4 MainPID=$5 >$unit; }}
setsid "$@" </dev/null >/dev/null 2>{folder}/journal & tell active success 0 0 $!
(while kill -0 $! && grep -q =active $unit; do sleep 0.02; done; grep -q =active $unit && tell failed exit-code 1 1 0) \\
    </dev/null >/dev/null 2>&1 &
""",
        encoding="utf-8",
    )
    systemctl = folder / "systemctl"
    stop = f'[ "$1" != stop ] || kill $(sed -n s/MainPID=//p {folder}/$2)\n'
    systemctl.write_text(systemctl.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{stop}"), encoding="utf-8")
    (folder / "systemd-run").chmod(0o755)
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    leases = Leases(tmp_path / "leases")
    yield leases
    export.stop(JOB, leases)


@pytest.fixture
def image(tmp_path):
    def make(key, size=SIZE):
        path = tmp_path / f"disk-{key}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
        return Export(key, str(path), f"{JOB}-disk{key}", size)

    return make


def pid_of(tmp_path, key):
    shown = (tmp_path / "systemd" / f"{export.unit_name(JOB, key)}.service").read_text()
    return int(shown.partition("MainPID=")[2].split()[0])


def test_it_listens_on_loopback_only_with_the_format_stated():
    words = export.command(Export(2000, "/r/disk-2000.qcow2", "j-disk0", SIZE), 10107, 2)
    assert {"--format=qcow2", "--bind=127.0.0.1", "--port=10107", "--shared=4", "--persistent"} <= set(words)
    assert words[-1] == "/r/disk-2000.qcow2"
    assert "--export-name=j-disk0" in words


def test_all_are_served_and_proven_and_end_cleanly(hub, image):
    served = export.start(JOB, [image(0), image(1, 512)], 2, hub, PORTS)
    assert [(each.key, each.name, each.size) for each in served] == [
        (0, f"{JOB}-disk0", SIZE),
        (1, f"{JOB}-disk1", 512),
    ]
    assert [handshake(tcp_uri(each.port, each.name)).size for each in served] == [SIZE, 512]
    assert export.current(JOB) == served
    assert [lease.thing for lease in hub.of(JOB)] == [f"port-{each.port}" for each in served]
    assert [(each.unit, each.death) for each in export.stop(JOB, hub)] == [
        (export.unit_name(JOB, key), "") for key in (0, 1)
    ]
    assert (hub.of(JOB), export.current(JOB), jobs.folder(JOB).exists()) == ([], [], False)


def test_the_firewall_is_loaded_before_anything_listens(hub, image, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FIREWALL", tmp_path / "firewall.nft")
    export.FIREWALL.write_text("no rule\n", encoding="utf-8")
    with pytest.raises(SendenseError, match="^the exports cannot be closed to other users of the hub: nft "):
        export.start(JOB, [image(0)], 2, hub, PORTS)
    assert (export.known(JOB), hub.of(JOB)) == ([], [])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(lambda path: path.unlink(), "No such file or directory", id="the image is missing"),
        pytest.param(lambda path: path.write_bytes(bytes(4096)), "not in qcow2 format", id="it is no image"),
    ],
)
def test_of_all_or_none_one_that_fails_makes_it_none_and_is_heard(hub, image, tmp_path, spoil, sentence):
    wished = [image(0), image(1)]
    spoil(tmp_path / "disk-1.qcow2")
    began = time.monotonic()
    with pytest.raises(SendenseError, match=f"^disk 1: qemu-nbd did not serve .*disk-1.qcow2: .*{sentence}"):
        export.start(JOB, wished, 2, hub, PORTS)
    assert time.monotonic() - began < 9
    assert (export.known(JOB), hub.of(JOB)) == ([], [])


def test_an_image_that_another_one_serves_is_locked(hub, image, qemu_nbd):
    one = image(0)
    qemu_nbd("--format=qcow2", one.image)
    with pytest.raises(SendenseError, match='^disk 0: qemu-nbd did not serve .*Failed to get "write" lock'):
        export.start(JOB, [one], 2, hub, PORTS)


def is_free(port):
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def test_a_wished_port_that_is_busy_is_said_so(hub, image):
    port = next(port for port in reversed(PORTS) if is_free(port))
    with socket.create_server(("127.0.0.1", port)):
        wish = Export(**(vars(image(0)) | {"port": port}))
        began = time.monotonic()
        with pytest.raises(SendenseError, match="^disk 0: qemu-nbd did not serve .*Address already in use"):
            export.start(JOB, [wish], 2, hub, PORTS)
        assert time.monotonic() - began < 9, "though who holds the port accepts connections"


def test_an_image_of_another_size_is_not_the_disk(hub, image):
    wish = Export(**(vars(image(0)) | {"size": SIZE + 512}))
    with pytest.raises(SendenseError, match=f"^disk 0: .* offers {SIZE} bytes where {SIZE + 512} were expected"):
        export.start(JOB, [wish], 2, hub, PORTS)
    assert export.known(JOB) == []


def kill(tmp_path, key):
    os.kill(pid_of(tmp_path, key), signal.SIGKILL)
    while export.units.read(export.unit_name(JOB, key)).running:
        time.sleep(0.02)


def test_one_that_died_is_served_again_on_its_port_and_no_other_is_touched(hub, image, tmp_path):
    wished = [image(0), image(1)]
    served = export.start(JOB, wished, 2, hub, PORTS)
    other = pid_of(tmp_path, 1)
    assert export.dead(JOB) == []
    kill(tmp_path, 0)
    assert export.dead(JOB) == [0]
    export.again(JOB, wished[0], 2, hub, PORTS)
    assert [(each.key, each.port) for each in export.current(JOB)] == [(each.key, each.port) for each in served]
    assert (export.dead(JOB), pid_of(tmp_path, 1)) == ([], other)


def test_an_export_that_died_is_not_told_as_served(hub, image, tmp_path):
    export.start(JOB, [image(0)], 2, hub, PORTS)
    kill(tmp_path, 0)
    with pytest.raises(SendenseError, match=f"^disk 0: the export {JOB}-disk0 ended with exit code 1; start the job"):
        export.current(JOB)
    assert [each.death for each in export.stop(JOB, hub)] == ["ended with exit code 1"]
    assert hub.of(JOB) == []


def test_no_ports_no_exports(hub, image):
    hub.take("port-10150", "thin1-50aa0000-20261123T140102Z")
    with pytest.raises(Busy, match="port 10150"):
        export.start(JOB, [image(0), Export(**(vars(image(1)) | {"port": 10150}))], 2, hub, PORTS)
    assert (export.known(JOB), hub.of(JOB)) == ([], [])


@pytest.mark.parametrize("name", ["", "thin1-50aa0000-20261123T140102Z-disk0", f"{JOB}0-disk0"])
def test_an_export_of_another_job_is_not_served(hub, image, name):
    with pytest.raises(Refused, match=f"^disk 0: an export named '{name}' is not one of job {JOB}$"):
        export.start(JOB, [Export(**(vars(image(0)) | {"name": name}))], 2, hub, PORTS)
    assert (export.known(JOB), hub.of(JOB)) == ([], [])


def test_what_is_kept_is_what_was_served(hub, image):
    served = export.start(JOB, [image(0)], 2, hub, PORTS)
    assert served == [Served(0, f"{JOB}-disk0", SIZE, served[0].port, invocation=served[0].invocation)]
    assert (jobs.folder(JOB) / "exports.json").stat().st_mode & 0o077 == 0


def test_an_export_that_cannot_be_stopped_is_told_after_the_others_were(tmp_path, systemd, monkeypatch):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run")
    leases = Leases(tmp_path / "leases")
    ports.take(leases, JOB, [None, None], PORTS)
    for key in (2000, 2001):
        systemd(f"sendense-export-{JOB}-{key}")
    systemctl = tmp_path / "systemd" / "systemctl"
    stuck = f'[ "$1 $2" != "stop sendense-export-{JOB}-2000.service" ] || {{ echo no bus >&2; exit 1; }}\n'
    systemctl.write_text(systemctl.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{stuck}"), encoding="utf-8")
    with pytest.raises(
        SendenseError, match=f"could be stopped; run it again: sendense-export-{JOB}-2000: systemctl failed: no bus"
    ):
        export.stop(JOB, leases)
    assert export.known(JOB) == [f"sendense-export-{JOB}-2000"]
    assert len(leases.of(JOB)) == 2, "one of the ports is in use"


def test_a_point_is_served_read_only_with_what_it_stands_on(hub, tmp_path):
    base, top = tmp_path / "base.qcow2", tmp_path / "disk-2000.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, str(SIZE)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 64k", base], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top], check=True)
    before = top.read_bytes(), base.read_bytes()
    wish = Export(2000, str(top), f"{JOB}-disk0", SIZE, read_only=True)
    (served,) = export.start(JOB, [wish], 2, hub, PORTS)
    uri = tcp_uri(served.port, served.name)
    assert handshake(uri).read_only
    assert export.current(JOB) == [served]
    read = ["qemu-io", "-r", "-f", "raw", "-c", "read -P 7 0 64k", uri]
    assert "Pattern verification failed" not in subprocess.run(read, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", uri], capture_output=True, check=False
    ).returncode
    export.stop(JOB, hub)
    assert (top.read_bytes(), base.read_bytes()) == before
