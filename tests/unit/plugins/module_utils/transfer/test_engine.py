# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.digests import CELL, LeafFile
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import normalise
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect
from ansible_collections.sendense.backup.plugins.module_utils.transfer import engine
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import Copy
from ansible_collections.sendense.backup.plugins.module_utils.transfer.limit import Limit


def never():
    return False


def patched(size, seed=1, dense=0.5):
    """Return a disk of which about that share of cells holds data, some of it only at one end of its cell."""
    chosen = random.Random(seed)
    cells = []
    for start in range(0, size, CELL):
        length = min(CELL, size - start)
        kind = chosen.random()
        if kind > dense:
            cells.append(bytes(length))
        elif kind > dense * 0.8:
            cells.append(bytes(length - 1) + b"\x01")
        else:
            cells.append(chosen.randbytes(length))
    return b"".join(cells)


def qcow2(path, size):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
    return path


def same(raw, image):
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout


@pytest.fixture
def copy(tmp_path):
    """Return ``copy(source, target, ranges, stop=never) -> (progress, tree)``."""

    def do(source_uri, target_uri, ranges, stop=never, seen=None):
        with contextlib.ExitStack() as stack:
            keep = stack.enter_context(contextlib.closing(LeafFile(tmp_path / "leaves")))
            source, target = stack.enter_context(connect(source_uri)), stack.enter_context(connect(target_uri))
            running = Copy(source, target, keep, stop)
            if seen is not None:
                seen.append(running.progress)
            running.run(ranges)
            return running.progress, digests.tree(keep, source.get_size())

    return do


