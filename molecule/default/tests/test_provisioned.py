# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A provisioned pair, seen as a whole; what each role does is tested in the scenario of its name."""

from __future__ import annotations

import re
import shlex


def test_a_prediction_for_what_is_provisioned_is_that_nothing_changes(provision):
    code, output = provision("--check")
    assert code == 0, output
    recap = dict(re.findall(r"(\w+) : ok=\d+ changed=(\d+) unreachable=0 failed=0", output))
    assert {"hub1", "node1"} <= set(recap)
    assert set(recap.values()) == {"0"}, output


def test_from_the_node_the_hub_offers_sshd_alone(hub, node, address_of):
    scan = (
        "import socket\n"
        "def is_open(port):\n"
        "    with socket.socket() as s:\n"
        "        s.settimeout(1)\n"
        f"        return s.connect_ex(('{address_of(hub)}', port)) == 0\n"
        "print([port for port in [*range(1, 1025), *range(8080, 8090), *range(10090, 10211), 10809] if is_open(port)])"
    )
    assert node.check_output(f"python3 -c {shlex.quote(scan)}") == "[22]"
