# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import VddkSource
from ansible_collections.sendense.backup.plugins.module_utils.transfer.writer import VddkTarget

GIVEN = {
    "server": "vcenter.example.com", "port": 443, "user": "u", "password_file": "/run/p", "thumbprint": "AA:BB", "vm": "vm-1",
    "snapshot": "", "path": "[datastore1] web1/web1.vmdk",
}  # fmt: skip


def test_only_a_target_is_served_to_be_written_and_it_has_no_snapshot():
    written = reader.command(VddkTarget(**GIVEN), Path("/run/s"), Path("/run/r"))
    read = reader.command(VddkSource(**{**GIVEN, "snapshot": "snapshot-9"}), Path("/run/s"), Path("/run/r"))
    assert set(read) - set(written) == {"--readonly", "snapshot=snapshot-9"}
    assert set(written) <= set(read)
    assert {each.name for each in fields(VddkTarget)} == {each.name for each in fields(VddkSource)}
