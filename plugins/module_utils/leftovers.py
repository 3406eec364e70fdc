# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What jobs have on this host, what this host knows of their lives, and how all of one job is taken away.

Whether a job is dead is decided for the whole site, in sweeping.py; here stands what one host can say.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import jobs, units
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import GRACE, Lease, Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import layout, manifest, point
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import LOCK, Repository

SESSION = "session"  # in the job's folder on a node: the login at vCenter that its modules share
_APART = ("leases", jobs.PROGRESS)  # what lies in /run/sendense beside the folders of jobs


@dataclass
class Known:
    """One job, as this host knows it."""

    job: str
    vm: str = ""  # instance uuid of its VM, where a lock or a point tells
    vcenter: str = ""  # instance uuid of the vCenter of that VM, where the job's mark or an earlier point tells
    vcenter_name: str = ""
    units: list[str] = field(default_factory=list)  # running or failed
    running: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    session: bool = False
    leases: list[str] = field(default_factory=list)  # things
    points: list[str] = field(default_factory=list)  # unfinished ones
    strangers: list[str] = field(default_factory=list)  # files in these that no job makes
    controllers: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    published: bool = False
    dead: bool | None = None  # as far as this host can say; None: it cannot
    why: str = ""


@dataclass(frozen=True)
class Unowned:
    """Something among the points of a repository of which nothing says whose it is."""

    path: str
    removable: bool
    why: str


def look(repository: Repository | None, leases: Leases, asked: Sequence[str] = ()) -> list[Known]:
    """Return the jobs of which this host has something, and those that are *asked* for, in order of their ids."""
    found: dict[str, Known] = {}

    def known(job: str) -> Known:
        return found.setdefault(job, Known(job))

    # points before leases: a job takes its lock before it makes its folder (layout.unfinished says more)
    if repository:
        _points(repository, known)
    held: dict[str, list[Lease]] = {}
    for lease in leases.every():
        if lease.job:
            held.setdefault(lease.job, []).append(lease)
            _lease(known(lease.job), lease)
    for job, names in units.by_job().items():
        known(job).units = names
        known(job).running = [name for name in names if units.read(name).running]
    for folder in _folders():
        known(folder.name).folders.append(str(folder))
        known(folder.name).session |= (folder / SESSION).exists()
    for job in asked:
        known(job)
    for each in found.values():
        if repository:
            each.published = _published(repository, each.job)
        each.dead, each.why = _judge(each, held.get(each.job, []), leases, on_hub=repository is not None)
    return [found[job] for job in sorted(found)]


def unowned(repository: Repository, leases: Leases) -> list[Unowned]:
    """Return what lies among the unfinished points and tells of no job, and whether it may go."""
    found = []
    for vm in repository.vms():
        for path in layout.work(repository.vm_folder(vm)):
            with contextlib.suppress(FileNotFoundError):  # its job has ended meanwhile
                if not layout.owner(path)[0]:
                    found.append(_unowned(path, leases.held(layout.lock_name(vm)), leases))
    return found


def strangers(repository: Repository | None) -> list[dict[str, str]]:
    """Return what lies where jobs keep their things and is none of theirs, with the reason to leave it alone."""
    found = [
        {"path": str(path), "why": "its name is not that of a job"}
        for root in (jobs.RUN, jobs.WORK)
        for path in (sorted(root.iterdir()) if root.is_dir() else [])
        if not jobs.is_job(path.name) and path.name not in _APART
    ]
    if repository and (vms := repository.path / "vms").is_dir():
        uuids = set(repository.vms())
        found += [
            {"path": str(path), "why": "its name is not an instance uuid"}
            for path in sorted(vms.iterdir())
            if path.name not in uuids
        ]
        found += [
            {"path": str(path), "why": "it is neither a restore point nor work of a job"}
            for vm in sorted(uuids)
            for path in layout.strays(repository.vm_folder(vm))
        ]
    return found


@dataclass(frozen=True)
class Claim:
    """The word of who takes away what a dead job left: by which of its controllers it was judged, and how."""

    job: str
    controllers: Sequence[str]
    gone: bool  # its controller was seen to be gone; else this host has taken it for dead


