# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reading a VMware disk: nbdkit with the plugin of the transport, on a unix socket in the job's folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias, cast

from ansible_collections.sendense.backup.plugins.module_utils.commands import Command, CommandFailed, last_words, run
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import unix_uri
from ansible_collections.sendense.backup.plugins.module_utils.transfer import client

VDDK = Path("/opt/sendense/vddk/current")  # role node links it to the version that is installed
PLUGINS = {"https": "curl", "vddk": "vddk", "client": "vddk"}  # nbdkit's, by transport

OPENING = 120.0  # seconds that vCenter and ESXi host may take to open a disk, which nbdkit does within the handshake
_FAREWELL = 2.0  # seconds
_CLOSING = 300.0  # seconds that a disk which was written to may take
_ERROR = re.compile(r"^nbdkit: (?:\S+ )?error: (.+)", re.MULTILINE)

_ENDED = "returned error: 401"  # of a session

# What VMware's library says, mostly without saying of what, and what it then was.
_REMEDIES = [
    (re.compile(said), sentence)
    for said, sentence in (
        (
            "incorrect user name or password|Insufficient permissions in the host",
            "vCenter does not let this user read disks: password or VirtualMachine.Provisioning.DiskRandomRead is wanting",
        ),
        (
            "refused connection|too many connections|NFC_SERVER_BUSY|Failed to allocate the requested",
            "the ESXi host serves no more disks at once: let fewer be read from it, or run the backup again later",
        ),
        ("file system is full", "the datastore is full"),
        ("file was not found", "the disk or its snapshot is gone; run the backup again"),
        (
            "access rights to this file",
            "the disk is locked on the ESXi host, or the user lacks VirtualMachine.Provisioning.DiskRandomRead",
        ),
        (
            "Cannot connect to the host|Failed to connect|thumbprint",
            "the disk cannot be reached: the node needs port 443 of vCenter, still with its certificate, and 902 of the host",
        ),
        (_ENDED, "vCenter ended the session while the disk was read"),
        ("returned error: 404", "the disk is gone from its datastore; run the backup again"),
    )
]

# What no second try mends; anything else may pass.
_FINAL = re.compile(
    "incorrect user name or password|Insufficient permissions in the host|file was not found|access rights to this file"
    "|thumbprint|returned error: 40[0-9]|certificate"
)


def lacks(transport: str) -> str:
    """Return why this node cannot read by *transport*, as a sentence; empty when it can."""
    try:
        versions(transport)
    except SendenseError as why:
        return str(why)
    return ""


def versions(transport: str) -> dict[str, str]:
    """Return the versions of ``nbdkit``, of its ``plugin`` and, of transport vddk, of VMware's ``library``; of the ``client``.

    Raises SendenseError when the node lacks one of them, or the library does not load.
    """
    name = PLUGINS[transport]
    nbdkit = run(["nbdkit", "--version"]).strip()
    try:
        plugin = _dump(name)
    except CommandFailed as failed:
        raise SendenseError(
            f"nbdkit has no plugin {name} on this node; install it (Debian: nbdkit-plugin-{name}) or run the "
            f"provision playbook; nbdkit said: {_complaint(failed.said)}"
        ) from None
    found = {"nbdkit": nbdkit, "plugin": f"{name} {plugin['version']}"}
    more = {"vddk": lambda: {"library": _library()}, "client": client.found}
    return {**found, **more[transport]()} if transport in more else found


def _library() -> str:
    """Return the version of the VDDK on this node, as its file is named: ``8.0.2``."""
    if not VDDK.exists():
        raise SendenseError(
            f"there is no VDDK on this node: {VDDK} is missing; give node_vddk_archive and run the provision playbook"
        )
    try:
        loaded = _dump("vddk", f"libdir={VDDK}")
        if "vddk_library_version" not in loaded:  # only a start says why
            run(["nbdkit", "--unix", "-", "vddk", f"libdir={VDDK}", "file=none", "--run", "true"])
    except CommandFailed as failed:
        raise SendenseError(
            f"the VDDK in {VDDK.resolve()} does not load on this node: {_complaint(failed.said)}"
        ) from None
    return loaded.get("vddk_dll", "").rpartition(".so.")[2] or loaded.get("vddk_library_version", "unknown")


def _dump(plugin: str, *settings: str) -> dict[str, str]:
    """Return what the plugin says of itself. Raises CommandFailed when there is none."""
    said = run(["nbdkit", plugin, *settings, "--dump-plugin"])
    return dict(line.partition("=")[::2] for line in said.splitlines())


def _complaint(said: str) -> str:
    """Return nbdkit's last errors as one line, without the advice it adds; all of it when none is marked."""
    return last_words("\n".join(_ERROR.findall(said)) or said, 2)


