# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's stand-in for VMware's disk library (VDDK), built and packed as VMware packs the real one."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path
from typing import Any

from lab.cache import Tool, built, fingerprint
from lab.instance import Lab
from lab.shell import run

HERE = Path(__file__).parent
DISTRIBUTION = "vmware-vix-disklib-distrib"
SONAME = "libvixDiskLib.so.8"
LIBRARY = "libvixDiskLib.so.8.0.3-stand-in"  # nbdkit takes the version from the name
ARCHIVE = "VMware-vix-disklib-8.0.3-stand-in.x86_64.tar.gz"
NOTICE = "The stand-in of a lab, not VMware's library. It reads the disks of that lab's vCenter only.\n"


def archive(lab: Lab) -> Path:
    """The packed library, whose bytes depend on nothing but its sources and the compiler."""
    compiler = run(["gcc", "--version"], what="asking gcc for its version")

    def build(part: Path, tool: Tool) -> None:
        part.mkdir()
        tool(
            *("gcc", "-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-pthread"),
            *("-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", part / LIBRARY, HERE / "vixDiskLib.c"),
            what=f"building the stand-in of the VDDK in {HERE}",
        )
        pack(part / LIBRARY, part / ARCHIVE)

    return built(lab, "vddk", fingerprint([HERE], compiler), build, what="the stand-in of the VDDK") / ARCHIVE


def pack(library: Path, archive: Path) -> None:
    """Write the archive: the library with the links it is found by, and a notice of what it is."""
    (notice := library.with_name("NOTICE")).write_text(NOTICE)
    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, source in (("NOTICE", notice), (f"lib64/{LIBRARY}", library)):
            entry = tarfile.TarInfo(f"{DISTRIBUTION}/{name}")
            entry.size, entry.mode = source.stat().st_size, 0o755 if source == library else 0o644
            with source.open("rb") as content:
                tar.addfile(entry, content)
        for link in (SONAME, "libvixDiskLib.so"):
            entry = tarfile.TarInfo(f"{DISTRIBUTION}/lib64/{link}")
            entry.type, entry.linkname = tarfile.SYMTYPE, LIBRARY
            tar.addfile(entry)


def description(archive: Path) -> dict[str, Any]:
    """What build/lab.json says of it."""
    return {"archive": str(archive), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
