# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository on the hub's disk: where things lie, and how a restore point comes into being or goes.

A point is made in ``<point>.partial`` and renamed once everything in it is on stable storage; whatever ends in
``.partial`` is work of a job, never a restore point.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import commands, files, jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import Tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import image, manifest, proof

FORMAT = 1
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_POINT = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_JOB_FILE = "job.json"


@dataclass(frozen=True)
class Repository:
    """A folder that says of itself that it is a repository."""

    path: Path

    def vm_folder(self, instance_uuid: str) -> Path:
        """Return where the points of a VM lie. Raises Refused for what is no instance uuid."""
        if not _UUID.fullmatch(instance_uuid):
            raise Refused(f"'{instance_uuid}' is not an instance uuid")
        return self.path / "vms" / instance_uuid

    def point_folder(self, instance_uuid: str, job: str) -> Path:
        """Return where the point that *job* makes lies once it is published."""
        return self.vm_folder(instance_uuid) / jobs.point_id(job)

    def partial_folder(self, instance_uuid: str, job: str) -> Path:
        """Return where *job* works on its point."""
        point = self.point_folder(instance_uuid, job)
        return point.with_name(point.name + ".partial")

    def points(self, instance_uuid: str) -> list[dict[str, Any]]:
        """Return the manifests of the published points of a VM, oldest first; a damaged one is its point and an error."""
        folder = self.vm_folder(instance_uuid)
        found = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if _POINT.fullmatch(path.name):
                try:
                    found.append(manifest.load(path) | {"path": str(path), "error": ""})
                except SendenseError as why:
                    found.append({"point": path.name, "path": str(path), "error": str(why)})
        return found

    def vms(self) -> list[str]:
        """Return the instance uuids of the VMs that have a folder here."""
        folder = self.path / "vms"
        return sorted(path.name for path in folder.iterdir() if _UUID.fullmatch(path.name)) if folder.is_dir() else []


