# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a QCOW2 image is, and the commands that make one so. Images are only ever opened as QCOW2, never probed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, CommandFailed, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError

SECTOR = 512
CLUSTER = 64 * 1024  # the granularity of VMware's changed block tracking


@dataclass(frozen=True)
class Image:
    """One image as this collection sees it. Equal images need no work."""

    size: int  # bytes, as the guest sees it
    backing: str | None = None  # relative to the image's folder
    cluster_size: int = CLUSTER  # bytes


def read(path: Path) -> Image | None:
    """Return the image at *path*, None when nothing is there. Raises SendenseError when it is no QCOW2 image."""
    if not path.exists():
        return None
    try:
        # --force-share: a running qemu-nbd may hold the image's lock; the header is read, nothing else
        info = json.loads(run(["qemu-img", "info", "--output=json", "-f", "qcow2", "--force-share", str(path)]))
    except CommandFailed as failed:
        raise SendenseError(f"{path} is no QCOW2 image: {failed}") from None
    if "data-file" in info.get("format-specific", {}).get("data", {}):
        raise SendenseError(f"{path} keeps its data in another file; no image of ours does, so it is not read")
    return Image(info["virtual-size"], info.get("backing-filename"), info["cluster-size"])


def plan(path: Path, current: Image | None, desired: Image | None) -> list[Command]:
    """Return the commands that turn *current* into *desired*; none when they agree.

    Raises Refused where granting the wish would lose data: an image is never shrunk, and never made anew over another.
    """
    if current == desired:
        return []
    if desired is None:
        return [["rm", "--", str(path)]]
    _check(path, desired)
    if current is None:
        return [_create(path, desired)]
    if (current.backing, current.cluster_size) != (desired.backing, desired.cluster_size):
        raise Refused(
            f"{path} is there with backing file {current.backing} and clusters of {current.cluster_size} bytes, "
            f"not {desired.backing} and {desired.cluster_size}; it is not overwritten: remove it first"
        )
    if current.size > desired.size:
        raise Refused(f"{path} holds {current.size} bytes and is never shrunk to {desired.size}")
    return [["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(desired.size)]]


def _check(path: Path, desired: Image) -> None:
    if desired.size <= 0 or desired.size % SECTOR:
        raise Refused(f"{path}: a size of {desired.size} bytes is no multiple of {SECTOR}; qemu-img would round it up")
    backing = desired.backing
    # an absolute or a protocol name would let an image point anywhere on the hub
    if backing is not None and (Path(backing).is_absolute() or ":" in backing or not backing):
        raise Refused(f"{path}: the backing file '{backing}' is not a path relative to the image")


def _create(path: Path, desired: Image) -> Command:
    options = f"compat=1.1,lazy_refcounts=off,cluster_size={desired.cluster_size}"
    backing = ["-F", "qcow2", "-b", desired.backing] if desired.backing else []
    return ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *backing, str(path), str(desired.size)]


def empty(path: Path) -> None:
    """Put an image without data, otherwise the same and the same user's, in the place of the one at *path*, in one step.

    Raises SendenseError when that is no image that could be made again.
    """
    found, scratch = read(path), path.with_name(f".{path.name}.new")
    if found is None:
        raise SendenseError(f"{path} is not there any more")
    scratch.unlink(missing_ok=True)
    run(plan(scratch, None, found)[0])
    held = path.stat()
    files.give(scratch, (held.st_uid, held.st_gid))
    scratch.replace(path)


def check(path: Path) -> None:
    """Hold the image's metadata together with ``qemu-img check``. Raises SendenseError naming what it found."""
    try:
        run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], timeout=None)
    except CommandFailed as failed:
        raise SendenseError(f"{path} fails qemu-img check: {failed}") from None
