# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters sweep_plan and sweep_told, fed with results as Ansible registers them."""

from __future__ import annotations

import os
from dataclasses import asdict

from ansible_collections.sendense.backup.plugins.filter.sweep_plan import sweep_plan
from ansible_collections.sendense.backup.plugins.filter.sweep_told import sweep_told
from ansible_collections.sendense.backup.plugins.module_utils.leftovers import Known
from ansible_collections.sendense.backup.plugins.plugin_utils import controller

JOB = "pgtest1-5029f3ab-20261123T140102Z"


def seen(controller_name, *, lost=False):
    known = {
        **asdict(Known(JOB)),
        "leases": ["vm-1"],
        "units": ["u"],
        "controllers": [controller_name],
        "nodes": ["node1"],
    }
    hub = {
        "item": "hub1",
        "jobs": [{**known, "age": 60, "dead": False, "why": "its lease runs"}],
        "unowned": [],
        "strangers": [],
    }
    snapshot = {"job": JOB, "vm": {"moref": "vm-62", "name": "pgtest1"}, "name": f"sendense-{JOB}", "age": 60}
    tries = [{"item": "node1", "failed": True, "msg": "lost"}] if lost else []
    tries.append({"item": "node2", "snapshots": [snapshot], "others": [], "vcenter": {"instance_uuid": "x"}})
    nodes = [{"item": name, "jobs": [], "unowned": [], "strangers": []} for name in ("node1", "node2")]
    return {"vcenter": {"results": tries}, "nodes": {"results": nodes}, "hubs": {"results": [hub]}, "orphans": False}


def test_a_run_that_lives_is_left_alone_and_one_that_is_gone_is_planned():
    assert sweep_plan(seen(controller.identity(os.getpid())))["dead"] == []
    plan = sweep_plan(seen(controller.identity(os.getpid()).rpartition("/")[0] + "/1"))
    assert [each["job"] for each in plan["dead"]] == [JOB]
    assert plan["snapshots"][0]["node"] == "node2"


def test_results_become_sentences():
    looked = seen(controller.identity(os.getpid()).rpartition("/")[0] + "/1")
    plan = sweep_plan(looked)
    steps = {
        "exports": {"results": [{"item": plan["exports"][0], "failed": True, "msg": "was killed", "ended": [{}], "changed": False}]},
        "snapshots": {"results": [{"item": plan["snapshots"][0], "failed": True, "msg": "vCenter says no"}]},
        "nodes": {},
    }  # fmt: skip
    told = sweep_told(plan, looked, steps)
    assert told["removed"] == [f"hub1: exports of job {JOB}"], "an export that had died is gone"
    assert told["failed"] == [f"VM pgtest1: snapshot sendense-{JOB}: vCenter says no"]
    assert told["kept"] == {JOB: "node1"}
    steps["snapshots"]["results"] = [{"item": plan["snapshots"][0], "changed": True}]
    steps["hubs"] = {"results": [{"item": plan["hubs"][0], "changed": True, "removed": ["lease vm-1"], "unable": []}]}
    told = sweep_told(plan, looked, steps, check=True)
    assert told["would"] == [f"VM pgtest1: snapshot sendense-{JOB}", "hub1: lease vm-1"]
    assert (told["failed"], told["kept"]) == ([], {})


def test_when_no_node_can_ask_vcenter_that_is_said():
    looked = seen("x")
    looked["vcenter"]["results"] = [
        {"item": "node1", "failed": True, "msg": "no way"},
        {"item": "node2", "failed": True, "msg": "no way"},
    ]
    assert sweep_plan(looked)["unseen"] == ["the snapshots could not be looked at: no way"]


class Lazy(list):
    """A list as Ansible hands it to filters, of which nothing makes another one."""

    def __init__(self, *_words):
        raise NotImplementedError  # as Ansible's own does

    @classmethod
    def of(cls, *items):
        made = cls.__new__(cls)
        made.extend(items)
        return made


def test_a_plan_is_made_of_what_ansible_hands_on():
    looked = seen("")
    looked["hubs"]["results"][0]["jobs"][0]["controllers"] = Lazy.of("x/y/1/2")
    looked["hubs"]["results"][0]["jobs"][0]["dead"] = True
    assert sweep_plan(looked)["claims"][0]["claims"][0]["controllers"] == ["x/y/1/2"]


def test_what_could_not_be_claimed_stays_and_is_told():
    looked = seen(controller.identity(os.getpid()).rpartition("/")[0] + "/1")
    (claim,) = sweep_plan(looked)["claims"]
    assert [each["gone"] for each in claim["claims"]] == [True]
    refused = {"item": claim, "refused": {JOB: "another run took it over meanwhile"}}
    plan = sweep_plan({**looked, "claims": {"results": [refused]}})
    told = sweep_told(plan, looked, {})
    assert (plan["exports"], plan["snapshots"]) == ([], [])
    assert told["left"][0] == f"VM pgtest1: snapshot sendense-{JOB}: another run took it over meanwhile"
