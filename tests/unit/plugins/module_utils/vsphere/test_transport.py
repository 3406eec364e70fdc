# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.transport import Transport, choose


def node(*able):
    """Return what asks a node that can read by these transports."""

    def versions(transport):
        if transport not in able:
            raise SendenseError(f"no {transport} here")
        return {"nbdkit": "nbdkit 1.42.3", "plugin": transport} | ({"library": "8.0.2"} if transport == "vddk" else {})

    return versions


ASKED = "it was asked for"
OTHER = "use transport vddk, which needs more than is here: no vddk here"


@pytest.mark.parametrize(
    ("wish", "able", "chosen"),
    [
        ("auto", ["vddk", "https"], Transport("vddk", "VDDK 8.0.2 is installed on the node")),
        ("auto", ["vddk"], Transport("vddk", "VDDK 8.0.2 is installed on the node")),
        ("auto", ["https"], Transport("https", "no vddk here", "", OTHER)),
        ("auto", [], Transport("https", "no vddk here", "no https here", OTHER)),
        ("vddk", ["vddk", "https"], Transport("vddk", ASKED)),
        ("vddk", ["https"], Transport("vddk", ASKED, "no vddk here")),
        ("https", ["vddk", "https"], Transport("https", ASKED, "", "use transport vddk")),
        ("https", ["https"], Transport("https", ASKED, "", OTHER)),
        ("https", [], Transport("https", ASKED, "no https here", OTHER)),
        ("auto", ["https", "client"], Transport("https", "no vddk here", "", OTHER)),
        ("client", ["vddk", "https", "client"], Transport("client", ASKED, "", "use transport vddk or https")),
        ("client", ["client"], Transport("client", ASKED, "", "use transport https")),
        ("client", ["vddk"], Transport("client", ASKED, "no client here", "use transport vddk or https")),
    ],
)
def test_what_was_asked_for_is_taken_and_auto_is_what_the_node_can(wish, able, chosen):
    assert choose(wish, node(*able)) == chosen
