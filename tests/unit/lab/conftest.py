# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the lab share. The lab is not part of an installed collection, and neither are they."""

from __future__ import annotations

import pytest

from lab import instance


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab of a checkout in tmp_path, with its state and cache there too."""
    state = tmp_path / "state"
    monkeypatch.setattr(instance, "STATE_HOME", state)
    monkeypatch.setenv("SENDENSE_LAB_CACHE", str(tmp_path / "cache"))
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    return instance.Lab(checkout)
