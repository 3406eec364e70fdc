# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tunnel of a job: one or more ssh from node to hub that end in unix sockets, each in a unit of its own on the node.

One ssh is one core on either side, so several streams are how a tunnel gets wider: each carries every export once, and
the disks begin with different ones. It opens a session, because without one sshd leaves Nagle's algorithm on and every request waits about 40 ms. The
session runs the key's forced command, which reads its standard input until it ends: so the session lives exactly as
long as this ssh does.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, prove, unix_uri

KIND = "tunnel"
_COUNTED = "--property=MainPID,CPUUsageNSec"
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
    read_only: bool = False
    invocation: str = ""  # which start of the export it is; passed on to the copy


def unit_name(job: str, stream: int = 0) -> str:
    """Return the unit of that stream of the job's tunnel."""
    return f"sendense-{KIND}-{job}-{stream}" if stream else f"sendense-{KIND}-{job}"


def socket_path(job: str, key: int, way: int = 0) -> Path:
    """Return a socket on the node behind which the export of that disk is; there are as many ways to it as streams."""
    return jobs.folder(job) / (f"{key}-{way}.sock" if way else f"{key}.sock")


def uris(job: str, forward: Forward, streams: int) -> list[str]:
    """Return the NBD URIs at which the node reaches the export of that forward, by each of so many streams."""
    return [unix_uri(str(socket_path(job, forward.key, way)), forward.name) for way in range(streams)]


def carries(job: str, forwards: list[Forward], streams: int) -> bool:
    """Whether the job's tunnel runs and every export answers through each of its streams."""
    if not all(units.read(unit_name(job, stream)).running for stream in range(streams)):
        return False
    try:
        for forward in forwards:
            for uri in uris(job, forward, streams):
                prove(uri, forward.size, writable=not forward.read_only)
    except SendenseError:
        return False
    return True


def command(job: str, hub: Hub, forwards: list[Forward], stream: int = 0, streams: int = 1) -> Command:
    """Return the ssh command of a stream: keys and hosts only from the given files, sockets closed to other users."""
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
    sockets = [
        f"-L{socket_path(job, each.key, (stream - rank) % streams)}:127.0.0.1:{each.port}"
        for rank, each in enumerate(forwards)
    ]
    return ["ssh", "-F", "none", "-T", *settings, *sockets, "-p", str(hub.port), f"{hub.user}@{hub.address}"]


def start(job: str, hub: Hub, forwards: list[Forward], streams: int) -> None:
    """Open the tunnel; every forward is proven by a handshake through each stream.

    Raises SendenseError with ssh's own last words; nothing of the tunnel is left then.
    """
    stop(job)  # one that does not carry what it should
    jobs.make_folder(job)
    try:
        for stream in range(streams):
            units.start(
                unit_name(job, stream),
                ["/bin/bash", "-c", _HOLD, *command(job, hub, forwards, stream, streams)],
                f"Description=Sendense tunnel of job {job}",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                f"ReadWritePaths={jobs.folder(job)}",
                "TimeoutStopSec=10s",
            )
        for rank, forward in enumerate(forwards):
            for way, uri in enumerate(uris(job, forward, streams)):
                _prove(job, hub, forward, uri, (rank + way) % streams)
    except SendenseError:
        stop(job)
        raise


def _prove(job: str, hub: Hub, forward: Forward, uri: str, stream: int) -> None:
    try:
        await_handshake(uri, lambda: _complaint(job, stream), _READY_WITHIN)
        prove(uri, forward.size, writable=not forward.read_only)
    except SendenseError as why:
        where = f"{hub.user}@{hub.address} port {hub.port}"
        raise SendenseError(f"the tunnel to {where} does not carry disk {forward.key}: {why}") from None


def _complaint(job: str, stream: int) -> str:
    unit = units.read(unit_name(job, stream))
    said = units.words(unit.name)
    refused = "open failed" in said  # ssh goes on when sshd refuses a forward
    return (said or unit.death or "ssh has ended") if refused or not unit.running else ""


def traffic(job: str) -> dict[str, float]:
    """Return what the ssh of the job's tunnel has moved: bytes ``sent`` and ``received``, and its ``busy`` seconds.

    It is busy while the kernel has data of it that the hub has not acknowledged (tcp_info, ss(8)), or while it computes,
    whichever is more, in the busiest stream. Empty when there is no tunnel, or ``ss`` does not tell.
    """
    shown = [
        dict(line.partition("=")[::2] for line in run(["systemctl", "show", _COUNTED, f"{name}.service"]).splitlines())
        for name in units.names(job, KIND)
    ]
    cpu = {each.get("MainPID", "0"): _number(each.get("CPUUsageNSec", "")) / 1e9 for each in shown}
    found = {"sent": 0.0, "received": 0.0, "busy": 0.0}
    seen = False
    with suppress(SendenseError):
        for line in run(["ss", "-HOtnpi"]).splitlines():
            pid = re.search(r"pid=(\d+)", line)
            if pid and pid[1] in cpu and pid[1] != "0":
                told = dict(re.findall(r"(bytes_sent|bytes_received|busy):(\d+)", line))
                found["sent"] += _number(told.get("bytes_sent", ""))
                found["received"] += _number(told.get("bytes_received", ""))
                found["busy"] = round(max(found["busy"], _number(told.get("busy", "")) / 1000, cpu[pid[1]]), 2)
                seen = True
    return found if seen else {}


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


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
