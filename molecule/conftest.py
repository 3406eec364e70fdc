# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's machines as testinfra sees them, for every scenario."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import testinfra

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = PROJECT / "inventories/lab"


def pytest_collection_modifyitems(config, items):
    """Leave out what only ``make matrix`` runs."""
    if os.environ.get("MATRIX") != "whole":
        left_out = [item for item in items if item.get_closest_marker("matrix")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def hub():
    """Return hub1."""
    return testinfra.get_host(f"ansible://hub1?ansible_inventory={INVENTORY}")


@pytest.fixture(scope="session")
def node():
    """Return node1."""
    return testinfra.get_host(f"ansible://node1?ansible_inventory={INVENTORY}")


@pytest.fixture(scope="session")
def other_node():
    """Return node2, which scenario backup raises."""
    return testinfra.get_host(f"ansible://node2?ansible_inventory={INVENTORY}")


@pytest.fixture(scope="session")
def address_of():
    """Return a function that tells the address of a machine."""
    return lambda host: host.backend.ansible_runner.get_variables(host.backend.host)["ansible_host"]


@pytest.fixture(scope="session")
def provision():
    """Return a function that runs playbooks/provision.yml; it returns the exit code and the output without line breaks."""

    def run(*arguments):
        command = ["ansible-playbook", f"--inventory={INVENTORY}", *arguments, f"{PROJECT}/playbooks/provision.yml"]
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    return run


@pytest.fixture
def clean(site):
    """Return the site of a scenario that has one, and hold it to this: no test leaves anything behind."""
    yield site
    assert site.leftovers() == {}