def claim(claimed: Claim, leases: Leases, controller: str, *, predict: bool = False) -> str:
    """Pass the lock of a dead job to *controller*, so that no other run goes on with the job; return why not, if so.

    A job without a lock needs no claim, for nobody can take it over.
    """
    with contextlib.nullcontext() if predict else leases.locked():  # the lock's own file would show it
        lock = _lock(leases.of(claimed.job))
        if lock and lock.controller not in (claimed.controllers or [""]):
            return "another run took it over meanwhile"
        if lock and not claimed.gone and not leases.dead(lock):
            return "it was taken for dead, and showed that it lives meanwhile"
        if lock and not predict:
            leases.put(replace(lock, controller=controller))
    return ""


@dataclass
class Taken:
    """What was taken away of a job, or would be, and what could not be."""

    removed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, more: Taken) -> None:
        """Have this tell what *more* tells, too."""
        self.removed += more.removed
        self.failed += more.failed


def take_away(
    job: str,
    repository: Repository | None,
    leases: Leases,
    *,
    remember: bool = False,
    node: str = "",
    predict: bool = False,
) -> Taken:
    """Take away everything of *job* on this host; each thing even if the one before could not be.

    What is published stays. With *remember* its mark stays in the repository, so that it is found again; *node* is who
    worked for it. With *predict* nothing is changed.
    """
    taken = Taken()
    for name in units.names(job):
        _try(taken, f"unit {name}", None if predict else partial(units.stop, name))
    for folder in (jobs.folder(job), jobs.WORK / job):
        if folder.is_dir():
            _try(taken, str(folder), None if predict else partial(_take_folder, folder))
    if (shown := jobs.progress_file(job)).exists():
        _try(taken, str(shown), None if predict else partial(shown.unlink, missing_ok=True))
    if taken.failed:
        return taken  # what it leased is in use, and its point is written to
    if repository:
        for vm in _vms(repository, job, leases):
            _take_point(taken, repository, vm, job, leases, remember=remember, node=node, predict=predict)
    for lease in leases.of(job):
        taken.removed.append(f"lease {lease.thing}")
    if not predict:
        leases.release(job)
    taken.removed = list(dict.fromkeys(taken.removed))
    return taken


def take_unowned(repository: Repository, leases: Leases, paths: Sequence[str], *, predict: bool = False) -> Taken:
    """Take away those of *paths* that are unowned still, and may still go; the others are told as failures."""
    taken, now = Taken(), {each.path: each for each in unowned(repository, leases)}
    for path in paths:
        found = now.get(path)
        if found and not found.removable:
            taken.failed.append(f"{path}: {found.why}")
        elif found:
            _try(taken, path, None if predict else partial(_take_folder, Path(path)))
    return taken


def _try(taken: Taken, what: str, act: Callable[[], object] | None) -> None:
    try:
        if act:
            act()
        taken.removed.append(what)
    except FAILURES as why:
        taken.failed.append(f"{what}: {sentence(why)}")


