# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A trial on the hub: a restore point of a VM that never was, with content that is known, in a repository of its own.

That repository lies beside the real one, tells from its first moment to its last whose it is, and goes as a whole. The VM
that is made of the point bears the trial's id (hardware.TRIAL), which is the seed of its content and the instance uuid of
the VM that never was.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import shake_256
from pathlib import Path
from struct import iter_unpack
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import commands, digests, files, jobs, leftovers
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, Tree
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, normalise, total
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import layout, manifest, point, space
from ansible_collections.sendense.backup.plugins.module_utils.repository.image import SECTOR
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.hardware import TRIAL

SUFFIX = ".preflight"  # of the repository's path
MARK = "trial.json"  # in the repository: what says whose it is
CAPACITY = 64 << 20  # bytes of the one disk
KEY, CONTROLLER = 2000, 1000  # device keys
_PIECES = 24  # places that are written besides the first and the last sector
_LONGEST = 1 << 20  # bytes of such a place at most
_RAW = "content.raw"  # in the repository while the image is filled
_OURS = frozenset({MARK, f".{MARK}.new", _RAW, "repository.json", ".repository.json.new", "vms"})


@dataclass(frozen=True)
class Trial:
    """What the mark of a repository says."""

    trial: str  # uuid
    vm: str  # inventory path of the VM that is made
    datastore: str
    controller: str = ""  # who runs it
    began: float = field(default_factory=time.time)  # seconds since the epoch, by the hub's clock


