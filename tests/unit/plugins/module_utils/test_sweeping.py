# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import sweeping
from ansible_collections.sendense.backup.plugins.module_utils.leftovers import Known

JOB = "pgtest1-5029f3ab-20261123T140102Z"
HERE, ELSEWHERE = "8b1f4b0a-vcenter-here", "8b1f4b0a-vcenter-elsewhere"
HOUR = 3600
LOST = {"failed": True, "msg": "the connection is lost"}
SNAPSHOT = {"job": JOB, "vm": {"moref": "vm-62", "name": "pgtest1"}, "name": f"sendense-{JOB}", "age": 13 * HOUR}
UNIT, COPY = f"sendense-export-{JOB}-2000", f"sendense-copy-{JOB}"


def said(*known, **more):
    return {"jobs": list(known), "unowned": [], "strangers": [], **more}


def known(age=13 * HOUR, **fields):
    return {**asdict(Known(JOB)), "age": age, **fields}


def site(hub=None, node=None, snapshots=(), *, orphans=False, vcenter=None):
    told = vcenter or {"snapshots": list(snapshots), "others": [], "vcenter": {"instance_uuid": HERE}}
    hubs = {"hub1": hub or said(), "hub2": said()}
    return sweeping.Site(hubs, {"node1": node or said()}, told, "" if vcenter else "node1", orphans)


def gone(controller):
    return controller == "gone"


LOCKED = {"leases": ["vm-5029f3ab"], "controllers": ["other"]}
DEAD = {
    "its hub says so": (site(said(known(**LOCKED, dead=True, why="it ran out"))), "it ran out"),
    "its run was here and is gone, whatever its lease says": (
        site(said(known(leases=["vm-1"], controllers=["gone"], dead=False, why="it runs"))),
        "its run was on this controller and is gone",
    ),
    "its point is published and nothing is leased": (
        site(said(known(published=True)), said(known(units=[COPY]))),
        "its restore point is published",
    ),
    "no hub knows it, and it is old": (
        site(said(known()), said(known(folders=["/run/sendense/x"]))),
        "no hub of the inventory knows job",
    ),
    "no hub knows it, and only a tunnel runs, which never ends by itself": (
        site(node=said(known(units=["t"], running=[f"sendense-tunnel-{JOB}"]))),
        "no hub of the inventory knows job",
    ),
    "no hub knows the job of an old snapshot, and the word is given": (
        site(said(known()), snapshots=[SNAPSHOT], orphans=True),
        "no hub of the inventory knows job",
    ),
}


@pytest.mark.parametrize(("seen", "why"), DEAD.values(), ids=DEAD)
def test_a_job_is_dead_when(seen, why):
    dead, told = sweeping.judge(seen, JOB, gone)
    assert dead
    assert why in told


ALIVE = {
    "its hub says so": (site(said(known(**LOCKED, dead=False, why="its lease runs"))), "its lease runs"),
    "one hub says so, though another one takes it for dead": (
        sweeping.Site(
            {"hub1": said(known(points=["x"], dead=True, why="no lock")), "hub2": said(known(**LOCKED, dead=False, why="runs"))},
            {}, {"snapshots": []}, "node1",
        ),
        "runs",
    ),
    "the word for an orphaned snapshot is not given": (
        site(said(known()), snapshots=[SNAPSHOT]),
        "the word is not given: -e sweep_orphans=true",
    ),
    "the snapshot is young": (site(snapshots=[{**SNAPSHOT, "age": 11 * HOUR}], orphans=True), "it began 11 h ago"),
    "a hub could not be asked": (site(LOST, snapshots=[SNAPSHOT], orphans=True), "hub1 could not be asked"),
    "a node could not be asked": (site(node=LOST, snapshots=[SNAPSHOT], orphans=True), "node1 could not be asked"),
    "its copy runs": (
        site(node=said(known(units=[COPY], running=[COPY])), snapshots=[SNAPSHOT], orphans=True),
        f"{COPY} runs",
    ),
    "something of it runs that ends by itself": (
        site(node=said(known(units=["sendense-x"], running=[f"sendense-read-{JOB}"]))),
        f"sendense-read-{JOB} runs",
    ),
    "what it has on a node is young": (site(node=said(known(age=HOUR, folders=["/run/x"]))), "within 12 h"),
    "there is no hub to ask": (
        sweeping.Site({}, {}, {"snapshots": [SNAPSHOT]}, "node1", orphans=True),
        "there is no hub to ask",
    ),
    "somebody put a file into its point": (
        site(said(known(points=["p"], strangers=["p/notes.txt"], dead=True))),
        "p/notes.txt was made by no job",
    ),
    "its VM belongs to another vCenter": (
        site(said(known(points=["p"], vcenter=ELSEWHERE, vcenter_name="other.example", dead=True))),
        "belongs to vCenter other.example",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "why"), ALIVE.values(), ids=ALIVE)
