# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Holds a restore point against the truth: what the VM's disks held when its snapshot was taken, byte for byte.

The comparison is qemu-img's own; nothing of the collection takes part in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lab import simulator
from lab.instance import Lab
from lab.shell import LabError, run, succeeds

REPOSITORY = "backup/repository"


@dataclass(frozen=True)
class Compared:
    """One disk of a point beside its truth."""

    key: int
    capacity: int  # bytes, of the truth
    size: int  # bytes, of the image
    stored: int  # bytes that the image takes on the hub's disk
    equal: bool

    def __str__(self) -> str:
        verdict = "identical" if self.equal else "DIFFERENT"
        return f"{self.key:>6}  {self.capacity:>14}  {self.size:>14}  {self.stored:>12}  {verdict}"


HEADER = f"{'disk':>6}  {'bytes of truth':>14}  {'bytes in image':>14}  {'stored':>12}  byte for byte"


def points(lab: Lab, vm: str, hub: str = "hub1") -> list[Path]:
    """The folders of a VM's published restore points on a hub, oldest first."""
    found = [each for each in simulator.inventory(lab) if vm in (each["name"], each["path"], each["moref"])]
    if not found:
        raise LabError(f"there is no VM {vm} in the lab; `python3 -m lab vms` lists them")
    if len(found) > 1:
        raise LabError(
            f"{len(found)} VMs are named {vm}: say which by path: {', '.join(each['path'] for each in found)}"
        )
    folder = lab.root(hub) / REPOSITORY / "vms" / found[0]["instance_uuid"]
    return sorted(path for path in folder.glob("*Z") if (path / "manifest.json").exists())


def compare(lab: Lab, vm: str) -> tuple[Path, list[Compared]]:
    """The VM's newest restore point on hub1, and each of its disks beside the truth of the snapshot that it was read from."""
    made = points(lab, vm)
    if not made:
        raise LabError(f"hub1 holds no restore point of {vm}")
    manifest = json.loads((made[-1] / "manifest.json").read_text())
    taker = "sbak" if manifest["transport"] == "client" else "sendense"
    query = {"vm": vm, "snapshot": f"{taker}-{manifest['job']}"}
    truth = json.loads(simulator.ask(lab, "GET", "/truth", query))
    images = {disk["key"]: made[-1] / disk["image"] for disk in manifest["disks"]}
    if set(images) != {disk["key"] for disk in truth["disks"]}:
        raise LabError(f"{made[-1]} holds the disks {sorted(images)}, the VM had {truth['disks']}")
    compared = [_disk(disk, Path(truth["folder"]) / disk["file"], images[disk["key"]]) for disk in truth["disks"]]
    return made[-1], compared


def _disk(disk: dict[str, int], truth: Path, image: Path) -> Compared:
    info = json.loads(run(["qemu-img", "info", "--output=json", "-f", "qcow2", image]))
    equal = succeeds(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", truth, image])
    return Compared(
        key=disk["key"],
        capacity=disk["capacity"],
        size=info["virtual-size"],
        stored=info["actual-size"],
        equal=equal and info["virtual-size"] == disk["capacity"] == truth.stat().st_size,
    )
