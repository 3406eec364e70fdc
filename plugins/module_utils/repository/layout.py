# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository on the hub's disk: where things lie, which points there are, and whose work lies beside them.

Whatever ends in ``.partial`` or ``.gone``, or begins with a dot, is work of a job, never a restore point.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest

FORMAT = 1
PARTIAL = ".partial"
LOCK = "vm-"  # what the name of a VM's lock begins with as a thing
JOB_FILE = "job.json"  # in a partial point: whose it is
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OURS = re.compile(
    r"\.?(?:job\.json|manifest\.json|disk-[0-9]+\.(?:qcow2|digests))(?:\.new)?"
)  # files of a partial point
_SCRATCH = re.compile(r"\.vm\.json\.new")  # and the one file beside it, of a writer that was killed
_POINT = re.compile(r"[0-9]{8}T[0-9]{6}Z")


@dataclass(frozen=True)
class Draft:
    """A point that a job is to make."""

    instance_uuid: str
    job: str
    disks: Mapping[int, int]  # device key to bytes
    need: int = 0  # bytes that its files take at most
    min_free: int = 0  # percent of the file system that stay free
    controller: str = ""
    node: str = ""
    dead: Sequence[str] = ()  # jobs that the caller has proven dead
    vcenter: Mapping[str, Any] = field(default_factory=dict)  # the VM's: instance_uuid and hostname


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

    def published_folder(self, instance_uuid: str, point: str) -> Path:
        """Return where a published point lies. Raises Refused for what is no point's name."""
        if not _POINT.fullmatch(point):
            raise Refused(f"'{point}' is not a restore point; one looks like 20261123T140102Z")
        return self.vm_folder(instance_uuid) / point

    def partial_folder(self, instance_uuid: str, job: str) -> Path:
        """Return where *job* works on its point."""
        point = self.point_folder(instance_uuid, job)
        return point.with_name(point.name + PARTIAL)

    def new_folder(self, instance_uuid: str, job: str) -> Path:
        """Return where the partial point of *job* lies until it tells whose it is; its own name tells it till then."""
        return self.point_folder(instance_uuid, job).with_name(f".{job}.new")

    def gone_folder(self, instance_uuid: str, job: str) -> Path:
        """Return where the partial point of *job* lies while it is removed."""
        return self.partial_folder(instance_uuid, job).with_suffix(".gone")

    def folders(self, instance_uuid: str) -> list[Path]:
        """Return the folders of the published points of a VM, oldest first, whatever is in them."""
        folder = self.vm_folder(instance_uuid)
        return sorted(path for path in folder.iterdir() if _POINT.fullmatch(path.name)) if folder.is_dir() else []

    def points(self, instance_uuid: str) -> list[dict[str, Any]]:
        """Return the manifests of the published points of a VM, oldest first; a damaged one is its point and an error."""
        found = []
        for path in self.folders(instance_uuid):
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


def is_uuid(text: str) -> bool:
    """Whether *text* is an instance uuid, as folders of VMs are named."""
    return _UUID.fullmatch(text) is not None


def lock_name(instance_uuid: str) -> str:
    """Return the name of the lease that is the lock of a VM."""
    return f"{LOCK}{instance_uuid}"


def unfinished(repository: Repository, instance_uuid: str, leases: Leases) -> list[dict[str, Any]]:
    """Return the jobs that hold the VM's lock or left a partial point.

    Each is its job, controller and node, as far as they are known, and whether it is proven dead.
    """
    folder = repository.vm_folder(instance_uuid)
    # before the lock: a job takes it before it makes its folder, so one whose folder is seen here, and no lock after that,
    # lost it in a reboot, with its units; or its point has come or gone meanwhile, and the folder with it
    left = work(folder)
    found = {}
    held = leases.held(lock_name(instance_uuid))
    if held and held.job:
        found[held.job] = {
            "job": held.job, "controller": held.controller, "node": held.node, "dead": leases.dead(held)
        }  # fmt: skip
    for path in left:
        job, node = owner(path)
        if job and job not in found and path.exists():
            found[job] = {"job": job, "controller": "", "node": node, "dead": not leases.at_work(job)}
    return list(found.values())


def work(folder: Path) -> list[Path]:
    """Return what lies beside the restore points in the *folder* of a VM, and is or was somebody's work."""
    return sorted(each for kind in ("*.partial", "*.gone", ".*.new") for each in folder.glob(kind))


def strangers(folder: Path) -> list[str]:
    """Return what lies in a partial point and bears none of the names that a job gives, or is no plain file."""
    if folder.is_symlink() or not folder.is_dir():
        return [] if _SCRATCH.fullmatch(folder.name) else [folder.name]
    found = sorted(folder.iterdir())
    return [each.name for each in found if each.is_symlink() or not each.is_file() or not _OURS.fullmatch(each.name)]


def strays(folder: Path) -> list[Path]:
    """Return what lies in the *folder* of a VM and is neither a restore point, nor beside one and named after it, nor work."""
    working = work(folder)
    return sorted(
        path
        for path in folder.iterdir()
        if path not in working and path.name != "vm.json" and not _POINT.match(path.name)
    )


def is_draft(path: Path, job: str) -> bool:
    """Whether *path* lies in the partial point of *job*."""
    return path.parent.name == jobs.point_id(job) + PARTIAL


def owner(folder: Path) -> tuple[str, str]:
    """Return the job that works, or worked, in a partial point, and its node; empty when nothing proves whose it is."""
    for name in (JOB_FILE, manifest.FILE):  # a run that died right before the rename had only its manifest left
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError, Refused):
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            jobs.point_id(said["job"])
            return said["job"], str(said.get("node", ""))
    with contextlib.suppress(Refused):
        job = folder.name.removeprefix(".").removesuffix(".new")
        jobs.point_id(job)
        return job, ""
    return "", ""


def vcenter(folder: Path) -> dict[str, str]:
    """Return instance_uuid and hostname of the vCenter for whose VM a job works, or worked; empty when nothing tells."""
    for name in (JOB_FILE, manifest.FILE):
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            said = json.loads((folder / name).read_text(encoding="utf-8"))
            found = (said if name == JOB_FILE else said["vm"])["vcenter"]
            return {key: str(found.get(key) or "") for key in ("instance_uuid", "hostname")}
    return {}
