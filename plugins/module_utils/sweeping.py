# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which jobs of a site are dead, and what of theirs goes: decided from what hubs, nodes and vCenter said. Pure.

Hubs are to be asked last. A job takes its lock on a hub before it makes anything anywhere, so what was seen on a node
or in vCenter, and after that is held on no hub, has lost its owner or never had one of these hubs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils.leases import GRACE
from ansible_collections.sendense.backup.plugins.module_utils.leftovers import ago

_WORDS = {
    "dead": "dead: ",
    "removed": "removed: ",
    "would": "would be removed: ",
    "left": "left alone: ",
    "failed": "FAILED: ",
}

_ENDLESS = (
    "sendense-export-",
    "sendense-tunnel-",
)  # units that never end by themselves, so that their running proves nothing

Said = Mapping[str, Any]  # what job_info or vm_snapshot_info returned; failed with a msg when it could not


@dataclass(frozen=True)
class Site:
    """What was seen."""

    hubs: Mapping[str, Said]
    nodes: Mapping[str, Said]
    vcenter: Said  # of the first node that could ask it
    asked: str  # that node; empty when none could
    orphans: bool = False  # the operator's word for snapshots whose job no hub knows
    claims: Mapping[str, Said] = field(default_factory=dict)  # by hub, what became of the claims of an earlier plan


@dataclass
class Plan:
    """What goes, by where, and what stays and why."""

    dead: list[dict[str, str]] = field(default_factory=list)  # job, why
    claims: list[dict[str, Any]] = field(default_factory=list)  # host, claims (leftovers.Claim)
    exports: list[dict[str, str]] = field(default_factory=list)  # job, host
    snapshots: list[dict[str, str]] = field(default_factory=list)  # job, vm, name, node
    nodes: list[dict[str, Any]] = field(default_factory=list)  # host, jobs
    hubs: list[dict[str, Any]] = field(default_factory=list)  # host, jobs, folders
    left: list[dict[str, str]] = field(default_factory=list)  # what, where, why
    unseen: list[str] = field(default_factory=list)  # hosts, vCenter: sentences


def plan(site: Site, gone: Callable[[str], bool]) -> Plan:
    """Return what is to go. *gone* tells of the name of a controller whether it is proven gone."""
    found = Plan(unseen=_unseen(site))
    work: dict[str, dict[str, list[str]]] = {"hubs": {}, "nodes": {}}
    for job in _jobs(site):
        dead, why = judge(site, job, gone)
        if not dead:
            _stays(found, site, job, why)
            continue
        found.dead.append({"job": job, "why": why})
        sessions = [host for host, said in site.nodes.items() if (known := _known(said, job)) and known["session"]]
        for each in _snapshots(site, job):
            node = (sessions or [site.asked])[0]
            found.snapshots.append({"job": job, "vm": each["vm"]["moref"], "name": each["vm"]["name"], "node": node})
        for kind, hosts in (("hubs", site.hubs), ("nodes", site.nodes)):
            for host, said in hosts.items():
                known = _known(said, job)
                if known and _has(known):
                    work[kind].setdefault(host, []).append(job)
                if known and kind == "hubs" and known["units"]:
                    found.exports.append({"job": job, "host": host})
    found.claims = _claims(site, {each["job"] for each in found.dead}, gone)
    found.nodes = [{"host": host, "jobs": jobs} for host, jobs in work["nodes"].items()]
    for host, said in site.hubs.items():
        folders = [each["path"] for each in said.get("unowned", []) if each["removable"]]
        if folders or host in work["hubs"]:
            found.hubs.append({"host": host, "jobs": work["hubs"].get(host, []), "folders": folders})
    _strangers(found, site)
    return found


