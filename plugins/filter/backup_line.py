# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: backup_line
short_description: Tell the outcome of one backup in one line
version_added: 0.1.0
description:
  - Makes the line of the summary from the fact C(backup_result), which role P(sendense.backup.backup#role) leaves on a VM.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: The fact C(backup_result), or an empty dictionary for a VM whose backup never came to an outcome.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: How it went
  ansible.builtin.debug:
    msg: "{{ backup_result | sendense.backup.backup_line }}"
"""

RETURN = r"""
_value:
  description: The line. It begins with C(ok) or C(FAILED).
  type: str
"""

from collections.abc import Callable, Mapping
from typing import Any


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def backup_line(result: Mapping[str, Any]) -> str:
    """Return the summary line of *result*."""
    if not result:
        return "FAILED without an outcome; its own output above says why"
    left = f"; could not be cleaned up: {'; '.join(result['left'])}" if result["left"] else ""
    deaths = "".join(f"; {death}" for death in result["deaths"])
    verdict = "FAILED" if left else "ok"
    if result["failure"]:
        return f"FAILED at '{result['failure']['step']}': {result['failure']['msg']}{deaths}{left}"
    if not result["manifest"]:
        return f"{verdict}, nothing was done (check mode){left}"
    disks = result["manifest"]["disks"]
    total = {name: sum(disk[name] for disk in disks) for name in ("provisioned", "read", "written", "stored")}
    whole = {
        "for want of change tracking": sum(disk["map"] == "none" for disk in disks),
        "because vCenter's map left data out": sum(disk["map"] == "refuted" for disk in disks),
    }
    all_read = "".join(f", {count} of them read whole {why}" for why, count in whole.items() if count)
    counted = ", ".join(f"{name} {size(count)}" for name, count in total.items())
    quiet = result["manifest"]["consistency"]["quiesce_achieved"]
    consistency = "" if quiet else ", guest not brought to rest"
    return f"{verdict} full {result['manifest']['point']}, {len(disks)} disk(s){all_read}: {counted}{consistency}{left}"


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        """Return the filter by its name."""
        return {"backup_line": backup_line}