def test_a_job_is_left_alone_when(seen, why):
    dead, told = sweeping.judge(seen, JOB, gone)
    assert not dead
    assert why in told


def test_what_goes_is_planned_by_host_and_the_snapshot_by_the_node_that_has_the_session():
    seen = sweeping.Site(
        {"hub1": said(known(units=[UNIT], **LOCKED, dead=True, why="dead"))},
        {"node1": said(), "node2": said(known(folders=["/run/x"], session=True))},
        {"snapshots": [SNAPSHOT], "others": []},
        "node1",
    )
    found = sweeping.plan(seen, gone)
    assert found.dead == [{"job": JOB, "why": "dead"}]
    assert found.exports == [{"job": JOB, "host": "hub1"}]
    assert found.snapshots == [{"job": JOB, "vm": "vm-62", "name": "pgtest1", "node": "node2"}]
    assert found.nodes == [{"host": "node2", "jobs": [JOB]}]
    assert found.hubs == [{"host": "hub1", "jobs": [JOB], "folders": []}]
    assert (found.left, found.unseen) == ([], [])


def test_what_is_foreign_is_told_and_not_planned():
    others = [{"vm": {"name": "web01"}, "name": "before the update", "moref": "snapshot-7", "why": "not ours"}]
    folders = [{"path": "old", "removable": True, "why": "old"}, {"path": "new", "removable": False, "why": "young"}]
    hub = said(unowned=folders, strangers=[{"path": "/run/sendense/x", "why": "no job"}])
    found = sweeping.plan(site(hub, vcenter={"snapshots": [], "others": others}), gone)
    assert [(each["what"], each["why"]) for each in found.left] == [
        ("snapshot before the update (snapshot-7)", "not ours"), ("/run/sendense/x", "no job"), ("new", "young"),
    ]  # fmt: skip
    assert found.hubs == [{"host": "hub1", "jobs": [], "folders": ["old"]}]


def test_what_could_not_be_looked_at_fails_the_sweep_and_marks_stay():
    dead = known(points=["p"], nodes=["node1"], dead=True, why="dead")
    blind = site(said(dead), vcenter={"failed": True, "msg": "no way there"})
    found = sweeping.plan(blind, gone)
    assert sweeping.told(found, [], check=False)["failed"] == ["the snapshots could not be looked at: no way there"]
    assert sweeping.remembered(found, blind, []) == {JOB: "node1"}
    silent = site(said(dead), LOST)
    assert sweeping.remembered(sweeping.plan(silent, gone), silent, []) == {JOB: "node1"}
    whole = site(said(dead))
    found = sweeping.plan(whole, gone)
    assert sweeping.remembered(found, whole, [{"host": "node1", "jobs": [JOB], "failed": []}]) == {}
    assert sweeping.remembered(found, whole, [{"host": "node1", "jobs": [JOB], "failed": ["x"]}]) == {JOB: "node1"}


def test_the_summary_reads_as_lines():
    found = sweeping.plan(site(said(known(points=["p"], dead=True, why="dead"))), gone)
    done = [{"host": "hub1", "removed": ["p"], "failed": ["q: busy"]}]
    assert sweeping.told(found, done, check=True)["lines"] == [
        f"dead: job {JOB}: dead", "would be removed: hub1: p", "FAILED: hub1: q: busy",
    ]  # fmt: skip
    assert sweeping.told(found, done, check=False)["removed"] == ["hub1: p"]


def test_dead_jobs_are_claimed_and_one_that_changed_meanwhile_stays():
    held = known(leases=["vm-1"], units=[UNIT], points=["x"], controllers=["other"], dead=True, why="it ran out")
    seen = site(said(held), snapshots=[SNAPSHOT])
    first = sweeping.plan(seen, gone)
    claims = [{"job": JOB, "controllers": ["other"], "gone": False}]
    assert first.claims == [{"host": "hub1", "claims": claims}]
    assert sweeping.plan(replace(seen, claims={"hub1": {"refused": {}}}), gone) == first
    second = sweeping.plan(replace(seen, claims={"hub1": {"refused": {JOB: "another run took it over"}}}), gone)
    assert not any((second.dead, second.claims, second.exports, second.snapshots, second.nodes, second.hubs))
    assert [(each["where"], each["why"]) for each in second.left] == [
        ("VM pgtest1", "another run took it over"),
        ("hub1", "another run took it over"),
    ]
    lost = sweeping.plan(replace(seen, claims={"hub1": LOST}), gone)
    assert (lost.dead, lost.snapshots) == ([], [])
    assert lost.unseen == ["hub1: dead jobs could not be claimed: the connection is lost"]


def test_a_job_whose_controller_is_gone_is_claimed_for_that():
    seen = site(said(known(leases=["vm-1"], controllers=["gone"], dead=False, why="it runs")))
    assert sweeping.plan(seen, gone).claims[0]["claims"] == [{"job": JOB, "controllers": ["gone"], "gone": True}]
