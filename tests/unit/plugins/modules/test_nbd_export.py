# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import socket
import subprocess
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, tcp_uri

JOB = "pgtest1-5029f3ab-20261123T140102Z"


def test_check_mode_predicts_the_exports_without_ports(run_module, private_run, systemd, tmp_path):
    wish = [{"key": 2000, "image": str(tmp_path / "d.qcow2"), "name": f"{JOB}-disk0", "size": 512}]
    told = run_module("nbd_export", {"job": JOB, "exports": wish}, check=True, prefix=private_run)
    assert told["changed"]
    assert told["exports"] == [{"key": 2000, "name": f"{JOB}-disk0", "size": 512, "port": None, "read_only": False}]
    assert not list((tmp_path / "run").iterdir())


def test_where_nothing_is_served_nothing_is_stopped(run_module, private_run, systemd):
    for check in (True, False):
        told = run_module("nbd_export", {"job": JOB, "state": "absent"}, check=check, prefix=private_run)
        assert (told["failed"], told["changed"], told["ended"]) == (False, False, [])


def test_an_export_that_had_died_fails_the_stop_once_it_was_dealt_with(run_module, private_run, systemd):
    systemd(f"sendense-export-{JOB}-2000", active="failed", result="signal", code="2", status="9", journal="oops")
    gone = {"job": JOB, "state": "absent"}
    assert run_module("nbd_export", gone, check=True, prefix=private_run)["changed"]
    told = run_module("nbd_export", gone, prefix=private_run)
    assert told["failed"]
    assert f"sendense-export-{JOB}-2000 killed by SIGKILL (oops)" in told["msg"]
    assert not run_module("nbd_export", gone, prefix=private_run)["changed"]


@pytest.mark.parametrize("state", ["present", "absent"])
@pytest.mark.usefixtures("systemd")
def test_the_leases_of_the_job_are_renewed(run_module, private_run, tmp_path, state):
    (tmp_path / "systemd" / "systemd-run").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "systemd" / "systemd-run").chmod(0o755)
    (folder := tmp_path / "run" / "sendense" / "leases").mkdir(parents=True)
    lease = {"thing": "vm-x", "job": JOB, "controller": "boot/ns/1/2", "expires": 1.0}
    (folder / "vm-x").write_text(json.dumps(lease), encoding="utf-8")
    wish = [{"key": 2000, "image": str(tmp_path / "d.qcow2"), "name": f"{JOB}-disk0", "size": 512}]
    run_module("nbd_export", {"job": JOB, "state": state, "exports": wish}, prefix=private_run)
    found = json.loads((folder / "vm-x").read_text(encoding="utf-8"))
    assert found.pop("expires") > time.time()
    assert lease.items() - {("expires", 1.0)} <= found.items()


def exports(tmp_path, many):
    image = str(tmp_path / "d.qcow2")
    return [{"key": key, "image": image, "name": f"{JOB}-disk{key}", "size": 512} for key in range(many)]


