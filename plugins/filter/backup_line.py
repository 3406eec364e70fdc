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

WORTH_TELLING = 2.0  # seconds of all disks together
STAGES = ("source", "target", "digest", "limit", "node")
NAMES = {
    "source": "the source",
    "tunnel": "the tunnel",
    "target": "the hub's disks",
    "digest": "digests, which is CPU of the node",
    "limit": "the rate limit",
    "node": "the CPU of the node",
}
RESTS = {
    True: "",
    False: ", guest not brought to rest",
    None: ", nobody knows whether the guest was brought to rest",
}
WHOLE = {"none": "for want of change tracking", "refuted": "because vCenter's map left data out"}


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
    left = f"could not be cleaned up: {'; '.join(result['left'])}" if result["left"] else ""
    verdict = "FAILED" if left else "ok"
    if result["failure"]:
        told = [f"FAILED at '{result['failure']['step']}': {result['failure']['msg']}", *result["deaths"]]
    elif result["manifest"]:
        told = [f"{verdict} {_made(result['manifest'], _wire(result))}", _slowest(result)]
    else:
        told = [f"{verdict}, {_would(result)}"]
    return "; ".join(filter(None, [*told, _history(result), left, *result["away"]]))


def _history(result: Mapping[str, Any]) -> str:
    """Return what of the run was not its own work from beginning to end."""
    if result.get("resumed") and not result["manifest"] and not result["failure"]:
        return ""  # check mode tells it itself
    told = f"went on with {result['resumed']}" if result.get("resumed") else ""
    if result.get("anew") and result["reconciled"]:
        told = f"began anew instead of going on with {', '.join(result['reconciled'])}: {result['anew']}"
    many = f"went on after {result['interruptions']} interruption(s)" if result.get("interruptions") else ""
    return "; ".join(filter(None, [told, many]))


def _wire(result: Mapping[str, Any]) -> int | None:
    """Return the bytes that went through the tunnel, if one tunnel carried all of the copy."""
    begun = result.get("resumed") or result.get("interruptions")
    return None if begun or not result.get("tunnel") else int(result["tunnel"]["sent"] + result["tunnel"]["received"])


def _slowest(result: Mapping[str, Any]) -> str:
    """Return what the copy was waiting for most, as its own clocks tell; empty when it took no time to speak of."""
    disks = result.get("copies") or []
    seconds = sum(disk["seconds"] for disk in disks)
    if seconds < WORTH_TELLING:
        return ""
    longest = max(disk["seconds"] for disk in disks)
    if not any(name.startswith("waited_") for disk in disks for name in disk):  # a client has no clocks
        return f"the copy took {longest:.0f} s"
    waited = {name: sum(disk.get(f"waited_{name}", 0) for disk in disks) for name in STAGES}
    waited["node"] += max(0.0, seconds - sum(waited.values()) - sum(disk.get("waited_both", 0) for disk in disks))
    stage = max(waited, key=lambda name: waited[name])
    share = waited[stage] / seconds
    if stage == "target" and result.get("tunnel", {}).get("busy", 0) * 2 > waited["target"] / len(disks):
        stage = "tunnel"
    return f"the copy took {longest:.0f} s, {share:.0%} of it waiting for {NAMES[stage]}"


def _made(manifest: Mapping[str, Any], wire: int | None) -> str:
    disks = manifest["disks"]
    order = ("provisioned", "allocated", "read", "written", "on the wire", "stored")
    known = [name for name in order if all(disk.get(name) is not None for disk in disks)]
    total = {name: sum(disk[name] for disk in disks) for name in known}
    if wire is not None:
        total["on the wire"] = wire
    total = {name: total[name] for name in order if name in total}
    whole = {why: sum(disk["map"] == name for disk in disks) for name, why in WHOLE.items()}
    all_read = "".join(f", {count} of them read whole {why}" for why, count in whole.items() if count)
    skipped = "".join(f", disk {disk['key']} ({disk['label']}) left out" for disk in manifest.get("skipped", []))
    counted = ", ".join(f"{name} {size(count)}" for name, count in total.items())
    quiet = RESTS[manifest["consistency"]["quiesce_achieved"]]
    unproven = [str(disk["key"]) for disk in disks if disk.get("digests_of") == "image"]
    blind = f", not held against the source: disk {', '.join(unproven)}" if unproven else ""
    reason = manifest.get("transport_reason")
    way = f", by {manifest['transport']}" + (f" ({reason})" if reason else "")
    return f"full {manifest['point']}, {len(disks)} disk(s){all_read}{skipped}: {counted}{quiet}{blind}{way}"


def _would(result: Mapping[str, Any]) -> str:
    """Return what a run in check mode stands for."""
    transport, disks = result["transport"], result["disks"]
    way = transport["name"] + (f" ({transport['reason']})" if transport["reason"] else "")
    first = f"take away what {', '.join(jobs)} left, and " if (jobs := result["reconciled"]) else ""
    if result.get("resumed"):
        first = f"go on with {result['resumed']}, and "
    return f"would {first}back up {len(disks)} disk(s) of {size(sum(disks))} by {way}; nothing was done (check mode)"


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        """Return the filter by its name."""
        return {"backup_line": backup_line}
