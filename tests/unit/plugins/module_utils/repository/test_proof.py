# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import proof

SIZE = (3 << 20) + 1536


def tree_of(data):
    found = digests.leaves(memoryview(data))
    return digests.tree(((at // 32, found[at : at + 32]) for at in range(0, len(found), 32)), len(data))


@pytest.fixture
def data():
    """Return a disk with a hole of 1 MiB in its middle."""
    content = bytearray(random.Random(3).randbytes(SIZE))
    content[1 << 20 : 2 << 20] = bytes(1 << 20)
    return content


@pytest.fixture
def image(tmp_path):
    """Return ``image(data)``, which makes an image with that content."""

    def make(content):
        (tmp_path / "raw").write_bytes(content)
        command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "disk.qcow2"]
        subprocess.run(command, check=True)
        return tmp_path / "disk.qcow2"

    return make


def test_an_image_that_holds_what_was_delivered_is_proven_and_its_digests_kept(data, image, tmp_path):
    proof.compare(image(data), SIZE, tree_of(data), tmp_path / "digests")
    kept = dict(digests.read(tmp_path / "digests"))
    assert digests.tree(sorted(kept.items()), SIZE) == tree_of(data)
    assert not set(range(16, 32)) & set(kept), "cells that are zero are not listed"


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param(0, id="the first byte"),
        pytest.param(SIZE - 1, id="the last byte, in a short cell"),
        pytest.param(CELL - 1, id="the end of a cell"),
        pytest.param(CELL, id="the start of a cell"),
        pytest.param((1 << 20) + 70_000, id="within what was zero"),
        *[random.Random(each).randrange(SIZE) for each in range(3)],
    ],
)
def test_one_flipped_byte_is_seen_and_its_place_named(data, image, tmp_path, offset):
    delivered = tree_of(data)
    data[offset] ^= 1
    with pytest.raises(SendenseError, match="does not hold what the source delivered") as failed:
        proof.compare(image(data), SIZE, delivered, tmp_path / "digests")
    cell = offset // CELL * CELL
    assert str(failed.value).endswith(f"it differs within bytes {cell}-{min(cell + CELL, SIZE) - 1}")


def test_a_cell_that_was_never_written_is_seen(data, image, tmp_path):
    delivered = tree_of(data)
    data[CELL : 2 * CELL] = bytes(CELL)
    with pytest.raises(SendenseError, match=f"within bytes {CELL}-{2 * CELL - 1}$"):
        proof.compare(image(data), SIZE, delivered, tmp_path / "digests")


def test_an_image_of_another_size_is_not_the_disk(data, image, tmp_path):
    with pytest.raises(SendenseError, match=f"has {SIZE} bytes where the disk has {SIZE + 512}"):
        proof.compare(image(data), SIZE + 512, tree_of(data), tmp_path / "digests")


def test_a_file_that_is_no_image_is_said_so(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 4096)
    with pytest.raises(SendenseError, match="cannot be read again: .*not in qcow2 format"):
        proof.compare(tmp_path / "x", 4096, tree_of(b"x" * 4096), tmp_path / "digests")


def servers_of(path):
    """Return the pids of the qemu-nbd processes that serve that image."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = each.read_bytes().split(b"\0")
            if words[0] == b"qemu-nbd" and os.fsencode(path) in words:
                found.append(int(each.parent.name))
    return found


def wait_until(there, seconds):
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.02)
    return there()


def test_a_proof_that_is_killed_takes_its_server_with_it(data, image, tmp_path, monkeypatch):
    served, keep = image(data), tmp_path / "digests"
    os.mkfifo(keep)  # whoever opens it to write waits for a reader, so the proof stays where it is
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(prefix="proof-"))  # the path of a socket has to be short
    compare = (served, SIZE, tree_of(data), keep)
    process = multiprocessing.get_context("fork").Process(target=proof.compare, args=compare)
    process.start()
    try:
        assert wait_until(lambda: servers_of(served), 10)
        process.kill()
        process.join()
        assert wait_until(lambda: not servers_of(served), 1)
    finally:
        process.kill()
        for pid in servers_of(served):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(tempfile.tempdir)


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"content" * 100_000)
    assert proof.file_sha256(tmp_path / "f") == sha256(b"content" * 100_000).hexdigest()
