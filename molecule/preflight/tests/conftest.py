# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as its operator has it, with one node, and the playbook that checks it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenarios import site as scenarios


class Site(scenarios.Site):
    """A site that is checked."""

    folder: Path

    def begin(self, *arguments):
        """Start playbooks/preflight.yml on hub1 and node1, in a process group of its own."""
        only = json.dumps(
            {"preflight_hubs": ["hub1"], "preflight_nodes": ["node1"], "preflight_report": str(self.folder / "report")}
        )
        return self.start("-e", only, *arguments, playbook="preflight")

    def ended(self, process):
        """Return exit code, output and report of a preflight once it has ended."""
        run, report = self.end(process), self.folder / "report.json"
        assert report.exists(), run.output
        return run.code, run.output, json.loads(report.read_text())

    def preflight(self, *arguments):
        """Run playbooks/preflight.yml; returns its exit code, its output and its report."""
        return self.ended(self.begin(*arguments))

    def trial(self, name):
        """Return the words for a trial whose VM has that name."""
        return ("-e", f"preflight_sacrifice=/DC0/vm/prod/{name}", "-e", "preflight_sacrifice_datastore=datastore1")

    def begin_trial(self, name):
        """Start a preflight with a trial whose VM has that name; returns once that is whole."""
        process = self.begin(*self.trial(name))

        def whole():
            return name in self.vms() and self.node.run(f"ls -d /run/sendense/restore-{name}-*").rc != 0

        self.wait_for(f"VM {name}", whole)
        return process

    def failed(self, *arguments):
        """Return where and what failed in a preflight that has to fail."""
        code, output, report = self.preflight(*arguments)
        assert code != 0, output
        return {(check["where"], check["name"]): check for check in report["checks"] if check["state"] == "failed"}


@pytest.fixture(scope="session")
def site(hub, node):
    """Return the lab as a site with one node."""
    return Site(hub, node, node)


@pytest.fixture
def clean(site, tmp_path):
    """Return the site; a preflight leaves nothing behind."""
    site.folder, before = tmp_path, (site.vms().keys(), site.points())
    yield site
    assert site.leftovers() == {}
    assert (site.vms().keys(), site.points()) == before
    assert site.hub.run("ls -d /backup/repository.preflight").rc != 0