def _take_folder(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _take_point(
    taken: Taken, repository: Repository, vm: str, job: str, leases: Leases, *, remember: bool, node: str, predict: bool
) -> None:
    paths = [path for path in layout.work(repository.vm_folder(vm)) if layout.owner(path)[0] == job]
    if foreign := _foreign(paths):
        taken.failed.append(f"{foreign[0]} was made by no job; move it away and sweep again")
        return
    told = [str(path) for path in paths if not (remember and path.suffix == ".gone")]
    taken.removed += [f"lease {lease.thing}" for lease in leases.of(job)]
    try:
        if not predict:
            point.remove(repository, vm, job, leases, remember=remember, node=node)
        taken.removed += told
    except FAILURES as why:
        taken.failed.append(f"{', '.join(told) or job}: {sentence(why)}")


def _vms(repository: Repository, job: str, leases: Leases) -> list[str]:
    """Return the VMs of which *job* holds the lock or has unfinished points; one, unless uuids begin alike."""
    found = {lease.thing.removeprefix(LOCK) for lease in leases.of(job) if lease.thing.startswith(LOCK)}
    for vm in repository.vms():
        if any(layout.owner(path)[0] == job for path in layout.work(repository.vm_folder(vm))):
            found.add(vm)
    return sorted(found)


def _points(repository: Repository, known: Callable[[str], Known]) -> None:
    for vm in repository.vms():
        for path in layout.work(repository.vm_folder(vm)):
            job, node = layout.owner(path)
            if not job:
                continue
            each = known(job)
            each.vm = vm
            each.points.append(str(path))
            each.strangers += _foreign([path])
            if node and node not in each.nodes:
                each.nodes.append(node)
            each.vcenter, each.vcenter_name = _vcenter(repository, vm, path)


def _foreign(paths: Iterable[Path]) -> list[str]:
    return [str(path / name) for path in paths for name in layout.strangers(path)]


def _vcenter(repository: Repository, vm: str, path: Path) -> tuple[str, str]:
    """Return uuid and name of the vCenter that the job's mark in *path* tells, or that of the VM's newest point."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        newest = repository.vm_folder(vm) / "vm.json"
        said = layout.vcenter(path) or json.loads(newest.read_text(encoding="utf-8"))["vcenter"]
        return str(said.get("instance_uuid") or ""), str(said.get("hostname") or "")
    return "", ""


def _lease(each: Known, lease: Lease) -> None:
    each.leases.append(lease.thing)
    if lease.thing.startswith(LOCK):
        each.vm = each.vm or lease.thing.removeprefix(LOCK)
    for name, listed in ((lease.controller, each.controllers), (lease.node, each.nodes)):
        if name and name not in listed:
            listed.append(name)


def _folders() -> list[Path]:
    roots = [root for root in (jobs.RUN, jobs.WORK) if root.is_dir()]
    return sorted(path for root in roots for path in root.iterdir() if jobs.is_job(path.name))


def _published(repository: Repository, job: str) -> bool:
    for vm in repository.vms():
        folder = repository.point_folder(vm, job)
        if vm.startswith(jobs.vm_part(job)) and folder.is_dir():
            with contextlib.suppress(SendenseError):
                return bool(manifest.load(folder).get("job") == job)
    return False


def _lock(held: Iterable[Lease]) -> Lease | None:
    """Return the lock of a VM among the leases of a job."""
    return next((lease for lease in held if lease.thing.startswith(LOCK)), None)


def _judge(each: Known, held: Sequence[Lease], leases: Leases, *, on_hub: bool) -> tuple[bool | None, str]:
    """Return whether the job is dead by what this host knows, and why: docs/decisions, who-is-dead."""
    # the lock of the VM speaks for the job; without one, the longest of its leases does
    if lease := _lock(held) or max(held, key=lambda lease: lease.expires, default=None):
        return leases.dead(lease), _last(each, lease, leases)
    if on_hub and leases.at_work(each.job):
        return False, "it is at work on this hub"
    if each.points:
        return True, "it holds no lock any more, and nothing of it is at work on this hub"
    return None, ""


def _last(each: Known, lease: Lease, leases: Leases) -> str:
    left = lease.expires - time.time()
    if left > 0:
        return f"its lease '{lease.thing}' runs for {ago(left)} more"
    if leases.at_work(each.job):
        return "it is at work on this hub"
    over = f"its lease '{lease.thing}' ran out {ago(-left)} ago"
    if leases.dead(lease):
        return f"{over}, and nothing of it is at work on this hub"
    return f"{over}, but its exports stand: it may wait for its snapshot to go, for {ago(GRACE + left)} more"


def _unowned(path: Path, lock: Lease | None, leases: Leases) -> Unowned:
    foreign = layout.strangers(path)
    newest = max(each.lstat().st_mtime for each in [path, *(path.iterdir() if path.is_dir() else [])])
    age = time.time() - newest
    if foreign:
        return Unowned(
            str(path), removable=False, why=f"it tells no owner, and {', '.join(foreign)} was made by no job"
        )
    if lock and not leases.dead(lock):
        return Unowned(str(path), removable=False, why=f"it tells no owner, and {lock.owner} works for the VM")
    if age < GRACE:
        return Unowned(
            str(path), removable=False, why=f"it tells no owner, and was changed {ago(age)} ago: within 12 h"
        )
    return Unowned(str(path), removable=True, why=f"it tells no owner, and was changed {ago(age)} ago")


def age(job: str) -> float:
    """Return the seconds since *job* began, by the clock of this host."""
    return (datetime.now(UTC) - jobs.started(job)).total_seconds()


def ago(seconds: float) -> str:
    """Return a time as a person says it."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
