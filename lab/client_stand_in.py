#!/usr/bin/python3
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's stand-in for sendense-backup-client: not that program, but one that is called, logs and writes as it does.

It takes the same flags, takes and removes a snapshot of its own at a real API, reads the frozen disks over the lab's HTTPS
(where the program has VDDK) and writes them through real NBD: two connections to each export, one disk after the other, no flush.

What it is told in CLIENT_STAND_IN, or in /run/client-stand-in, it does wrong: `nothing` (all is well, and nothing is written),
`skip:KEY` (so with that disk), `exit` (ends with 1 in the middle), `line` (logs an error and ends well), `hang`, `slow` (is at it
12 s longer), `leave` (its snapshot stays), `password` (its log has the password). It reads every byte, where the program takes
chunks for zero after five samples.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import nbd
from pyVmomi import SoapStubAdapter, vim

VERSION = "stand-in-1"
WRONGS = Path("/run/client-stand-in")
OURS = "sbak-"
CHUNK = 1 << 20
NEEDED = ("--vmware-endpoint", "--vmware-username", "--vmware-password", "--vmware-path", "--nbd-targets")


def log(words: str, level: str = "info") -> None:
    """Say something as logrus does."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    sys.stderr.write(f"time={json.dumps(now)} level={level} msg={json.dumps(words, ensure_ascii=False)}\n")


def end(words: str) -> None:
    """End as cobra does."""
    sys.exit(f"Error: {words}")


def interrupted(_number: int, _frame: object) -> None:
    """End at the first SIGTERM: systemd sends a second to what is left of a unit once its main process has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end("interrupted")


