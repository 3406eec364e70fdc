# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: copy_disks
short_description: Pair the disks of a snapshot with the exports that take their data
version_added: 0.1.0
description:
  - Joins the disks that M(sendense.backup.vm_snapshot) returned with the forwards of M(sendense.backup.ssh_tunnel) by
    device key, into the O(ignore:disks) that M(sendense.backup.nbd_copy) takes.
author: Contributors to sendense.backup (@sendense)
positional: forwards
options:
  _input:
    description: Disks of a snapshot.
    type: list
    elements: dict
    required: true
  forwards:
    description:
      - Forwards of a tunnel, each with C(key), C(uri), C(also) and C(invocation).
      - Or exports of M(sendense.backup.nbd_export), whose ports are then on the node's own loopback, as C(tunnel_client_ports)
        of role P(sendense.backup.tunnel#role) brings them there.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: What the copy takes
  ansible.builtin.debug:
    msg: "{{ frozen.snapshot.disks | sendense.backup.copy_disks(tunnel.forwards) }}"
"""

RETURN = r"""
_value:
  description: Disks with C(key), C(capacity), C(path), C(target), C(also) and C(invocation).
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import tcp_uri


def copy_disks(disks: list[Mapping[str, Any]], forwards: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the disks with their targets. Raises AnsibleFilterError when one has no export, or an export no disk."""
    targets = {
        forward["key"]: {
            "target": forward.get("uri") or tcp_uri(forward["port"], forward["name"]),
            "also": forward.get("also", []),
            "invocation": forward.get("invocation", ""),  # of an export that is only predicted nobody knows it
        }
        for forward in forwards
    }
    if set(targets) != {disk["key"] for disk in disks}:
        frozen = ", ".join(str(disk["key"]) for disk in disks)
        raise AnsibleFilterError(
            f"the snapshot holds the disks {frozen}, but exports were made for {', '.join(map(str, targets))}: "
            "the VM was changed between the look and the snapshot; run the backup again"
        )
    return [
        {"key": disk["key"], "capacity": disk["capacity"], "path": disk["path"], **targets[disk["key"]]}
        for disk in disks
    ]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"copy_disks": copy_disks}
