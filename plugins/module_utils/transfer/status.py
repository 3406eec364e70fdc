# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a copy is: the status file for whoever follows it, and the part of it that anybody on the node may read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import files, jobs
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import STATUS


class Status:
    """The status file in *folder* and, if that is wished, what of it anybody may read in *public*."""

    def __init__(self, folder: Path, public: Path | None) -> None:
        self._folder, self._public = folder, public
        self._furthest = 0.0  # percent of all disks: a disk of which more is planned than was would let it go back

    def write(self, status: dict[str, Any]) -> dict[str, Any]:
        """Write what is known now, and return it."""
        jobs.write_private(self._folder / STATUS, json.dumps(status))
        if self._public:
            shown = summary(status)
            self._furthest = shown["percent"] = max(self._furthest, shown["percent"])
            files.write(self._public, json.dumps(shown).encode(), mode=0o644)
        return status


def summary(status: dict[str, Any]) -> dict[str, Any]:
    """Return what of a status anybody on the node may read: how far it is, and nothing of where and how."""
    shown = ("key", "percent", "planned", "read", "written", "rate", "eta")
    disks = [{name: disk[name] for name in shown} for disk in status["disks"]]
    planned, read, written, rate = (sum(disk[name] for disk in disks) for name in shown[2:6])
    slowest = [disk["eta"] for disk in disks if disk["planned"] > disk["read"]]
    return {
        "state": status["state"],
        "updated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "percent": round(read * 100 / planned, 1) if planned else 100.0,
        "planned": planned,
        "read": read,
        "written": written,
        "rate": rate,
        "eta": None if None in slowest else max(slowest, default=0),
        "disks": disks,
    }
