# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disks of a restore point on their way into a VM, as the unit ``sendense-push-<job>`` runs it: request in, status file out.

Each disk is read from the hub's export and written by VMware's library, or sent to a lease as a stream-optimized VMDK. What
is read is digested on the way and must come to the point's Merkle root: the last words of a stream are held back until it does.
Started as ``python3 -m …transfer.push REQUEST``; status file and end are as those of a copy (transfer.run).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import (
    ALGORITHM,
    CELL,
    ZERO,
    LeafFile,
    leaves,
    tree,
)
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.extents import Range, gaps, normalise, total
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import (
    ALLOCATION,
    connect,
    data_ranges,
    read_ranges,
)
from ansible_collections.sendense.backup.plugins.module_utils.transfer import stream_vmdk
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import STATUS
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import STOPPED, Copy, Progress
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import OPENING, served
from ansible_collections.sendense.backup.plugins.module_utils.transfer.writer import VddkTarget
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import importing
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    Session,
    Unreachable,
    VCenter,
    session,
)

_EVERY = 1.0  # seconds between two status files
_KEEP_ALIVE = 10.0  # seconds between two words to the lease, at most
_PATIENCE = 600.0  # seconds without a byte moving to ESXi after which an upload is given up
_BLOCK = 1 << 20  # bytes that go into a socket at once
_ZERO_AT_ONCE = 32 << 20


@dataclass(frozen=True)
class Disk:
    """One disk: where it is read, what it must come to, and where it goes."""

    key: int
    capacity: int  # bytes
    source: str  # NBD URI
    root: str  # hex
    target: Mapping[str, Any]  # fields of VddkTarget or importing.Upload, with `transport`
    fresh: bool = True  # the target reads as zero where nothing is written
    algorithm: str = ALGORITHM  # of the root


class _DiskRun(threading.Thread):
    """One disk being sent; at its end it has failed or is proven."""

    def __init__(self, disk: Disk, folder: Path, work: Path, vcenter: VCenter, stop: threading.Event) -> None:
        super().__init__(name=f"disk-{disk.key}")
        self._disk, self._folder, self._work, self._vcenter, self._stop_all = disk, folder, work, vcenter, stop
        self._began = time.monotonic()
        self._seconds: float | None = None
        self.planned = disk.capacity
        self.progress = Progress()
        self.root = ""
        self.failure = ""

    def run(self) -> None:
        try:
            self._send()
        except FAILURES as why:
            self.failure = f"disk {self._disk.key}: {sentence(why)}"
        except Exception as why:  # a defect of ours must fail the disk, not leave a silent thread
            self.failure = f"disk {self._disk.key}: {type(why).__name__}: {why}"
            raise
        finally:
            self._seconds = time.monotonic() - self._began
            if self.failure:
                self._stop_all.set()

    def _send(self) -> None:
        disk = self._disk
        leaf_file = self._work / f"disk-{disk.key}.leaves"
        with contextlib.ExitStack() as stack:
            stack.callback(leaf_file.unlink, missing_ok=True)
            keep = stack.enter_context(contextlib.closing(LeafFile(leaf_file, disk.algorithm)))
            source = stack.enter_context(connect(disk.source, contexts=(ALLOCATION,)))
            if source.get_size() != disk.capacity:
                raise SendenseError(f"the hub serves {source.get_size()} bytes where the point has {disk.capacity}")
            ranges = normalise(data_ranges(source), disk.capacity, CELL)
            self.planned = total(ranges)
            if disk.target["transport"] == "vddk":
                self._write(source, ranges, keep)
            else:
                self._upload(source, ranges, keep)

    def _prove(self, keep: LeafFile) -> None:
        self.root = tree(keep, self._disk.capacity, keep.algorithm).root
        if self.root != self._disk.root:
            raise SendenseError(
                f"the hub delivered something else than the point holds: root {self.root} where the manifest has {self._disk.root}; verify the point"
            )

    def _write(self, source: Any, ranges: list[Range], keep: LeafFile) -> None:
        fields = {name: value for name, value in self._disk.target.items() if name != "transport"}
        with served(VddkTarget(**fields), self._folder / f"{self._disk.key}.sock") as writer:
            try:
                with connect(writer.uri, OPENING) as target:
                    if target.get_size() != self._disk.capacity:
                        raise SendenseError(
                            f"the new disk has {target.get_size()} bytes, the point's {self._disk.capacity}"
                        )
                    copy = Copy(source, target, keep, self._stop_all.is_set)
                    self.progress = copy.progress
                    copy.run(ranges)
                    if not self._disk.fresh:
                        _blank(target, ranges, keep, self._disk.capacity, self._halt)
            except SendenseError as why:
                raise SendenseError(writer.explain(str(why))) from None
        self._prove(keep)

    def _upload(self, source: Any, ranges: list[Range], keep: LeafFile) -> None:
        def pieces() -> Iterator[tuple[int, memoryview]]:
            for offset, view in read_ranges(source, ranges):
                self._halt()
                keep.put(offset, leaves(view, keep.algorithm))
                self.progress.fetched += len(view)
                self.progress.read += len(view)
                yield offset, view
                self.progress.written += len(view)
            self._prove(keep)  # before the directory goes: a stream without one is no disk

        size = stream_vmdk.length(self._disk.capacity, ranges)
        upload = importing.Upload(self._disk.target["url"], self._disk.target["thumbprint"])
        _post(upload, self._vcenter, size, stream_vmdk.stream(self._disk.capacity, pieces()))

    def _halt(self) -> None:
        if self._stop_all.is_set():
            raise SendenseError(STOPPED)

    def report(self) -> dict[str, Any]:
        """Return what is known of this disk now, as it stands in the status file."""
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return {
            "key": self._disk.key,
            "provisioned": self._disk.capacity,
            "planned": self.planned,
            "seconds": round(seconds, 2),
            "root": self.root,
            **self.progress.report(),
        }


