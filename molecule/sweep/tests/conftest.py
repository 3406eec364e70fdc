# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as its operator has it, with one node, and the playbook that sweeps it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.scenarios import site as scenarios

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])


class Site(scenarios.Site):
    """A site that is swept."""

    def sweep(self, *arguments):
        """Run playbooks/sweep.yml; returns its exit code and the lines of its summary."""
        command = [
            "ansible-playbook",
            f"--inventory={PROJECT}/inventories/lab",
            f"{PROJECT}/playbooks/sweep.yml",
            *arguments,
        ]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        told = done.stdout.partition("TASK [What came of it]")[2].partition("\nTASK [")[0]
        lines = [
            "".join(f" {part.strip()}" for part in each.splitlines()).strip() for each in told.split("\n    - ")[1:]
        ]
        assert lines, done.stdout
        return done.returncode, [line.strip("'").replace("''", "'") for line in lines]

    def snapshot(self, vm, name, description):
        """Take a snapshot as a person does, or anybody else."""
        self._do(vm, f"CreateSnapshotEx_Task({name!r}, {description!r}, False, None)")
        self.wait_for(f"snapshot {name}", lambda: name in self._snapshots(vm))

    def remove_snapshots(self, vm):
        """Remove all snapshots of a VM."""
        if self._snapshots(vm):
            self._do(vm, "RemoveAllSnapshots_Task()")
            self.wait_for(f"no snapshot of {vm}", lambda: not self._snapshots(vm))

    def _snapshots(self, vm):
        return [each["name"] for each in self.ask("/snapshots", vm=vm)["snapshots"]]

    def _do(self, vm, act):
        """Have the node start a task of a VM: from here there is no way to vCenter."""
        vcenter = self.lab_json["vcenter"]
        moref = next(each["moref"] for each in self.ask("/vms")["vms"] if each["name"] == vm)
        password = vcenter["password_file"].read_text().strip()
        program = f"""
import ssl
from pyVim.connect import SmartConnect, Disconnect
from pyVmomi import vim
there = SmartConnect(host={vcenter["hostname"]!r}, user={vcenter["user"]!r}, pwd={password!r}, sslContext=ssl._create_unverified_context())
try:
    vim.VirtualMachine({moref!r}, there._stub).{act}
finally:
    Disconnect(there)
"""
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "lab", "ssh", "node1", "python3 -"],
            cwd=PROJECT,
            input=program,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def site(hub, node):
    """Return the lab as a site with one node."""
    return Site(hub, node, node)
