# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import gzip
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BUILDER = Path(__file__).resolve().parents[3] / "lab" / "guests" / "build.py"


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(BUILDER))


def archived(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file of a newc archive."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        at = (start + fields[6] + 3) // 4 * 4


def test_the_initramfs_holds_a_busybox_and_an_init_that_prints_the_marker(build, tmp_path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF any length of it")
    files = archived(gzip.decompress(build["initramfs"](busybox)))
    assert files["bin/busybox"] == (0o100755, busybox.read_bytes())
    mode, init = files["init"]
    assert mode == 0o100755
    assert b"SENDENSE-GUEST-READY pgtest1" in init


def test_the_odd_disk_is_the_same_each_time_and_ends_in_data(build, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for disk in (first, second):
        build["odd_disk"](disk)
    content = first.read_bytes()
    assert content == second.read_bytes()
    assert len(content) % 65536 == 1536
    assert content[-1] == 0xEE
    with first.open("rb") as file:
        assert os.lseek(file.fileno(), 5 << 20, os.SEEK_DATA) == 8 << 20, "a hole, then zeros that are written out"
        assert not content[8 << 20 : 9 << 20].strip(b"\0")


def test_the_small_disk_is_mostly_a_hole_and_the_same_each_time(build, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for disk in (first, second):
        build["small_disk"](disk)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size == 32 << 20
    assert first.stat().st_blocks * 512 < 4 << 20


def test_punching_takes_blocks_away_and_keeps_the_size(build, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 65536)
    with path.open("r+b") as file:
        build["punch"](file.fileno(), 8192, 16384)
    assert path.read_bytes() == b"x" * 8192 + bytes(16384) + b"x" * 40960


def test_the_packages_can_be_asked_for():
    said = subprocess.run([sys.executable, BUILDER, "--packages"], capture_output=True, text=True, check=True).stdout
    assert {"syslinux", "syslinux-common", "mtools", "e2fsprogs"} <= set(said.split())


def test_a_missing_tool_is_named_by_its_package(build, monkeypatch):
    monkeypatch.setitem(build["NEEDS"], "no-such-tool", "its-package")
    assert "its-package" in build["missing"]()
