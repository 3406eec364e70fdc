# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ports of a hub on which exports are served: all that a job needs are leased at once."""

from __future__ import annotations

import errno
import re
import socket
from collections import Counter
from collections.abc import Iterable

from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused
from ansible_collections.sendense.backup.plugins.module_utils.leases import PORT, Lease, Leases

PORTS = "10100-10200"  # the range of the system that our users come from; roles hub and tunnel open the same


def parse(text: str) -> range:
    """Return the ports that *text*, ``FIRST-LAST``, names. Raises Refused when it names none."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", text)
    first, last = (int(each) for each in match.groups()) if match else (0, 0)
    if not 1024 <= first <= last <= 65535:
        raise Refused(f"'{text}' is no range of ports above 1023; one looks like {PORTS}")
    return range(first, last + 1)


def check(wished: Iterable[int | None], ports: range) -> None:
    """Raise Refused when there could never be a port for each of *wished*, whoever else ends."""
    wished = list(wished)
    if outside := [wish for wish in wished if wish and wish not in ports]:
        raise Refused(
            f"port {outside[0]} is not among {_words(ports)}: only those are closed to other users of the hub and open to tunnels"
        )
    if (many := len(wished)) > len(ports):
        raise Refused(
            f"{many} disks need a port each, and there are only {len(ports)} ({_words(ports)}): widen sendense_ports "
            "and run the provision playbook"
        )


def take(leases: Leases, job: str, wished: Iterable[int | None], ports: range) -> list[int]:
    """Lease one port for each of *wished* (None: any free one of *ports*), all or none, and return them in that order.

    Raises Busy while others have them.
    """
    wished = list(wished)
    check(wished, ports)
    with leases.locked():
        taken: list[int] = []
        for wish in wished:
            candidates = [wish] if wish else ports
            free = (port for port in candidates if port not in taken and _is_free(leases, port, job, bool(wish)))
            port = next(free, None)
            if port is None:
                where = f"port {wish}" if wish else f"{len(wished)} of the ports {_words(ports)}"
                raise Busy(f"{where} on this hub cannot be had: {_others(leases, job, [wish] if wish else ports)}")
            taken.append(port)
        for port in taken:
            leases.put(Lease(f"{PORT}{port}", job))
        return taken


def _words(ports: range) -> str:
    return f"{ports[0]}-{ports[-1]}"


def _is_free(leases: Leases, port: int, job: str, wished: bool) -> bool:
    # a wished port is tried, so that qemu-nbd itself says why it cannot
    return not leases.taken(f"{PORT}{port}", job, "") and (wished or not _listening(port))


def _others(leases: Leases, job: str, ports: Iterable[int]) -> str:
    """Return who keeps *job* from *ports*, in words."""
    holders = (leases.taken(f"{PORT}{port}", job, "") for port in ports)
    held = Counter(holder.owner for holder in holders if holder)
    told = ", ".join(f"{owner} ({many})" for owner, many in sorted(held.items()))
    return f"they are leased by {told}" if told else "other programs listen there"


def _listening(port: int) -> bool:
    """Whether somebody on this host listens on that port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    return False
