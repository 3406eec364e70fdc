# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is left when something dies in mid-run, and who takes it away."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest

from tests.scenarios.matrix import cases

DEATHS = {
    "qemu-nbd is killed": (
        "hub",
        "sendense-export-{job}-2000",
        r"disk 2000.*sendense-export-\S+-2000 killed by SIGKILL",
    ),
    # without another try; test_resume.py has what the tries do
    "the tunnel is killed": ("node", "sendense-tunnel-{job}", r"disk 2000: the export hung up"),
    "the copy is killed": ("node", "sendense-copy-{job}", r"the copy was killed by SIGKILL|the copy killed by SIGKILL"),
}
ANEW = ("-e", "backup_resume=false")  # what a dead job left is taken away first


@pytest.mark.parametrize(("where", "unit", "sentence"), cases(DEATHS, {"qemu-nbd is killed", "the tunnel is killed"}))
def test_a_death_in_mid_copy_is_named_and_cleaned_up(clean, where, unit, sentence):
    before = clean.points()
    with clean.slow("web01", arguments=("-e", "backup_retries=0")) as (run, (job,)):
        getattr(clean, where).check_output(f"systemctl kill --signal=KILL {unit.format(job=job)}")
        ended = clean.end(run)
    assert ended.code != 0
    assert re.search(f"^FAILED at 'The disks are copied': .*{sentence}", ended.line("web01")), ended.output
    assert clean.points() == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_the_next_run_cleans_up_after_a_controller_that_is_gone(clean, end):
    before = clean.points()
    with clean.slow("web02") as (run, (job,)):
        clean.end(run, end)
    assert any(job in left for left in clean.leftovers().values()), "the test disturbed nothing"
    again = clean.backup("--limit=web02", *ANEW)
    assert again.code == 0, again.output
    assert len(clean.points()) == len(before) + 1
    _manifest, disks = clean.compare("web02")
    assert all(disk.equal for disk in disks)


def test_a_lost_node_is_cleaned_up_after_by_another_or_told(clean):
    """web03 has another node to remove its snapshot, web04 has none."""
    before = clean.points()
    others = "{{ [{'name': 'node2'}] if inventory_hostname == 'web03' else [] }}"
    wishes = json.dumps({"backup_other_nodes": others, "backup_reconnect": 10})
    with clean.slow("web03", "web04", arguments=("-e", wishes)) as (run, (job, alone)):
        clean.word("cut", "node1")
        try:
            ended = clean.end(run)
            left = clean.leftovers(but="node")
        finally:
            clean.word("heal", "node1")
    assert ended.code != 0
    lost = r"FAILED at 'The disks are copied': the connection to node1 is lost: "
    away = f"node1 could not be reached, so what job {job} made there is still there: the next run for the VM takes it away"
    assert re.match(lost, ended.line("web03")), ended.output
    assert ended.line("web03").endswith(away)
    assert f"could not be cleaned up: snapshot sendense-{alone} of VM web04 is still there" in ended.line("web04")
    assert [each["vm"] for each in clean.ask("/snapshots")["snapshots"]] == ["web04"]
    assert {where for where in left if where.startswith("hub")} == {"hub: partial"}, "the mark, which is not in the way"
    assert clean.hub.run("find /backup/repository -path '*.gone/*'").stdout.split("/")[-1].strip() == "job.json"
    clean.wait_for("node1", lambda: clean.node.run("true").rc == 0)
    again = clean.backup("--limit=web03,web04")
    assert again.code == 0, again.output
    assert len(clean.points()) == len(before) + 2


def test_a_second_run_for_the_same_vm_is_refused_until_the_first_is_proven_dead(clean):
    before = clean.points()
    with clean.slow("web05", arguments=("-e", "_backup_patience=1")) as (run, (job,)):
        lock = clean.hub.check_output("grep -l 'web05-' /run/sendense/leases/vm-*")

        def known() -> dict[str, Any]:
            held: dict[str, Any] = json.loads(clean.hub.check_output(f"cat {lock}"))
            return held

        first = known()
        second = clean.backup("--limit=web05")
        assert f"web05 is being backed up by job {job}" in second.line("web05")
        assert run.poll() is None, "the second run ended the first"
        clean.wait_for("a sign of life", lambda: known()["expires"] > first["expires"])
        clean.end(run, signal.SIGKILL)

        def taken_over(**changes) -> bool:
            """Whether a run takes over once the lock is so; the controller is one that this machine cannot know."""
            lease = json.dumps({**first, "controller": "another-boot/1/2/3", **changes})
            clean.hub.check_output(f"echo '{lease}' > {lock}")
            return clean.backup("--limit=web05").code == 0

        assert not taken_over(), "its controller may live"
        assert not taken_over(expires=time.time() - 13 * 3600), "its copy is at work"
    clean.node.check_output(f"systemctl stop sendense-copy-{job} 'sendense-tunnel-{job}*'")  # each of its streams
    assert not taken_over(expires=time.time() - 60), "it may wait for its snapshot"
    assert taken_over(expires=time.time() - 13 * 3600)
    assert len(clean.points()) == len(before) + 1


def test_a_snapshot_that_cannot_be_removed_is_told_and_removed_by_the_next_run(clean):
    before = clean.points()
    with clean.knobs(faults={"RemoveSnapshot_Task": "NoPermission"}):
        run = clean.backup("--limit=web06")
        again = clean.backup("--limit=web06")
    told = r"could not be cleaned up: snapshot sendense-web06-\S+ of VM web06 is still there \(.*lacks"
    assert re.match(rf"FAILED at 'The snapshot is gone': .*{told}", run.line("web06")), run.output
    assert re.match(rf"FAILED at 'Nothing of a dead job stands in the way': .*{told}", again.line("web06")), (
        again.output
    )
    assert len(clean.ask("/snapshots")["snapshots"]) == 1
    assert clean.points() == before
    again = clean.backup("--limit=web06")
    assert again.code == 0, again.output
    assert len(clean.points()) == len(before) + 1
