#!/usr/bin/env python3
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the golden disks of the lab's VMs: raw, sparse, the same content every time.

    build.py OUTDIR       makes pgtest1-boot.raw, pgtest1-data.raw, pgtest1-odd.raw, pgtest1-data.sha256 and small.raw there
    build.py --packages   prints the Debian packages it needs

It needs root for one loop mount, and downloads a kernel and a busybox with apt-get; it installs nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NEEDS = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "e2fsck": "e2fsprogs",
    "fstrim": "util-linux",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mount": "mount",
    "syslinux": "syslinux",
    "umount": "mount",
}
MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")  # package syslinux-common

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECTOR = 512
BOOT_SIZE = 256 * MIB
DATA_SIZE = 20 * GIB
SMALL_SIZE = 32 * MIB
ODD_SIZE = 64 * MIB + 1536  # no multiple of 64 KiB nor of 4 KiB
STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
MARKER = "SENDENSE-GUEST-READY pgtest1"

INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
echo "{MARKER}" > /dev/ttyS0
while true; do /bin/busybox sleep 3600; done
"""

SYSLINUX = """SERIAL 0 115200
DEFAULT guest
PROMPT 0
LABEL guest
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND console=ttyS0 quiet panic=-1
"""


class Failure(Exception):
    """What went wrong, in one sentence."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a tool and returns what it said; a failure carries the end of it."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise Failure(f"{' '.join(words)} failed with {done.returncode}: {' / '.join(said)}")
    return done.stdout


def missing() -> list[str]:
    """Returns the packages of the tools that are not here."""
    # A root shell without login may lack sbin.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    packages = {package for tool, package in NEEDS.items() if not shutil.which(tool, path=path)}
    return sorted(packages | (set() if MBR.exists() else {"syslinux-common"}))


def unpacked(package: str, scratch: Path) -> Path:
    """Downloads a Debian package and returns the folder with its files."""
    folder = scratch / package
    folder.mkdir()
    # apt downloads as user _apt, which may not enter our private folder, and says so at length.
    run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
    (archive,) = folder.glob("*.deb")
    run("dpkg-deb", "-x", archive, folder)
    return folder


def kernel(scratch: Path) -> Path:
    """Returns the newest cloud kernel; linux-image-cloud-amd64 itself is empty and only names it."""
    said = run("apt-cache", "depends", "linux-image-cloud-amd64")
    found = re.search(r"Depends: (linux-image-\S+)", said)
    if not found:
        raise Failure("apt knows no linux-image-cloud-amd64; run apt-get update")
    (image,) = (unpacked(found[1], scratch) / "boot").glob("vmlinuz-*")
    return image


def initramfs(busybox: Path) -> bytes:
    """Returns a gzipped cpio archive (newc) with a busybox and our init."""
    out = bytearray()

    def add(name: str, mode: int, content: bytes = b"") -> None:
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.extend(bytes(-len(out) % 4) + content)
        out.extend(bytes(-len(out) % 4))

    add("bin", 0o040755)
    add("dev", 0o040755)
    add("bin/busybox", 0o100755, busybox.read_bytes())
    add("init", 0o100755, INIT.encode())
    add("TRAILER!!!", 0)
    return gzip.compress(bytes(out), mtime=0)


def boot_disk(target: Path, scratch: Path) -> None:
    """A disk that a BIOS boots: MBR, one active FAT partition at 1 MiB, syslinux, kernel, initramfs."""
    part, start = scratch / "boot.part", MIB // SECTOR
    sectors = BOOT_SIZE // SECTOR - start
    with part.open("wb") as file:
        file.truncate(sectors * SECTOR)
    # 64 heads and 32 sectors make cylinders of 1 MiB; the hidden sectors are those before the partition.
    run("mformat", "-i", part, "-T", str(sectors), "-h", "64", "-s", "32", "-H", str(start), "-v", "PGTEST1", "::")
    files = {"vmlinuz": kernel(scratch).read_bytes(), "syslinux.cfg": SYSLINUX.encode()}
    # In bin on Debian 12, in usr/bin on 13.
    (busybox,) = unpacked("busybox-static", scratch).glob("**/bin/busybox")
    files["initrd.img"] = initramfs(busybox)
    for name, content in files.items():
        (scratch / name).write_bytes(content)
        run("mcopy", "-i", part, scratch / name, f"::{name}")
    run("syslinux", "--install", part)

    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x0E, b"\xfe\xff\xff", start, sectors)
    sector = MBR.read_bytes().ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"
    with target.open("wb") as disk, part.open("rb") as source:
        disk.truncate(BOOT_SIZE)
        disk.write(sector)
        for offset in range(0, sectors * SECTOR, 4 * KIB):
            block = source.read(4 * KIB)
            if block.strip(b"\0"):
                disk.seek(MIB + offset)
                disk.write(block)


