# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import http.server
import json
import socketserver
import threading

import pytest

from lab import simulator
from lab.shell import LabError


class Control(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refused = "refuse" in self.path
        answer = (
            {"error": "no VM of that name"}
            if refused
            else {"method": self.command, "path": self.path, "body": body.decode()}
        )
        self.send_response(404 if refused else 200)
        self.end_headers()
        self.wfile.write(b"Oops" if "odd" in self.path else json.dumps(answer).encode())

    do_GET = do_POST = answer  # noqa: N815

    def address_string(self):
        return "test"

    def log_message(self, *args):
        pass


@pytest.fixture
def control(lab):
    path = simulator.Files(lab).control
    path.parent.mkdir(parents=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Control) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield
        server.shutdown()


@pytest.mark.usefixtures("control")
def test_a_question_reaches_the_control_socket(lab):
    answer = json.loads(simulator.ask(lab, "POST", "/guest/write", {"vm": "a b", "offset": 4096}, b"bytes"))
    assert answer == {"method": "POST", "path": "/guest/write?vm=a+b&offset=4096", "body": "bytes"}


@pytest.mark.usefixtures("control")
def test_a_refusal_is_the_simulators_sentence(lab):
    with pytest.raises(LabError, match=r"^no VM of that name$"):
        simulator.ask(lab, "GET", "/refuse")
    with pytest.raises(LabError, match=r"answered 404 to GET /refuse/odd"):
        simulator.ask(lab, "GET", "/refuse/odd")


def test_without_vcenter_the_way_to_it_is_named(lab):
    with pytest.raises(LabError, match="vCenter is not up; `make lab` raises the lab"):
        simulator.ask(lab, "GET", "/vms")
    assert simulator.answers(lab) is False


@pytest.mark.parametrize(
    ("says", "version"), [("go1.25.3", (1, 25)), ("go1.9", (1, 9)), ("devel", (0, 0)), ("", (0, 0))]
)
def test_go_versions_compare_as_numbers(tmp_path, says, version):
    go = tmp_path / "go"
    go.write_text(f"#!/bin/sh\necho {says}\n")
    go.chmod(0o755)
    assert simulator.go_version(str(go)) == version
