# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import threading
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import nbd_client
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import total
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import (
    ALLOCATION,
    Handshake,
    connect,
    data_ranges,
    handshake,
    prove,
    read_ranges,
    tcp_uri,
    unix_uri,
)

SIZE = (5 << 20) + 1536


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def test_a_handshake_tells_what_the_server_offers(raw, nbdkit, qemu_nbd, tmp_path):
    assert handshake(nbdkit("--readonly", "file", raw).uri) == Handshake(SIZE, True, True, True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "i.qcow2", "1G"], check=True)
    found = handshake(qemu_nbd("--format=qcow2", tmp_path / "i.qcow2").uri)
    assert (found.size, found.read_only, found.can_flush) == (1 << 30, False, True)


def test_an_export_is_found_by_its_name_and_by_no_other(raw, qemu_nbd):
    server = qemu_nbd("--format=raw", "--read-only", "--export-name=a job/disk0", raw)
    assert handshake(unix_uri(str(server.socket), "a job/disk0")).size == SIZE
    with pytest.raises(SendenseError, match="disk1.* is not served there; who answers has an export of another job"):
        handshake(unix_uri(str(server.socket), "disk1"))


def test_an_export_of_another_size_is_not_the_one(raw, nbdkit):
    uri = nbdkit("file", raw).uri
    assert prove(uri, SIZE).size == SIZE
    for wrong in (SIZE + 512, SIZE - 512):
        with pytest.raises(SendenseError, match=f"offers {SIZE} bytes where {wrong} were expected"):
            prove(uri, wrong)


def test_an_export_that_must_be_written_is_not_read_only(raw, nbdkit):
    uri = nbdkit("--readonly", "file", raw).uri
    assert prove(uri, SIZE, writable=False).read_only
    with pytest.raises(SendenseError, match="is read-only"):
        prove(uri, SIZE)


def test_a_server_that_only_accepts_connections_is_no_export():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(SendenseError, match="no NBD handshake within 1 s"):
            prove(tcp_uri(silent.getsockname()[1], "x"), 1, timeout=1)
    assert time.monotonic() - began < 3


def test_a_server_that_speaks_something_else_is_no_export():
    with socket.create_server(("127.0.0.1", 0)) as other:
        uri = tcp_uri(other.getsockname()[1], "x")

        def answer():
            client, _address = other.accept()
            with client, contextlib.suppress(ConnectionResetError):
                client.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n" * 20)
                client.recv(100)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(SendenseError, match=uri):
            prove(uri, 1, timeout=5)


def test_a_port_on_which_nobody_listens_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(SendenseError, match="refused"):
        prove(tcp_uri(port, "x"), 1)


def test_a_missing_library_says_what_to_do(monkeypatch):
    monkeypatch.setattr(nbd_client, "libnbd", None)
    with pytest.raises(SendenseError, match="python3-libnbd is not installed on this host"):
        handshake("nbd://127.0.0.1:1/x")


def test_what_an_image_holds_is_told_by_its_server(qemu_nbd, tmp_path):
    image = tmp_path / "i.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "6G"], check=True)
    for offset in (0, 1 << 30, (6 << 30) - 65536):
        write = f"write -q -P 7 {offset} 65536"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, image], check=True)
    with connect(qemu_nbd("--format=qcow2", "--read-only", image).uri, contexts=(ALLOCATION,)) as handle:
        assert list(data_ranges(handle)) == [(0, 65536), (1 << 30, 65536), ((6 << 30) - 65536, 65536)]


def test_a_server_that_knows_no_allocation_is_taken_as_all_data(raw, nbdkit):
    with connect(nbdkit("--filter=noextents", "file", raw).uri, contexts=(ALLOCATION,)) as handle:
        assert total(data_ranges(handle)) == SIZE


def test_ranges_are_read_in_order_whatever_the_server_answers_first(raw, nbdkit):
    data = raw.read_bytes()
    ranges = [(0, 4 << 20), (5 << 20, 1536), (4 << 20, 512)]
    with connect(nbdkit("--threads=8", "file", raw).uri) as handle:
        found = [(offset, bytes(view)) for offset, view in read_ranges(handle, ranges)]
    assert all(each == data[offset : offset + len(each)] for offset, each in found)
    assert [offset for offset, _each in found] == [0, 1 << 20, 2 << 20, 3 << 20, 5 << 20, 4 << 20]
    assert sum(len(each) for _offset, each in found) == total(ranges)


def test_more_is_read_than_there_are_buffers(tmp_path, nbdkit):
    path = tmp_path / "large.raw"
    path.write_bytes(b"".join(bytes([number]) * (1 << 20) for number in range(20)))
    with connect(nbdkit("file", path).uri) as handle:
        found = [(offset >> 20, view[0], view[-1]) for offset, view in read_ranges(handle, [(0, 20 << 20)])]
    assert found == [(number, number, number) for number in range(20)]


def test_a_read_that_fails_names_the_export(raw, nbdkit):
    uri = nbdkit("--filter=error", "file", raw, "error-pread=EIO", "error-pread-rate=100%").uri
    with pytest.raises(SendenseError, match="Input/output error"), connect(uri) as handle:
        list(read_ranges(handle, [(0, 65536)]))
