# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as its operator has it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.site import Site


@pytest.fixture(scope="session")
def site(hub: Any, node: Any, other_node: Any) -> Site:
    """Return the lab as a site."""
    return Site(hub, node, other_node)
