# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Leases: what only one job at a time may use on a host (the lock of a VM, NBD ports), kept as small files in /run.

A lease names its job, the controller that runs it and when it expires. It is dead when it has expired *and* nothing of
the job is at work on this host, or when the caller has proof that its controller is gone. A reboot ends units and
leases alike, because both live in /run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused

TTL = 15 * 60  # seconds; the acts of a job on this host renew its leases
GRACE = 12 * 60 * 60  # seconds; less than a day, so that a daily run takes over from one that died
PORTS = (10100, 10200)  # the range of the system that our users come from; role hub and tunnel open the same


@dataclass(frozen=True)
class Lease:
    """One thing held by one job."""

    thing: str  # e.g. vm-5029f3ab-…, port-10100
    job: str
    controller: str  # see plugins/action: who can be asked whether the run lives
    expires: float  # seconds since the epoch


class Leases:
    """The leases of this host."""

    def __init__(self, folder: Path = jobs.RUN / "leases") -> None:
        self._folder = folder

    def held(self, thing: str) -> Lease | None:
        """Return the lease of *thing*, or None when nobody holds it."""
        try:
            return Lease(**json.loads((self._folder / thing).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def of(self, job: str) -> list[Lease]:
        """Return the leases that *job* holds."""
        found = (self.held(path.name) for path in sorted(self._folder.glob("[a-z]*")))
        return [lease for lease in found if lease and lease.job == job]

    def dead(self, lease: Lease) -> bool:
        """Whether the owner of *lease* is proven dead by what this host knows: expired, and nothing of it is at work.

        While its exports stand it has GRACE more: it may wait for the removal of its snapshot, of which this host sees
        nothing.
        """
        over = time.time() - lease.expires
        if over <= 0 or self.at_work(lease.job):
            return False
        return over > GRACE or not units.any_running(lease.job, "export")

    def at_work(self, job: str) -> bool:
        """Whether a unit of *job* does something on this host.

        An export never ends by itself, so it counts only while somebody is connected to it.
        """
        exports = units.names(job, "export")
        if any(units.read(name).running for name in units.names(job) if name not in exports):
            return True
        ports = {int(lease.thing.removeprefix("port-")) for lease in self.of(job) if lease.thing.startswith("port-")}
        return bool(exports) and bool(ports & _connected_ports())

    def taken(self, thing: str, job: str, controller: str) -> Lease | None:
        """Return the lease of another run, alive as far as one knows, that keeps *job* of *controller* from *thing*.

        Two runs that start in the same second have the same job id; their controllers differ.
        """
        holder = self.held(thing)
        if not holder or (holder.job == job and controller in ("", holder.controller)) or self.dead(holder):
            return None
        return holder

    def take(self, thing: str, job: str, controller: str = "") -> Lease:
        """Take *thing* for *job*, or renew it. Raises Refused while another run holds it and is not proven dead."""
        with self._locked():
            if holder := self.taken(thing, job, controller):
                raise Refused(f"{thing} is held by job {holder.job}, which is not proven dead; wait for its end")
            return self._write(thing, job, controller)

    def while_held(self, thing: str, job: str, act: Callable[[], None]) -> None:
        """Do *act*, which must be short, while *job* surely holds *thing*. Raises Refused when it holds it no more."""
        with self._locked():
            holder = self.held(thing)
            if not holder or holder.job != job:
                raise Refused(f"job {job} holds {thing} no more: another run took it for dead, and takes its work away")
            act()

    def take_ports(self, job: str, wished: Iterable[int | None]) -> list[int]:
        """Take one port for each of *wished* (None: any free one of PORTS), all or none, and return them in that order."""
        with self._locked():
            taken: list[int] = []
            for wish in wished:
                candidates = [wish] if wish else range(PORTS[0], PORTS[1] + 1)
                free = (port for port in candidates if port not in taken and self._is_free(port, job, bool(wish)))
                port = next(free, None)
                if port is None:
                    where = f"port {wish}" if wish else f"all ports {PORTS[0]}-{PORTS[1]}"
                    raise Refused(f"{where} of this hub: leased by other jobs; run again when one of them has ended")
                taken.append(port)
            for port in taken:
                self._write(f"port-{port}", job, "")
            return taken

    def _is_free(self, port: int, job: str, wished: bool) -> bool:
        holder = self.held(f"port-{port}")
        if holder and holder.job != job and not self.dead(holder):
            return False
        return wished or not _listening(port)  # a wished port is tried, so that qemu-nbd itself says why it cannot

    def renew(self, job: str) -> None:
        """Give every lease of *job* its full time again."""
        with self._locked():
            for lease in self.of(job):
                self._write(lease.thing, job, lease.controller)

    @contextmanager
    def renewed(self, job: str) -> Iterator[None]:
        """Renew the leases of *job* for as long as the context lasts, however long that is."""
        over = threading.Event()

        def renew() -> None:
            self.renew(job)
            while not over.wait(TTL / 3):
                self.renew(job)

        renewer = threading.Thread(target=renew, daemon=True)
        renewer.start()
        try:
            yield
        finally:
            over.set()
            renewer.join()

    def release(self, job: str, kind: str = "", *, act: Callable[[], None] | None = None) -> bool:
        """Release the leases of *job* whose things begin with *kind*; return whether there was one.

        With *act*, which must be short, both happen in one step as others see it.
        """
        with self._locked():
            mine = [lease for lease in self.of(job) if lease.thing.startswith(kind)]
            for lease in mine:
                (self._folder / lease.thing).unlink()
            if act:
                act()
        return bool(mine)

    def _write(self, thing: str, job: str, controller: str) -> Lease:
        lease = Lease(thing=thing, job=job, controller=controller, expires=time.time() + TTL)
        jobs.write_private(self._folder / thing, json.dumps(asdict(lease)))
        return lease

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _connected_ports() -> set[int]:
    """Return the ports of this host to which somebody has an established connection over IPv4 (proc_net_tcp(5))."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "01"}


def _listening(port: int) -> bool:
    """Whether somebody on this host listens on that port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False
