# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is held against a copy of which the source tells no digests: there is something in it, if there must be."""

from __future__ import annotations

from collections.abc import Mapping

DESCRIPTOR = 4096  # bytes; the text that describes a VMDK is about 1 KiB long


def must_hold_data(allocated: int | None) -> bool:
    """Whether a disk must have data in it whose files take that many bytes on the datastore; one of unknown size must, too."""
    return allocated is None or allocated > DESCRIPTOR


def nothing_in(empty: Mapping[int, int | None]) -> str:
    """Return the sentence for such disks into which nothing came: what they take on the datastore, by key."""
    told = ", ".join(
        f"{key} ({'nobody knows what it takes' if taken is None else f'{taken} bytes'} on the datastore)"
        for key, taken in sorted(empty.items())
    )
    return (
        f"the client ended well and wrote nothing into disk {told}; if there is nothing in it all the same, back the VM up by "
        "transport vddk or https, which read it"
    )
