# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""--check changes nothing on vCenter, nodes or hub, and says what the run then does."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest


@pytest.fixture
def unchanged(clean):
    """Return a function that checks a VM's backup and holds vCenter, hub and nodes to what they were before."""

    def check(vm, *arguments):
        before = clean.state(vm)
        run = clean.backup(f"--limit={vm}", "--check", *arguments)
        after = clean.state(vm)
        for where, was in before.items():
            assert after[where] == was, where
        return run

    return check


def test_a_fresh_vm_would_be_backed_up(unchanged):
    run = unchanged("web07")
    assert run.code == 0, run.output
    would = r"ok, would back up 1 disk\(s\) of 32.0 MiB by (vddk|https) \(.+\); nothing was done \(check mode\)$"
    assert re.match(would, run.line("web07")), run.output


def test_what_a_dead_job_left_would_be_taken_away_first(clean, unchanged):
    """By https, which reads no disk that stands on a snapshot: the check foresees that it does not any more."""
    with clean.slow("web08") as (run, (job,)):
        live = clean.backup("--limit=web08", "--check")
        clean.end(run, signal.SIGKILL)
    assert f"web08 is being backed up by job {job}" in live.line("web08"), "the check refuses what the run would refuse"
    copying = f"systemctl is-active sendense-copy-{job}"
    following = ["pgrep", "--full", "playbooks/backup.yml --limit=web08"]  # what the killed playbook had begun goes on

    def over():
        return clean.node.run(copying).rc != 0 and subprocess.run(following, check=False).returncode == 1

    clean.wait_for("the end of the copy", over)
    check = unchanged("web08", "-e", "backup_transport=https", "-e", "backup_resume=false")
    assert check.code == 0, check.output
    assert f"ok, would take away what {job} left, and back up 1 disk(s) of 32.0 MiB by https" in check.line("web08")
    check = unchanged("web08")
    assert check.code == 0, check.output
    assert f"ok, would go on with {job}, and back up 1 disk(s) of 32.0 MiB by" in check.line("web08")
    run = clean.backup("--limit=web08")
    assert run.code == 0, run.output
    assert f"went on with {job}" in run.line("web08")


def test_what_the_run_would_refuse_is_refused(unchanged):
    run = unchanged("web09", "-e", "backup_repository=/nowhere")
    assert run.code != 0
    assert re.match(r"FAILED at 'The repository is looked at': there is no repository at /nowhere", run.line("web09"))