def _blank(target: Any, ranges: list[Range], keep: LeafFile, capacity: int, halt: Callable[[], None]) -> None:
    """Write zeroes wherever the point has them, over what an old disk held there, and flush."""
    data = normalise(((number * CELL, CELL) for number, leaf in keep if leaf != ZERO), capacity, CELL)
    for offset, length in gaps(data, capacity):
        for start in range(offset, offset + length, _ZERO_AT_ONCE):
            halt()
            target.zero(min(_ZERO_AT_ONCE, offset + length - start), start)
    target.flush()


def _post(upload: importing.Upload, vcenter: VCenter, size: int, body: Iterator[bytes | memoryview]) -> None:
    """Send *body* of *size* bytes. Raises SendenseError when it is not taken whole."""
    parts = urlsplit(upload.url)
    host, port = parts.hostname or "", parts.port or 443
    where = f"{host}:{port}"
    connection = HTTPSConnection(host, port, timeout=_PATIENCE, context=_trust(upload, vcenter))
    try:
        connection.connect()
        _check(connection, upload, vcenter, where)
        connection.putrequest("POST", parts.path + (f"?{parts.query}" if parts.query else ""))
        connection.putheader("Content-Type", stream_vmdk.CONTENT_TYPE)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        for block in _blocks(body):
            connection.send(block)
        answer = connection.getresponse()
        said = answer.read(1000).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as why:
        raise SendenseError(f"sending it to {where} broke off: {sentence(why) or type(why).__name__}") from None
    finally:
        connection.close()
    if answer.status // 100 != 2:
        raise SendenseError(
            f"{where} does not take it (HTTP {answer.status}): {' '.join(said.split()) or answer.reason}"
        )


