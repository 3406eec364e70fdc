# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as its operator has it, with one node, and the playbook that sweeps it."""

from __future__ import annotations

import pytest

from tests.scenarios import site as scenarios


class Site(scenarios.Site):
    """A site that is swept."""

    def sweep(self, *arguments):
        """Run playbooks/sweep.yml; returns its exit code and the lines of its summary."""
        run = self.end(self.start(*arguments, playbook="sweep"))
        told = run.output.partition("TASK [What came of it]")[2].partition("\nTASK [")[0]
        lines = [
            "".join(f" {part.strip()}" for part in each.splitlines()).strip() for each in told.split("\n    - ")[1:]
        ]
        assert lines, run.output
        return run.code, [line.strip("'").replace("''", "'") for line in lines]

    def snapshot(self, vm, name, description):
        """Take a snapshot as a person does, or anybody else."""
        self.administrator(vm, f"CreateSnapshotEx_Task({name!r}, {description!r}, False, None)")

    def remove_snapshots(self, vm):
        """Remove all snapshots of a VM."""
        if self.ask("/snapshots", vm=vm)["snapshots"]:
            self.administrator(vm, "RemoveAllSnapshots_Task()")


@pytest.fixture(scope="session")
def site(hub, node):
    """Return the lab as a site with one node."""
    return Site(hub, node, node)
