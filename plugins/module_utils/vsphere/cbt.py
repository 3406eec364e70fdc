# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What changed block tracking knows of a disk: its allocated areas. The window loop is pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.extents import Areas, Range, normalise
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Fault, Session

EVERYTHING = "*"  # VADP: the change id that asks for all allocated areas


def allocated_areas(session: Session, vm_moref: str, snapshot_moref: str, key: int, capacity: int) -> Areas | None:
    """Return the areas of the disk that hold data at the snapshot: sorted, merged, within *capacity* bytes.

    None when change tracking cannot tell (it is off, or the datastore does not know): then everything must be read.
    Raises Fault when VM or snapshot are gone or may not be asked, SendenseError for an answer that makes no sense.
    """
    vm = session.managed("VirtualMachine", vm_moref)
    snapshot = session.managed("vm.Snapshot", snapshot_moref)

    def query(offset: int) -> Any:
        what = f"asking for the allocated areas of disk {key}"
        return session.call(what, vm.QueryChangedDiskAreas, snapshot, key, offset, EVERYTHING)

    try:
        return Areas(normalise(areas(query, capacity), capacity))
    except Fault as fault:
        if isinstance(fault.fault, (vcenter.vim.fault.NoPermission, vcenter.vmodl.fault.ManagedObjectNotFound)):
            raise
        return None


def areas(query: Callable[[int], Any], capacity: int) -> Iterator[Range]:
    """Yield the areas of every window until the windows have reached *capacity*, as they come.

    *query* answers an offset with a DiskChangeInfo. An empty window is no end: a server may answer 8 GiB of nothing.
    Raises SendenseError for a window that does not begin where it was asked for or does not lead on.
    """
    offset = 0
    while offset < capacity:
        window = query(offset)
        if window.startOffset != offset or window.length <= 0:
            raise SendenseError(
                f"change tracking was asked from byte {offset} and answered a window of {window.length} bytes "
                f"from {window.startOffset}; reset change tracking of this VM"
            )
        for area in window.changedArea or []:
            if area.start < 0 or area.length < 0:
                raise SendenseError(f"change tracking answered an area of {area.length} bytes from {area.start}")
            yield area.start, area.length
        offset += window.length