def test_ports_that_others_have_leased_may_be_had_later(run_module, private_run, systemd, tmp_path):
    (folder := tmp_path / "run" / "sendense" / "leases").mkdir(parents=True)
    other = "thin1-50aa0000-20261123T140102Z"
    for port in (10100, 10101):
        lease = {"thing": f"port-{port}", "job": other, "controller": "", "expires": time.time() + 60}
        (folder / f"port-{port}").write_text(json.dumps(lease), encoding="utf-8")
    wish = {"job": JOB, "exports": exports(tmp_path, 2), "ports": "10100-10102"}
    told = run_module("nbd_export", wish, prefix=private_run)
    assert (told["failed"], told["busy"]) == (True, True)
    assert told["msg"] == (f"2 of the ports 10100-10102 on this hub cannot be had: they are leased by job {other} (2)")
    assert not run_module("nbd_export", wish, check=True, prefix=private_run)["failed"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.usefixtures("systemd")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ports": "10100-10101"}, "3 disks need a port each, and there are only 2 (10100-10101)"),
        ({"ports": "80-90"}, "'80-90' is no range of ports above 1023"),
        ({"job": "thin1-50aa0000-20261123T140102Z"}, f"disk 0: an export named '{JOB}-disk0' is not one of job thin1-"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(run_module, private_run, tmp_path, changes, sentence, *, check):
    wish = {"job": JOB, "exports": exports(tmp_path, 3), **changes}
    told = run_module("nbd_export", wish, check=check, prefix=private_run)
    assert (told["failed"], told["busy"]) == (True, False)
    assert told["msg"].startswith(sentence)


@pytest.fixture
def served(tmp_path, systemd, qemu_tcp):
    """Return what JOB serves, as its module kept it: a real qemu-nbd, beside a unit that says that it runs."""

    def serve(name, size, *, said=512):
        port = qemu_tcp(name, size)
        systemd(f"sendense-export-{JOB}-2000")
        (folder := tmp_path / "run" / "sendense" / JOB).mkdir(parents=True)
        kept = [{"key": 2000, "name": f"{JOB}-disk0", "size": said, "port": port}]
        (folder / "exports.json").write_text(json.dumps(kept), encoding="utf-8")
        wish = {"key": 2000, "image": str(tmp_path / "d.qcow2"), "name": f"{JOB}-disk0", "size": said}
        return {"job": JOB, "exports": [wish]}

    return serve


@pytest.fixture
def qemu_tcp(tmp_path):
    """Return ``qemu_tcp(name, size) -> port``, which serves a new image of that size under that name."""
    servers = []

    def serve(name, size):
        image = tmp_path / "d.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        words = ["qemu-nbd", "--format=qcow2", "--persistent", "--bind=127.0.0.1", f"--port={port}", "-x", name, image]
        servers.append(subprocess.Popen(words))
        await_handshake(tcp_uri(port, name), lambda: "", 10)
        return port

    yield serve
    for server in servers:
        server.kill()
        server.wait()


def test_what_is_served_is_proven_each_time(run_module, private_run, served):
    wish = served(f"{JOB}-disk0", 512)
    for check in (True, False):
        told = run_module("nbd_export", wish, check=check, prefix=private_run)
        assert (told["failed"], told["changed"]) == (False, False), told


def test_an_export_of_another_job_on_our_port_is_not_ours(run_module, private_run, served):
    told = run_module("nbd_export", served("thin1-50aa0000-20261123T140102Z-disk0", 512), prefix=private_run)
    assert told["failed"]
    assert f"/{JOB}-disk0 is not served there; who answers has an export of another job or disk" in told["msg"]


def test_an_export_of_another_size_is_not_ours(run_module, private_run, served):
    told = run_module("nbd_export", served(f"{JOB}-disk0", 1024), prefix=private_run)
    assert told["failed"]
    assert "offers 1024 bytes where 512 were expected; it is not the export of this disk" in told["msg"]


def died(tmp_path, systemd, image, **settings):
    """Return the wish of a job whose one export is known to be dead."""
    systemd(f"sendense-export-{JOB}-2000", active="failed", result="signal", code="2", status="9")
    (folder := tmp_path / "run" / "sendense" / JOB).mkdir(parents=True)
    kept = [{"key": 2000, "name": f"{JOB}-disk0", "size": 512, "port": 10100, **settings}]
    (folder / "exports.json").write_text(json.dumps(kept), encoding="utf-8")
    wish = {"key": 2000, "image": str(image), "name": f"{JOB}-disk0", "size": 512, **settings}
    return {"job": JOB, "exports": [wish]}


def test_one_that_died_is_served_anew_when_that_is_wished(run_module, private_run, systemd, tmp_path):
    wish = died(tmp_path, systemd, tmp_path / "20261123T140102Z.partial" / "d.qcow2")
    told = run_module("nbd_export", wish, prefix=private_run)
    assert told["msg"] == f"disk 2000: the export {JOB}-disk0 killed by SIGKILL; start the job anew"
    told = run_module("nbd_export", wish | {"anew": True}, check=True, prefix=private_run)
    assert (told["failed"], told["changed"], told["exports"][0]["port"]) == (False, True, 10100)


@pytest.mark.parametrize(
    ("point", "settings", "sentence"),
    [
        ("20261123T140102Z", {}, f"is of no unfinished point of job {JOB}; it is not emptied"),
        ("20261124T140102Z.partial", {}, f"is of no unfinished point of job {JOB}; it is not emptied"),
        ("20261123T140102Z.partial", {"read_only": True}, "killed by SIGKILL; start the job anew"),
    ],
    ids=["a published point", "another job's", "what is only read"],
)
def test_no_other_image_is_emptied(run_module, private_run, systemd, tmp_path, *, point, settings, sentence):
    (image := tmp_path / point / "d.qcow2").parent.mkdir()
    image.write_text("content", encoding="utf-8")
    told = run_module("nbd_export", died(tmp_path, systemd, image, **settings) | {"anew": True}, prefix=private_run)
    assert told["failed"]
    assert told["msg"].endswith(sentence)
    assert image.read_text(encoding="utf-8") == "content"


def test_what_is_no_job_is_refused(run_module):
    assert "is not a job id" in run_module("nbd_export", {"job": "*", "state": "absent"})["msg"]
