# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Leases: what jobs may use on a host only one at a time, or only so much of, kept as small files in /run.

A lease names its job, the controller that runs it and when it expires. It is dead when it has expired *and* nothing of
the job is at work on this host, or when the caller has proof that its controller is gone. A reboot ends units and
leases alike, because both live in /run.

One without an amount is the whole of its thing (the lock of a VM, an NBD port). One with an amount is a share, of which
several jobs may have one each: what they may have together is decided by shares.py, and by repository/space.py.
"""

from __future__ import annotations

import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from ansible_collections.sendense.backup.plugins.module_utils import files, jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused

TTL = 15 * 60  # seconds; the acts of a job on this host renew its leases
GRACE = 12 * 60 * 60  # seconds; less than a day, so that a daily run takes over from one that died
PORT = "port-"  # what the name of a port begins with as a thing


@dataclass(frozen=True)
class Lease:
    """One thing, or a share of it, held by one job."""

    thing: str  # e.g. vm-5029f3ab-…, port-10100, disks-host-12
    job: str  # empty: the file is damaged, nobody knows
    controller: str = ""  # see plugins/action: who can be asked whether the run lives
    expires: float = 0.0  # seconds since the epoch
    node: str = ""  # the node that works for the job
    amount: int | None = None  # of a share; None: the whole thing

    @property
    def owner(self) -> str:
        """Who holds it, in words."""
        return f"job {self.job}" if self.job else f"a job that its damaged lease '{self.thing}' does not name"


class Leases:
    """The leases of this host."""

    def __init__(self, folder: Path = jobs.RUN / "leases") -> None:
        self._folder = folder

    def held(self, thing: str) -> Lease | None:
        """Return the lease of the whole of *thing*, or None when nobody holds it."""
        return _read(self._folder / _name(thing))

    def shares(self, thing: str, *, but: str = "") -> list[Lease]:
        """Return the shares of *thing* that jobs other than *but* hold and that are not dead."""
        found = (_read(path) for path in sorted(self._folder.glob(f"{_name(thing)}@*")))
        return [lease for lease in found if lease and lease.job != but and not self.dead(lease)]

    def of(self, job: str) -> list[Lease]:
        """Return the leases that *job* holds."""
        return [lease for lease in self.every() if lease.job == job]

    def every(self) -> list[Lease]:
        """Return all leases of this host, those of nobody too."""
        found = (_read(path) for path in sorted(self._folder.glob("[a-z]*")))
        return [lease for lease in found if lease]

    def dead(self, lease: Lease) -> bool:
        """Whether the owner of *lease* is proven dead by what this host knows: expired, and nothing of it is at work.

        While its exports stand it has GRACE more: it may wait for the removal of its snapshot, of which this host sees
        nothing.
        """
        over = time.time() - lease.expires
        if over <= 0 or (lease.job and self.at_work(lease.job)):
            return False
        return not lease.job or over > GRACE or not units.any_running(lease.job, "export")

    def at_work(self, job: str) -> bool:
        """Whether a unit of *job* does something on this host.

        An export never ends by itself, so it counts only while somebody is connected to it.
        """
        exports = units.names(job, "export")
        if any(units.read(name).running for name in units.names(job) if name not in exports):
            return True
        ports = {int(lease.thing.removeprefix(PORT)) for lease in self.of(job) if lease.thing.startswith(PORT)}
        return bool(exports) and bool(ports & _connected_ports())

    def taken(self, thing: str, job: str, controller: str) -> Lease | None:
        """Return the lease of another run, alive as far as one knows, that keeps *job* of *controller* from *thing*.

        Two runs that start in the same second have the same job id; their controllers differ.
        """
        holder = self.held(thing)
        if not holder or (holder.job == job and controller in ("", holder.controller)) or self.dead(holder):
            return None
        return holder

    def take(self, thing: str, job: str, controller: str = "", node: str = "") -> Lease:
        """Take *thing* for *job*, or renew it. Raises Refused while another run holds it and is not proven dead."""
        with self.locked():
            if holder := self.taken(thing, job, controller):
                raise Refused(f"{thing} is held by {holder.owner}, which is not proven dead; wait for its end")
            return self.put(Lease(thing, job, controller, node=node))

    def while_held(self, thing: str, job: str, act: Callable[[], None]) -> None:
        """Do *act*, which must be short, while *job* surely holds *thing*. Raises Refused when it holds it no more."""
        with self.locked():
            holder = self.held(thing)
            if not holder or holder.job != job:
                raise Refused(f"job {job} holds {thing} no more: another run took it for dead, and takes its work away")
            act()

    def renew(self, job: str) -> None:
        """Give every lease of *job* its full time again."""
        with self.locked():
            for lease in self.of(job):
                self.put(lease)

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
        with self.locked():
            mine = [lease for lease in self.of(job) if lease.thing.startswith(kind)]
            for lease in mine:
                self.drop(lease)
            if act:
                act()
        return bool(mine)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else on this host from changing leases: what is looked at within is true until its end."""
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def put(self, lease: Lease) -> Lease:
        """Write *lease* with its full time, over what its job had of the thing, and return it. Only within locked()."""
        lease = replace(lease, expires=time.time() + TTL)
        # root's own: a unit, which runs as the service user, cannot forge it
        files.write(self._path(lease), json.dumps(asdict(lease)).encode(), mode=0o600)
        return lease

    def drop(self, lease: Lease) -> None:
        """Remove *lease*. Only within locked()."""
        self._path(lease).unlink()

    def _path(self, lease: Lease) -> Path:
        return self._folder / (_name(lease.thing) + (f"@{lease.job}" if lease.amount is not None else ""))


def _name(thing: str) -> str:
    """Return *thing* as it stands in a file's name; an inventory id of vCenter may hold anything."""
    return quote(thing, safe="")


def _read(path: Path) -> Lease | None:
    """Return the lease in *path*, None when there is none.

    A damaged one is nobody's and runs out like any other: it must neither be ignored, for its job may live, nor stop
    every other job for ever. Of a share nobody knows then how much it was, so it counts for nothing.
    """
    try:
        content, written = path.read_bytes(), path.stat().st_mtime
    except FileNotFoundError:
        return None
    thing = unquote(path.name.partition("@")[0])
    try:
        return _parse(thing, json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, Refused):
        return Lease(thing, job="", expires=written + TTL, amount=0 if "@" in path.name else None)


def _parse(thing: str, said: dict[str, object]) -> Lease:
    jobs.point_id(str(said["job"]))
    return Lease(
        thing,
        job=str(said["job"]),
        controller=str(said["controller"]),
        expires=float(str(said["expires"])),
        node=str(said.get("node", "")),
        amount=None if said.get("amount") is None else int(str(said["amount"])),
    )


def _connected_ports() -> set[int]:
    """Return the ports of this host to which somebody has an established connection over IPv4 (proc_net_tcp(5))."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "01"}
