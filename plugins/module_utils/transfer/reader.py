# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading a VMware disk: nbdkit with the plugin of the transport, on a unix socket in the job's folder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, last_words
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import unix_uri

_FAREWELL = 2.0  # seconds


@dataclass(frozen=True)
class HttpsSource:
    """The extent file of a frozen disk, as the datastore serves it over HTTPS."""

    url: str
    cookie_file: str  # holds the session cookie; its content never enters argv
    ca_file: str | None
    validate_certs: bool


def command(source: HttpsSource, socket: Path, ready: Path) -> Command:
    """Return the nbdkit command that serves *source*, read-only, on *socket* and nowhere else.

    nbdkit writes the file *ready* (nbdkit(1), ``--pidfile``) once it accepts connections; the socket is there before.
    """
    trust = [f"cainfo={source.ca_file}"] if source.ca_file else []
    verify = [] if source.validate_certs else ["sslverify=false"]
    return [
        "nbdkit", "--foreground", "--exit-with-parent", "--readonly", "--unix", str(socket), "--pidfile", str(ready),
        "--filter=retry", "curl", f"url={source.url}", f"cookie=+{source.cookie_file}", "retries=3", *trust, *verify,
    ]  # fmt: skip


@contextmanager
def served(source: HttpsSource, socket: Path, timeout: float = 15) -> Iterator[Reader]:
    """Serve *source* while the context lasts and yield its reader. Raises SendenseError with nbdkit's own last words."""
    ready = socket.with_suffix(".pid")
    process = subprocess.Popen(command(source, socket, ready), stderr=subprocess.PIPE, text=True, errors="replace")
    reader = Reader(cast("IO[str]", process.stderr), socket)
    try:
        deadline = time.monotonic() + timeout
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SendenseError(f"nbdkit did not start: {reader.words() or 'it said nothing'}")
            time.sleep(0.02)
        yield reader
    finally:
        process.terminate()
        try:
            process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:  # it waits for an answer of vCenter; it only reads, so nothing is lost
            process.kill()
            process.wait()
        for path in (socket, ready):
            path.unlink(missing_ok=True)


class Reader:
    """A running nbdkit: where it serves, and what it said last."""

    def __init__(self, stderr: IO[str], socket: Path) -> None:
        self.uri = unix_uri(str(socket), "")
        self._said: deque[str] = deque(maxlen=8)
        self._listener = threading.Thread(target=self._listen, args=(stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stderr: IO[str]) -> None:
        for line in stderr:
            self._said.append(line)
            sys.stderr.write(line)  # the journal of the unit

    def words(self) -> str:
        """Return nbdkit's last words as one line."""
        self._listener.join(0.2)
        return last_words("\n".join(self._said), 2)
