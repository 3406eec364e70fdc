# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tunnel of a job: one ssh from node to hub that ends in unix sockets, in a unit of its own on the node.

It opens a session, because without one sshd leaves Nagle's algorithm on and every request waits about 40 ms. The
session runs the key's forced command, which reads its standard input until it ends: so the session lives exactly as
long as this ssh does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, prove, unix_uri

KIND = "tunnel"
_READY_WITHIN = 20.0  # seconds, for the login and every forward
# bash replaces itself by ssh, whose standard input stays open as long as the sleep beside it, which ends with the unit
_HOLD = 'exec "$0" "$@" < <(exec sleep infinity)'


@dataclass(frozen=True)
class Hub:
    """How the node reaches the hub's sshd."""

    address: str
    port: int
    user: str
    key_file: str
    known_hosts: str


@dataclass(frozen=True)
class Forward:
    """One export that must be reachable through the tunnel."""

    key: int
    port: int  # on the hub's loopback interface
    name: str  # of the export
    size: int  # bytes


def unit_name(job: str) -> str:
    """Return the unit of the job's tunnel."""
    return f"sendense-{KIND}-{job}"


def socket_path(job: str, key: int) -> Path:
    """Return the socket on the node behind which the export of that disk is."""
    return jobs.folder(job) / f"{key}.sock"


def uri(job: str, forward: Forward) -> str:
    """Return the NBD URI at which the node reaches the export of that forward."""
    return unix_uri(str(socket_path(job, forward.key)), forward.name)


def carries(job: str, forwards: list[Forward]) -> bool:
    """Whether the job's tunnel runs and every export answers through it."""
    if not units.read(unit_name(job)).running:
        return False
    try:
        for forward in forwards:
            prove(uri(job, forward), forward.size)
    except SendenseError:
        return False
    return True


def command(job: str, hub: Hub, forwards: list[Forward]) -> Command:
    """Return the ssh command: keys and hosts only from the given files, sockets closed to other users."""
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": hub.key_file,
        "UserKnownHostsFile": hub.known_hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "ExitOnForwardFailure": "yes",
        "StreamLocalBindMask": "0177",
        "StreamLocalBindUnlink": "yes",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "ConnectTimeout": "10",
        "Ciphers": "^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    }
    settings = [f"-o{name}={value}" for name, value in options.items()]
    sockets = [f"-L{socket_path(job, each.key)}:127.0.0.1:{each.port}" for each in forwards]
    return ["ssh", "-F", "none", "-T", *settings, *sockets, "-p", str(hub.port), f"{hub.user}@{hub.address}"]


def start(job: str, hub: Hub, forwards: list[Forward]) -> None:
    """Open the tunnel; every forward is proven by a handshake through it.

    Raises SendenseError with ssh's own last words; nothing of the tunnel is left then.
    """
    stop(job)  # one that does not carry what it should
    jobs.make_folder(job)
    try:
        units.start(
            unit_name(job),
            ["/bin/bash", "-c", _HOLD, *command(job, hub, forwards)],
            f"Description=Sendense tunnel of job {job}",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            f"ReadWritePaths={jobs.folder(job)}",
            "TimeoutStopSec=10s",
        )
        for forward in forwards:
            _prove(job, hub, forward)
    except SendenseError:
        stop(job)
        raise


def _prove(job: str, hub: Hub, forward: Forward) -> None:
    try:
        await_handshake(uri(job, forward), lambda: _complaint(job), _READY_WITHIN)
        prove(uri(job, forward), forward.size)
    except SendenseError as why:
        where = f"{hub.user}@{hub.address} port {hub.port}"
        raise SendenseError(f"the tunnel to {where} does not carry disk {forward.key}: {why}") from None


def _complaint(job: str) -> str:
    unit = units.read(unit_name(job))
    said = units.words(unit.name)
    refused = "open failed" in said  # ssh goes on when sshd refuses a forward
    return (said or unit.death or "ssh has ended") if refused or not unit.running else ""


def present(job: str) -> bool:
    """Whether anything of the job's tunnel is there, running or dead."""
    return bool(units.names(job, KIND)) or any(jobs.folder(job).glob("[0-9]*.sock"))


def stop(job: str) -> None:
    """Close the job's tunnel and remove its sockets."""
    for name in units.names(job, KIND):
        units.stop(name)
    for socket in jobs.folder(job).glob("[0-9]*.sock"):
        socket.unlink()
    jobs.leave_folder(job)
