# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A datastore over HTTPS, as far as nbdkit's curl plugin needs one: Range, a session cookie, and knobs to go wrong."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource

COOKIE = "vmware_soap_session=5f3c"


class Datastore(ThreadingHTTPServer):
    """Serves the files of a folder to whoever brings the cookie."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder, authority):
        super().__init__(("127.0.0.1", 0), _Handler)
        cert, key = authority.issue("datastore")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.folder, self.ca_file = folder, authority.ca_file
        self.cookie_file = folder / "cookie"
        self.cookie_file.write_text(COOKIE, encoding="utf-8")
        self.broken_from = 1 << 62  # reads that begin there or later are answered with 500
        self.announced = None  # bytes that a file is said to have, instead of what it has
        self.hung = set()  # names of files whose reads get no answer
        self.over = threading.Event()
        self.asked = []  # the ranges that were read

    def source(self, name, *, trusted=True):
        """Return how nbdkit reads that file."""
        url = f"https://127.0.0.1:{self.server_port}/folder/{name}"
        return HttpsSource(url, str(self.cookie_file), str(self.ca_file) if trusted else None, validate_certs=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Datastore

    def do_HEAD(self):
        size = (self.server.folder / self.path.rpartition("/")[2]).stat().st_size
        self._answer(200, b"", self.server.announced or size)

    def do_GET(self):
        begin, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        if self.path.rpartition("/")[2] in self.server.hung:
            self.server.over.wait()
            return
        self.server.asked.append((begin, end + 1 - begin))
        if begin >= self.server.broken_from:
            self._answer(500, b"")
            return
        with (self.server.folder / self.path.rpartition("/")[2]).open("rb") as file:
            file.seek(begin)
            self._answer(206, file.read(end + 1 - begin))

    def _answer(self, code, body, length=None):
        if COOKIE not in self.headers.get("Cookie", ""):
            code, body, length = 401, b"", None
        self.send_response(code)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words):
        pass


@pytest.fixture
def datastore(tmp_path, authority):
    """Return a Datastore that serves the files in its ``folder``."""
    (folder := tmp_path / "datastore").mkdir()
    with Datastore(folder, authority) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()
