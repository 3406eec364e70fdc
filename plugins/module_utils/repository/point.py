# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a restore point comes into being or goes.

It is made in ``<point>.partial`` and renamed once everything in it is on stable storage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import commands, files
from ansible_collections.sendense.backup.plugins.module_utils.digests import Tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, manifest, proof, space
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import (
    JOB_FILE,
    Draft,
    Repository,
    lock_name,
    owner,
    vcenter,
)
from ansible_collections.sendense.backup.plugins.module_utils.unproven import must_hold_data, nothing_in


def plan(repository: Repository, draft: Draft, leases: Leases) -> bool:
    """Return whether anything of the job's partial point is missing, its lock included.

    Raises Refused while another job holds the VM, when what lies there is published or not the job's, and when the
    repository has no room.
    """
    uuid, job = draft.instance_uuid, draft.job
    _check_unpublished(repository, uuid, job)
    holder = leases.taken(lock_name(uuid), job, draft.controller)
    if holder and holder.job not in draft.dead:
        raise Refused(f"VM {uuid} is being backed up by {holder.owner}; a second run for it has to wait")
    folder = repository.partial_folder(uuid, job)
    if folder.exists() and owner(folder)[0] != job:
        raise Refused(f"{folder} is there already, and job {job} did not make it; move it away and run again")
    there = all(image.read(folder / manifest.image_file(key)) == image.Image(size) for key, size in draft.disks.items())
    if there and leases.held(lock_name(uuid)):
        return False
    if os.statvfs(repository.path).f_flag & os.ST_RDONLY:
        raise SendenseError(f"the repository {repository.path} cannot be written to: its file system is read-only")
    space.check(repository, draft, leases)
    return True


def _check_unpublished(repository: Repository, instance_uuid: str, job: str) -> None:
    if repository.point_folder(instance_uuid, job).exists():
        raise Refused(f"the restore point of job {job} is published already; it is never written to again")


def begin(repository: Repository, draft: Draft, leases: Leases) -> dict[int, Path]:
    """Take the VM's lock, reserve the space and make the images, as make does; nothing is left when one of these fails."""
    uuid, job = draft.instance_uuid, draft.job
    leases.take(lock_name(uuid), job, draft.controller, draft.node)
    try:
        space.reserve(repository, draft, leases)
        return make(repository, draft)
    except FAILURES:
        remove(repository, uuid, job, leases)
        raise


def take_over(repository: Repository, draft: Draft, leases: Leases, instead_of: str, *, predict: bool = False) -> None:
    """Pass the lock of the job, which the controller *instead_of* held and is dead, to that of *draft*.

    Space, ports and images stay as they are. Raises Refused when they are not there, or another run was first; nothing was
    changed then.
    """
    uuid, job = draft.instance_uuid, draft.job
    _check_unpublished(repository, uuid, job)
    folder = repository.partial_folder(uuid, job)
    if not folder.is_dir() or owner(folder)[0] != job:
        raise Refused(f"{folder} is not there, or job {job} did not make it")
    for key, size in draft.disks.items():
        if image.read(path := folder / manifest.image_file(key)) != image.Image(size):
            raise Refused(f"{path} is not the image that job {job} made")
    with contextlib.nullcontext() if predict else leases.locked():  # the lock's own file would show it
        held = leases.held(lock_name(uuid))
        if not held or (held.job, held.controller) != (job, instead_of):
            raise Refused(
                f"job {job} does not hold its VM any more as it did: another run was first, or the hub was booted"
            )
        if not predict:
            leases.put(replace(held, controller=draft.controller, node=draft.node))
    if not predict:
        leases.renew(job)


