# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: restore_exports
short_description: Exports that serve the disks of a restore point, to be read
version_added: 0.1.0
description: Returns what M(sendense.backup.nbd_export) is to serve for a restore.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: Disks of the point's manifest, in order of their key.
    type: list
    elements: dict
    required: true
  path:
    description: Folder of the point on the hub.
    type: str
    required: true
  job:
    description: Id of the job.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: What is served
  ansible.builtin.debug:
    msg: "{{ look.disks | sendense.backup.restore_exports(point.path, look.job) }}"
"""

RETURN = r"""
_value:
  description: Exports with C(key), C(image), C(name), C(size) and C(read_only).
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping
from typing import Any


def restore_exports(disks: list[Mapping[str, Any]], path: str, job: str) -> list[dict[str, Any]]:
    """Return the exports of the disks."""
    return [
        {
            "key": disk["key"],
            "image": f"{path}/{disk['image']}",
            "name": f"{job}-disk{rank}",
            "size": disk["capacity"],
            "read_only": True,
        }
        for rank, disk in enumerate(disks)
    ]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"restore_exports": restore_exports}