@contextlib.contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The image's filesystem, mounted for as long as the block runs, whatever ends it."""
    point = Path(tempfile.mkdtemp(prefix="sendense-guest-"))
    try:
        # noinit_itable: nothing shall be written later than by us. nodelalloc: what is written has its blocks at once,
        # so that taking some of them away again leaves pieces, without a flush per file.
        run("mount", "-o", "loop,noinit_itable,nodelalloc", image, point)
        yield point
    finally:
        # Told to stop twice, or by a terminal that tells umount too, we still unmount: a child inherits what is ignored.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
        if point.is_mount():
            run("umount", point)
        point.rmdir()
        for number, handler in before.items():
            signal.signal(number, handler)


def data_disk(target: Path, sums: Path) -> None:
    """A thin disk with ext4 and about 1 GiB in files whose blocks lie in many fragments."""
    with target.open("wb") as file:
        file.truncate(DATA_SIZE)
    # Few inodes: tables for millions of them would be most of what the disk holds.
    run(
        "mke2fs", "-q", "-t", "ext4", "-N", "8192", "-L", "pgdata", "-U", "5e4de45e-0000-4000-8000-000000000001", target
    )
    with mounted(target) as root:
        fill(root)
        lines = []
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(root)}\n")
        sums.write_text("".join(lines))
        shutil.copyfile(sums, root / "MANIFEST.sha256")
        # What was punched out becomes holes of the image.
        run("fstrim", root)
    run("e2fsck", "-fn", target)


def fill(root: Path) -> None:
    """Known files: text, whole ones, and ones with holes, spread over the disk."""
    seeded = random.Random("sendense pgtest1 data")
    for number in range(64):
        # ext4 gives each folder at the top a part of the disk of its own.
        folder = root / f"base-{number:02}"
        folder.mkdir()
        for rank in range(4):
            (folder / f"whole-{rank}").write_bytes(seeded.randbytes(2 * MIB))
        with (folder / "pieces").open("wb") as file:
            keep_and_punch(file.fileno(), seeded)
    texts = root / "notes and Übung"
    texts.mkdir()
    for number in range(200):
        text = f"note {number}: " + " ".join(
            seeded.choice(("disk", "hub", "node", "tunnel", "point")) for _ in range(99)
        )
        (texts / f"note {number:03}.txt").write_text(text + "\n")
    (root / "empty").touch()


def keep_and_punch(file: int, seeded: random.Random) -> None:
    """Writes 16 MiB and takes parts of them away again: what stays lies in pieces on the disk."""
    content = seeded.randbytes(16 * MIB)
    os.write(file, content)
    offset = 0
    while offset < len(content):
        offset += seeded.randrange(4, 65) * 4 * KIB  # kept
        gap = seeded.randrange(1, 65) * 4 * KIB
        if offset + gap < len(content):
            punch(file, offset, gap)
        offset += gap


def punch(file: int, offset: int, length: int) -> None:
    """Takes blocks away from a file; Python has no word for it, and a process for each of thousands would take minutes."""
    keep_size, punch_hole = 1, 2
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(file, keep_size | punch_hole, offset, length):
        raise OSError(ctypes.get_errno(), "cannot punch a hole")


def odd_disk(target: Path) -> None:
    """A disk of an odd size: data to its very last byte, holes, and zeros that are written out."""
    seeded = random.Random("sendense pgtest1 odd")
    with target.open("wb") as disk:
        disk.truncate(ODD_SIZE)

        def put(offset: int, content: bytes) -> None:
            disk.seek(offset)
            disk.write(content)

        put(0, seeded.randbytes(4 * MIB))
        put(8 * MIB, bytes(MIB))
        for rank in range(200):
            put(16 * MIB + rank * 128 * KIB, seeded.randbytes(seeded.randrange(1, 17) * 4 * KIB))
        put(ODD_SIZE - 70_001, seeded.randbytes(70_000) + b"\xee")


def small_disk(target: Path) -> None:
    """What the lab's many small VMs begin with: 3 MiB in pieces, and zeros that are written out."""
    seeded = random.Random("sendense small")
    with target.open("wb") as disk:
        disk.truncate(SMALL_SIZE)
        disk.write(seeded.randbytes(MIB))
        for rank in range(8):
            disk.seek((2 + 3 * rank) * MIB)
            disk.write(seeded.randbytes(256 * KIB))
        disk.seek(28 * MIB)
        disk.write(bytes(256 * KIB))


def build(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sendense-guest-") as scratch:
        boot_disk(out / "pgtest1-boot.raw", Path(scratch))
    odd_disk(out / "pgtest1-odd.raw")
    small_disk(out / "small.raw")
    data_disk(out / "pgtest1-data.raw", out / "pgtest1-data.sha256")
    for disk in sorted(out.glob("*.raw")):
        taken = disk.stat()
        print(f"{disk.name}: {taken.st_size} bytes, {taken.st_blocks * 512 / MIB:.0f} MiB on disk")


def main() -> int:
    if sys.argv[1:] == ["--packages"]:
        print("\n".join(sorted({*NEEDS.values(), "syslinux-common"})))
        return 0
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    # So that being told to stop unmounts.
    for number in STOPS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        if os.geteuid():
            raise Failure("the loop mount needs root")
        if absent := missing():
            raise Failure(f"missing packages: {' '.join(absent)}; apt-get install them")
        build(Path(sys.argv[1]))
    except (Failure, OSError) as why:
        print(f"build.py: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