def flags() -> argparse.Namespace:
    """Return the flags; those that the program does not know are an error."""
    parser = argparse.ArgumentParser(prog="sendense-backup-client", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sendense-backup-client version {VERSION}")
    parser.add_argument("command", choices=["migrate"])
    for name in NEEDED:
        parser.add_argument(name, required=True)
    parser.add_argument("--job-id", default="")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--quiesce-snapshot", nargs="?", const="true", default="true", choices=["true", "false"])
    parser.add_argument("--compression-method", default="skipz", choices=["none", "zlib", "fastlz", "skipz"])
    words = iter(sys.argv[1:])  # pflag takes the next word for the value, whatever it begins with
    return parser.parse_args([f"{word}={next(words, '')}" if word in NEEDED else word for word in words])


def trusting() -> ssl.SSLContext:
    """Return what verifies no certificate, as the program does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def wait(task: vim.Task) -> None:
    """Return once the task has ended well."""
    while task.info.state in ("queued", "running"):
        time.sleep(0.1)
    if task.info.state != "success":
        end(f"task failed: {task.info.error}")


def older(nodes: list) -> list:
    """Return the snapshots that an earlier run of the program left."""
    found = []
    for node in nodes:
        found += [node.snapshot] if node.name.startswith(OURS) else []
        found += older(node.childSnapshotList or [])
    return found


def ask_hub(path: str, body: dict | None = None) -> dict:
    """Ask the old hub, or tell it something. Raises OSError without an answer."""
    url = os.environ.get("SHA_API_URL", "http://localhost:8082") + path
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"{}")


class Source:
    """A frozen disk as the datastore serves it."""

    def __init__(self, root: str, cookie: str, datacenter: str, path: str, size: int) -> None:
        store, _mark, file = path.removeprefix("[").partition("] ")
        place = {"dcPath": datacenter, "dsName": store}
        self._url = (
            f"{root}/folder/{quote(file.removesuffix('.vmdk') + '-flat.vmdk')}?{urlencode(place, quote_via=quote)}"
        )
        self._cookie, self.size = cookie, size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk."""
        headers = {"Cookie": self._cookie, "Range": f"bytes={offset}-{offset + length - 1}"}
        request = urllib.request.Request(self._url, headers=headers)
        with urllib.request.urlopen(request, timeout=60, context=trusting()) as answer:
            return answer.read()


def copy(source: Source, target: str) -> int:
    """Copy a disk and return how many bytes of it were written. There is no flush."""
    where, written = urlsplit(target), 0
    data, metadata = nbd.NBD(), nbd.NBD()
    metadata.add_meta_context("base:allocation")
    for handle in (metadata, data):
        handle.set_export_name(where.path.removeprefix("/"))
        handle.connect_tcp(where.hostname, str(where.port))
    for offset in range(0, source.size, CHUNK):
        length = min(CHUNK, source.size - offset)
        content = source.read(offset, length)
        if any(content):
            data.pwrite(content, offset)
            written += length
        else:
            data.zero(length, offset)
    for handle in (metadata, data):
        handle.shutdown()
    return written


def main() -> None:
    """Run the command. Told to end, it does, and leaves its snapshot."""
    signal.signal(signal.SIGTERM, interrupted)
    given = flags()
    wrong = os.environ.get("CLIENT_STAND_IN") or (WRONGS.read_text().strip() if WRONGS.exists() else "")
    log(f"this is {VERSION} of the lab, not sendense-backup-client")
    if wrong == "password":
        log(
            f"connecting as {given.vmware_username} with {given.vmware_password} or {quote(given.vmware_password, safe='')}"
        )
    host, _colon, port = given.vmware_endpoint.partition(":")
    stub = SoapStubAdapter(host, int(port or 443), version="vim.version.version11", sslContext=trusting())
    content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
    try:
        content.sessionManager.Login(given.vmware_username, given.vmware_password)
    except vim.fault.InvalidLogin:
        log("Failed to login to VMware", "error")
        end("ServerFaultCode: Cannot complete login due to an incorrect user name or password.")
    try:
        migrate(content, stub.cookie.partition(";")[0], given, wrong)
    finally:
        content.sessionManager.Logout()


def migrate(content: vim.ServiceInstanceContent, cookie: str, given: argparse.Namespace, wrong: str) -> None:
    """Copy the VM under a snapshot."""
    vm = content.searchIndex.FindByInventoryPath(given.vmware_path.strip("/"))
    if not isinstance(vm, vim.VirtualMachine):
        log("Virtual machine not found, list of all virtual machines:", "error")
        end(f"vm '{given.vmware_path}' not found")
    if not vm.config.changeTrackingEnabled:
        log("Change tracking is not enabled - attempting to enable directly", "warning")
        wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
    for snapshot in older(vm.snapshot.rootSnapshotList if vm.snapshot else []):
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))
    task = vm.CreateSnapshot_Task(
        f"{OURS}{given.job_id}", "Ephemeral snapshot", False, given.quiesce_snapshot == "true"
    )
    wait(task)
    snapshot = task.info.result
    log("Snapshot taken")
    time.sleep({"hang": 3600, "slow": 12}.get(wrong, 0))
    targets = dict(pair.split(":", 1) for pair in given.nbd_targets.split(","))
    root = f"https://{given.vmware_endpoint}"
    for disk in snapshot.config.hardware.device:
        if isinstance(disk, vim.vm.device.VirtualDisk):
            sync(disk, targets, Source(root, cookie, given.vmware_path.strip("/").partition("/")[0], disk.backing.fileName,
                                       disk.capacityInBytes), wrong)  # fmt: skip
            if wrong == "exit":
                wait(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))
                log("nbdkit died", "error")
                end("the source is gone")
    if wrong == "line":
        log("HTTP Do() failed - network error", "error")
    if wrong != "leave":
        wait(snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True))
    log("Migration completed")


def sync(disk: vim.vm.device.VirtualDisk, targets: dict[str, str], source: Source, wrong: str) -> None:
    """Copy one disk, and tell the old hub its change id."""
    key, job = str(disk.key), os.environ.get("MIGRATEKIT_JOB_ID", "")
    if key not in targets:
        end(f"failed to determine NBD export for disk: no NBD target found for VMware disk key {key}")
    question = urlencode({"vm_name": job, "disk_id": f"disk-{key}"})
    try:
        known = ask_hub(f"/api/v1/backups/changeid?{question}").get("change_id", "")
    except (OSError, ValueError):
        known = ""  # no answer means full
    if known:
        end("the stand-in makes no incremental copies")
    log(f"Starting full copy of disk {key}")
    if wrong not in ("nothing", f"skip:{key}"):
        written = copy(source, targets[key])
        log(f"Full copy of disk {key} completed, {written} bytes written")
    if not job:
        log("No MIGRATEKIT_JOB_ID environment variable set, cannot store ChangeID", "warning")
        return
    told = {"change_id": disk.backing.changeId or "", "disk_id": f"disk-{key}"}
    try:
        ask_hub(f"/api/v1/replications/{job}/changeid", told)
    except (OSError, ValueError) as why:
        end(f"failed to write ChangeID to SHA database: {why}")


if __name__ == "__main__":
    main()
