# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's vCenter for tests: built from lab/vcenter, on a loopback port, with an authority and small disks of its own."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lab import simulator
from lab.instance import here

USER, PASSWORD = "backup@vsphere.local", "Kx7!korrekt pferd"
DISKS = {
    "small.raw": 1 << 20,
    "pgtest1-boot.raw": 1 << 20,
    "pgtest1-data.raw": 48 << 20,
    "pgtest1-odd.raw": (1 << 20) + 1536,
}
WRITTEN = {"pgtest1-data.raw": [0, 65536 * 3, (48 << 20) - 65536]}  # 64 KiB of data at each of these offsets
QUIET = {
    "latency_ms": 0,
    "create_snapshot_ms": 0,
    "remove_snapshot_ms": 0,
    "create_snapshot_fault": "",
    "quiesce": "ok",
    "faults": {},
    "free": {},
    "clock_skew_seconds": 0,
    "lacks": [],
}


@dataclass
class Authority:
    """A certificate authority of the tests; ``issue`` makes certificates with exactly the wished names and times."""

    folder: Path
    ca_file: Path = field(init=False)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca_file = self.folder / "ca.pem"
        self._key = _new_key()
        self._name = _name("Authority of the tests")
        self._sign(self._name, self._key.public_key(), self.ca_file, days=(-1, 30), authority=True)

    def issue(self, name, *, addresses=("127.0.0.1",), hosts=(), days=(-1, 30)):
        """Return the files of a new certificate and its key."""
        cert, key_file, key = self.folder / f"{name}.pem", self.folder / f"{name}.key", _new_key()
        key_file.write_bytes(_pem(key))
        self._sign(_name(name), key.public_key(), cert, days=days, addresses=addresses, hosts=hosts)
        return cert, key_file

    def _sign(self, subject, public, path, *, days, addresses=(), hosts=(), authority=False):
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses] + [
            x509.DNSName(each) for each in hosts
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=authority)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@dataclass
class LabVCenter:
    """A running lab-vcenter. ``options`` are the ``vcenter_*`` options of a module that reaches it."""

    port: int
    ca_file: Path
    control: Path
    datastores: Path
    truth: Path

    @property
    def options(self):
        return {
            "vcenter_hostname": "127.0.0.1",
            "vcenter_port": self.port,
            "vcenter_username": USER,
            "vcenter_password": PASSWORD,
            "vcenter_ca_file": str(self.ca_file),
        }

    def ask(self, method, path, body=None, **query):
        """Return the answer of the control API (lab/vcenter/README.md)."""
        connection = http.client.HTTPConnection("lab")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(str(self.control))
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes) else json.dumps(body) if body is not None else None
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, content)
            answer = json.loads(connection.getresponse().read() or "null")
        assert "error" not in (answer or {}), answer["error"]
        return answer

    def knobs(self, **changes):
        self.ask("POST", "/knob", changes)

    def vm(self, name):
        return next(vm for vm in self.ask("GET", "/vms")["vms"] if vm["name"] == name)

    def snapshots(self, vm):
        return [each["name"] for each in self.ask("GET", "/snapshots", vm=vm)["snapshots"]]

    def sessions(self):
        return self.ask("GET", "/stats")["sessions"]

    def logins(self):
        return self.ask("GET", "/stats")["logins"]


def _new_key():
    return ec.generate_private_key(ec.SECP256R1())


def _pem(key):
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _name(common):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def lab_vcenter_program():
    """Build lab/vcenter as the lab does, with a Go of its own where the host has none."""
    return simulator.binary(here()) / "lab-vcenter"


@pytest.fixture(scope="session")
def lab_vcenter(lab_vcenter_program, authority, tmp_path_factory):
    """Run one vCenter for all tests; ask for fixture ``lab``, which leaves it as it was."""
    home = tmp_path_factory.mktemp("vc")
    for name in ("datastores", "guests", "truth"):
        (home / name).mkdir()
    for name, size in DISKS.items():
        with (home / "guests" / name).open("wb") as file:
            file.truncate(size)
            for offset in WRITTEN.get(name, [0]):
                file.seek(offset)
                file.write(os.urandom(min(65536, size - offset)))
    (home / "password").write_text(PASSWORD)
    cert, key = authority.issue("vcenter")
    port = _free_port()
    # a socket's path is at most 107 bytes long, and pytest's folders are deep
    lab = LabVCenter(
        port, authority.ca_file, Path(f"/tmp/sendense-unit-{os.getpid()}.sock"), home / "datastores", home / "truth"
    )
    command = [
        lab_vcenter_program, "--listen", f"127.0.0.1:{port}", "--nfc", "127.0.0.1:0",
        "--user", USER, "--password-file", home / "password", "--cert", cert, "--key", key, "--datastores", lab.datastores, "--guests", home / "guests",
        "--truth", lab.truth, "--control", lab.control,
    ]  # fmt: skip
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            said = server.stdout.readline().strip()
            assert said == "ready", (home / "log").read_text()
            yield lab
        finally:
            server.terminate()
            server.wait(20)
            lab.control.unlink(missing_ok=True)


@pytest.fixture
def lab(lab_vcenter):
    """Hand out the vCenter, and see that a test leaves neither session nor snapshot."""
    lab_vcenter.ask("POST", "/stats/reset")
    yield lab_vcenter
    lab_vcenter.knobs(**QUIET)
    sessions, snapshots = lab_vcenter.sessions(), lab_vcenter.ask("GET", "/snapshots")["snapshots"]
    lab_vcenter.ask("POST", "/sessions/kill", {})
    if snapshots:
        _remove_all(lab_vcenter)  # or every later test would fail for this one's fault
    assert (sessions, snapshots) == ([], []), "the test left a session or a snapshot"


def _remove_all(lab):
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        for snapshot in lab.ask("GET", "/snapshots")["snapshots"]:
            for _attempt in range(20):
                with contextlib.suppress(SendenseError):  # until a removal that is under way has ended
                    gone = opened.managed("vm.Snapshot", snapshot["moref"]).RemoveSnapshot_Task
                    task = opened.call("removing", gone, False, True)
                    opened.wait(task, "removing what a test left")
                    break
                time.sleep(0.5)


@pytest.fixture
def tls_server(authority):
    """Return a function that serves one certificate on a loopback port and says nothing more."""
    with contextlib.ExitStack() as stack:

        def serve(name, **wishes):
            cert, key = authority.issue(name, **wishes)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def answer():
                while True:
                    try:
                        peer, _address = listener.accept()
                    except OSError:
                        return
                    with contextlib.suppress(OSError), context.wrap_socket(peer, server_side=True) as tls:
                        tls.recv(65536)
                        tls.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                        while tls.recv(65536):  # closing with bytes unread would reset the connection
                            pass

            threading.Thread(target=answer, daemon=True).start()
            return listener.getsockname()[1]

        yield serve
