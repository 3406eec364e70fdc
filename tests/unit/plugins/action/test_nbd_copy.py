# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.sendense.backup.plugins.action import nbd_copy
from ansible_collections.sendense.backup.plugins.action.nbd_copy import ActionModule
from ansible_collections.sendense.backup.plugins.plugin_utils import controller

COLLECTIONS = Path(nbd_copy.__file__).parents[5]
UUID, JOB = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "pgtest1-5029f3ab-20261123T140102Z"


KEEP = "ansible.builtin.copy: {dest: '{{ kept }}/NAME', content: '{{ (WHAT) | to_json }}'}"
PASSWORD = "Kx7-from-the-environment"
PLAY = f"""
- hosts: here
  gather_facts: false
  tasks:
    - block:
        - {{sendense.backup.nbd_export_info: {{uris: []}}, delegate_to: gone}}
      rescue:
        - {KEEP.replace("NAME", "rescued").replace("WHAT", "ansible_failed_result")}
      always:
        - {KEEP.replace("NAME", "always").replace("WHAT", "true")}
    - sendense.backup.vm_info: {{name: x, vcenter_port: "{{{{ dead_port }}}}"}}
      environment: {{VMWARE_HOST: 127.0.0.9}}
      ignore_errors: true
      register: fallback
    - sendense.backup.vm_info: {{name: x, vcenter_port: "{{{{ dead_port }}}}", vcenter_hostname: 127.0.0.3}}
      ignore_errors: true
      register: option
    - sendense.backup.restore_point: {{repository: "{{{{ repository }}}}", state: partial, job: {JOB}, vm: "{{{{ vm }}}}"}}
    - sendense.backup.restore_point_info: {{repository: "{{{{ repository }}}}"}}
      register: look
    - {KEEP.replace("NAME", "fallback").replace("WHAT", "fallback")}
    - {KEEP.replace("NAME", "option").replace("WHAT", "option")}
    - {KEEP.replace("NAME", "holder").replace("WHAT", "look.unfinished[0].controller")}
    - {KEEP.replace("NAME", "gone").replace("WHAT", "look.unfinished[0].controller is sendense.backup.gone_controller")}
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory, with_run):
    """Return what one run of PLAY kept, by name: starting Ansible is what takes the time."""
    folder = tmp_path_factory.mktemp("play")
    for name in ("kept", "repository", "run"):
        (folder / name).mkdir()
    (folder / "repository" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    (folder / "ansible.cfg").write_text("[connection]\npipelining = true\n", encoding="utf-8")
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead_port = listener.getsockname()[1]
    hosts = {
        "here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        "gone": {"ansible_host": "127.0.0.1", "ansible_port": dead_port, "ansible_connection": "ssh"},
    }
    vm = {"instance_uuid": UUID, "disks": [{"key": 2000, "capacity": 512}]}
    known = {"kept": f"{folder}/kept", "repository": f"{folder}/repository", "dead_port": dead_port, "vm": vm}
    (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts, "vars": known}}), encoding="utf-8")
    done = subprocess.run(
        [*with_run(folder / "run"), sys.executable, "-m", "ansible", "playbook", "-vvv", "-i", "hosts.yml", "play.yml"],
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CONFIG": f"{folder}/ansible.cfg",
            "VMWARE_HOST": "127.0.0.2",
            "VMWARE_USER": "backup",
            "VMWARE_PASSWORD": PASSWORD,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = {path.name: json.loads(path.read_text()) for path in (folder / "kept").iterdir()}
    return SimpleNamespace(**kept, said=done.stdout + done.stderr)


def test_a_lost_connection_is_a_failure_that_can_be_rescued(played):
    assert played.rescued["failed"]
    assert not played.rescued.get("unreachable")
    assert played.rescued["msg"].startswith("the connection to gone is lost: ")
    assert "Connection refused" in played.rescued["msg"]
    assert played.always


def test_who_vcenter_is_comes_from_the_environment_of_the_controller(played):
    """The address that cannot be reached shows which one was taken; the task's own environment is that of the node."""
    assert "127.0.0.2" in played.fallback["msg"]
    assert "127.0.0.3" in played.option["msg"]


def test_a_password_is_nowhere_to_be_read(played):
    assert "vcenter_password" in played.said, "arguments are shown"
    assert PASSWORD not in played.said


def test_a_lock_names_the_playbook_that_took_it(played):
    assert played.gone is False, "asked by that very playbook"
    assert controller.is_gone(played.holder), "asked when it has ended"


class Scripted(ActionModule):
    """The plugin with its looks at the module scripted; the rest is as it is."""

    def __init__(self, *results):
        task = SimpleNamespace(
            args={"job": JOB}, resolved_action="sendense.backup.nbd_copy", async_val=0, check_mode=False
        )
        shell = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
        super().__init__(task, shell, None, None, None, None)
        self.left = list(results)

    def _once(self, name, arguments, task_vars):
        return self.left.pop(0)


RUNNING = {"changed": True, "transfer": {"state": "running", "disks": []}}
DONE = {"changed": False, "transfer": {"state": "done", "disks": []}}
LOST = {"failed": True, "connection_lost": True, "msg": "the connection to node1 is lost"}


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(nbd_copy, "PAUSE", 0)


def test_a_copy_is_followed_until_it_ends():
    plugin = Scripted(RUNNING, RUNNING, DONE)
    assert plugin.run(task_vars={}) == DONE | {"changed": True}
    assert not plugin.left


def test_a_lost_connection_does_not_end_a_copy():
    lost = [LOST] * nbd_copy.PATIENCE
    assert Scripted(RUNNING, *lost, RUNNING, *lost, DONE).run(task_vars={})["transfer"]["state"] == "done"


def test_a_node_that_stays_away_is_given_up():
    result = Scripted(RUNNING, *[LOST] * (nbd_copy.PATIENCE + 1)).run(task_vars={})
    assert result["failed"]
    assert result["msg"] == LOST["msg"]


def test_a_copy_that_fails_ends_the_looking():
    failed = {"failed": True, "msg": "disk 2000: no", "transfer": {"state": "failed", "disks": []}}
    result = Scripted(RUNNING, failed).run(task_vars={})
    assert (result["failed"], result["msg"]) == (True, "disk 2000: no")


def test_progress_is_shown_even_of_a_disk_without_data(capsys):
    disks = [
        {"key": 2000, "read": 1 << 20, "planned": 4 << 20, "seconds": 2.0},
        {"key": 2001, "read": 0, "planned": 0, "seconds": 0},
    ]
    Scripted({"transfer": {"state": "running", "disks": disks}}, DONE).run(task_vars={"inventory_hostname": "vm1"})
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["vm1: disk 2000 25 % of 4 MiB, 0 MiB/s", "vm1: disk 2001 100 % of 0 MiB, 0 MiB/s"]