def judge(site: Site, job: str, gone: Callable[[str], bool]) -> tuple[bool, str]:
    """Return whether *job* is proven dead, or has ended, and why, or why that is not proven."""
    hubs = [known for said in site.hubs.values() if (known := _known(said, job))]
    nodes = [known for said in site.nodes.values() if (known := _known(said, job))]
    if why := _refused(site, job) or _not_ours_to_judge(site, job, hubs):
        return False, why
    if any(gone(controller) for known in hubs for controller in known["controllers"]):
        return True, "its run was on this controller and is gone"
    if living := [known for known in hubs if known["dead"] is False]:
        return False, f"it is not proven dead: {living[0]['why']}"
    if dead := [known for known in hubs if known["dead"]]:
        return True, str(dead[0]["why"])
    if any(known["published"] for known in hubs):
        return True, "its restore point is published, and it holds nothing any more"
    return _orphan(site, job, hubs + nodes)


def _claims(site: Site, dead: set[str], gone: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Return by hub how the *dead* jobs that hold something there are claimed."""
    found = []
    for host, said in site.hubs.items():
        held = {each["job"]: list(each["controllers"]) for each in said.get("jobs", []) if each["leases"]}
        claims = [
            {"job": job, "controllers": controllers, "gone": any(map(gone, controllers))}
            for job, controllers in held.items()
            if job in dead
        ]
        if claims:
            found.append({"host": host, "claims": claims})
    return found


def _refused(site: Site, job: str) -> str:
    """Return why a hub did not let the job be claimed, be it that it could not be asked; empty when none did."""
    for host, said in site.claims.items():
        if why := said.get("refused", {}).get(job):
            return str(why)
        if said.get("failed") and (known := _known(site.hubs[host], job)) and known["leases"]:
            return f"it could not be claimed on {host}"
    return ""


def _not_ours_to_judge(site: Site, job: str, hubs: Sequence[Said]) -> str:
    """Return why nothing of the job may be touched, whether it is dead or not."""
    if foreign := [path for known in hubs for path in known["strangers"]]:
        return f"{foreign[0]} was made by no job; move it away"
    here = site.vcenter.get("vcenter", {}).get("instance_uuid")
    for known in hubs:
        if known["vcenter"] and here and known["vcenter"] != here and not _snapshots(site, job):
            return f"its VM belongs to vCenter {known['vcenter_name'] or known['vcenter']}; sweep with that one"
    return ""


def _orphan(site: Site, job: str, known: Sequence[Said]) -> tuple[bool, str]:
    """Judge a job that no hub knows: that is no proof by itself, its hub may be one that this inventory lacks."""
    lacking = []
    if silent := [host for host, said in {**site.hubs, **site.nodes}.items() if said.get("failed")]:
        lacking.append(f"{', '.join(silent)} could not be asked")
    if not site.hubs:
        lacking.append("there is no hub to ask")
    if running := [unit for each in known for unit in each["running"] if not unit.startswith(_ENDLESS)]:
        lacking.append(f"{running[0]} runs")
    snapshots = _snapshots(site, job)
    age = min([each["age"] for each in snapshots] + [each["age"] for each in known])
    if age <= GRACE:
        lacking.append(f"it began {ago(age)} ago, within 12 h")
    if snapshots and not site.orphans:
        lacking.append("the word is not given: -e sweep_orphans=true")
    said = f"no hub of the inventory knows job {job}"
    if lacking:
        return False, f"{said}, and {'; '.join(lacking)}"
    return True, f"{said}, nothing of it is at work, and it began {ago(age)} ago"


def told(found: Plan, done: Sequence[Said], *, check: bool) -> dict[str, list[str]]:
    """Return the summary: what was ``removed``, ``would`` be, was ``left`` alone, and could not be removed (``failed``).

    ``lines`` is all of it to read. *done* is what the steps came to: each a ``host``, and lists ``removed`` and ``failed``.
    """
    removed = [f"{each['host']}: {what}" for each in done for what in each.get("removed", [])]
    failed = [f"{each['host']}: {what}" for each in done for what in each.get("failed", [])]
    said = {
        "dead": [f"job {each['job']}: {each['why']}" for each in found.dead],
        "removed": [] if check else removed,
        "would": removed if check else [],
        "left": [f"{each['where']}: {each['what']}: {each['why']}" for each in found.left],
        "failed": found.unseen + failed,
    }
    return {**said, "lines": [f"{_WORDS[kind]}{line}" for kind, lines in said.items() for line in lines]}


def _jobs(site: Site) -> list[str]:
    """Return the jobs of which anybody has something."""
    found = {each["job"] for each in site.vcenter.get("snapshots", [])}
    for said in (*site.hubs.values(), *site.nodes.values()):
        found |= {each["job"] for each in said.get("jobs", []) if _has(each)}
    return sorted(found)


def _has(known: Said) -> bool:
    return any(known[what] for what in ("units", "folders", "leases", "points"))


def _known(said: Said, job: str) -> dict[str, Any] | None:
    return next((dict(each) for each in said.get("jobs", []) if each["job"] == job), None)


def _snapshots(site: Site, job: str) -> list[Said]:
    return [each for each in site.vcenter.get("snapshots", []) if each["job"] == job]


def _unseen(site: Site) -> list[str]:
    silent = [
        f"{host} could not be looked at, so what is there is not known: {said.get('msg', 'no answer')}"
        for host, said in {**site.hubs, **site.nodes}.items()
        if said.get("failed")
    ]
    silent += [
        f"{host}: dead jobs could not be claimed: {said.get('msg', 'no answer')}"
        for host, said in site.claims.items()
        if said.get("failed")
    ]
    if site.vcenter.get("failed"):
        silent.append(f"the snapshots could not be looked at: {site.vcenter.get('msg', 'no answer')}")
    return silent


def _stays(found: Plan, site: Site, job: str, why: str) -> None:
    for each in _snapshots(site, job):
        found.left.append({"where": f"VM {each['vm']['name']}", "what": f"snapshot {each['name']}", "why": why})
    for host, said in {**site.hubs, **site.nodes}.items():
        if (known := _known(said, job)) and _has(known):
            things = [
                *known["units"],
                *known["folders"],
                *known["points"],
                *(f"lease {each}" for each in known["leases"]),
            ]
            found.left.append({"where": host, "what": f"job {job} ({', '.join(things)})", "why": why})


def _strangers(found: Plan, site: Site) -> None:
    for each in site.vcenter.get("others", []):
        found.left.append(
            {
                "where": f"VM {each['vm']['name']}",
                "what": f"snapshot {each['name']} ({each['moref']})",
                "why": each["why"],
            }
        )
    for host, said in {**site.hubs, **site.nodes}.items():
        for each in said.get("strangers", []):
            found.left.append({"where": host, "what": each["path"], "why": each["why"]})
        for each in said.get("unowned", []):
            if not each["removable"]:
                found.left.append({"where": host, "what": each["path"], "why": each["why"]})


def remembered(found: Plan, site: Site, done: Sequence[Said]) -> dict[str, str]:
    """Return the jobs whose mark has to stay on their hub, because something of them is elsewhere still, and their nodes.

    *done* is what snapshots and nodes came to, each with the ``jobs`` it was about.
    """
    wanting = {job for each in done if each.get("failed") for job in each.get("jobs", [])}
    silent = {host for host, said in site.nodes.items() if said.get("failed")}
    kept = {}
    for job in (each["job"] for each in found.dead):
        known = [each for said in site.hubs.values() if (each := _known(said, job))]
        nodes = [node for each in known for node in each["nodes"]]
        if job in wanting or site.vcenter.get("failed") or silent & set(nodes):
            kept[job] = (nodes or [""])[0]
    return kept


def as_dict(found: Plan) -> dict[str, Any]:
    """Return *found* as Ansible hands it on."""
    return asdict(found)
