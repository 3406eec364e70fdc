# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: backup_shares
short_description: Tell what the backup of a VM shares with other backups
version_added: 0.1.0
description:
  - Makes the O(ignore:shares) that M(sendense.backup.lease) takes from a VM as M(sendense.backup.vm_info) describes it.
  - Each option is a limit of all backups together; what is not named is not shared.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: The VM.
    type: dict
    required: true
  disks:
    description: Open disks of the VM's ESXi host. The VM needs one for each of its disks.
    type: int
  snapshots:
    description: Open snapshots on each datastore of the VM.
    type: int
  removals:
    description: Running removals of snapshots on each datastore of the VM.
    type: int
"""

EXAMPLES = r"""
- name: A removal's share
  ansible.builtin.debug:
    msg: "{{ look.vm | sendense.backup.backup_shares(removals=2) }}"
"""

RETURN = r"""
_value:
  description: Shares, each with C(thing), C(amount) and C(limit).
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping
from typing import Any


def backup_shares(vm: Mapping[str, Any], **limits: int) -> list[dict[str, Any]]:
    """Return the shares of *vm* in what is limited."""
    shares = []
    for kind, limit in limits.items():
        places = [vm["host"]] if kind == "disks" else vm["datastores"]
        amount = len(vm["disks"]) if kind == "disks" else 1
        shares += [
            {"thing": f"{kind}-{each['moref']}", "amount": amount, "limit": int(limit)} for each in places if each
        ]
    return shares


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., list[dict[str, Any]]]]:
        """Return the filter by its name."""
        return {"backup_shares": backup_shares}
