# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.cleaned import FilterModule, cleaned

JOB = "pgtest1-5029f3ab-20261123T140102Z"
DEAD = {"job": JOB, "vm": "pgtest1", "node": "node1", "hub": "hub1", "steps": ["snapshot", "exports", "point"]}
NOTHING = {"left": [], "away": [], "lost": [], "deaths": []}
GONE = {"changed": True}
SKIPPED = {"changed": False, "skipped": True}
LOST = {"failed": True, "connection_lost": True, "msg": "the connection to the host is lost: timed out"}
REFUSED = {"failed": True, "msg": "the account lacks VirtualMachine.State.RemoveSnapshot"}


def tried(**by_node):
    return {"results": [{"item": node, **result} for node, result in by_node.items()]}


AWAY = f"node1 could not be reached, so what job {JOB} made there is still there: the next run for the VM takes it away"
STANDS = f"snapshot sendense-{JOB} of VM pgtest1 is still there (WHY); remove it in vCenter, or run the backup again with a node that can"


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        pytest.param(
            {"copy": GONE, "exports": GONE, "snapshot": tried(node1=GONE), "tunnel": GONE, "point": GONE},
            {},
            id="all of it is gone",
        ),
        pytest.param({"copy": REFUSED}, {"left": [REFUSED["msg"]]}, id="what failed is left"),
        pytest.param(
            {"exports": {"failed": True, "msg": "killed", "ended": [{}]}},
            {"deaths": ["killed"]},
            id="an export that was killed is gone all the same",
        ),
        pytest.param(
            {"copy": LOST, "snapshot": tried(node2=GONE), "tunnel": SKIPPED},
            {"lost": ["node1"], "away": [AWAY]},
            id="a node that is lost is told once, and another one removed the snapshot",
        ),
        pytest.param(
            {"snapshot": tried(node1=REFUSED, node2=GONE)}, {}, id="who removed the snapshot in the end does not matter"
        ),
        pytest.param(
            {"copy": LOST, "snapshot": tried()},
            {"lost": ["node1"], "away": [AWAY], "left": [STANDS.replace("WHY", "no node could be reached")]},
            id="without any node the snapshot is named",
        ),
        pytest.param(
            {"snapshot": tried(node1=REFUSED, node2=REFUSED)},
            {"left": [STANDS.replace("WHY", REFUSED["msg"])]},
            id="a reason that two nodes give is told once",
        ),
        pytest.param(
            {"copy": GONE, "snapshot": tried(node1=GONE, node2=LOST)},
            {"lost": ["node2"]},
            id="a node that has nothing of the job may be away",
        ),
        pytest.param(
            {"exports": LOST, "point": SKIPPED},
            {"lost": ["hub1"], "away": [AWAY.replace("node1", "hub1")]},
            id="so may the hub, and is remembered by itself",
        ),
    ],
)
def test_what_came_of_a_cleanup(steps, told):
    assert cleaned(NOTHING, steps, DEAD) == NOTHING | told


def test_what_is_known_already_stays_and_is_not_said_twice():
    once = cleaned(NOTHING | {"left": ["a thing of another job"]}, {"copy": LOST, "snapshot": tried(node2=GONE)}, DEAD)
    assert once["left"] == ["a thing of another job"]
    assert cleaned(once, {"point": GONE}, DEAD) == once


def test_each_job_on_a_node_that_is_away_is_named():
    known = NOTHING | {"lost": ["node1"]}
    assert cleaned(known, {"copy": SKIPPED, "snapshot": tried(node2=GONE)}, DEAD)["away"] == [AWAY]


def test_after_publishing_nobody_remembers_so_the_operator_is_told_what_to_do():
    told = cleaned(NOTHING, {"copy": LOST, "snapshot": SKIPPED, "tunnel": SKIPPED}, DEAD | {"steps": []})
    assert told["away"] == []
    assert told["left"][0].endswith(f"still there: when it is back, stop sendense-tunnel-{JOB} there")


def test_nothing_that_a_result_holds_is_changed():
    before = {name: list(value) for name, value in NOTHING.items()}
    cleaned(before, {"copy": LOST}, DEAD)
    assert before == NOTHING


def test_roles_use_this_name():
    assert FilterModule().filters() == {"cleaned": cleaned}
