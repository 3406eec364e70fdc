# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: restore_line
short_description: Tell the outcome of one restore in one line
version_added: 0.1.0
description:
  - Makes the line of the summary from the fact C(restore_result), which role P(sendense.backup.restore#role) leaves.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: The fact C(restore_result).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: How it went
  ansible.builtin.debug:
    msg: "{{ restore_result | sendense.backup.restore_line }}"
"""

RETURN = r"""
_value:
  description: The line. It begins with VM and point, and goes on with C(ok) or C(FAILED).
  type: str
"""

from collections.abc import Callable, Mapping
from typing import Any


def restore_line(result: Mapping[str, Any]) -> str:
    """Return the summary line of *result*.

    With ``check`` nothing was done. ``done`` is what the target's tasks left: ``what`` in words, whether it ``changed``, and where they apply ``path`` and
    ``fetched``, what was ``left_out``, and more sentences in ``said``.
    """
    point = f" {result['point']}" if result["point"] else ""
    vm = result["vm"] or "no VM"
    older = f"newer points were passed over: {'; '.join(result['passed_over'])}" if result["passed_over"] else ""
    doubt = f"the point is known to be damaged: {result['distrusted']}" if result.get("distrusted") else ""
    if result["failure"]:
        told = f"FAILED at '{result['failure']['step']}': {result['failure']['msg']}"
        return f"{vm}{point}: " + "; ".join(filter(None, [told, doubt, older]))
    done = result["done"]
    where = f", in {done['path']}" if done.get("path") else ""
    there = "" if done.get("changed", True) else ", there already" if where else ", nothing changed"
    fetched = f"copied to {done['fetched']} on the controller" if done.get("fetched") else ""
    left_out = f"left out: {', '.join(done['left_out'][:20])}" if done.get("left_out") else ""
    told = f"ok {done.get('what', result['to'])}{where}{there}"
    if result.get("check") and done.get("changed", True):
        told = f"ok, the run would say: {done.get('what', result['to'])}{where}; nothing was done (check mode)"
    said = [told, doubt, fetched, left_out, *done.get("said", []), older]
    return f"{vm}{point}: " + "; ".join(filter(None, said))


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        """Return the filter by its name."""
        return {"restore_line": restore_line}
