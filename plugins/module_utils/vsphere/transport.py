# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which transport a run uses, and why. Pure: what the node can do is asked of a function that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

AUTO, VDDK, HTTPS, CLIENT = "auto", "vddk", "https", "client"


@dataclass(frozen=True)
class Transport:
    """The transport of a run."""

    name: str
    reason: str  # why this one
    lacks: str = ""  # what the node lacks to read so; empty when it can
    other: str = ""  # how what this one cannot read, and another one can, could be read


def choose(wish: str, versions: Callable[[str], Mapping[str, str]]) -> Transport:
    """Return the transport that *wish* comes to: auto is vddk where the node can, else https, and never client.

    *versions* returns what reads by a transport on this node, its ``library`` for vddk, or raises SendenseError with what
    the node lacks.
    """
    if wish == VDDK:
        return Transport(VDDK, "it was asked for", _lack(VDDK, versions))
    try:
        library = versions(VDDK)["library"]
    except SendenseError as why:
        vddk, other = str(why), f"use transport vddk, which needs more than is here: {why}"
    else:
        vddk, other = "", "use transport vddk"
    if wish == CLIENT:
        reads = "use transport https" if vddk else "use transport vddk or https"
        return Transport(CLIENT, "it was asked for", _lack(CLIENT, versions), reads)
    if wish == AUTO and not vddk:
        return Transport(VDDK, f"VDDK {library} is installed on the node")
    return Transport(HTTPS, vddk if wish == AUTO else "it was asked for", _lack(HTTPS, versions), other)


def _lack(name: str, versions: Callable[[str], Mapping[str, str]]) -> str:
    try:
        versions(name)
    except SendenseError as why:
        return str(why)
    return ""
