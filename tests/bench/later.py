# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows of the contract whose subject is not built yet."""

from __future__ import annotations

from tests.bench.measure import BenchError, Measured, Rows

rows = Rows()
NOT_BUILT = {
    "incremental_bytes_vs_changed": ("bytes", "≤ 1.05"),
    "incremental_wall_vs_full": ("s", "≤ 0.06"),
    "chain60_read_vs_flat": ("s", "≤ 1.3"),
    "fleet_200_wall_vs_serial_ideal": ("s", "≤ 1.2"),
    "repo_50k_one_vm_ms": ("ms", "≤ 50"),
    "repo_50k_list_s": ("s", "≤ 5"),
    "repo_50k_prune_plan_s": ("s", "≤ 10"),
    "report_2000_vms_render_s": ("s", "≤ 2"),
}


def _not_built() -> Measured:
    raise BenchError("not built yet")


for _name, (_unit, _aim) in NOT_BUILT.items():
    rows.add(_name, _unit, _aim, _not_built)
