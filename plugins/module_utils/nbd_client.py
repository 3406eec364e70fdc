# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""NBD as a client: a handshake with a deadline, and reading ranges in order. On libnbd (Debian: python3-libnbd)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, pieces

libnbd: Any
try:
    import nbd

    libnbd = nbd
except ImportError:
    libnbd = None  # connect() says so in our own words

REQUEST = 1 << 20  # bytes; NBD servers differ in what they take beyond 32 MiB, and speed is flat from 64 KiB to 4 MiB
DEPTH = 8  # requests in flight
STALLED = 300.0  # seconds without any answer after which a server is given up

ALLOCATION = "base:allocation"


@dataclass(frozen=True)
class Handshake:
    """What an NBD server said of one export before a byte of data moved."""

    size: int  # bytes
    read_only: bool
    can_flush: bool
    can_multi_conn: bool


def tcp_uri(port: int, export: str) -> str:
    """Return the URI of an export on the loopback interface of this host."""
    return f"nbd://127.0.0.1:{port}/{quote(export, safe='')}"


def unix_uri(socket: str, export: str) -> str:
    """Return the URI of an export behind a unix socket."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(socket, safe='/')}"


@contextmanager
def connect(uri: str, timeout: float = 10, *, contexts: tuple[str, ...] = ()) -> Iterator[Any]:
    """Yield a libnbd handle on which the handshake for *uri* is done; it is shut down at a good end.

    Raises SendenseError when the handshake does not end within *timeout* seconds, which is how a server that only
    accepts connections shows itself, or when the server refuses.
    """
    if libnbd is None:
        raise SendenseError("python3-libnbd is not installed on this host; run the provision playbook")
    handle = libnbd.NBD()
    try:
        handle.set_pread_initialize(False)
        for context in contexts:
            handle.add_meta_context(context)
        deadline = time.monotonic() + timeout
        handle.aio_connect_uri(uri)
        while not handle.aio_is_ready():
            left = deadline - time.monotonic()
            if left <= 0:
                raise SendenseError(f"{uri}: no NBD handshake within {timeout:.0f} s")
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise SendenseError(f"{uri}: the server hung up during the NBD handshake")
            handle.poll(max(1, int(left * 1000)))
        yield handle
    except libnbd.Error as error:
        if "no export named" in error.string:
            raise SendenseError(
                f"{uri} is not served there; who answers has an export of another job or disk"
            ) from None
        raise SendenseError(f"{uri}: {error.string}") from None
    # after a failure there is no farewell: it would wait for every answer that the server still owes
    if handle.aio_is_ready():
        with suppress(libnbd.Error):  # a server that is gone is disconnected already
            handle.shutdown()


def handshake(uri: str, timeout: float = 10) -> Handshake:
    """Return what the server of *uri* says of its export. Raises SendenseError as connect does."""
    with connect(uri, timeout) as handle:
        return Handshake(
            size=handle.get_size(),
            read_only=handle.is_read_only(),
            can_flush=handle.can_flush(),
            can_multi_conn=handle.can_multi_conn(),
        )


def await_handshake(uri: str, complaint: Callable[[], str], seconds: float) -> None:
    """Return once the server of *uri* has done a handshake, whatever earlier ones failed with.

    A server listens before it is ready, and another may hold its port, so only a handshake or its end tells. Raises
    SendenseError with the *complaint* as soon as there is one, or with the last failure after that many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            handshake(uri, timeout=1)
        except SendenseError:
            if said := complaint():
                raise SendenseError(said) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def prove(uri: str, size: int, timeout: float = 10, *, writable: bool = True) -> Handshake:
    """Return the handshake of *uri* after holding it against what must be there: *size* bytes, and writable if so wished."""
    found = handshake(uri, timeout)
    if found.size != size:
        raise SendenseError(
            f"{uri} offers {found.size} bytes where {size} were expected; it is not the export of this disk"
        )
    if writable and found.read_only:
        raise SendenseError(f"{uri} is read-only")
    return found


def data_ranges(handle: Any) -> Iterator[Range]:
    """Yield the ranges of an export that hold data, as its server knows them; needs the context ``ALLOCATION``."""
    size, position = handle.get_size(), 0
    entries: list[int] = []  # of the last answer: length and state in turn

    def keep(_context: str, _offset: int, found: list[int], _error: Any) -> int:
        entries[:] = found
        return 0

    while position < size:
        entries.clear()
        handle.block_status(min(size - position, 1 << 31), position, keep)
        if not entries:
            raise SendenseError("the NBD server tells nothing of what is allocated")
        for length, state in zip(entries[::2], entries[1::2], strict=True):
            if not state & libnbd.STATE_ZERO:
                yield position, min(length, size - position)
            position += length


def read_ranges(handle: Any, ranges: Iterable[Range]) -> Iterator[tuple[int, memoryview]]:
    """Yield the data of *ranges* in order, as ``(offset, view)``; a view is good until the next one is asked for."""
    spare = [bytearray(REQUEST) for _each in range(DEPTH)]
    waiting: deque[tuple[int, int, int, bytearray]] = deque()
    for offset, length in pieces(ranges, REQUEST):
        if not spare:
            yield (yielded := _oldest(handle, waiting))[:2]
            spare.append(yielded[2])
        room = spare.pop()
        cookie = handle.aio_pread(libnbd.Buffer.from_buffer(memoryview(room)[:length]), offset)
        waiting.append((cookie, offset, length, room))
    while waiting:
        yield _oldest(handle, waiting)[:2]


def _oldest(handle: Any, waiting: deque[tuple[int, int, int, bytearray]]) -> tuple[int, memoryview, bytearray]:
    cookie, offset, length, room = waiting.popleft()
    deadline = time.monotonic() + STALLED
    while not handle.aio_command_completed(cookie):
        if time.monotonic() > deadline:
            raise SendenseError(f"no answer within {STALLED:.0f} s to a read of {length} bytes at {offset}")
        handle.poll(1000)
    return offset, memoryview(room)[:length], room
