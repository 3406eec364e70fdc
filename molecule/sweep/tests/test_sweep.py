# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a dead job left goes, whatever it is; what lives or is not ours stays, and is told."""

from __future__ import annotations

import json
import shlex
import signal
import time

import pytest

from tests.scenarios.site import SLOW, SLOWER

FAST = dict.fromkeys(SLOW, 0)  # when a copy is to end
UNKNOWN = "web09-{}-20251123T140102Z"


def about(lines, job):
    return [line for line in lines if job in line]


def test_a_killed_run_is_swept_and_one_that_lives_is_not(clean):
    """Two runs: one is killed, and its controller is on a machine that nobody here knows, until its lease is old enough."""
    with clean.knobs(**SLOW):
        living, dying = (clean.start(f"--limit={vm}") for vm in ("web01", "web02"))
        alive, dead = (clean.wait_for_copy(vm) for vm in ("web01", "web02"))
        clean.turn(SLOWER)
        clean.end(dying, signal.SIGKILL)
        lock = clean.hub.check_output(f"grep -l {dead} /run/sendense/leases/vm-*").strip()
        lease = {**json.loads(clean.hub.check_output(f"cat {lock}")), "controller": "another-boot/1/2/3"}

        def write(**changes):
            clean.hub.check_output(f"printf %s {shlex.quote(json.dumps({**lease, **changes}))} > {lock}")

        write()
        code, lines = clean.sweep()
        assert code == 0, lines
        assert all(line.startswith("left alone: ") for line in about(lines, dead)), "its controller may live"
        assert len(about(lines, dead)) == 3, "snapshot, hub, node"

        clean.node.check_output(f"systemctl stop sendense-copy-{dead} sendense-tunnel-{dead}")
        write(expires=time.time() - 13 * 3600)
        before = clean.state("web02")
        code, lines = clean.sweep("--check")
        assert code == 0, lines
        would = [line for line in about(lines, dead) if line.startswith("would be removed: ")]
        assert f"would be removed: VM web02: snapshot sendense-{dead}" in would
        assert f"would be removed: hub1: unit sendense-export-{dead}-2000" in would
        assert f"would be removed: node1: /run/sendense/{dead}" in would
        assert _still(clean.state("web02"), alive) == _still(before, alive), "--check changed something"

        code, lines = clean.sweep()
        assert code == 0, lines
        assert any(f"dead: job {dead}: its lease" in line for line in lines), lines
        assert f"removed: VM web02: snapshot sendense-{dead}" in lines
        assert not [what for what in clean.leftovers().values() if dead in what]
        assert [each["vm"] for each in clean.ask("/snapshots")["snapshots"]] == ["web01"]
        assert all(line.startswith("left alone: ") for line in about(lines, alive)), lines
        assert living.poll() is None
        clean.turn(FAST)
        assert clean.end(living).code == 0, "the run that lives was disturbed"


def _still(state, alive):
    """Return a state without what the run that lives does meanwhile, and without what looking changes."""
    moving = (alive, "/leases", "/progress", "/repository", "ansible", "disk-2000")
    kept = {
        name: [line for line in state[name] if not any(each in line for each in moving)] for name in ("hub", "node")
    }
    return {**kept, "snapshots": state["snapshots"], "change ids": state["change ids"]}


def test_a_run_that_was_killed_here_is_swept_at_once(clean):
    with clean.slow("web03") as (run, (job,)):
        clean.end(run, signal.SIGKILL)
        clean.turn(FAST)
        with clean.knobs(faults={"RemoveSnapshot_Task": "NoPermission"}):
            code, lines = clean.sweep()
        assert code != 0
        assert any(line.startswith(f"FAILED: VM web03: snapshot sendense-{job}: ") for line in lines), lines
        assert [where for where in clean.leftovers() if where.startswith("hub")] == ["hub: partial"], (
            "the mark by which it is found"
        )
        code, lines = clean.sweep()
        assert code == 0, lines
        assert f"removed: VM web03: snapshot sendense-{job}" in lines


