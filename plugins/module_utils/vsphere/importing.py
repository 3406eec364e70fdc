# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Import of a VM by a lease: vSphere makes it with empty disks, takes each disk over HTTPS, and has it whole when we say so.

vSphere removes the VM when the lease is aborted, and also when nobody reports progress for as long as it says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import creation
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session

READY_WITHIN = 300.0  # seconds
_PAUSE = 0.2
_PLACE = re.compile(r"/([A-Za-z]+[0-9]+:[0-9]+)$")


@dataclass(frozen=True)
class Upload:
    """Where a disk is to be sent."""

    url: str
    thumbprint: str  # SHA-1 of the certificate there, as AA:BB:…; empty: it is vCenter's own, or of its authority


@dataclass(frozen=True)
class Ready:
    """A lease that takes disks."""

    lease: str  # morefs
    vm: str
    uploads: Mapping[int, Upload]  # by the manifest's key of the disk
    timeout: int  # seconds without progress after which it ends


def begin(session: Session, there: creation.Target, wanted: Any) -> str:
    """Ask for the import and return the lease's moref; it is not ready yet."""
    vim = vcenter.vim
    lease = session.call(
        f"importing VM {there.name} into {there.folder}",
        session.managed("ResourcePool", there.pool_moref).ImportVApp,
        spec=vim.vm.VmImportSpec(configSpec=wanted),
        folder=vim.Folder(there.folder_moref),
        host=vim.HostSystem(there.host_moref) if there.host_moref else None,
    )
    return vcenter.id_of(lease)


def await_ready(session: Session, lease: str, there: creation.Target) -> Ready:
    """Return the lease once it takes disks. Raises SendenseError with vCenter's words when it failed, or names no disk we know."""
    deadline = time.monotonic() + READY_WITHIN
    while (found := _read(session, lease)).get("state") == "initializing":
        if time.monotonic() > deadline:
            raise SendenseError(f"vCenter did not make VM {there.name} within {READY_WITHIN:.0f} s")
        time.sleep(_PAUSE)
    if found.get("state") != "ready":
        raise SendenseError(
            f"importing VM {there.name} into {there.folder} failed: vCenter {session.vcenter} says: {_words(found)}"
        )
    info = found["info"]
    urls = {match[1]: each for each in info.deviceUrl if (match := _PLACE.search(each.key))}
    if missing := [disk.place for disk in there.disks if disk.place not in urls]:
        raise SendenseError(
            f"vCenter names no place to send disk {', '.join(missing)} to, but {', '.join(each.key for each in info.deviceUrl)}"
        )
    uploads = {
        disk.key: Upload(
            urls[disk.place].url.replace("//*/", f"//{session.url.partition('//')[2]}/"),
            urls[disk.place].sslThumbprint or "",
        )
        for disk in there.disks
    }
    return Ready(lease, vcenter.id_of(info.entity), uploads, int(info.leaseTimeout or 300))


def report(session: Session, lease: str, percent: int) -> None:
    """Tell vCenter how far it is, which keeps the lease alive."""
    session.call("reporting the progress of the import", _of(session, lease).HttpNfcLeaseProgress, percent)


def complete(session: Session, lease: str) -> None:
    """Have the VM whole."""
    session.call("completing the import", _of(session, lease).HttpNfcLeaseComplete)


def abort(session: Session, lease: str) -> None:
    """Have vCenter remove the VM; a lease that is over already is fine."""
    with suppress(SendenseError):
        session.call("aborting the import", _of(session, lease).HttpNfcLeaseAbort)


def failure(session: Session, lease: str) -> str:
    """Return vCenter's words for a lease that failed; empty for one that did not, or that is gone."""
    with suppress(SendenseError):
        found = _read(session, lease)
        return _words(found) if found.get("state") == "error" else ""
    return ""


def _of(session: Session, lease: str) -> Any:
    return session.managed("HttpNfcLease", lease)


def _read(session: Session, lease: str) -> dict[str, Any]:
    found = session.retrieve(_of(session, lease), ["state", "info", "error"]).get(lease, {})
    return {**found, "state": str(found.get("state", ""))}


def _words(found: Mapping[str, Any]) -> str:
    return vcenter.words(found["error"]) if found.get("error") else f"the lease is {found.get('state') or 'gone'}"
