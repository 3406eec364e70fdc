# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exports: one qemu-nbd per image, each in a unit of its own on the hub, on the loopback interface only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import PORT, Leases
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import await_handshake, prove, tcp_uri
from ansible_collections.sendense.backup.plugins.module_utils.transfer import ports

KIND = "export"
_READY_WITHIN = 10.0  # seconds
FIREWALL = Path("/etc/sendense/firewall.nft")  # of role hub: closes the ports to other users of the hub
_KEPT = "exports.json"  # in the job's folder: what is served, as Served


@dataclass(frozen=True)
class Export:
    """One image to be served."""

    key: int
    image: str
    name: str
    size: int  # bytes
    port: int | None = None  # None: any free one
    read_only: bool = False  # of a published point, with the images it stands on


@dataclass(frozen=True)
class Served:
    """One image that is served: the handshake was done and offered the right name and size."""

    key: int
    name: str
    size: int
    port: int
    read_only: bool = False
    invocation: str = ""  # systemd's id of this start of qemu-nbd: what another one has written is not its own


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
        f"--shared={connections + 2}", "--persistent", *(["--read-only"] if export.read_only else []), export.image,
    ]  # fmt: skip


def kept(job: str) -> list[Served]:
    """Return what *job* was given to serve on this hub, whether it lives or not."""
    try:
        said = json.loads((jobs.folder(job) / _KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Served(**each | {"invocation": units.invocation(unit_name(job, each["key"]))}) for each in said]


def dead(job: str) -> list[int]:
    """Return the keys of those whose qemu-nbd has ended, though nobody stopped them."""
    return [each.key for each in kept(job) if not units.read(unit_name(job, each.key)).running]


def current(job: str) -> list[Served]:
    """Return what *job* serves on this hub, each proven anew. Raises SendenseError naming an export that has died."""
    served = kept(job)
    for each in served:
        if not (unit := units.read(unit_name(job, each.key))).running:
            raise SendenseError(
                f"disk {each.key}: the export {each.name} {unit.death or 'has stopped'}; start the job anew"
            )
        prove(tcp_uri(each.port, each.name), each.size, writable=not each.read_only)
    return served


def check(job: str, exports: list[Export], among: range) -> None:
    """Raise Refused for *exports* that *job* can never serve on ports *among* those."""
    for export in exports:
        if not export.name.startswith(f"{job}-disk"):
            raise Refused(f"disk {export.key}: an export named '{export.name}' is not one of job {job}")
    ports.check([export.port for export in exports], among)


def start(job: str, exports: list[Export], connections: int, leases: Leases, among: range) -> list[Served]:
    """Serve *exports*, all or none, and return them once each is proven by a handshake.

    Raises SendenseError with the first words that a failing qemu-nbd said, after what was started has been stopped;
    Busy while other jobs have too many of the ports *among* which theirs may be; Refused as check does.
    """
    check(job, exports, among)
    leased = ports.take(leases, job, [export.port for export in exports], among)
    try:
        _close_ports()
        for export, port in zip(exports, leased, strict=True):
            _launch(job, export, port, connections)
        served = [_proven(job, export, port) for export, port in zip(exports, leased, strict=True)]
        jobs.write_private(jobs.make_folder(job) / _KEPT, json.dumps([asdict(each) for each in served]))
    except FAILURES:
        stop(job, leases)
        raise
    return served


def again(job: str, export: Export, connections: int, leases: Leases, among: range) -> None:
    """Serve *export*, which has died, on the port that it had: nobody who reaches it has to learn another one.

    Raises as start does; the other exports of the job are left alone.
    """
    port = next(each.port for each in kept(job) if each.key == export.key)
    ports.take(leases, job, [port], among)
    _close_ports()
    units.forget(unit_name(job, export.key))
    _launch(job, export, port, connections)
    _proven(job, export, port)


def _close_ports() -> None:
    """Load the rule anew: somebody may have flushed it (``nft flush ruleset``) since the hub booted."""
    if not FIREWALL.exists():
        return  # this hub was not made by role hub
    try:
        run(["nft", "--file", str(FIREWALL)])
    except SendenseError as why:
        raise SendenseError(f"the exports cannot be closed to other users of the hub: {why}") from None


def _launch(job: str, export: Export, port: int, connections: int) -> None:
    units.start(
        unit_name(job, export.key),
        command(export, port, connections),
        f"Description=Sendense export {export.name}",
        "TimeoutStopSec=10min",  # a clean stop writes what qemu-nbd still holds; killing it would fail the disk
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        *([] if export.read_only else [f"ReadWritePaths=-{Path(export.image).parent}"]),
        "ProtectHome=yes",
        "PrivateTmp=yes",
    )


def _proven(job: str, export: Export, port: int) -> Served:
    uri = tcp_uri(port, export.name)
    try:
        await_handshake(uri, lambda: _complaint(job, export), _READY_WITHIN)
        prove(uri, export.size, writable=not export.read_only)
    except SendenseError as why:
        raise SendenseError(f"disk {export.key}: {why}") from None
    started = units.invocation(unit_name(job, export.key))
    return Served(export.key, export.name, export.size, port, read_only=export.read_only, invocation=started)


def _complaint(job: str, export: Export) -> str:
    unit = units.read(unit_name(job, export.key))
    return "" if unit.running else f"qemu-nbd did not serve {export.image}: {units.words(unit.name) or unit.death}"


def known(job: str) -> list[str]:
    """Return the units of the exports of *job* that systemd knows, dead ones too."""
    return units.names(job, KIND)


def stop(job: str, leases: Leases) -> list[Ended]:
    """Stop every export of *job*, release their ports and return how each ended.

    Raises SendenseError naming those that could not be stopped, once all were tried; the ports then stay leased.
    """
    ended, failed = [], []
    for name in known(job):
        try:
            said = units.words(name)
            ended.append(Ended(unit=name, death=units.stop(name).death, words=said))
        except SendenseError as why:
            failed.append(f"{name}: {why}")
    if failed:
        raise SendenseError(f"not every export could be stopped; run it again: {'; '.join(failed)}")
    leases.release(job, PORT)
    (jobs.folder(job) / _KEPT).unlink(missing_ok=True)
    jobs.leave_folder(job)
    return ended