def make(repository: Repository, draft: Draft) -> dict[int, Path]:
    """Make the job's ``.partial`` folder with one empty image per disk and return the images by key.

    Images that are already there as wished are kept. Raises SendenseError when the repository cannot be written to.
    """
    _check_unpublished(repository, draft.instance_uuid, draft.job)
    folder = repository.partial_folder(draft.instance_uuid, draft.job)
    images = {}
    try:
        if not folder.exists():
            _make_partial(repository, draft)
        for key, size in draft.disks.items():
            path = folder / manifest.image_file(key)
            for command in image.plan(path, image.read(path), image.Image(size)):
                commands.run(command)
            files.give(path, _owner_of(repository.path))
            images[key] = path
            proof.can_prove(path)
    except OSError as why:
        raise SendenseError(f"the repository {repository.path} cannot be written to: {sentence(why)}") from None
    return images


def _make_partial(repository: Repository, draft: Draft) -> None:
    """Make the partial folder of a job. From its first moment it tells whose it is, whenever we are killed."""
    new = repository.new_folder(draft.instance_uuid, draft.job)
    if new.exists():
        shutil.rmtree(new)
    _make_folder(repository.path, new)
    _write(repository.path, new / JOB_FILE, _mark(draft.job, draft.node, draft.vcenter))
    new.rename(repository.partial_folder(draft.instance_uuid, draft.job))


