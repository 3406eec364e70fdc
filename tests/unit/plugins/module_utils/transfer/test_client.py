# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The contract with sendense-backup-client, held against the lab's stand-in for it, with real exports and a real API."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, tcp_uri
from ansible_collections.sendense.backup.plugins.module_utils.transfer import client
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import snapshot
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session

STAND_IN = Path(__file__).parents[5] / "lab/client_stand_in.py"
JOB = "pgtest1-5029f3ab-20261123T140102Z"


@pytest.fixture
def image(tmp_path):
    """Return where the image of a disk is."""
    return lambda key: tmp_path / f"disk-{key}.qcow2"


@pytest.fixture
def servers(lab, image):
    """Serve an empty image for each disk of pgtest1 by TCP, as a hub does, and return the processes by key."""
    started = {}
    for rank, disk in enumerate(lab.vm("pgtest1")["disks"]):
        path = image(disk["key"])
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(disk["capacity"])], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["qemu-nbd", "--format=qcow2", f"--export-name={JOB}-disk{rank}", "--bind=127.0.0.1", f"--port={port}",
                   "--shared=4", "--persistent", path]  # fmt: skip
        started[disk["key"]] = subprocess.Popen(command), tcp_uri(port, f"{JOB}-disk{rank}"), disk
        await_handshake(started[disk["key"]][1], str, 10)
    yield started
    for server, _uri, _disk in started.values():
        server.kill()
        server.wait()


@pytest.fixture
def wish(lab, servers, tmp_path):
    """Return what the stand-in is told, and by whom it is run."""
    (program := tmp_path / "client").write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (password := tmp_path / "password").write_text(lab.options["vcenter_password"], encoding="utf-8")
    return client.Wish(
        job=JOB,
        endpoint=f"127.0.0.1:{lab.port}",
        username=lab.options["vcenter_username"],
        password_file=str(password),
        path=lab.vm("pgtest1")["path"],
        quiesce=True,
        disks=[client.Disk(key, disk["capacity"], uri, disk["allocated"]) for key, (_s, uri, disk) in servers.items()],
        program=str(program),
        log=str(tmp_path / "log"),
    )


@pytest.fixture
def opened(lab):
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        yield opened


def test_every_byte_arrives_and_is_safe_before_it_is_called_done(lab, wish, servers, image, tmp_path):
    told = client.run(wish, tmp_path, tmp_path / "shown")
    assert (told["state"], told["error"]) == ("done", "")
    for server, _uri, _disk in servers.values():
        server.kill()  # the program never flushes, and a killed server forgets what nobody asked it to keep
        server.wait()
    truth = Path(lab.ask("GET", "/truth", vm="pgtest1")["folder"])
    for disk in told["disks"]:
        compare = [
            "qemu-img",
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            truth / f"disk-{disk['key']}.raw",
            image(disk["key"]),
        ]
        assert subprocess.run(compare, check=False).returncode == 0
        assert (disk["tree"], disk["map"], disk["percent"]) == (None, "client", 100.0)
        assert 0 < disk["written"] == disk["read"] <= disk["provisioned"]
    assert lab.snapshots("pgtest1") == []
    assert json.loads((tmp_path / "status.json").read_text()) == told
    assert json.loads((tmp_path / "shown").read_text())["state"] == "done"
    assert 'msg="Migration completed"' in Path(wish.log).read_text()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        pytest.param(
            "nothing",
            r"^the client ended well and wrote nothing into disk 2000 \(\d+ bytes on the datastore\), 2001 \(.*\), 16000 \(.*\); if there "
            "is nothing in it all the same, back the VM up by transport vddk or https, which read it; its last words: .*completed",
            id="all is well and nothing is written",
        ),
        pytest.param("skip:16000", r"^the client ended well and wrote nothing into disk 16000 \(\d+ bytes", id="one disk is left out"),
        pytest.param("exit", "^the client ended with exit code 1; its last words: .*nbdkit died.* / Error: the source is gone; its log",
                     id="it fails in the middle"),
        pytest.param("line", "^the client ended well, but something went wrong: .*level=error.*network error", id="it logs an error"),
    ],
)  # fmt: skip
def test_a_client_that_ends_badly_or_only_seems_to_end_well_is_not_believed(
    wish, tmp_path, monkeypatch, wrong, sentence
):
    monkeypatch.setenv("CLIENT_STAND_IN", wrong)
    told = client.run(wish, tmp_path)
    assert (told["state"], told["resumable"]) == ("failed", False)
    assert re.search(sentence, told["error"]), told["error"]
    assert told["error"].endswith(f"its log on the node is {wish.log}")


def test_one_that_says_nothing_has_done_nothing(wish, tmp_path):
    assert client.run(replace(wish, program="/bin/true"), tmp_path)["error"].startswith(
        "the client ended well and said nothing"
    )


