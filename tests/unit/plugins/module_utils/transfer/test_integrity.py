# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One bit is flipped on the way from the source to the image, at each place in turn: every time the disk fails."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, LeafFile
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect
from ansible_collections.sendense.backup.plugins.module_utils.repository import proof
from ansible_collections.sendense.backup.plugins.module_utils.transfer import engine
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import Copy

SIZE = 4 << 20
FLIPPED = (2 << 20) + 3 * CELL + 77  # this byte of the disk
WRITE = (
    b"\x25\x60\x95\x13\x00\x00\x00\x01"  # NBD: magic, no flags, NBD_CMD_WRITE; 8 bytes cookie, offset, 4 length follow
)


@pytest.fixture
def copied(tmp_path, nbdkit):
    """Return ``copied(target) -> tree``, which copies a disk without a byte that is zero to the target of that URI."""
    content = random.Random(5).randbytes(SIZE).replace(b"\0", b"x")
    (raw := tmp_path / "source.raw").write_bytes(content)
    served = nbdkit("--readonly", "file", raw)

    def copy(uri):
        with contextlib.ExitStack() as stack:
            keep = stack.enter_context(contextlib.closing(LeafFile(tmp_path / "leaves")))
            source, target = stack.enter_context(connect(served.uri)), stack.enter_context(connect(uri))
            Copy(source, target, keep, lambda: False).run([(0, SIZE)])
            return digests.tree(keep, SIZE)

    return copy


@pytest.fixture
def backup(tmp_path, copied, qemu_nbd):
    """Return ``backup(way)``, which copies into an image, reached by *way* if one is given, and proves it."""
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)

    def do(way=lambda uri: uri):
        target = qemu_nbd("--format=qcow2", image)
        tree = copied(way(target.uri))
        target.stop()
        proof.compare(image, SIZE, tree, tmp_path / "digests")

    return do


def cell_of(offset):
    """Return what the proof says of a difference in that byte."""
    start = offset // CELL * CELL
    return f"does not hold what the source delivered; it differs within bytes {start}-{start + CELL - 1}$"


def test_what_nobody_flips_is_proven(backup):
    backup()


def test_a_bit_that_flips_in_the_memory_of_the_node_before_the_write(backup, monkeypatch):
    honest = Copy._pass_on

    def flipping(copy, slot, blank):
        if slot.offset <= FLIPPED < slot.offset + len(slot.view):
            slot.view[FLIPPED - slot.offset] ^= 1
        honest(copy, slot, blank)

    monkeypatch.setattr(Copy, "_pass_on", flipping)
    with pytest.raises(SendenseError, match=cell_of(FLIPPED)):
        backup()


@pytest.fixture
def flipping_way(tmp_path):
    """Return ``flipping_way(uri, at) -> uri``: the way to a server on which one bit of a write's header or data flips."""
    threads = []

    def lay(uri, at):
        front = str(tmp_path / "way.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(front)
        listener.listen()

        def carry():
            client, _address = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(uri.partition("socket=")[2])
            back = threading.Thread(target=pump, args=(server, client, None))
            back.start()
            pump(client, server, at)
            back.join()
            for each in (client, server, listener):
                each.close()

        threads.append(threading.Thread(target=carry))
        threads[0].start()
        return f"nbd+unix:///?socket={front}"

    yield lay
    for each in threads:
        each.join(10)


def _received(reading):
    with contextlib.suppress(ConnectionResetError):
        return reading.recv(1 << 16)
    return b""


def pump(reading, writing, at):
    """Carry what comes to the other side; flip a bit at that place of the stream, counted from the second write."""
    seen, sent, flip, writes = bytearray(), 0, None, 0
    while data := _received(reading):
        seen += data
        while at is not None and flip is None and writes < 2 and (found := seen.find(WRITE, sent)) >= 0:
            writes += 1
            sent = found + 1
            flip = found + at if writes == 2 else None
        if flip is not None and flip < len(seen):
            start = len(seen) - len(data)
            if flip >= start:
                data = bytearray(data)
                data[flip - start] ^= 1
        with contextlib.suppress(BrokenPipeError):
            writing.sendall(data)
    for each in (reading, writing):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "at", [pytest.param(28 + 5000, id="in the data"), pytest.param(21, id="in where it is to be written")]
)
def test_a_bit_that_flips_in_the_tunnel(backup, flipping_way, at):
    # which piece is written second is chance: moved beyond the end of the disk, the last one is refused at once
    with pytest.raises(SendenseError, match="does not hold what the source delivered|^the export failed to write"):
        backup(lambda uri: flipping_way(uri, at))


def test_a_bit_that_flips_in_the_tunnel_in_what_is_asked(backup, flipping_way):
    with pytest.raises(SendenseError, match="^the export hung up"):
        backup(lambda uri: flipping_way(uri, 0))


def test_a_bit_that_flips_on_the_hub_before_the_image(copied, nbdkit, tmp_path):
    """A server stands for qemu-nbd that writes another byte than it was given."""
    (raw := tmp_path / "hub.raw").write_bytes(bytes(SIZE))
    write = (
        "import sys; offset = int(sys.argv[2]); data = bytearray(sys.stdin.buffer.read()); "
        f"at = {FLIPPED} - offset; data[at:at + 1] = [data[at] ^ 1] if 0 <= at < len(data) else data[at:at + 1]; "
        "file = open(sys.argv[1], 'r+b'); file.seek(offset); file.write(data)"
    )
    target = nbdkit(
        "eval", f"get_size=echo {SIZE}", "can_write=exit 0", "can_flush=exit 0", "pread=head -c $3 /dev/zero",
        f'pwrite={sys.executable} -c "{write}" {raw} $4', "flush=exit 0",
    )  # fmt: skip
    tree = copied(target.uri)
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    with pytest.raises(SendenseError, match=cell_of(FLIPPED)):
        proof.compare(image, SIZE, tree, tmp_path / "digests")


def test_what_the_source_delivers_wrongly_cannot_be_seen(backup, monkeypatch):
    """A bit that flips before it is digested is what the source delivered, as far as a copier can know."""
    honest = engine.leaves

    def flipping(view, *given):
        view[77] ^= 1
        return honest(view, *given)

    monkeypatch.setattr(engine, "leaves", flipping)
    backup()
