# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writing a VMware disk: what is served for a reader, with another plugin's word or two, for writing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ansible_collections.sendense.backup.plugins.module_utils.commands import Command
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import VddkSource


@dataclass(frozen=True)
class VddkTarget(VddkSource):
    """A disk of a VM that does not run and has no snapshot, as VMware's library writes it; ``snapshot`` is empty."""

    writable: ClassVar[bool] = True

    def words(self) -> Command:
        """Return what nbdkit is told of it: as for reading, without a snapshot."""
        return [word for word in super().words() if not word.startswith("snapshot=")]
