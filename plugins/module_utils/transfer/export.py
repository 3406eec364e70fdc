# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exports: one qemu-nbd per image, each in a unit of its own on the hub, on the loopback interface only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, prove, tcp_uri

KIND = "export"
_READY_WITHIN = 10.0  # seconds
_KEPT = "exports.json"  # in the job's folder: what is served, as Served


@dataclass(frozen=True)
class Export:
    """One image to be served."""

    key: int
    image: str
    name: str
    size: int  # bytes
    port: int | None = None  # None: any free one


@dataclass(frozen=True)
class Served:
    """One image that is served: the handshake was done and offered the right name and size."""

    key: int
    name: str
    size: int
    port: int


@dataclass(frozen=True)
class Ended:
    """How the export of one disk ended; empty death: it flushed and stopped as asked."""

    unit: str
    death: str
    words: str


def unit_name(job: str, key: int) -> str:
    """Return the unit that serves the disk with that key."""
    return f"sendense-{KIND}-{job}-{key}"


def command(export: Export, port: int, connections: int) -> Command:
    """Return the qemu-nbd command of *export* for that many connections at once, and two for those who look."""
    return [
        "qemu-nbd", "--format=qcow2", f"--export-name={export.name}", "--bind=127.0.0.1", f"--port={port}",
        f"--shared={connections + 2}", "--persistent", export.image,
    ]  # fmt: skip


def current(job: str) -> list[Served]:
    """Return what *job* serves on this hub, each proven anew. Raises SendenseError naming an export that has died."""
    try:
        kept = json.loads((jobs.folder(job) / _KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    served = [Served(**each) for each in kept]
    for each in served:
        if not (unit := units.read(unit_name(job, each.key))).running:
            raise SendenseError(
                f"disk {each.key}: the export {each.name} {unit.death or 'has stopped'}; start the job anew"
            )
        prove(tcp_uri(each.port, each.name), each.size)
    return served


def start(job: str, exports: list[Export], connections: int, leases: Leases) -> list[Served]:
    """Serve *exports*, all or none, and return them once each is proven by a handshake.

    Raises SendenseError with the first words that a failing qemu-nbd said, after what was started has been stopped.
    """
    ports = leases.take_ports(job, [export.port for export in exports])
    try:
        for export, port in zip(exports, ports, strict=True):
            _launch(job, export, port, connections)
        served = [_proven(job, export, port) for export, port in zip(exports, ports, strict=True)]
        jobs.write_private(jobs.make_folder(job) / _KEPT, json.dumps([asdict(each) for each in served]))
    except SendenseError:
        stop(job, leases)
        raise
    return served


def _launch(job: str, export: Export, port: int, connections: int) -> None:
    units.start(
        unit_name(job, export.key),
        command(export, port, connections),
        f"Description=Sendense export {export.name}",
        "TimeoutStopSec=10min",  # a clean stop writes what qemu-nbd still holds; killing it would fail the disk
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths=-{Path(export.image).parent}",
        "ProtectHome=yes",
        "PrivateTmp=yes",
    )


def _proven(job: str, export: Export, port: int) -> Served:
    uri = tcp_uri(port, export.name)
    try:
        await_handshake(uri, lambda: _complaint(job, export), _READY_WITHIN)
        prove(uri, export.size)
    except SendenseError as why:
        raise SendenseError(f"disk {export.key}: {why}") from None
    return Served(key=export.key, name=export.name, size=export.size, port=port)


def _complaint(job: str, export: Export) -> str:
    unit = units.read(unit_name(job, export.key))
    return "" if unit.running else f"qemu-nbd did not serve {export.image}: {units.words(unit.name) or unit.death}"


def known(job: str) -> list[str]:
    """Return the units of the exports of *job* that systemd knows, dead ones too."""
    return units.names(job, KIND)


def stop(job: str, leases: Leases) -> list[Ended]:
    """Stop every export of *job*, release their ports and return how each ended."""
    ended = []
    for name in known(job):
        said = units.words(name)
        ended.append(Ended(unit=name, death=units.stop(name).death, words=said))
    leases.release(job, "port-")
    (jobs.folder(job) / _KEPT).unlink(missing_ok=True)
    jobs.leave_folder(job)
    return ended