def pieces(seed: str) -> list[Range]:
    """Return where a disk is written: its first and its last sector, and sectors between that *seed* chooses."""
    chosen = iter_unpack(">II", shake_256(seed.encode()).digest(8 * _PIECES))
    places = [(at % (CAPACITY // SECTOR) * SECTOR, (1 + many % (_LONGEST // SECTOR)) * SECTOR) for at, many in chosen]
    return normalise([(0, SECTOR), *places, (CAPACITY - SECTOR, SECTOR)], CAPACITY)


def content(seed: str) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of each piece, with the offset at which they stand: SHAKE-256 of ``<seed>:<offset>``."""
    for offset, length in pieces(seed):
        yield offset, shake_256(f"{seed}:{offset}".encode()).digest(length)


def place(real: layout.Repository) -> Path:
    """Return where trials of a repository have their own."""
    return real.path.with_name(real.path.name + SUFFIX)


def find(path: Path) -> Trial | None:
    """Return the trial whose repository *path* is; None when nothing is there, or what a trial leaves that dies at once.

    Raises Refused for what no trial made, and for a trial's repository that holds something else.
    """
    if not path.exists():
        return None
    there = {each.name for each in path.iterdir()}
    try:
        found = Trial(**json.loads((path / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        if there - {f".{MARK}.new"}:
            raise Refused(f"{path} is there, and no trial made it ({MARK} does not say so); move it away") from None
        return None
    if foreign := sorted(there - _OURS):
        raise Refused(f"{path} holds {foreign[0]}, which no trial made; move it away")
    return found


def make(real: layout.Repository, trial: Trial, min_free: int) -> None:
    """Make the repository of a trial and publish its point. Nothing is left when that fails."""
    path, job, leases = place(real), jobs.job_id("preflight", trial.trial), Leases()
    owned = real.path.stat()
    owner = owned.st_uid, owned.st_gid

    def write(name: str, what: Mapping[str, Any]) -> None:
        files.write(path / name, manifest.text(what).encode(), mode=0o640, owner=owner, durable=True)

    with leases.locked():
        if other := find(path):
            raise Refused(f"{path} is that of a trial with VM {other.vm} already; a second one has to wait for its end")
        path.mkdir(mode=0o750, exist_ok=True)
        files.give(path, owner)
        write(MARK, asdict(trial))
    try:
        write("repository.json", {"format": layout.FORMAT})
        _publish(layout.open_repository(str(path)), trial, job, min_free, leases)
    except FAILURES:
        leases.release(job)
        _remove(path)
        raise


def content_of(path: Path, trial: str) -> dict[str, Any]:
    """Return what the one disk of the trial's point is. Raises SendenseError when there is no such point."""
    made = [each for each in layout.Repository(path).points(trial) if not each["error"]]
    if len(made) != 1:
        raise SendenseError(f"{path} does not hold the point of trial {trial}; take the trial away and begin anew")
    disk = made[0]["disks"][0]
    return {
        "capacity": disk["capacity"],
        "written": disk["written"],
        "pieces": len(pieces(trial)),
        "root": disk["root"],
        "image": str(Path(made[0]["path"]) / disk["image"]),
    }


def _publish(repository: layout.Repository, trial: Trial, job: str, min_free: int, leases: Leases) -> None:
    vm, written = _vm(trial), total(pieces(trial.trial))
    need = space.need([{"capacity": CAPACITY, "allocated": written}])
    draft = layout.Draft(trial.trial, job, {KEY: CAPACITY}, need=need, min_free=min_free, controller=trial.controller)
    point.plan(repository, draft, leases)
    image = point.begin(repository, draft, leases)[KEY]
    tree = _fill(image, repository.path / _RAW, trial.trial)
    copied = {
        "key": KEY, "provisioned": CAPACITY, "allocated": written, "map": "known", "read": written, "written": written,
        "zeroed": 0, "seconds": 0.0, "tree": asdict(tree),
    }  # fmt: skip
    frozen = {
        "disks": [{"key": KEY, "change_id": None, "path": vm["disks"][0]["path"]}],
        "quiesce_requested": "off", "quiesce_achieved": False, "quiesce_reason": "",
    }  # fmt: skip
    facts = {
        "transport": "none",
        "transport_reason": "a trial made the content",
        "times": {"started": jobs.point_id(job)},
    }
    point.publish(repository, manifest.Run(job, vm, frozen, vm, [copied], facts), leases)
    leases.release(job)


def _fill(image: Path, raw: Path, seed: str) -> Tree:
    """Write the content into the image, which is empty, and return its digests."""
    disk = bytearray(CAPACITY)
    with raw.open("xb") as file:  # never through a link: the folder belongs to another user
        file.truncate(CAPACITY)
        for offset, data in content(seed):
            disk[offset : offset + len(data)] = data
            file.seek(offset)
            file.write(data)
    convert = ["qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", str(raw), str(image)]
    commands.run(convert, timeout=None)
    raw.unlink()
    found = digests.leaves(memoryview(disk))
    return digests.tree(((at // 32, found[at : at + 32]) for at in range(0, CAPACITY // CELL * 32, 32)), CAPACITY)


def _vm(trial: Trial) -> dict[str, Any]:
    """Return the VM that never was, as vm_info would describe it, as far as a restore asks."""
    name = trial.vm.rpartition("/")[2]
    home = f"[{trial.datastore}] {name}/{name}"
    return {
        "name": name,
        "instance_uuid": trial.trial,
        "bios_uuid": trial.trial,
        "inventory_path": trial.vm,
        "vcenter": {},
        "cbt_enabled": False,
        "host": {},
        "vmx_path": f"{home}.vmx",
        "config": {
            "guest_id": "otherGuest64", "version": "vmx-13", "firmware": "bios", "secure_boot": False,
            "cpus": 1, "cores_per_socket": 1, "memory_mib": 128, "nics": [],
            "controllers": [
                {"key": CONTROLLER, "type": "ParaVirtualSCSIController", "bus_number": 0, "sharing": "noSharing"}
            ],
            "annotation": f"Made by trial {trial.trial} of sendense.backup (playbook preflight). It holds nothing but random "
            "bytes, and the trial removes it; should the trial have died, the next one does.",
            "extra_config": {TRIAL: trial.trial},
        },
        "disks": [
            {
                "key": KEY, "label": "Hard disk 1", "capacity": CAPACITY, "path": f"{home}.vmdk", "backing_uuid": None,
                "mode": "persistent", "controller_key": CONTROLLER, "unit_number": 0, "thin": True, "kind": "flat",
            }
        ],
    }  # fmt: skip


def jobs_of(path: Path, trial: Trial, leases: Leases) -> list[str]:
    """Return the jobs of a trial that its repository, or something on this host, tells of."""
    repository = layout.Repository(path)
    found = {each["job"] for vm in repository.vms() for each in layout.unfinished(repository, vm, leases)}
    found |= {each["job"] for vm in repository.vms() for each in repository.points(vm) if not each["error"]}
    return sorted(found | set(here(trial.trial, leases)))


def here(trial: str, leases: Leases) -> list[str]:
    """Return the jobs for the VM that never was, such as its restore, of which this host has something."""
    return [each.job for each in leftovers.look(None, leases) if jobs.vm_part(each.job) == trial[:8]]


def clear(path: Path, wanted: list[str], leases: Leases) -> None:
    """Take away what jobs of a trial have on this hub, and then its repository; what says whose it is goes last."""
    repository, taken = layout.Repository(path), leftovers.Taken()
    for job in wanted:
        taken.add(leftovers.take_away(job, repository, leases))
    if taken.failed:
        raise SendenseError("; ".join(taken.failed))
    _remove(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path / "vms")
    for name in sorted(_OURS - {MARK, "vms"}):
        (path / name).unlink(missing_ok=True)
    (path / MARK).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        path.rmdir()


def told(trial: Trial | None) -> Mapping[str, Any]:
    """Return what a trial is and how many seconds old; empty for none."""
    return {**asdict(trial), "age": round(time.time() - trial.began)} if trial else {}
