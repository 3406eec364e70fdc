# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: sweep_plan
short_description: Decide which jobs are dead, and what of theirs is to go
version_added: 0.1.0
description:
  - Judges what hubs, nodes and vCenter told, as docs/decisions/20261123-who-is-dead.md says. Hubs are to be asked after the others.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: >-
      Registered loops over hosts: C(vcenter) of M(sendense.backup.vm_snapshot_info), C(nodes) and C(hubs) of
      M(sendense.backup.job_info); C(orphans), whether snapshots may go whose job no hub knows; and C(claims), once those of the plan before were
      tried, as a registered loop over them with M(sendense.backup.job_leftovers). A job that could not be claimed stays.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: What is to go is known
  ansible.builtin.set_fact:
    plan: "{{ {'vcenter': snapshots, 'nodes': nodes, 'hubs': hubs, 'orphans': false} | sendense.backup.sweep_plan }}"
"""

RETURN = r"""
_value:
  description: >-
    The jobs that are C(dead), how they are claimed before anything of them goes (C(claims)), what of them goes (C(exports), C(snapshots),
    C(nodes), C(hubs)), what is C(left) alone and why, and what could not be looked at (C(unseen)).
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import sweeping
from ansible_collections.sendense.backup.plugins.plugin_utils.controller import is_gone


def sweep_plan(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan as a dictionary."""
    return sweeping.as_dict(sweeping.plan(site(seen), is_gone))


def site(seen: Mapping[str, Any]) -> sweeping.Site:
    """Return what was *seen*, taken out of Ansible's results."""
    hubs, nodes = ({each["item"]: each for each in seen[kind].get("results", [])} for kind in ("hubs", "nodes"))
    tries = [each for each in seen["vcenter"].get("results", []) if not each.get("skipped")]
    told = next((each for each in tries if not each.get("failed")), None)
    why = "; ".join(dict.fromkeys(str(each.get("msg", "")) for each in tries)) or "no node could be asked"
    return sweeping.Site(
        hubs=hubs,
        nodes=nodes,
        vcenter=told or {"failed": True, "msg": why},
        asked=told["item"] if told else "",
        orphans=bool(seen.get("orphans")),
        claims={each["item"]["host"]: each for each in seen.get("claims", {}).get("results", [])},
    )


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"sweep_plan": sweep_plan}
