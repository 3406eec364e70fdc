# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy by the program ``sendense-backup-client``, as the unit ``sendense-copy-<job>`` runs it: request in, status file out.

Started as ``python3 -m …transfer.client REQUEST``. The program takes a snapshot of its own, copies the disks one after the
other, and removes it. It cannot go on with what it had begun, it tells no digests, and its exit code is not to be believed: so its
words are judged too, and what has come into the exports.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote

from ansible_collections.sendense.backup.plugins.module_utils.commands import Command
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import total
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import (
    ALLOCATION,
    STALLED,
    connect,
    data_ranges,
    prove,
)
from ansible_collections.sendense.backup.plugins.module_utils.transfer.status import Status
from ansible_collections.sendense.backup.plugins.module_utils.unproven import must_hold_data, nothing_in

PROGRAM = Path("/usr/local/bin/sendense-backup-client")  # role node links it to the version that is installed
LIBRARY = Path("/usr/lib64/vmware-vix-disklib/lib64")  # where the program looks for VDDK, and nowhere else
LOGS = Path("/var/log/sendense")
FORWARDS = Path("/etc/sendense/tunnel/ssh_config")  # of the tunnel that stays
TUNNEL = "sendense-tunnel"
WORD = "word"  # what a copy wants of whoever follows it: whether vCenter is why nothing moves

_EVERY = 1.0  # seconds between two status files
_LOOK = 5.0  # seconds at least between two looks into the exports; ten times what the last one took, if that is more
_PROVISION = "run the provision playbook"
# logrus tells a level; cobra and the Go runtime tell of their end in these words
_WRONG = re.compile(
    r'(?:^|\s)level=(?:error|fatal|panic)\b|"level":"(?:error|fatal|panic)"|^(?:Error|panic|fatal error): '
)


@dataclass(frozen=True)
class Disk:
    """One disk that the program is to copy."""

    key: int
    capacity: int  # bytes
    target: str  # NBD URI by TCP: the program knows no other
    allocated: int | None  # bytes that its files take on the datastore, as vCenter says


@dataclass(frozen=True)
class Wish:
    """What the program is told."""

    job: str
    endpoint: str
    username: str
    password_file: str
    path: str  # inventory path of the VM, as vCenter spells it
    quiesce: bool
    disks: Sequence[Disk]
    stall: float = STALLED
    program: str = str(PROGRAM)
    log: str = ""


def found() -> dict[str, str]:
    """Return the version of the ``client`` on this node. Raises SendenseError when the node lacks it, or what it needs."""
    if not os.access(PROGRAM, os.X_OK):
        raise SendenseError(
            f"there is no sendense-backup-client on this node: {PROGRAM} is missing; give node_client_binary and {_PROVISION}"
        )
    if not LIBRARY.exists():
        raise SendenseError(
            f"the client finds no VDDK on this node: {LIBRARY} is missing; give node_vddk_archive and {_PROVISION}"
        )
    forwards = FORWARDS.read_text(encoding="utf-8") if FORWARDS.exists() else ""
    if "LocalForward" not in forwards:
        raise SendenseError(
            f"the client dials ports of exports on this node, and none are there; set tunnel_client_ports and {_PROVISION}"
        )
    folder = PROGRAM.resolve().parent
    return {"client": folder.name if folder.parent.name == "client" else "of unknown version"}


def command(wish: Wish, password: str) -> Command:
    """Return the command. The program takes the password in argv and in no other way."""
    targets = ",".join(f"{disk.key}:{disk.target}" for disk in wish.disks)
    return [
        wish.program, "migrate", "--vmware-endpoint", wish.endpoint, "--vmware-username", wish.username,
        "--vmware-password", password, "--vmware-path", wish.path, "--nbd-targets", targets, "--job-id", wish.job,
        f"--quiesce-snapshot={str(wish.quiesce).lower()}",
    ]  # fmt: skip


