# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: cleaned
short_description: Judge what came of taking away what a job made
version_added: 0.1.0
description:
  - Adds to what earlier steps of a cleanup came to what some more steps came to, in sentences for the summary.
  - A host that could not be reached is one sentence, however many steps wanted it.
author: Contributors to sendense.backup (@sendense)
positional: steps, dead
options:
  _input:
    description: What is known so far, lists under C(left), C(away), C(lost) and C(deaths); empty at first.
    type: dict
    required: true
  steps:
    description: >-
      Registered results by step, one or more of C(copy), C(exports), C(snapshot) (a loop over nodes), C(tunnel) and
      C(point). Those that were skipped count for nothing.
    type: dict
    required: true
  dead:
    description: The job that is cleaned up, its C(node), its C(hub), its C(vm), and the C(steps) that were due.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: What could not be taken away is known
  ansible.builtin.debug:
    msg: "{{ {} | sendense.backup.cleaned({'copy': no_copy, 'snapshot': no_snapshot}, dead) }}"
  vars:
    dead: {job: pgtest1-5029f3ab-20261123T140102Z, vm: pgtest1, node: node1, hub: hub1, steps: [snapshot]}
"""

RETURN = r"""
_value:
  description: >-
    C(left), what could not be taken away; C(away), what is still on a host that could not be reached and goes in a later
    run; C(lost), these hosts; C(deaths), exports that had died or had to be killed, and are gone all the same.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

Result = Mapping[str, Any]
Told = dict[str, list[str]]


def cleaned(before: Mapping[str, list[str]], steps: Mapping[str, Result], dead: Mapping[str, Any]) -> Told:
    """Return *before* with what came of *steps* added."""
    told: Told = {name: list(before.get(name, [])) for name in ("left", "away", "lost", "deaths")}
    for step, result in steps.items():
        if step == "snapshot":
            _snapshot(told, result.get("results", []), dead)
        elif result.get("connection_lost"):
            told["lost"].append(dead["hub"] if step in ("exports", "point") else dead["node"])
        elif result.get("failed"):
            told["deaths" if "ended" in result else "left"].append(result["msg"])
    told["lost"] = list(dict.fromkeys(told["lost"]))
    for host in (dead["node"], dead["hub"]):
        if host in told["lost"]:
            _away(told, host, dead)
    return told


def _snapshot(told: Told, tries: list[Result], dead: Mapping[str, Any]) -> None:
    told["lost"] += [each["item"] for each in tries if each.get("connection_lost")]
    if "snapshot" not in dead["steps"] or any(not each.get("failed") for each in tries):
        return
    why = "; ".join(dict.fromkeys(str(each["msg"]) for each in tries)) or "no node could be reached"
    told["left"].append(
        f"snapshot sendense-{dead['job']} of VM {dead['vm']} is still there ({why}); "
        "remove it in vCenter, or run the backup again with a node that can"
    )


def _away(told: Told, host: str, dead: Mapping[str, Any]) -> None:
    """Tell of a host that is away, once for each job: its things are remembered by the hub, unless the point is published."""
    if "point" in dead["steps"]:
        how, where = "the next run for the VM takes it away", "away"
    else:
        how, where = f"when it is back, stop sendense-tunnel-{dead['job']} there", "left"
    sentence = f"{host} could not be reached, so what job {dead['job']} made there is still there: {how}"
    if sentence not in told[where]:
        told[where].append(sentence)


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Told]]:
        """Return the filter by its name."""
        return {"cleaned": cleaned}
