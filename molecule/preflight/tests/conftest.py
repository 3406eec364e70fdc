# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as its operator has it, with one node, and the playbook that checks it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.scenarios import site as scenarios

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])


class Site(scenarios.Site):
    """A site that is checked."""

    folder: Path

    def begin(self, *arguments):
        """Start playbooks/preflight.yml on hub1 and node1, in a process group of its own."""
        only = json.dumps(
            {"preflight_hubs": ["hub1"], "preflight_nodes": ["node1"], "preflight_report": str(self.folder / "report")}
        )
        command = ["ansible-playbook", f"--inventory={PROJECT}/inventories/lab", f"{PROJECT}/playbooks/preflight.yml"]
        return subprocess.Popen(
            [*command, "-e", only, *arguments],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ended(self, process):
        """Return exit code, output and report of a preflight once it has ended."""
        output, _nothing = process.communicate(timeout=300)
        report = self.folder / "report.json"
        assert report.exists(), output
        return process.returncode, output, json.loads(report.read_text())

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

    def vms(self):
        """Return the names of the VMs that vCenter has."""
        return {each["name"] for each in self.ask("/vms")["vms"]}

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
    site.folder, before = tmp_path, (site.vms(), site.points())
    yield site
    assert site.leftovers() == {}
    assert (site.vms(), site.points()) == before
    assert site.hub.run("ls -d /backup/repository.preflight").rc != 0