def open_repository(path: str) -> Repository:
    """Return the repository at *path*. Raises SendenseError when there is none, or one of another format."""
    marker = Path(path) / "repository.json"
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))["format"]
    except FileNotFoundError:
        raise SendenseError(
            f"there is no repository at {path} on this hub ({marker} is missing); run the provision playbook"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as why:
        raise SendenseError(f"{marker} cannot be read as a repository's mark: {why}") from None
    if found != FORMAT:
        raise SendenseError(f"the repository {path} has format {found}, this version knows format {FORMAT}")
    return Repository(Path(path))


def unfinished(repository: Repository, instance_uuid: str, leases: Leases) -> list[dict[str, Any]]:
    """Return the jobs that hold the VM's lock or left a partial point: job, controller, and whether it is proven dead."""
    folder = repository.vm_folder(instance_uuid)
    held = leases.held(lock_name(instance_uuid))
    found = {held.job: {"job": held.job, "controller": held.controller, "dead": leases.dead(held)}} if held else {}
    for path in sorted([*folder.glob("*.partial"), *folder.glob("*.gone")]):
        # a job takes the lock before it makes its folder, so one without a lock lost it in a reboot, with its units
        if (job := _owner(path)) and job not in found:
            found[job] = {"job": job, "controller": "", "dead": not leases.at_work(job)}
    return list(found.values())


def _owner(partial: Path) -> str:
    """Return the job that works, or worked, in a partial point; empty when nothing proves whose it is."""
    for name in (_JOB_FILE, manifest.FILE):  # a run that died right before the rename had only its manifest left
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            return str(json.loads((partial / name).read_text(encoding="utf-8"))["job"])
    return ""


def lock_name(instance_uuid: str) -> str:
    """Return the name of the lease that is the lock of a VM."""
    return f"vm-{instance_uuid}"


def plan_partial(
    repository: Repository,
    instance_uuid: str,
    job: str,
    disks: Mapping[int, int],
    leases: Leases,
    *,
    controller: str = "",
) -> bool:
    """Return whether anything of the job's partial point is missing, its lock included.

    Raises Refused while another job holds the VM, or when the point is published already.
    """
    if repository.point_folder(instance_uuid, job).exists():
        raise Refused(f"the restore point of job {job} is published already; it is never written to again")
    if holder := leases.taken(lock_name(instance_uuid), job, controller):
        raise Refused(f"VM {instance_uuid} is being backed up by job {holder.job}; a second run for it has to wait")
    folder = repository.partial_folder(instance_uuid, job)
    there = all(image.read(folder / manifest.image_file(key)) == image.Image(size) for key, size in disks.items())
    return not (there and leases.held(lock_name(instance_uuid)))


def make_partial(repository: Repository, instance_uuid: str, job: str, disks: Mapping[int, int]) -> dict[int, Path]:
    """Make the job's ``.partial`` folder with one empty image per disk (key to bytes) and return the images by key.

    Images that are already there as wished are kept. Raises SendenseError when the repository cannot be written to.
    """
    folder = repository.partial_folder(instance_uuid, job)
    if repository.point_folder(instance_uuid, job).exists():
        raise Refused(
            f"the restore point {folder.stem} of VM {instance_uuid} is published already; it is never written to again"
        )
    images = {}
    try:
        _make_folder(repository.path, folder)
        _write(repository.path, folder / _JOB_FILE, {"job": job})
        for key, size in disks.items():
            path = folder / manifest.image_file(key)
            for command in image.plan(path, image.read(path), image.Image(size)):
                commands.run(command)
            files.give(path, _owner_of(repository.path))
            images[key] = path
            proof.can_prove(path)
    except OSError as why:
        raise SendenseError(f"the repository {repository.path} cannot be written to: {sentence(why)}") from None
    return images


def publish(repository: Repository, run: manifest.Run, leases: Leases) -> Path:
    """Prove every image of the job's partial point, write the manifest, make it all durable and rename it into being.

    Raises SendenseError naming the disk whose image does not hold what the source delivered, and Refused when the job
    has lost the VM's lock meanwhile: then somebody takes its work away.
    """
    vm, uuid = run.vm, run.vm["instance_uuid"]
    manifest.check_unmoved(run)
    folder, point = repository.partial_folder(uuid, run.job), repository.point_folder(uuid, run.job)
    if point.exists():
        raise Refused(f"the restore point of job {run.job} is published already; it is never written to again")
    if not folder.is_dir():
        raise Refused(f"{folder} is not there: job {run.job} has no point to publish")
    copied = {disk["key"] for disk in run.copies}
    if absent := [str(disk["key"]) for disk in vm["disks"] if disk["key"] not in copied]:
        raise Refused(f"disk {', '.join(absent)} was not copied; a point without it would not be the VM")
    _only_ours(folder, run.copies)
    for disk in run.copies:
        _prove(folder, disk)
    facts = {path.name: _file_facts(path) for path in sorted(folder.glob("disk-*"))}
    _write(repository.path, folder / manifest.FILE, manifest.build(run, facts))
    (folder / _JOB_FILE).unlink(missing_ok=True)
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
    ours = {manifest.FILE, _JOB_FILE}
    for disk in copies:
        ours |= {manifest.image_file(disk["key"]), manifest.digest_file(disk["key"])}
    found = sorted(folder.iterdir())
    if foreign := [path.name for path in found if path.name not in ours or path.is_symlink() or not path.is_file()]:
        raise Refused(f"{folder} holds {', '.join(foreign)}, which this job did not make; it is not published")
    return found


def _prove(folder: Path, disk: Mapping[str, Any]) -> None:
    path = folder / manifest.image_file(disk["key"])
    try:
        found = image.read(path)
        if found is None or found.backing is not None or found.size != disk["provisioned"]:
            raise SendenseError(f"{path} is not the image that this job made: {found}")
        image.check(path)
        sections = {int(number): node for number, node in disk["tree"]["sections"].items()}
        delivered = Tree(disk["tree"]["root"], disk["tree"]["section_size"], sections)
        proof.compare(path, disk["provisioned"], delivered, folder / manifest.digest_file(disk["key"]))
    except SendenseError as why:
        raise SendenseError(f"disk {disk['key']}: {why}") from None


def _file_facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": proof.file_sha256(path)}


def remove_partial(
    repository: Repository, instance_uuid: str, job: str, leases: Leases, *, keep_lock: bool = False
) -> bool:
    """Remove what *job* left of an unpublished point and release its leases; return whether there was something.

    It is renamed in the same step in which the lock goes: the job, should it live, publishes before that step or never.
    Published points stay. With *keep_lock* the VM's lock stays, so that a later run finds the job.
    """
    folder = repository.partial_folder(instance_uuid, job)
    gone = folder.with_suffix(".gone")
    there = folder.exists() or gone.exists()

    def part() -> None:
        if gone.exists():
            _clear(gone)  # what is left of an earlier removal that was interrupted
        if folder.exists():
            folder.rename(gone)

    held = leases.release(job, "port-" if keep_lock else "", act=part)
    if gone.exists():
        _clear(gone)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()  # the VM's first job failed; it stays as soon as there is anything else
    return there or held


def _clear(folder: Path) -> None:
    """Remove *folder*, and last of it what tells whose it is: a removal that is interrupted is then told and done again."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_JOB_FILE, manifest.FILE):
            path.unlink()
    shutil.rmtree(folder)


def _make_folder(root: Path, path: Path) -> None:
    """Make *path* and what is missing above it, owned as the repository is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o750)
        files.give(each, _owner_of(root))


def _owner_of(root: Path) -> files.Owner:
    """Return the owner of the repository, to whom all in it belongs."""
    found = root.stat()
    return found.st_uid, found.st_gid


def _write(root: Path, path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to *path*, whole or not at all, on stable storage."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    files.write(path, text.encode(), mode=0o640, owner=_owner_of(root), durable=True)
