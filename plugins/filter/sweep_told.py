# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: sweep_told
short_description: Say what came of a sweep
version_added: 0.1.0
description:
  - Turns the results of the steps of a sweep into sentences for its summary.
author: Contributors to sendense.backup (@sendense)
positional: seen, steps
options:
  _input:
    description: The plan, as P(sendense.backup.sweep_plan#filter) made it.
    type: dict
    required: true
  seen:
    description: What P(sendense.backup.sweep_plan#filter) was given.
    type: dict
    required: true
  steps:
    description: Registered loops over what the plan lists, by C(exports), C(snapshots), C(nodes) and C(hubs), as far as they were done.
    type: dict
    required: true
  check:
    description: Whether nothing was done, but predicted.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: What came of it
  ansible.builtin.debug:
    msg: "{{ plan | sendense.backup.sweep_told(seen, {'snapshots': no_snapshots, 'nodes': nodes_clean, 'hubs': hubs_clean}) }}"
"""

RETURN = r"""
_value:
  description: >-
    Sentences: C(dead) jobs, what was C(removed) or C(would) be, what was C(left) alone and why, what C(failed), all of it as C(lines); and C(kept), the
    jobs that are to be remembered on their hubs, each with its node.
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.sendense.backup.plugins.filter.sweep_plan import site
from ansible_collections.sendense.backup.plugins.module_utils import sweeping

Done = dict[str, Any]


def sweep_told(
    plan: Mapping[str, Any], seen: Mapping[str, Any], steps: Mapping[str, Any], check: bool = False
) -> dict[str, Any]:
    """Return the summary, and the jobs to remember."""
    results = {step: steps.get(step, {}).get("results", []) for step in ("exports", "snapshots", "nodes", "hubs")}
    found = sweeping.Plan(**plan)
    exports = (
        [] if check else [_export(each) for each in results["exports"]]
    )  # their units are predicted with the hub's
    elsewhere = [_snapshot(each) for each in results["snapshots"]] + [_host(each) for each in results["nodes"]]
    done = [*exports, *elsewhere, *(_host(each) for each in results["hubs"])]
    return {
        **sweeping.told(found, done, check=check),
        "kept": sweeping.remembered(found, site(seen), elsewhere),
    }


def _export(result: Mapping[str, Any]) -> Done:
    """Return what came of ending the exports of a job; one that had died already is gone all the same."""
    job, host = result["item"]["job"], result["item"]["host"]
    wrong = result.get("failed") and "ended" not in result
    return {
        "host": host,
        "jobs": [job],
        "removed": [] if wrong or not (result.get("changed") or result.get("ended")) else [f"exports of job {job}"],
        "failed": [f"exports of job {job}: {result.get('msg', 'failed')}"] if wrong else [],
    }


def _snapshot(result: Mapping[str, Any]) -> Done:
    item = result["item"]
    what = f"snapshot sendense-{item['job']}"
    return {
        "host": f"VM {item['name']}",
        "jobs": [item["job"]],
        "removed": [what] if result.get("changed") else [],
        "failed": [f"{what}: {result.get('msg', 'failed')}"] if result.get("failed") else [],
    }


def _host(result: Mapping[str, Any]) -> Done:
    return {
        "host": result["item"]["host"],
        "jobs": result["item"]["jobs"],
        "removed": result.get("removed", []),
        "failed": result.get("unable") or ([result.get("msg", "failed")] if result.get("failed") else []),
    }


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"sweep_told": sweep_told}
