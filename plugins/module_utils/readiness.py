# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether this host, a hub or a node, has what backups need of it. Only looking; nothing is changed."""

from __future__ import annotations

import os
import platform
import pwd
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.commands import last_words, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.preflight import (
    Check,
    attempt,
    failed,
    free,
    ok,
    skew,
    warning,
)
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository
from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader

PROVEN = ("debian", "13")  # what the tests of this collection run on
KEY, KNOWN = "/etc/sendense/tunnel/id_ed25519", "/etc/sendense/tunnel/known_hosts"  # of role tunnel
CONNECT = 5.0  # seconds that a port may take to answer
PROVISION = "run the provision playbook"


@dataclass(frozen=True)
class Hub:
    """How a node dials a hub."""

    name: str
    address: str
    port: int


def everywhere(now: float) -> list[Check]:
    """Return the checks of any host; *now* is the time of the controller, as it began to ask."""
    checks = [_system(), skew("clock", "the controller's", time.time() - now)]
    checks += attempt("service user", _user, PROVISION)
    if not jobs.RUN.is_dir():
        checks.append(failed("folder of jobs", f"{jobs.RUN} is missing", PROVISION))
    return checks


def hub(repository: str, min_free: int) -> list[Check]:
    """Return the checks of a hub with its repository, of which *min_free* percent are to stay free."""
    checks = [
        check for program in ("qemu-img", "qemu-nbd") for check in attempt(program, partial(_tool, program), PROVISION)
    ]
    checks += attempt("libnbd for Python", _libnbd, PROVISION)
    return checks + attempt("repository", lambda: _repository(repository, min_free), PROVISION)


def node(transport: str, hubs: Sequence[Hub]) -> list[Check]:
    """Return the checks of a node that reads by *transport* (``auto``: by the best it has) and sends to these *hubs*."""
    checks = attempt("libnbd for Python", _libnbd, PROVISION)
    checks += _transports(transport)
    for each in hubs:
        checks += attempt(f"tunnel to {each.name}", partial(tunnel, each), PROVISION)
    return checks


def reads_with(transport: str) -> str:
    """Return the transport that ``auto`` comes to on this node; for vCenter, a client is one that reads by VDDK."""
    if transport == "client":
        return "vddk"
    return transport if transport != "auto" else "https" if reader.lacks("vddk") else "vddk"


def reach(name: str, host: str, port: int, remedy: str) -> Check:
    """Return the check of a port that this host has to reach."""
    try:
        with socket.create_connection((host, port), CONNECT):
            return ok(name, f"{host} answers on port {port}")
    except OSError as why:
        said = why.strerror or str(why) or "no answer"
        return failed(name, f"{host} cannot be reached on port {port}: {said}", remedy)


def tunnel(hub: Hub) -> Check:
    """Return the check of a login at *hub* as tunnels do: the forced command ends at once, for its input is empty."""
    options = {
        "BatchMode": "yes", "IdentitiesOnly": "yes", "IdentityFile": KEY, "UserKnownHostsFile": KNOWN,
        "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", "ConnectTimeout": f"{CONNECT:.0f}",
    }  # fmt: skip
    settings = [f"-o{name}={value}" for name, value in options.items()]
    name, where = f"tunnel to {hub.name}", f"{hub.address} port {hub.port}"
    try:
        run(["runuser", f"--user={jobs.USER}", "--", "ssh", "-F", "none", "-T", "-n", *settings, "-p", str(hub.port),
             f"sendense-tunnel@{hub.address}"], timeout=30)  # fmt: skip
    except SendenseError as why:
        said = last_words(getattr(why, "said", "") or str(why), 2)
        return failed(
            name,
            f"no login at {where} as sendense-tunnel: {said}",
            f"let the node reach port {hub.port} of the hub, and {PROVISION}",
        )
    return ok(name, f"{where} lets the node in, with the forced command")


def _system() -> Check:
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        found = {}
    name = found.get("PRETTY_NAME", platform.system())
    if (found.get("ID"), found.get("VERSION_ID")) == PROVEN:
        return ok("operating system", name)
    return warning("operating system", name, "use Debian 13, which is what the tests prove")


def _user() -> Check:
    try:
        pwd.getpwnam(jobs.USER)
    except KeyError:
        return failed("service user", f"there is no user {jobs.USER}", PROVISION)
    return ok("service user", f"user {jobs.USER} is there")


def _tool(program: str) -> Check:
    return ok(program, run([program, "--version"]).splitlines()[0])


def _libnbd() -> Check:
    try:
        import nbd  # noqa: PLC0415  # whether it is there is the question
    except ImportError as why:
        return failed("libnbd for Python", str(why), f"install python3-libnbd, or {PROVISION}")
    return ok("libnbd for Python", f"libnbd {nbd.NBD().get_version()}")


def _repository(path: str, min_free: int) -> list[Check]:
    repository = open_repository(path)
    found = os.statvfs(repository.path)
    checks = [ok("repository", f"{path} is a repository")]
    if found.f_flag & os.ST_RDONLY:
        checks = [failed("repository", f"the file system of {path} is read-only", "mount it for writing")]
    left, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return [*checks, free("space of the repository", path, left, total, min_free)]


def _transports(wish: str) -> list[Check]:
    if wish == "auto":
        found = {name: _transport(name) for name in ("https", "vddk")}
        able = [name for name, check in found.items() if check.state == "ok"]
        instead = " and ".join(able)
        return [
            warning(check.name, check.seen, f"{check.remedy}; until then disks are read over {instead}")
            if able and check.state == "failed"
            else check
            for check in found.values()
        ]
    return [_transport(wish)]


_REMEDIES = {
    "vddk": "give node_vddk_archive and node_vddk_sha256, and ",
    "client": "give node_client_binary, node_vddk_archive and tunnel_client_ports, and ",
}


def _transport(name: str) -> Check:
    try:
        versions: Mapping[str, Any] = reader.versions(name)
    except SendenseError as why:
        remedy = _REMEDIES.get(name, "")
        return failed(f"transport {name}", str(why), f"{remedy}{PROVISION}")
    loads = "; the library loads" if name == "vddk" else ""
    told = ", ".join(f"{what} {str(version).removeprefix(f'{what} ')}" for what, version in versions.items())
    return ok(f"transport {name}", told + loads)