@contextlib.contextmanager
def hub_of_old() -> Iterator[str]:
    """Yield the URL of what the program takes for the old hub: it knows no change id, which means full, and takes any report.

    Without an answer to its reports the program fails, or says that something went wrong.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(200)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class Words:
    """What the program says: into its log, without the password, and what of it matters later."""

    def __init__(self, stream: IO[str], log: IO[str], secret: str) -> None:
        self.last: deque[str] = deque(maxlen=3)
        self.wrong: list[str] = []
        self.count = 0
        self._stream, self._log, self._secrets = stream, log, {secret, quote(secret, safe="")}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self._stream:
            self.count += 1
            said = line.rstrip()
            for secret in self._secrets:
                said = said.replace(secret, "********")
            self._log.write(f"{said}\n")
            self._log.flush()
            if said.strip():
                self.last.append(said.strip())
            if _WRONG.search(said) and len(self.wrong) < 3:
                self.wrong.append(said.strip())

    def end(self) -> None:
        """Hear the rest. What the program has left running may hold the stream open."""
        self._listener.join(5)


class Landed:
    """How much has come into each export, and when something last moved."""

    def __init__(self, disks: Iterable[Disk]) -> None:
        self._disks = list(disks)
        self.bytes = {disk.key: 0 for disk in self._disks}
        self.began = self.moved_at = time.monotonic()
        self._next, self._heard = self.began, 0

    def look(self, words: int) -> None:
        """Look if it is time; *words* is how many lines the program has said. An export out of reach is not judged here."""
        now, before = time.monotonic(), dict(self.bytes)
        if now >= self._next:
            with contextlib.suppress(SendenseError):
                for disk in self._disks:
                    self.bytes[disk.key] = landed(disk)
            took = time.monotonic() - now
            self._next = now + max(_LOOK, 10 * took)
        if (self.bytes, words) != (before, self._heard):
            self._heard, self.moved_at = words, time.monotonic()


def landed(disk: Disk, *, flush: bool = False) -> int:
    """Return how many bytes of the export hold data, after a flush if that is wished. Raises SendenseError."""
    with connect(disk.target, contexts=(ALLOCATION,)) as export:
        if flush:
            export.flush()
        return total(data_ranges(export))


def run(wish: Wish, folder: Path, public: Path | None = None) -> dict[str, Any]:
    """Run the program, keeping the status file in *folder* fresh, and *public*; return the last status."""
    password = Path(wish.password_file).read_text(encoding="utf-8")
    log = Path(wish.log or log_of(wish.job))
    progress, status = Landed(wish.disks), Status(folder, public)
    with hub_of_old() as url, log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(wish, password),
            env=os.environ | {"MIGRATEKIT_JOB_ID": wish.job, "SHA_API_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        words = Words(cast("IO[str]", process.stdout), file, password)
        while process.poll() is None:
            progress.look(words.count)
            idle = time.monotonic() - progress.moved_at > wish.stall
            status.write(_seen(wish, progress, "running", wants=WORD if idle else ""))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EVERY)
        words.end()
        error = judge(wish, process.returncode, words, progress, log)
    return status.write(_seen(wish, progress, "failed" if error else "done", error=error))


def judge(wish: Wish, code: int, words: Words, progress: Landed, log: Path) -> str:
    """Return why what the program did is not believed, as a sentence; empty when nothing speaks against it."""
    said = " / ".join(words.last) or "nothing"
    where = f"its log on the node is {log}"
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code}"
        return f"the client {how}; its last words: {' / '.join(words.wrong) or said}; {where}"
    if words.wrong:
        return f"the client ended well, but something went wrong: {' / '.join(words.wrong)}; {where}"
    if not words.count:
        return f"the client ended well and said nothing, so it did nothing that it would tell; {where}"
    for disk in wish.disks:
        try:
            progress.bytes[disk.key] = landed(disk, flush=True)  # the program never sends a flush
        except SendenseError as why:
            return f"disk {disk.key}: what the client wrote could not be made safe: {why}"
    empty = {
        disk.key: disk.allocated
        for disk in wish.disks
        if not progress.bytes[disk.key] and must_hold_data(disk.allocated)
    }
    if empty:
        return f"{nothing_in(empty)}; its last words: {said}; {where}"
    return ""


def log_of(job: str) -> Path:
    """Return where what the program says is kept."""
    return LOGS / f"backup-{job}.log"


def stalled(job: str, seconds: float) -> str:
    """Return the sentence for a program of which nothing is seen to move, and which was stopped for it."""
    return (
        f"the client has said and written nothing for {seconds:.0f} s (backup_stall), while vCenter had no snapshot of the "
        f"VM to take or remove, and was stopped; its log on the node is {log_of(job)}"
    )


def _seen(wish: Wish, progress: Landed, state: str, *, error: str = "", wants: str = "") -> dict[str, Any]:
    """Return a status as a copy has it. What the program has read nobody knows: what came in stands for it."""
    seconds = time.monotonic() - progress.began
    disks = []
    for disk in wish.disks:
        came, done = progress.bytes[disk.key], state == "done"
        planned = (
            came if done else max(came, min(disk.capacity, disk.capacity if disk.allocated is None else disk.allocated))
        )
        rate = came / seconds if seconds else 0.0
        disks.append(
            {
                "key": disk.key,
                "provisioned": disk.capacity,
                "allocated": disk.allocated,
                "map": "client",
                "planned": planned,
                "seconds": round(seconds, 2),
                "read": came,
                "written": came,
                "zeroed": 0,
                "percent": round(came * 100 / planned, 1) if planned else 100.0,
                "rate": round(rate),
                "eta": None,
                "wants": wants,
                "tree": None,
            }
        )
    return {"state": state, "error": error, "resumable": False, "disks": disks}


def check(wish: Wish) -> None:
    """Raise SendenseError unless each export answers at the address where the program dials it, with its name and size."""
    for disk in wish.disks:
        try:
            prove(disk.target, disk.capacity)
        except SendenseError as why:
            raise SendenseError(
                f"disk {disk.key}: the tunnel that stays ({TUNNEL}.service, tunnel_client_ports) does not lead to its "
                f"export, so the client would not find it: {why}"
            ) from None


def request(wish: Wish, public: Path) -> dict[str, Any]:
    """Return the content of a request file."""
    return {"public": str(public), "wish": asdict(wish)}


def parse(content: Mapping[str, Any]) -> Wish:
    """Return what a request file's content wishes."""
    wish = content["wish"]
    return Wish(**{**wish, "disks": tuple(Disk(**disk) for disk in wish["disks"])})


def main(path: str) -> None:
    """Do what the request at *path* says."""
    file = Path(path)
    content = json.loads(file.read_text(encoding="utf-8"))
    run(parse(content), file.parent, Path(content["public"]))


if __name__ == "__main__":
    main(sys.argv[1])
