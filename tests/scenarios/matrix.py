# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Slow matrices: ``make test`` runs a sample of their cases, ``make matrix`` all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def cases(named: Mapping[str, Any], sample: Collection[str]) -> list[Any]:
    """Return what ``parametrize`` takes. Raises ValueError for a name in *sample* that no case has."""
    if unknown := set(sample) - set(named):
        raise ValueError(f"no such case: {', '.join(sorted(unknown))}")

    def values(case: Any) -> tuple[Any, ...]:
        return case if isinstance(case, tuple) else (case,)

    return [
        pytest.param(*values(case), id=name, marks=() if name in sample else pytest.mark.matrix)
        for name, case in named.items()
    ]