@dataclass(frozen=True)
class HttpsSource:
    """The extent file of a frozen disk, as the datastore serves it over HTTPS."""

    url: str
    cookie_file: str  # holds the session cookie; its content never enters argv
    ca_file: str | None
    validate_certs: bool
    transport: str = "https"
    writable: ClassVar[bool] = False

    def words(self) -> Command:
        """Return what nbdkit is told of it: filters, plugin and settings."""
        trust = [f"cainfo={self.ca_file}"] if self.ca_file else []
        verify = [] if self.validate_certs else ["sslverify=false"]
        return [
            "--filter=retry", "curl", f"url={self.url}", f"cookie=+{self.cookie_file}", "retries=3", *trust, *verify,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return what nbdkit's environment holds besides."""
        return {}

    def secret(self) -> str:
        """Return what the source is opened with now; another one may lie there once it does no more."""
        return Path(self.cookie_file).read_text(encoding="utf-8")


@dataclass(frozen=True)
class VddkSource:
    """A disk as a snapshot froze it, with all it stands on, as VMware's library reads it from the ESXi host."""

    server: str
    port: int
    user: str
    password_file: str  # its content never enters argv
    thumbprint: str  # of the server's certificate
    vm: str  # managed object ids
    snapshot: str
    path: str  # in the snapshot's own configuration
    transport: str = "vddk"
    writable: ClassVar[bool] = False

    def words(self) -> Command:
        """Return what nbdkit is told of it; the filters and their order are virt-v2v's."""
        return [
            "--filter=multi-conn", "--filter=blocksize", "--filter=retry", "vddk", f"libdir={VDDK.resolve()}",
            f"server={self.server}", f"port={self.port}", f"user={self.user}", f"password=+{self.password_file}",
            f"thumbprint={self.thumbprint}", f"vm=moref={self.vm}", f"snapshot={self.snapshot}", f"file={self.path}",
            "transports=nbdssl:nbd", "multi-conn-mode=disable", "minblock=512", "maxdata=2M", "retries=3", "retry-delay=1",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return the search path that nbdkit would otherwise set and start again for, with the password in a file in /tmp."""
        return {"LD_LIBRARY_PATH": str(VDDK.resolve() / "lib64")}

    def secret(self) -> str:
        """Return what the source is opened with now."""
        return Path(self.password_file).read_text(encoding="utf-8")


Source: TypeAlias = "HttpsSource | VddkSource"


def source(fields: Mapping[str, Any]) -> Source:
    """Return the source whose fields these are."""
    return (VddkSource if fields["transport"] == "vddk" else HttpsSource)(**fields)


def command(source: Source, socket: Path, ready: Path) -> Command:
    """Return the nbdkit command that serves *source*, read-only unless it is there to be written, on *socket* and nowhere else.

    nbdkit writes the file *ready* (nbdkit(1), ``--pidfile``) once it accepts connections; the socket is there before.
    """
    return [
        "nbdkit", "--foreground", "--exit-with-parent", *([] if source.writable else ["--readonly"]),
        "--unix", str(socket), "--pidfile", str(ready), *source.words(),
    ]  # fmt: skip


@contextmanager
def served(source: Source, socket: Path, timeout: float = 15) -> Iterator[Reader]:
    """Serve *source* while the context lasts and yield its reader. Raises SendenseError with nbdkit's own last words."""
    ready = socket.with_suffix(".pid")
    for path in (socket, ready):  # of one that was killed with its copy
        path.unlink(missing_ok=True)
    process = subprocess.Popen(
        command(source, socket, ready),
        env=os.environ | source.environment(),
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
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
            process.wait(_CLOSING if source.writable else _FAREWELL)
        except subprocess.TimeoutExpired:  # it waits for an answer of vCenter; one that only reads loses nothing
            process.kill()
            process.wait()
        for path in (socket, ready):
            path.unlink(missing_ok=True)
    if source.writable and process.returncode == -signal.SIGKILL:
        raise SendenseError(
            f"nbdkit did not close the disk within {_CLOSING:.0f} s and was killed; it is not to be believed"
        )


class Reader:
    """A running nbdkit: where it serves, and what it said last."""

    def __init__(self, stderr: IO[str], socket: Path) -> None:
        self.uri = unix_uri(str(socket), "")
        self._said: deque[str] = deque(maxlen=16)
        self._listener = threading.Thread(target=self._listen, args=(stderr,), daemon=True)
        self._listener.start()

    def _listen(self, stderr: IO[str]) -> None:
        for line in stderr:
            self._said.append(line)
            sys.stderr.write(line)  # the journal of the unit

    def words(self) -> str:
        """Return nbdkit's last errors as one line."""
        self._listener.join(0.2)
        return _complaint("".join(self._said))

    def kind(self) -> str:
        """Return what kind of failure nbdkit tells of: ``session`` (it has ended), ``final``, or ``passing``."""
        words = self.words()
        if _ENDED in words:
            return "session"
        return "final" if _FINAL.search(words) else "passing"

    def explain(self, why: str) -> str:
        """Return the sentence for a failure that libnbd calls *why*: what nbdkit said, and what to do where that is known."""
        words = self.words()
        if not words:
            return why
        known = next((sentence for said, sentence in _REMEDIES if said.search(words)), why)
        return f"{known}; nbdkit said: {words}"
