# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import tarfile

from lab import vddk


def test_the_same_library_gives_the_same_archive(tmp_path):
    sums = set()
    for folder in ("one", "other"):
        (place := tmp_path / folder).mkdir()
        (place / vddk.LIBRARY).write_bytes(b"ELF")
        vddk.pack(place / vddk.LIBRARY, archive := place / vddk.ARCHIVE)
        sums.add(vddk.description(archive)["sha256"])
    assert len(sums) == 1


def test_it_unpacks_as_vmware_packs_it_and_says_what_it_is(tmp_path):
    (tmp_path / vddk.LIBRARY).write_bytes(b"ELF")
    vddk.pack(tmp_path / vddk.LIBRARY, archive := tmp_path / vddk.ARCHIVE)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "out")
    unpacked = tmp_path / "out" / "vmware-vix-disklib-distrib"
    assert (unpacked / "lib64" / "libvixDiskLib.so.8").read_bytes() == b"ELF"
    assert "not VMware's library" in (unpacked / "NOTICE").read_text()