@pytest.mark.parametrize("size", [512, CELL - 512, CELL, (1 << 20) + 512, (40 << 20) + 1536])
def test_every_byte_arrives_and_is_digested(tmp_path, nbdkit, qemu_nbd, copy, size):
    data = patched(size, seed=size)
    (raw := tmp_path / "source.raw").write_bytes(data)
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    progress, tree = copy(nbdkit("--readonly", "file", raw).uri, target.uri, [(0, size)])
    target.stop()
    assert same(raw, tmp_path / "i.qcow2") == (True, "Images are identical.\n")
    whole = digests.leaves(memoryview(data))
    assert tree == digests.tree(((at // 32, whole[at : at + 32]) for at in range(0, len(whole), 32)), size)
    assert progress.read == size
    assert progress.written == sum(len(cell) for cell in _cells(data) if any(cell))


def _cells(data):
    return [data[start : start + CELL] for start in range(0, len(data), CELL)]


def test_cells_of_zeroes_are_not_written(tmp_path, nbdkit, qemu_nbd, copy):
    size = 64 << 20
    (raw := tmp_path / "source.raw").touch()
    with raw.open("r+b") as file:
        file.truncate(size)
        for offset in (0, (3 << 20) + 5 * CELL, size - 1):
            file.seek(offset)
            file.write(b"x")
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    progress, _tree = copy(nbdkit("--readonly", "file", raw).uri, target.uri, [(0, size)])
    target.stop()
    assert same(raw, tmp_path / "i.qcow2")[0]
    assert (progress.written, progress.zeroed) == (3 * CELL, size - 3 * CELL)
    assert (tmp_path / "i.qcow2").stat().st_size < 1 << 20


def test_a_copy_without_digests_writes_the_same(tmp_path, nbdkit, qemu_nbd):
    size = (8 << 20) + 1536
    (raw := tmp_path / "source.raw").write_bytes(patched(size, dense=0.3))
    server, target = nbdkit("--readonly", "file", raw), qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    with connect(server.uri) as reading, connect(target.uri) as writing:
        copy = Copy(reading, writing, None, never)
        copy.run([(0, size)])
    target.stop()
    assert same(raw, tmp_path / "i.qcow2") == (True, "Images are identical.\n")
    assert 0 < copy.progress.written < size // 2


def test_a_target_that_is_not_fresh_gets_zeroes_where_the_source_has_none(tmp_path, nbdkit, qemu_nbd):
    size = (8 << 20) + 1536
    data = bytearray(patched(size, dense=0.4))
    data[4 << 20 : 6 << 20] = bytes(2 << 20)
    (raw := tmp_path / "source.raw").write_bytes(data)
    (old := tmp_path / "old.raw").write_bytes(random.Random(9).randbytes(size))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", old, tmp_path / "i.qcow2"], check=True)
    server, target = nbdkit("--readonly", "file", raw), qemu_nbd("--format=qcow2", tmp_path / "i.qcow2")
    with connect(server.uri) as reading, connect(target.uri) as writing:
        copy = Copy(reading, writing, None, never, fresh=False)
        copy.run([(0, 4 << 20), (6 << 20, size - (6 << 20))], holes=[(4 << 20, 2 << 20)])
    target.stop()
    assert same(raw, tmp_path / "i.qcow2") == (True, "Images are identical.\n")
    assert copy.progress.read == copy.progress.written + copy.progress.zeroed == size - (2 << 20)


def test_holes_are_left_alone_in_a_fresh_target(nbdkit):
    target = nbdkit("--filter=error", "memory", "4M", "error-zero=EIO", "error-zero-rate=100%")
    with connect(nbdkit("memory", "4M").uri) as reading, connect(target.uri) as writing:
        Copy(reading, writing, None, never).run([(0, 1 << 20)], holes=[(1 << 20, 3 << 20)])
        with pytest.raises(SendenseError, match=r"^the export failed to write at \d+ \(Input/output error\)$"):
            Copy(reading, writing, None, never, fresh=False).run([(0, 1 << 20)], holes=[(1 << 20, 3 << 20)])


def test_what_is_told_to_be_safe_was_written_before_a_flush(nbdkit, tmp_path, monkeypatch):
    """The target notes what it is asked: a range may only be told once a flush has followed all of its writes."""
    monkeypatch.setattr(engine, "FLUSH_SECONDS", 0.2)
    asked = tmp_path / "asked"
    slow = nbdkit("--filter=delay", "--filter=log", "memory", "32M", "wdelay=20ms", f"logfile={asked}")
    told = []

    def done(ranges):
        words = [line.split() for line in asked.read_text().splitlines()]
        flushed = max(number for number, line in enumerate(words) if "...Flush" in line)
        written = [line for line in words[:flushed] if "Write" in line]
        for offset, length in ranges:
            for start in range(offset, offset + length, CELL):
                assert any(_covers(line, start) for line in written), f"{start} is told before it was flushed"
        told.append(ranges)

    size = 32 << 20
    keep = LeafFile(tmp_path / "leaves")
    with connect(nbdkit("pattern", str(size)).uri) as reading, connect(slow.uri) as writing:
        Copy(reading, writing, keep, never, done, buffers=4).run([(0, size)])
    keep.close()
    assert len(told) > 1, "more often than at the end"
    assert normalise([each for ranges in told for each in ranges], size) == [(0, size)]


def _covers(line, start):
    fields = dict(word.split("=") for word in line if "=" in word)
    offset, count = int(fields["offset"], 16), int(fields["count"], 16)
    return offset <= start < offset + count


def test_nothing_is_safe_that_could_not_be_flushed(nbdkit, never_flushed, monkeypatch):
    monkeypatch.setattr(engine, "STALLED", 1.5)  # it is looked at more than once until then
    told = []
    with connect(nbdkit("pattern", "1M").uri) as reading, connect(never_flushed.uri) as writing:
        copy = Copy(reading, writing, None, never, told.append)
        with pytest.raises(SendenseError, match="nothing moved for"):
            copy.run([(0, 1 << 20)])
    assert told == []


def test_several_connections_to_the_target_share_the_writes(tmp_path, nbdkit, qemu_nbd):
    size = 16 << 20
    (raw := tmp_path / "source.raw").write_bytes(patched(size, dense=0.8))
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    with connect(nbdkit("--readonly", "file", raw).uri) as reading, contextlib.ExitStack() as stack:
        first, *also = [stack.enter_context(connect(target.uri)) for _each in range(3)]
        Copy(reading, first, None, never, also=also).run([(0, size)])
        sent = [each.stats_bytes_sent() for each in (first, *also)] if hasattr(first, "stats_bytes_sent") else [1]
        assert all(sent)
    target.stop()
    assert same(raw, tmp_path / "i.qcow2")[0]


def test_a_rate_limit_holds(nbdkit, copy):
    size = 24 << 20
    with connect(nbdkit("pattern", str(size)).uri) as reading, connect(nbdkit("memory", str(size)).uri) as writing:
        limited = Copy(reading, writing, None, never, limit=Limit(12 << 20))
        began = time.monotonic()
        limited.run([(0, size)])
    assert 1.4 < time.monotonic() - began < 15
    assert limited.progress.waited_limit > 1


def test_leaves_that_cannot_be_kept_fail_the_copy(nbdkit):
    full = LeafFile(Path("/dev/full"))
    with connect(nbdkit("pattern", "1M").uri) as reading, connect(nbdkit("memory", "1M").uri) as writing:
        copy = Copy(reading, writing, full, never)
        with pytest.raises(SendenseError, match="^the digests cannot be kept: .*No space left"):
            copy.run([(0, 1 << 20)])


@pytest.mark.parametrize(("disks", "buffers"), [(1, 16), (3, 16), (4, 12), (8, 6), (16, 4)])
def test_more_disks_have_fewer_buffers_each(disks, buffers):
    assert engine.depth(disks) == buffers


def test_only_the_ranges_are_read(tmp_path, nbdkit, qemu_nbd, copy):
    size, inside = 4 << 20, [(CELL, 2 * CELL), (40 * CELL, CELL)]
    (raw := tmp_path / "source.raw").write_bytes(b"x" * size)
    expected = bytearray(size)
    for offset, length in inside:
        expected[offset : offset + length] = b"x" * length
    (only := tmp_path / "only.raw").write_bytes(expected)
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    progress, _tree = copy(nbdkit("--readonly", "file", raw).uri, target.uri, inside)
    target.stop()
    assert same(only, tmp_path / "i.qcow2")[0]
    assert progress.read == 3 * CELL


def test_a_disk_without_data_needs_no_read(tmp_path, nbdkit, qemu_nbd, copy):
    size = 100 << 30
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", size))
    began = time.monotonic()
    progress, tree = copy(nbdkit("--readonly", "null", str(size)).uri, target.uri, [])
    assert (progress.read, progress.written) == (0, 0)
    assert tree == digests.tree([], size)
    assert time.monotonic() - began < 2


def test_a_source_that_cannot_be_read_is_named_with_the_place(tmp_path, nbdkit, qemu_nbd, copy):
    source = nbdkit("--filter=error", "memory", "4M", "error-pread=EIO", "error-pread-rate=100%")
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", 4 << 20))
    with pytest.raises(SendenseError, match=r"^the source failed to read 1048576 bytes at \d+ \(Input/output error\)$"):
        copy(source.uri, target.uri, [(0, 4 << 20)])


def test_an_export_that_cannot_write_is_named_with_the_place(nbdkit, copy):
    target = nbdkit("--filter=error", "memory", "4M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    with pytest.raises(SendenseError, match=r"^the export failed to write at \d+ \(No space left on device\)$"):
        copy(nbdkit("pattern", "4M").uri, target.uri, [(0, 4 << 20)])


def test_an_export_that_cannot_flush_fails_the_copy(nbdkit, copy):
    target = nbdkit(
        "eval", "get_size=echo 1M", "can_write=exit 0", "can_flush=exit 0", "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null", "flush=echo EIO >&2; exit 1",
    )  # fmt: skip
    with pytest.raises(SendenseError, match="Input/output error"):
        copy(nbdkit("pattern", "1M").uri, target.uri, [(0, 1 << 20)])


@pytest.mark.parametrize("victim", ["export", "source"])
def test_a_side_that_is_killed_in_mid_copy_is_named(tmp_path, nbdkit, qemu_nbd, copy, victim):
    source = nbdkit("--filter=delay", "--threads=2", "pattern", "1G", "rdelay=20ms")
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", 1 << 30))
    seen, killed = [], []

    def kill():
        while not seen or seen[0].written < 4 << 20:
            time.sleep(0.01)
        {"source": source, "export": target}[victim].process.kill()
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SendenseError, match=f"^the {victim} hung up"):
        copy(source.uri, target.uri, [(0, 1 << 30)], seen=seen)
    killer.join()
    assert time.monotonic() - killed[0] < 3


def test_an_export_that_goes_while_the_source_is_awaited_ends_the_copy(tmp_path, nbdkit, qemu_nbd, copy):
    source = nbdkit("--filter=delay", "pattern", "1M", "rdelay=10")
    target = qemu_nbd("--format=qcow2", qcow2(tmp_path / "i.qcow2", 1 << 20))
    threading.Timer(0.5, target.process.kill).start()
    began = time.monotonic()
    with pytest.raises(SendenseError, match=r"^the export hung up \(the connection was closed\)$"):
        copy(source.uri, target.uri, [(0, 1 << 20)])
    assert time.monotonic() - began < 5


def test_a_copy_that_is_told_to_stop_says_that_another_failed(nbdkit, copy):
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    source = nbdkit("--filter=delay", "pattern", "1G", "rdelay=50ms")
    with pytest.raises(SendenseError, match="^stopped, because another disk of this VM failed$"):
        copy(source.uri, nbdkit("memory", "1G").uri, [(0, 1 << 30)], stop.is_set)


def test_a_copy_in_which_nothing_moves_is_given_up(nbdkit, copy, monkeypatch):
    monkeypatch.setattr(engine, "STALLED", 0.5)
    source = nbdkit("--filter=delay", "pattern", "1M", "rdelay=30")
    began = time.monotonic()
    with pytest.raises(SendenseError, match="nothing moved for"):
        copy(source.uri, nbdkit("memory", "1M").uri, [(0, 1 << 20)])
    assert time.monotonic() - began < 5


@pytest.fixture
def never_flushed(nbdkit):
    """Return a target that takes writes and answers no flush."""
    return nbdkit(
        "eval", "get_size=echo 1M", "can_write=exit 0", "can_flush=exit 0", "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null", "flush=exec sleep 6",
    )  # fmt: skip


def test_an_export_that_never_answers_a_flush_is_given_up(nbdkit, never_flushed, copy, monkeypatch):
    monkeypatch.setattr(engine, "STALLED", 0.5)
    began = time.monotonic()
    with pytest.raises(SendenseError, match="nothing moved for"):
        copy(nbdkit("pattern", "1M").uri, never_flushed.uri, [(0, 1 << 20)])
    assert time.monotonic() - began < 4


def test_a_copy_that_waits_for_a_flush_can_be_told_to_stop(nbdkit, never_flushed, copy):
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(SendenseError, match="^stopped, because another disk of this VM failed$"):
        copy(nbdkit("pattern", "1M").uri, never_flushed.uri, [(0, 1 << 20)], stop.is_set)
    assert time.monotonic() - began < 4


def test_a_copy_tells_for_whom_it_waited(nbdkit, copy):
    slow, fast = nbdkit("--filter=delay", "pattern", "8M", "rdelay=300ms"), nbdkit("memory", "8M")
    progress, _tree = copy(slow.uri, fast.uri, [(0, 8 << 20)])
    assert progress.waited_source > 0.2 > progress.waited_target
    slow, fast = nbdkit("--filter=delay", "memory", "8M", "wdelay=300ms"), nbdkit("pattern", "8M")
    progress, _tree = copy(fast.uri, slow.uri, [(0, 8 << 20)])
    assert progress.waited_target > progress.waited_source