def test_what_is_not_ours_or_not_proven_is_told_and_stays(clean):
    """Snapshots of other people, one with our mark that no hub knows, folders without an owner, files of anybody."""
    vms = {each["name"]: each for each in clean.ask("/vms")["vms"]}
    orphan = UNKNOWN.format(vms["web09"]["instance_uuid"][:8])
    mark = json.dumps({"sendense": {"job": orphan, "created": "2025-11-23T14:01:05Z", "quiesce": "off"}})
    folder = f"/backup/repository/vms/{vms['web09']['instance_uuid']}"
    try:
        clean.snapshot("web09", f"sendense-{orphan}", mark)
        clean.snapshot("web08", "before the update", "by hand")
        clean.snapshot("web08", f"sendense-{orphan}", "by hand, too")
        clean.hub.check_output(
            f"mkdir -p {folder}/20251123T140102Z.partial {folder}/20251124T140102Z.partial {folder}/20251125T140102Z.partial"
            f" && touch {folder}/20251125T140102Z.partial/precious && touch -d '13 hours ago' {folder}/20251124T140102Z.partial"
            f" {folder}/20251125T140102Z.partial/* {folder}/20251125T140102Z.partial && touch /run/sendense/notes"
        )
        code, lines = clean.sweep("-e", "sweep_orphans=true")
        assert code == 0, lines
        assert f"removed: hub1: {folder}/20251124T140102Z.partial" in lines
        left = [line.removeprefix("left alone: ") for line in lines if line.startswith("left alone: ")]
        assert any(f"web09: snapshot sendense-{orphan}: no hub" in line and "within 12 h" in line for line in left), (
            lines
        )
        assert any("web08: snapshot before the update" in line and "not a backup job's" in line for line in left), lines
        assert any("web08: snapshot sendense-" in line and "does not carry its mark" in line for line in left), lines
        assert any("20251123T140102Z.partial: it tells no owner, and was changed" in line for line in left), lines
        assert any("20251125T140102Z.partial: it tells no owner, and precious" in line for line in left), lines
        assert any("/run/sendense/notes: its name is not that of a job" in line for line in left), lines
        assert len(clean.ask("/snapshots")["snapshots"]) == 3
        with clean.knobs(clock_skew_seconds=13 * 3600):  # vCenter's clock is what a snapshot's age is told by
            code, lines = clean.sweep()
            assert code == 0, lines
            assert any("the word is not given: -e sweep_orphans=true" in line for line in lines), lines
            assert len(clean.ask("/snapshots")["snapshots"]) == 3
            code, lines = clean.sweep("-e", "sweep_orphans=true")
        assert code == 0, lines
        assert f"removed: VM web09: snapshot sendense-{orphan}" in lines
        assert {each["vm"] for each in clean.ask("/snapshots")["snapshots"]} == {"web08"}
    finally:
        clean.remove_snapshots("web08")
        clean.remove_snapshots("web09")
        clean.hub.check_output(
            f"rm -f /run/sendense/notes {folder}/20251125T140102Z.partial/precious;"
            f" rmdir {folder}/20251123T140102Z.partial {folder}/20251125T140102Z.partial; rmdir {folder}; true"
        )


def test_a_hub_that_cannot_be_asked_fails_the_sweep(clean):
    clean.word("cut", "hub1", "lan")
    try:
        code, lines = clean.sweep()
    finally:
        clean.word("heal", "hub1")
        clean.wait_for("hub1", lambda: clean.hub.run("true").rc == 0)
    assert code != 0
    assert any(line.startswith("FAILED: hub1 could not be looked at") for line in lines), lines


@pytest.fixture(autouse=True)
def fast_again(site):
    """Leave no knob turned."""
    yield
    site.turn({**FAST, "faults": {}, "clock_skew_seconds": 0})
