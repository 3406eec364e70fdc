# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's machines as testinfra sees them, for every scenario."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import testinfra

INVENTORY = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"], "inventories/lab")


@pytest.fixture(scope="session")
def hub():
    """Return hub1."""
    return testinfra.get_host(f"ansible://hub1?ansible_inventory={INVENTORY}")


@pytest.fixture(scope="session")
def node():
    """Return node1."""
    return testinfra.get_host(f"ansible://node1?ansible_inventory={INVENTORY}")
