# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shares: what jobs may use together only up to a limit, for example the snapshots that are open on one datastore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import Lease, Leases

SPACE = "space-"  # shares of that kind belong to repository/space.py, and stay for as long as their job
_KINDS = {
    "disks-": "open disks of host",
    "snapshots-": "open snapshots on datastore",
    "removals-": "snapshot removals on datastore",
}


@dataclass(frozen=True)
class Share:
    """How much of a thing a job wishes to hold beside others."""

    thing: str  # e.g. disks-host-12
    amount: int
    limit: int  # of all that jobs hold together


def held(leases: Leases, job: str) -> dict[str, int]:
    """Return the shares that *job* holds, amount by thing."""
    return {lease.thing: lease.amount or 0 for lease in _of(leases, job)}


def check(wished: Sequence[Share]) -> None:
    """Raise Refused for shares that could never be had, whoever else ends."""
    for share in wished:
        if not share.thing.startswith(tuple(_KINDS)):
            raise Refused(f"'{share.thing}' is nothing to share; one begins with {', '.join(_KINDS)}")
        if sum(each.thing == share.thing for each in wished) > 1:
            raise Refused(f"{share.thing} is named more than once; give one share with the whole amount")
        if share.amount < 1:
            raise Refused(f"{_words(share.thing)}: a share of {share.amount} is none; leave it out")
        if share.amount > share.limit:
            raise Refused(
                f"{_words(share.thing)}: the job needs {share.amount} at once, and all jobs together may have {share.limit}; "
                "raise the limit"
            )


def hold(leases: Leases, job: str, wished: Sequence[Share]) -> None:
    """Have *job* hold exactly the shares *wished*, in one step, or what it held before.

    Raises Busy while living jobs hold too much of a thing, Refused as check does.
    """
    check(wished)
    leases.renew(job)  # one that has to ask again and again is alive
    with leases.locked():
        for share in wished:
            _admit(share, leases.shares(share.thing, but=job))
        for share in wished:
            leases.put(Lease(share.thing, job, amount=share.amount))
        for lease in _of(leases, job):
            if all(lease.thing != share.thing for share in wished):
                leases.drop(lease)


def _of(leases: Leases, job: str) -> list[Lease]:
    return [lease for lease in leases.of(job) if lease.amount is not None and not lease.thing.startswith(SPACE)]


def _admit(share: Share, others: Sequence[Lease]) -> None:
    used = sum(lease.amount or 0 for lease in others)
    if used + share.amount > share.limit:
        holders = ", ".join(f"{lease.owner} ({lease.amount})" for lease in others)
        raise Busy(
            f"{_words(share.thing)}: {share.amount} cannot be had, because {used} of at most {share.limit} are held by {holders}"
        )


def _words(thing: str) -> str:
    kind = next(kind for kind in _KINDS if thing.startswith(kind))
    return f"{_KINDS[kind]} {thing.removeprefix(kind)}"
