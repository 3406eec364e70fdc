# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs of govmomi that no package repository has, built once with the Go of the lab (tests/bench/go)."""

from __future__ import annotations

from pathlib import Path

from lab import cache, simulator
from lab.instance import here

SOURCES = Path(__file__).parent / "go"


def built(name: str) -> Path:
    """Return the program ``govc`` or ``vcsim``."""
    go = simulator.go_command(here())

    def build(part: Path, tool: cache.Tool) -> None:
        part.mkdir()
        tool(
            *(go, "build", "-trimpath", "-buildvcs=false", "-o", part, "./..."),
            what=f"building {SOURCES}",
            folder=SOURCES,
            environment={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        )

    key = cache.fingerprint([SOURCES])
    return cache.built(here(), "bench", key, build, what="govc and vcsim for the bench") / name
