# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's package lies beside the collection, not in it: an installed collection has neither it nor these tests' subject."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

collect_ignore_glob = [] if (ROOT / "lab" / "__main__.py").exists() else ["test_*.py"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab of a checkout in tmp_path, with its state and cache there too."""
    from lab import instance

    state = tmp_path / "state"
    monkeypatch.setattr(instance, "STATE_HOME", state)
    monkeypatch.setenv("SENDENSE_LAB_CACHE", str(tmp_path / "cache"))
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    return instance.Lab(checkout)