def test_a_disk_that_takes_no_room_may_stay_empty(wish, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIENT_STAND_IN", "skip:16000")
    empty = [replace(disk, allocated=512) if disk.key == 16000 else disk for disk in wish.disks]
    assert client.run(replace(wish, disks=empty), tmp_path)["state"] == "done"
    nobody_knows = [replace(disk, allocated=None) for disk in wish.disks]
    assert (
        "16000 (nobody knows what it takes on the datastore)"
        in client.run(replace(wish, disks=nobody_knows), tmp_path)["error"]
    )


def test_exports_that_are_gone_at_the_end_are_no_success(wish, servers, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIENT_STAND_IN", "skip:2001")
    servers[2001][0].kill()
    servers[2001][0].wait()
    assert re.match("disk 2001: what the client wrote could not be made safe: ", client.run(wish, tmp_path)["error"])


def wanted(folder):
    """Return what the disks of a status want."""
    status = folder / "status.json"
    return {disk["wants"] for disk in json.loads(status.read_text())["disks"]} if status.exists() else set()


def test_a_client_that_hangs_asks_for_a_word_and_shows_its_password_in_argv_alone(
    opened, lab, wish, tmp_path, monkeypatch
):
    """That the password is there is no wish of ours: it is how the program takes it, and the documentation says so."""
    monkeypatch.setenv("CLIENT_STAND_IN", "hang")
    runs = threading.Thread(target=client.run, args=(replace(wish, stall=1), tmp_path))
    runs.start()
    secret, seen = lab.options["vcenter_password"], []
    try:
        deadline = time.monotonic() + 60
        while not (lab.snapshots("pgtest1") and wanted(tmp_path) == {client.WORD}):
            assert time.monotonic() < deadline, "it never asked"
            time.sleep(0.1)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words, surroundings = ((process / name).read_text() for name in ("cmdline", "environ"))
            except OSError:
                continue  # it has ended
            if wish.disks[0].target not in words:
                continue  # of another run, which has the same made-up password
            assert secret not in surroundings
            if secret in words:
                seen.append((process, words.split("\0")))
        ((process, words),) = seen
        assert words[words.index(secret) - 1] == "--vmware-password"
        assert (words[words.index("--job-id") + 1], words[-2]) == (JOB, "--quiesce-snapshot=true")
    finally:
        for process, _words in seen:
            subprocess.run(["kill", process.name], check=False)
        runs.join(30)
    assert (
        "the client ended with exit code 1; its last words: "
        in json.loads((tmp_path / "status.json").read_text())["error"]
    )
    assert lab.snapshots("pgtest1") == [f"sbak-{JOB}"], "it takes its own"
    assert snapshot.remove(opened, lab.vm("pgtest1")["moref"], JOB)


def test_a_snapshot_that_it_left_is_its_job_s_to_remove(opened, lab, wish, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIENT_STAND_IN", "leave")
    assert client.run(wish, tmp_path)["state"] == "done"
    assert lab.snapshots("pgtest1") == [f"sbak-{JOB}"]
    assert snapshot.remove(opened, lab.vm("pgtest1")["moref"], JOB)


def test_its_log_has_no_password(lab, wish, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIENT_STAND_IN", "password")
    assert client.run(wish, tmp_path)["state"] == "done"
    said = Path(wish.log).read_text()
    assert "with ******** or ********" in said
    assert lab.options["vcenter_password"] not in said


def test_a_password_that_is_refused_stands_in_no_sentence(wish, tmp_path):
    Path(wish.password_file).write_text("Hq3-wrong", encoding="utf-8")
    told = client.run(wish, tmp_path)["error"]
    assert re.search("ended with exit code 1; .*incorrect user name or password", told)
    assert "Hq3-wrong" not in told + Path(wish.log).read_text()


def test_exports_are_proven_where_the_client_dials_them(wish, servers):
    client.check(wish)
    larger = [replace(wish.disks[0], capacity=4096)]
    with pytest.raises(
        SendenseError, match=r"^disk 2000: the tunnel that stays .* does not lead to its export.* 4096 were"
    ):
        client.check(replace(wish, disks=larger))
    servers[2000][0].kill()
    servers[2000][0].wait()
    with pytest.raises(
        SendenseError, match=r"^disk 2000: the tunnel that stays \(sendense-tunnel.service, tunnel_client"
    ):
        client.check(wish)


def test_the_old_hub_knows_no_change_id_and_takes_every_report():
    with client.hub_of_old() as url:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/api/v1/backups/changeid?vm_name=pgtest1&disk_id=disk-2000")
        with urllib.request.urlopen(f"{url}/api/v1/backups/x/complete", b'{"change_id": "52 de/7"}') as answer:
            assert answer.status == 200


def test_a_request_is_read_as_it_was_written(wish, tmp_path):
    written = json.loads(json.dumps(client.request(wish, tmp_path / "shown")))
    assert client.parse(written) == replace(wish, disks=tuple(wish.disks))


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ("PROGRAM", "there is no sendense-backup-client on this node: .* is missing; give node_client_binary and run"),
        ("LIBRARY", "the client finds no VDDK on this node: .* is missing; give node_vddk_archive and run"),
        (
            "FORWARDS",
            "the client dials ports of exports on this node, and none are there; set tunnel_client_ports and run",
        ),
    ],
)
def test_what_the_node_lacks_is_told(tmp_path, monkeypatch, lacking, sentence):
    (program := tmp_path / "client/2.7.1/sendense-backup-client").parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    (config := tmp_path / "ssh_config").write_text("LocalForward 127.0.0.1:10100 127.0.0.1:10100\n", encoding="utf-8")
    for name, path in (("PROGRAM", program), ("LIBRARY", tmp_path), ("FORWARDS", config)):
        monkeypatch.setattr(client, name, path)
    assert client.found() == {"client": "2.7.1"}
    monkeypatch.setattr(client, lacking, tmp_path / "none")
    with pytest.raises(SendenseError, match=sentence):
        client.found()
