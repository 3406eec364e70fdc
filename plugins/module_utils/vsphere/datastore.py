# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of a datastore over HTTPS: the URL of the extent that holds a disk's bytes."""

from __future__ import annotations

import re
from urllib.parse import quote

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session

SECTOR = 512
DESCRIPTOR = 64 * 1024  # bytes; a descriptor is text of about 1 KiB
NO_PARENT = "ffffffff"

_EXTENT = re.compile(r'^RW\s+([0-9]+)\s+([A-Z]+)\s+"([^"]*)"', re.MULTILINE)
_FIELD = re.compile(r'^([A-Za-z.]+)\s*=\s*"?([^"\n\r]*)"?', re.MULTILINE)


def flat_extent_url(session: Session, datacenter: str, path: str, capacity: int | None = None) -> str:
    """Return the URL of the extent file behind the disk *path* (``[datastore] folder/name.vmdk``).

    *datacenter* is its inventory path as lookup.describe gives it. Raises Refused for a disk that is not one flat
    file, or not of *capacity* bytes when that is given; SendenseError when the descriptor cannot be read.
    """
    store, file = split(path)
    if not datacenter:
        raise SendenseError(
            f"the datacenter of {path} is not known: user {session.vcenter.username} needs System.View on it"
        )
    status, descriptor, times = 0, b"", 1
    for times in quotings(datacenter, store):
        status, descriptor = session.fetch(folder_path(datacenter, store, file, times), DESCRIPTOR)
        if status != 404:
            break
    if status in (401, 403):
        raise SendenseError(
            f"user {session.vcenter.username} may not read {path} from the datastore (HTTP {status}): "
            "transport https needs Datastore.Browse and Datastore.FileManagement"
        )
    if status != 200:
        raise SendenseError(f"vCenter {session.vcenter} does not serve {path} (HTTP {status})")
    extent, size = flat_extent(path, descriptor.decode("utf-8", "replace"))
    if capacity is not None and size != capacity:
        raise Refused(f"{path} describes {size} bytes where the disk of the snapshot has {capacity}")
    folder = file.rpartition("/")[0]
    return session.url + folder_path(datacenter, store, f"{folder}/{extent}" if folder else extent, times)


def split(path: str) -> tuple[str, str]:
    """Return datastore and file of ``[datastore] folder/name.vmdk``. Raises SendenseError for anything else."""
    match = re.fullmatch(r"\[([^]]+)\] ?(.+)", path, re.DOTALL)
    if not match:
        raise SendenseError(f"'{path}' is not a datastore path; one looks like [datastore1] vm/vm.vmdk")
    return match[1], match[2]


def folder_path(datacenter: str, store: str, file: str, times: int = 1) -> str:
    """Return the path and query of a datastore file below the root of vCenter, names quoted *times* times."""
    for _time in range(times):
        datacenter, store = quote(datacenter, safe=""), quote(store, safe="")
    return f"/folder/{quote(file, safe='/')}?dcPath={datacenter}&dsName={store}"


def quotings(datacenter: str, store: str) -> tuple[int, ...]:
    """Return how often to quote the names, in the order to try: odd names are unquoted twice by some vCenters."""
    return (1,) if quote(datacenter + store, safe="") == datacenter + store else (1, 2)


def flat_extent(path: str, descriptor: str) -> tuple[str, int]:
    """Return name and size in bytes of the one flat file that a VMDK descriptor names.

    Raises Refused for what this is not (VMware's Virtual Disk Format 5.0 is the source): a delta of a snapshot, several
    extents, objects of vSAN or vVol, raw devices.
    """
    if not descriptor.startswith("# Disk DescriptorFile"):
        raise Refused(f"{path} is no disk descriptor, so transport https cannot read it; use transport vddk")
    fields = {name.lower(): value.strip() for name, value in _FIELD.findall(descriptor)}
    extents = _EXTENT.findall(descriptor)
    if fields.get("parentcid", NO_PARENT).lower() != NO_PARENT or "parentfilenamehint" in fields:
        raise Refused(
            f"{path} is a delta on top of an older snapshot, and transport https reads base disks only: "
            "remove the VM's other snapshots, or use transport vddk"
        )
    kinds = {kind for _sectors, kind, _name in extents}
    if len(extents) != 1 or not kinds <= {"VMFS", "FLAT"}:
        kind = fields.get("createtype", "unknown")
        raise Refused(
            f"{path} is not one flat file (type {kind}), so transport https cannot read it; use transport vddk"
        )
    sectors, _kind, name = extents[0]
    if not name or "/" in name or ":" in name or name in (".", ".."):
        raise Refused(
            f"{path} lies in '{name}', which is no file beside it, so transport https cannot read it; use transport vddk"
        )
    return name, int(sectors) * SECTOR
