# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restores: our writing of a disk beside qemu-img's own, from the same image, all in memory; files of a guest, in the lab."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.repository import delivery, flatten, proof

from tests.bench.copying import random_file
from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.processes import say, scratch, version
from tests.bench.site import site

rows = Rows()
MIB = 1 << 20
SIZE = 1024 * MIB
RUNS = 5


@rows.row("s", "≤ 1.05")
def flatten_vs_qemu_img_convert() -> Measured:
    with scratch() as folder:
        random_file(folder / "source.raw", SIZE)
        image = folder / "disk-2000.qcow2"
        say(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", folder / "source.raw", image])
        (folder / "source.raw").unlink()
        root = proof.root(image, SIZE, "qcow2")
        disk = flatten.Disk(2000, SIZE, root, image, SIZE)
        proven: list[float] = []
        ours, other = interleaved(
            RUNS, lambda: flattened(folder, disk, "raw", proven), lambda: by_qemu_img(folder, disk)
        )
        vmdk = flattened(folder, disk, "vmdk", [])
        qcow2 = flattened(folder, disk, "qcow2", [])
    return Measured(
        ours,
        other,
        f"{SIZE // MIB} MiB to raw, other: qemu-img {version(['qemu-img', '--version'])} convert as it comes; ours without the proof, "
        f"which reads all again and takes {sorted(proven)[RUNS // 2]:.2f} s more; to qcow2 {qcow2:.2f} s, to vmdk {vmdk:.2f} s",
    )


def flattened(folder: Path, disk: flatten.Disk, image_format: str, proven: list[float]) -> float:
    """Return the seconds of one restore of a disk to a file, from the look at the place to the rename, less its proof."""
    wished = delivery.Delivery(folder / "ours", {"format": image_format}, disk.need)
    began = time.monotonic()
    delivery.done(wished, folder / "nowhere")
    (made,) = flatten.make(wished, [disk], image_format, {})["disks"]
    seconds = time.monotonic() - began
    for path in wished.folder.iterdir():
        path.unlink()
    wished.folder.rmdir()
    proven.append(made["seconds_proven"])
    return seconds - made["seconds_proven"]


def by_qemu_img(folder: Path, disk: flatten.Disk) -> float:
    """Return the seconds that qemu-img takes for the same."""
    began = time.monotonic()
    say(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.image, folder / "other.raw"])
    seconds = time.monotonic() - began
    (folder / "other.raw").unlink()
    return seconds


@rows.row("s")
def files_first_file_s() -> Measured:
    here = site()
    here.play("playbooks/provision.yml", "--limit=hub1", "-e", "hub_file_restore=true")
    here.play("playbooks/backup.yml", "-e", "vm_name=pgtest1")
    try:
        first, *found = [one_file(here.module, number) for number in range(1 + FILE_RUNS)]
    finally:
        here.forget("pgtest1")
        here.run("hub1", "rm -rf", *(place(number) for number in range(1 + FILE_RUNS)))
    return Measured(
        [each["seconds_to_first_file"] for each in found],
        note="from the module's start until one file of 2 MiB is on the hub, by libguestfs under TCG, point of 3 disks; "
        f"{first['seconds_to_first_file']:.1f} s the first time on a hub, when the appliance is made",
    )


FILE_RUNS = 3


def one_file(module: Callable[..., dict[str, Any]], number: int) -> dict[str, Any]:
    """Return what the module says of the copy of one file."""
    wish = {"copy": ["16000:/base-01/whole-0"], "path": place(number)}
    return module("hub1", "restore_point_files", repository="/backup/repository", vm="pgtest1", **wish)


def place(number: int) -> str:
    """Return where a copy goes to on the hub."""
    return f"/var/tmp/bench-files-{number}"
