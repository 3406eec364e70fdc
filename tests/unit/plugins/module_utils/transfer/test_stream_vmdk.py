# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Streams as qemu-img reads them; how the lab's vCenter takes them is tested with the restores."""

from __future__ import annotations

import subprocess

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import stream_vmdk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.stream_vmdk import GRAIN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def write(folder, capacity, pieces):
    """Write the stream and what it must hold; return both paths and the length of the stream."""
    made, wanted = folder / "disk.vmdk", folder / "disk.raw"
    with made.open("wb") as file:
        for part in stream_vmdk.stream(capacity, ((offset, memoryview(data)) for offset, data in pieces)):
            file.write(part)
    with wanted.open("wb") as file:
        file.truncate(capacity)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    return made, wanted, made.stat().st_size


def identical(made, wanted):
    return (
        subprocess.run(["qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", made, wanted], check=False).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("capacity", "cells"),
    [
        pytest.param(512, [0], id="one sector"),
        pytest.param(GRAIN, [], id="nothing in it"),
        pytest.param(64 * 2**20 + 1536, [0, 1, 511, 512, 1024], id="an odd end, tables at their edges"),
        pytest.param(20 * 2**30, [0, 77_777, 327_679], id="mostly holes"),
        pytest.param(64 * 2**30, [0, 2**19 + 5, 2**20 - 1], id="a directory of many sectors"),
    ],
)
def test_qemu_reads_what_was_put_in(tmp_path, capacity, cells):
    pieces = [(cell * GRAIN, bytes([cell % 255 + 1]) * min(GRAIN, capacity - cell * GRAIN)) for cell in cells]
    made, wanted, size = write(tmp_path, capacity, pieces)
    assert size == stream_vmdk.length(capacity, [(offset, len(data)) for offset, data in pieces])
    assert identical(made, wanted)
    if pieces:
        with wanted.open("r+b") as file:
            file.seek(pieces[-1][0])
            file.write(b"\0")
        assert not identical(made, wanted), "or the comparison sees nothing"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5000), st.data())
def test_any_disk_is_read_back(tmp_path, sectors, data):
    capacity = sectors * 512
    cells = sorted(data.draw(st.sets(st.integers(0, (capacity - 1) // GRAIN), max_size=6)))
    noise = data.draw(st.binary(min_size=1, max_size=50))
    pieces = [(cell * GRAIN, (noise * GRAIN)[: min(GRAIN, capacity - cell * GRAIN)]) for cell in cells]
    made, wanted, size = write(tmp_path, capacity, pieces)
    assert size == stream_vmdk.length(capacity, [(offset, len(data)) for offset, data in pieces])
    assert identical(made, wanted)


def test_pieces_of_many_grains_are_cut(tmp_path):
    capacity = 3 * 2**20 + 512
    whole = bytes(range(256)) * (capacity // 256)
    made, wanted, size = write(tmp_path, capacity, [(0, whole[: 2**20]), (2**20, whole[2**20 :])])
    assert size == stream_vmdk.length(capacity, [(0, capacity)])
    assert identical(made, wanted)


def test_a_disk_of_part_of_a_sector_is_refused():
    with pytest.raises(SendenseError, match="1000 bytes are no whole number of sectors"):
        next(stream_vmdk.stream(1000, iter(())))
