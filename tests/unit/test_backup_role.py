# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What role backup decides, and in which order, where another way works as long as nothing is slow or dies."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[2] / "roles/backup"
TASKS = ROLE / "tasks"


def steps(name: str) -> list[str]:
    """Return the modules that the tasks of a file run, those of the files which it includes in their places."""
    found = []
    for task in yaml.safe_load((TASKS / name).read_text()):
        included = task.get("ansible.builtin.include_tasks", task.get("ansible.builtin.import_tasks"))
        ours = [key for key in task if key.startswith("sendense.backup.")]
        found += steps(included) if included == "read.yml" else ours
    return [step.removeprefix("sendense.backup.") for step in found]


def test_no_snapshot_is_taken_before_there_is_room_for_it_and_exports_stand():
    """Without exports a job is dead 15 minutes after its last step on the hub, and vCenter may take longer than that."""
    order = steps("run.yml")
    for snapshot in ("vm_cbt", "vm_snapshot"):
        assert order.index("nbd_export") < order.index("lease") < order.index(snapshot)
    assert order.index("vm_cbt") < order.index("vm_snapshot"), "it takes effect with the snapshot that it takes"


STANDING = {  # transport, which of the two exports run, whether the run goes on
    "all stand": ("vddk", [True, True], True),
    "one is copied anew": ("vddk", [True, False], True),
    "none stands": ("vddk", [False, False], False),
    "all of a client's stand": ("client", [True, True], True),
    "a client copies nothing anew": ("client", [True, False], False),
}


@pytest.mark.parametrize(("transport", "running", "goes_on"), STANDING.values(), ids=STANDING)
def test_a_run_goes_on_while_what_is_lost_can_be_copied_anew(transport, running, goes_on):
    job = f"web1-5029f3ab-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    loader = DataLoader()
    variables = loader.load_from_file(str(ROLE / "vars/main.yml"), trusted_as_template=True)
    seen = {
        "__backup_look": {"transport": {"name": transport}, "vm": {"snapshots": [{"name": f"sendense-{job}"}]}},
        "__backup_found": {
            "kept": {"vm": {"disks": [{}, {}]}, "transport": transport}, "transfer": {"state": "done"},
        },
        "__backup_standing": {"exports": [{"running": each} for each in running]},
        "__backup_dead_job": {"job": job}, "backup_node": {"name": "node1"}, "backup_resume_hours": 12,
    }  # fmt: skip
    obstacle = Templar(loader, variables=variables | seen).template(variables["_backup_obstacle"])
    assert (obstacle.strip() == "") is goes_on, obstacle
