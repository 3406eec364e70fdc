# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What role restore copies to the controller, run by Ansible with this host as hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fetch(tmp_path):
    """Return ``fetch(point) -> ansible-playbook's run``, which fetches a restored disk of that point to ``tmp_path/here``."""

    def run(point):
        made = tmp_path / "hub"
        made.mkdir(exist_ok=True)
        (made / "disk-2000.raw").write_text(point)
        (made / "restored.json").write_text(json.dumps({"wish": {"point": point}}))
        facts = {
            "restore_hub": {"name": "localhost"}, "restore_path": str(made), "restore_fetch_to": str(tmp_path / "here"),
            "__restore_names": ["restored.json", "disk-2000.raw"], "ansible_python_interpreter": sys.executable,
        }  # fmt: skip
        tasks = [{"ansible.builtin.include_tasks": str(ROOT / "roles/restore/tasks/fetch.yml")}]
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": facts, "tasks": tasks}]
        (tmp_path / "play.yml").write_text(json.dumps(play))
        command = [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", tmp_path / "play.yml"]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )

    return run


def test_a_restore_is_not_fetched_over_another_one(fetch, tmp_path):
    here = tmp_path / "here"
    for _time in range(2):  # an interrupted one is done again
        done = fetch("20261123T140102Z")
        assert done.returncode == 0, done.stdout
    refused = fetch("20261124T140102Z")
    assert refused.returncode != 0
    assert f"{here} on the controller holds something else already (disk-2000.raw, restored.json)" in refused.stdout
    assert (here / "disk-2000.raw").read_text() == "20261123T140102Z"


def test_the_folder_of_something_else_stays_as_it_is(fetch, tmp_path):
    here = tmp_path / "here"
    here.mkdir(mode=0o755)
    (here / "mine").write_text("x")
    assert "holds something else already (mine)" in fetch("20261123T140102Z").stdout
    assert (here.stat().st_mode & 0o777, [path.name for path in here.iterdir()]) == (0o755, ["mine"])