def _trust(upload: importing.Upload, vcenter: VCenter) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=vcenter.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as session has it, and for its reasons
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if (
        upload.thumbprint or not vcenter.validate_certs
    ):  # an ESXi host's own certificate is known by what vCenter says of it
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check(connection: HTTPSConnection, upload: importing.Upload, vcenter: VCenter, where: str) -> None:
    if not upload.thumbprint or not vcenter.validate_certs:
        return
    shown = hashlib.sha1(connection.sock.getpeercert(binary_form=True) or b"", usedforsecurity=False).digest()
    if shown.hex(":").upper() != upload.thumbprint.upper():
        raise SendenseError(
            f"{where} is not trusted: its certificate has thumbprint {shown.hex(':').upper()}, vCenter says {upload.thumbprint}"
        )


def _blocks(parts: Iterator[bytes | memoryview]) -> Iterator[bytearray]:
    """Yield what *parts* are, in blocks: a TLS record for every few bytes would cost more than the copying does."""
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= _BLOCK:
            yield block
            block = bytearray()
    yield block


def push(
    disks: list[Disk], folder: Path, work: Path, vcenter: VCenter, lease: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Send *disks* in parallel, keeping the status file in *folder* and the *lease* alive; return the last status.

    The job's session with vCenter lies in the folder above.
    """
    stop = threading.Event()
    runs = [_DiskRun(disk, folder, work, vcenter, stop) for disk in disks]
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(session(vcenter, folder.parent)) if lease else None
        for each in runs:
            each.start()
        asked = heard = time.monotonic()  # the lease is new
        try:
            while any(each.is_alive() for each in runs):
                _write_status(folder, runs, "running", "")
                if opened and lease and time.monotonic() - asked > min(_KEEP_ALIVE, lease["timeout"] / 4):
                    asked = time.monotonic()
                    try:
                        importing.report(opened, lease["lease"], _percent(runs))
                        heard = asked
                    except Unreachable:  # the lease lives on for a while, and with it what was sent in hours
                        if asked - heard > lease["timeout"] * 3 / 4:
                            raise
                _pause(runs)
        except SendenseError as why:
            stop.set()
            for each in runs:
                each.join()
            lost = all(STOPPED in each.failure for each in runs if each.failure)  # what a disk met itself says more
            return _write_status(folder, runs, "failed", f"{why if lost else ''}{_added(opened, lease)}")
        failed = any(each.failure for each in runs)
        return _write_status(folder, runs, "failed" if failed else "done", _added(opened, lease) if failed else "")


def _pause(runs: list[_DiskRun]) -> None:
    deadline = time.monotonic() + _EVERY
    for each in runs:
        each.join(max(0.0, deadline - time.monotonic()))


def _percent(runs: list[_DiskRun]) -> int:
    planned = sum(each.planned for each in runs)
    return min(99, sum(each.progress.read for each in runs) * 100 // planned) if planned else 99


def _added(opened: Session | None, lease: Mapping[str, Any] | None) -> str:
    """Return what vCenter says of a lease that failed, to be added to a sentence."""
    words = importing.failure(opened, lease["lease"]) if opened and lease else ""
    return f"; vCenter says: {words}" if words else ""


def _write_status(folder: Path, runs: list[_DiskRun], state: str, words: str) -> dict[str, Any]:
    # those that only stopped because another one failed would hide the one that did
    failures = sorted((each.failure for each in runs if each.failure), key=lambda failure: STOPPED in failure)
    error = (failures[0] if failures and (state != "failed" or words.startswith(";") or not words) else "") + words
    status = {"state": state, "error": error.removeprefix("; "), "disks": [each.report() for each in runs]}
    jobs.write_private(folder / STATUS, json.dumps(status))
    return status


def main(path: str) -> None:
    """Do what the request at *path* says."""
    request = Path(path)
    content = json.loads(request.read_text(encoding="utf-8"))
    password = Path(content["password_file"]).read_text(encoding="utf-8")
    vcenter = VCenter(**content["vcenter"], password=password)
    disks = [Disk(**each) for each in content["disks"]]
    push(disks, request.parent, Path(content["work"]), vcenter, content["lease"])


if __name__ == "__main__":
    main(sys.argv[1])
