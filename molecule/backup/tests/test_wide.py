# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM with sixteen disks: all at once where there is room for them, and no snapshot where there never is."""

from __future__ import annotations

import re

import pytest

VM = "wide1"


def test_sixteen_disks_are_backed_up_at_once(clean):
    run = clean.backup("-e", f"vm_name={VM}")
    assert run.code == 0, run.output
    manifest, disks = clean.compare(VM)
    assert len(disks) == len(manifest["disks"]) == 16
    assert [disk.key for disk in disks if not disk.equal] == []


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        pytest.param(
            "backup_ports=10100-10114",
            r"16 disks need a port each, and there are only 15 \(10100-10114\): widen sendense_ports",
            id="fewer ports than disks",
        ),
        pytest.param(
            "backup_host_disks=15",
            r".*the job needs 16 at once, and all jobs together may have 15",
            id="fewer open disks of a host than disks",
        ),
    ],
)
def test_a_vm_with_more_disks_than_can_be_is_refused_before_its_snapshot(clean, limit, sentence):
    before, taken = clean.points(), clean.ask("/stats")["soap"].get("CreateSnapshotEx_Task", 0)
    run = clean.backup("-e", f"vm_name={VM}", "-e", limit)
    assert run.code != 0
    assert re.match(rf"FAILED at '[^']+': {sentence}", run.line(VM)), run.output
    assert clean.ask("/stats")["soap"].get("CreateSnapshotEx_Task", 0) == taken
    assert clean.points() == before