def _mark(job: str, node: str, of_vm: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells whose work lies in a folder, and in which vCenter its snapshot is."""
    return {"job": job, "node": node} | ({"vcenter": dict(of_vm)} if of_vm else {})


def publish(repository: Repository, run: manifest.Run, leases: Leases) -> Path:
    """Prove every image of the job's partial point, write the manifest, make it all durable and rename it into being.

    Raises SendenseError naming the disk whose image does not hold what the source delivered, and Refused when the job
    has lost the VM's lock meanwhile: then somebody takes its work away.
    """
    vm, uuid = run.vm, run.vm["instance_uuid"]
    manifest.check_unmoved(run)
    folder, point = repository.partial_folder(uuid, run.job), repository.point_folder(uuid, run.job)
    _check_unpublished(repository, uuid, run.job)
    if not folder.is_dir():
        raise Refused(f"{folder} is not there: job {run.job} has no point to publish")
    copied = {disk["key"] for disk in run.copies}
    if absent := [str(disk["key"]) for disk in vm["disks"] if disk["key"] not in copied]:
        raise Refused(f"disk {', '.join(absent)} was not copied; a point without it would not be the VM")
    _only_ours(folder, run.copies)
    proven = [_proven(folder, disk) for disk in run.copies]
    facts = {path.name: _file_facts(path) for path in sorted(folder.glob("disk-*"))}
    _write(repository.path, folder / manifest.FILE, manifest.sealed(manifest.build(replace(run, copies=proven), facts)))
    (folder / JOB_FILE).unlink(missing_ok=True)
    for path in _only_ours(folder, run.copies):
        files.give(path, _owner_of(repository.path))
        files.sync(path)
    files.sync(folder)
    seen = {name: vm[name] for name in ("name", "vcenter", "inventory_path", "config")}
    _write(repository.path, point.parent / "vm.json", seen)

    def become() -> None:
        folder.rename(point)
        files.sync(point.parent)

    leases.while_held(lock_name(uuid), run.job, become)
    return point


def _only_ours(folder: Path, copies: list[dict[str, Any]]) -> list[Path]:
    """Return what lies in a partial point. Raises Refused for anything but plain files of the names that a job makes."""
    ours = {manifest.FILE, JOB_FILE}
    for disk in copies:
        ours |= {manifest.image_file(disk["key"]), manifest.digest_file(disk["key"])}
    found = sorted(folder.iterdir())
    if foreign := [path.name for path in found if path.name not in ours or path.is_symlink() or not path.is_file()]:
        raise Refused(f"{folder} holds {', '.join(foreign)}, which this job did not make; it is not published")
    return found


def _proven(folder: Path, disk: Mapping[str, Any]) -> dict[str, Any]:
    """Return *disk* once its image is seen to hold what it must. Raises SendenseError when it does not.

    Where the source told no digests, only so much is proven that something is in it, if there must be; its tree is the image's own.
    """
    path = folder / manifest.image_file(disk["key"])
    try:
        found = image.read(path)
        if found is None or found.backing is not None or found.size != disk["provisioned"]:
            raise SendenseError(f"{path} is not the image that this job made: {found}")
        image.check(path)
        there = proof.compare(path, disk["provisioned"], _delivered(disk), folder / manifest.digest_file(disk["key"]))
        if disk["tree"] is None and not there.sections and must_hold_data(disk["allocated"]):
            raise SendenseError(nothing_in({disk["key"]: disk["allocated"]}))
    except SendenseError as why:
        raise SendenseError(f"disk {disk['key']}: {why}") from None
    return dict(disk) if disk["tree"] else {**disk, "tree": asdict(there), "digests_of": "image"}


def _delivered(disk: Mapping[str, Any]) -> Tree | None:
    """Return the tree of what the source delivered; None of a client's disk, for no other copy may go without."""
    if disk["tree"] is None and disk["map"] == "client":
        return None
    if disk["tree"] is None:
        raise SendenseError("the copy told no digests of what it read, so nobody knows whether the image holds it")
    sections = {int(number): node for number, node in disk["tree"]["sections"].items()}
    return Tree(**disk["tree"] | {"sections": sections})


def _file_facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": proof.file_sha256(path)}


def remove(
    repository: Repository, instance_uuid: str, job: str, leases: Leases, *, remember: bool = False, node: str = ""
) -> bool:
    """Remove what *job* left of an unpublished point and release its leases; return whether there was something.

    It is renamed in the same step in which the lock goes: the job, should it live, publishes before that step or never.
    Published points stay. With *remember* the mark of the job and its *node* stays, and nothing else of it, so that a
    later run finds the job.
    """
    folder, gone = repository.partial_folder(instance_uuid, job), repository.gone_folder(instance_uuid, job)
    there = left(repository, instance_uuid, job, remember=remember)

    def part() -> None:
        if folder.exists():
            if gone.exists():  # what is left of an earlier removal that was interrupted
                _clear(gone)
                _take_away(gone)
            folder.rename(gone)

    held = leases.release(job, act=part)
    _take_away(repository.new_folder(instance_uuid, job))
    _clear(gone)
    if remember:
        _make_folder(repository.path, gone)
        _write(repository.path, gone / JOB_FILE, _mark(job, node, vcenter(gone)))
    else:
        _take_away(gone)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # the VM's first job failed; it stays as soon as there is anything else
    return there or held


def left(repository: Repository, instance_uuid: str, job: str, *, remember: bool = False) -> bool:
    """Return whether there is anything of an unpublished point to remove; a mark to *remember* it by is nothing."""
    mark = repository.gone_folder(instance_uuid, job).exists() and not remember
    return mark or any(
        each.exists()
        for each in (repository.partial_folder(instance_uuid, job), repository.new_folder(instance_uuid, job))
    )


def _clear(folder: Path) -> None:
    """Empty *folder* but for what tells whose it is: a removal that is interrupted is then told and done again."""
    with contextlib.suppress(FileNotFoundError):  # another removal of the same job has ended
        for path in list(folder.iterdir()) if folder.exists() else []:
            if path.is_dir() and not path.is_symlink():
                _take_away(path)
            elif path.name not in (JOB_FILE, manifest.FILE):
                path.unlink(missing_ok=True)


def _take_away(folder: Path) -> None:
    """Remove *folder* if it is there, also while somebody else removes it: what goes under our hands is what we want gone."""
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _make_folder(root: Path, path: Path) -> None:
    """Make *path* and what is missing above it, owned as the repository is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o750, exist_ok=True)  # another job of the VM, or another removal, may make it too
        files.give(each, _owner_of(root))


def _owner_of(root: Path) -> files.Owner:
    """Return the owner of the repository, to whom all in it belongs."""
    found = root.stat()
    return found.st_uid, found.st_gid


def _write(root: Path, path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to *path*, whole or not at all, on stable storage."""
    files.write(path, manifest.text(content).encode(), mode=0o640, owner=_owner_of(root), durable=True)
