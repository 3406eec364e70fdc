# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: preflight_report
short_description: Make one report of the checks of a site
version_added: 0.1.0
description:
  - Joins the checks of M(sendense.backup.host_info) and M(sendense.backup.vcenter_info), and what came of a trial, into a report for
    programs and people.
author: Contributors to sendense.backup (@sendense)
positional: facts
options:
  _input:
    description: >-
      Registered loops over hosts by C(hubs), C(nodes) and C(vcenter), and under C(trial) what role C(preflight) has kept of a trial, if there was one.
    type: dict
    required: true
  facts:
    description: What the report is about, such as versions of the controller.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: The report is made
  ansible.builtin.set_fact:
    report: "{{ {'hubs': hubs, 'nodes': nodes, 'vcenter': vcenter} | sendense.backup.preflight_report({'ansible': ansible_version.full}) }}"
"""

RETURN = r"""
_value:
  description: >-
    C(state), the worst there is; C(count) of checks by state; C(facts); C(checks); C(lines), one for each that is not well; C(markdown).
  type: dict
"""

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import preflight
from ansible_collections.sendense.backup.plugins.module_utils.commands import last_words

Result = Mapping[str, Any]


def preflight_report(seen: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the report."""
    found: dict[str, list[preflight.Told]] = {}
    for kind in ("hubs", "nodes"):
        for result in seen.get(kind, {}).get("results", []):
            found.setdefault(result["item"], []).extend(_host(result))
    for result in seen.get("vcenter", {}).get("results", []):
        if not result.get("connection_lost"):  # which is told already
            found.setdefault(f"vCenter, from {result['item']}", []).extend(_host(result))
    if trial := seen.get("trial"):
        found["trial"] = preflight.told(_trial(trial))
    return preflight.summary(found, facts)


def _host(result: Result) -> list[preflight.Told]:
    if result.get("failed"):
        remedy = "let Ansible reach the host, by the inventory's ansible_host, ansible_user and key"
        return preflight.told([preflight.failed("look at the host", str(result.get("msg", "no answer")), remedy)])
    return list(result["checks"])


def _trial(trial: Result) -> list[preflight.Check]:
    """Judge a trial: its content was written, each backup holds it to the byte, and nothing is left."""
    checks = []
    if earlier := trial["earlier"]:
        checks.append(preflight.ok("what an earlier trial left", f"its VM {earlier['vm']} and its repository are gone"))
    failure = trial["failure"] or trial["restored"].get("failure")
    if failure:
        said = f"failed at '{failure['step']}': {failure['msg']}"
        checks.append(preflight.failed("trial", said, "see the sentence itself, and docs/privileges.md"))
    if trial["restored"] and not trial["restored"]["failure"]:
        checks.append(preflight.ok("write", _written(trial["content"], trial["restored"]["done"])))
    for number, result in enumerate(trial["backups"], 1):
        checks += _backup(f"backup {number} over {result['asked']}", result, trial["content"])
    return checks + _cleaned(trial)


def _written(content: Result, done: Result) -> str:
    return (
        f"{preflight.size(content['written'])} of random bytes in {content['pieces']} places of a disk of "
        f"{preflight.size(content['capacity'])}, the rest zero, as VM {done['vm']['inventory_path']}, by {done['transport']['name']}"
    )


def _backup(name: str, result: Result, content: Result) -> list[preflight.Check]:
    checks = []
    if not result["manifest"]:
        said = f"failed at '{result['failure'].get('step', '')}': {result['failure'].get('msg', '')}"
        checks.append(preflight.failed(name, said, "see the sentence itself, and docs/privileges.md"))
    else:
        checks.append(_compared(name, result, content))
    if left := [*result["left"], *result["away"]]:
        checks.append(preflight.failed(f"{name}: cleaning up", "; ".join(left), "take it away, or run playbook sweep"))
    return checks


def _compared(name: str, result: Result, content: Result) -> preflight.Check:
    """Two witnesses that know nothing of each other: the digests of what was read, and qemu-img on both images."""
    compared = result["compared"]
    roots = [disk["root"] for disk in result["manifest"]["disks"]]
    if compared.get("rc") == 0 and roots == [content["root"]]:
        seen = f"all {content['capacity']} bytes are those that were written, by qemu-img compare and by their SHA-256"
        return preflight.ok(name, seen)
    words = last_words(f"{compared.get('stdout', '')}\n{compared.get('stderr', '')}") or compared.get("msg", "nothing")
    says = [f"qemu-img compare says: {words}"] if compared.get("rc") != 0 else []
    says += ["the SHA-256 of the disk is another one"] if roots != [content["root"]] else []
    remedy = "run it again, and let nobody touch its VM; if that fails too, do not rely on backups by this transport"
    return preflight.failed(name, f"what was read is not what was written: {'; '.join(says)}", remedy)


def _cleaned(trial: Result) -> list[preflight.Check]:
    cleaned = trial["cleaned"]
    if not cleaned:
        return []  # it had not begun
    again = "look at it; the next trial takes away what this one could not"
    if cleaned["msg"]:
        return [preflight.failed("cleaning up", cleaned["msg"], again)]
    if trial["restored"] and not trial["restored"]["failure"] and not cleaned["vms"]:
        vm = trial["restored"]["done"]["vm"]
        said = f"VM {vm['inventory_path']} ({vm['moref']}) is not there any more by that name"
        return [
            preflight.failed(
                "cleaning up", said, "if somebody renamed it, delete it in vCenter; its notes say what it is"
            )
        ]
    return [
        preflight.ok(
            "cleaning up", "the VM, its snapshots, the restore points and the repository of the trial are gone"
        )
    ]


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filter by its name."""
        return {"preflight_report": preflight_report}
