# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
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

    def __init__(self, *results, **arguments):
        task = SimpleNamespace(
            args={"job": JOB, **arguments}, resolved_action="sendense.backup.nbd_copy", async_val=0, check_mode=False
        )
        shell = SimpleNamespace(_shell=SimpleNamespace(tmpdir="/nowhere"))
        super().__init__(task, shell, None, None, None, None)
        self.left = list(results)

        self.asked = []

    def _once(self, name, arguments, task_vars):
        self.asked.append(arguments)
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


def test_only_a_copy_is_looked_at_in_words_of_its_own():
    """What sends a restore runs on, too; its module takes the same options each time."""
    copying, sending = Scripted(RUNNING, DONE, keep={"vm": 1}), Scripted(RUNNING, DONE, keep=["mac"])
    sending._task.resolved_action = "sendense.backup.vm_restore"
    for plugin in (copying, sending):
        plugin.run(task_vars={})
    assert copying.asked == [{"job": JOB, "keep": {"vm": 1}}, {"job": JOB, "follow": True}]
    assert sending.asked[0] == sending.asked[1]
    assert "follow" not in sending.asked[1]


def test_a_lost_connection_does_not_end_a_copy(clock, monkeypatch):
    monkeypatch.setattr(nbd_copy, "PAUSE", 10.0)
    lost = [LOST] * 9
    assert Scripted(RUNNING, *lost, RUNNING, *lost, DONE).run(task_vars={})["transfer"]["state"] == "done"


@pytest.mark.parametrize(("given", "seconds", "left"), [({}, 90, 19), ({"reconnect": "30"}, 30, 25)])
def test_a_node_that_stays_away_is_given_up(clock, monkeypatch, given, seconds, left):
    monkeypatch.setattr(nbd_copy, "PAUSE", 10.0)
    plugin = Scripted(RUNNING, *[LOST] * 30, **given)
    result = plugin.run(task_vars={})
    assert result["failed"]
    assert result["msg"] == LOST["msg"]
    assert (clock.now, len(plugin.left)) == (1000 + seconds + 10, left)


def test_a_task_without_patience_left_ends_before_the_copy_does(clock):
    """Its role then tells the hub that the job lives, and follows the copy further."""
    plugin = Scripted(*[RUNNING] * 10, patience="7200")
    asked = plugin._once
    plugin._once = lambda *words: [asked(*words), setattr(clock, "now", clock.now + 1000)][0]
    assert plugin.run(task_vars={}) == RUNNING
    assert (plugin.left, clock.now) == ([RUNNING], 1000 + 9000)


def test_a_copy_is_never_left_at_the_moment_when_its_node_is_away(clock, monkeypatch):
    monkeypatch.setattr(nbd_copy, "PAUSE", 10.0)
    assert Scripted(RUNNING, LOST, LOST, RUNNING, DONE, patience=15).run(task_vars={}) == RUNNING
    assert clock.now == 1000 + 20
    gone = Scripted(RUNNING, *[LOST] * 30, patience=15).run(task_vars={})
    assert gone["failed"]


def test_a_copy_is_asked_for_again_whenever_its_node_goes(clock, monkeypatch):
    """It may have begun, or not: the node knows when it is there again."""
    monkeypatch.setattr(nbd_copy, "PAUSE", 10.0)
    plugin = Scripted(LOST, LOST, RUNNING, DONE, keep={"vm": 1})
    assert plugin.run(task_vars={})["transfer"]["state"] == "done"
    assert plugin.asked[1:] == [{"job": JOB, "follow": True}] * 3
    assert Scripted(LOST, state="absent").run(task_vars={}) == LOST, "there is nothing to wait for"


def test_a_look_in_check_mode_is_one_look():
    plugin = Scripted(RUNNING, DONE)
    plugin._task.check_mode = True
    assert plugin.run(task_vars={}) == RUNNING
    plugin.left, plugin._task.args["follow"] = [LOST, DONE], True
    assert plugin.run(task_vars={}) == LOST


def test_a_copy_that_fails_ends_the_looking():
    failed = {"failed": True, "msg": "disk 2000: no", "transfer": {"state": "failed", "disks": []}}
    result = Scripted(RUNNING, failed).run(task_vars={})
    assert (result["failed"], result["msg"]) == (True, "disk 2000: no")


def disk(key, read, planned=400 << 20, **more):
    return {
        "key": key,
        "read": read << 20,
        "written": read << 19,
        "planned": planned,
        "rate": 5 << 20,
        "eta": 90,
        **more,
    }


def running(*disks):
    return {"transfer": {"state": "running", "disks": list(disks)}}


def test_progress_is_shown_even_of_a_disk_without_data(clock, capsys):
    disks = [disk(2000, 100), disk(2001, 0, planned=0, rate=0, eta=None)]
    Scripted(running(*disks), DONE).run(task_vars={"inventory_hostname": "vm1"})
    assert capsys.readouterr().out.splitlines() == [
        "vm1: 25 % of 400 MiB read, 50 MiB written, 5.0 MiB/s, 0:01:30 left",
        "vm1: disk 2000 25 % of 400 MiB read, 50 MiB written, 5.0 MiB/s, 0:01:30 left",
        "vm1: disk 2001 100 % of 0 MiB read, 0 MiB written, 0.0 MiB/s",
    ]


def test_progress_is_told_when_it_has_moved_and_never_goes_back(clock, capsys):
    steps = [0, 4, 44, 20, 84, 400]
    last = {"transfer": {"state": "done", "disks": [disk(2000, 400, eta=0)]}}
    Scripted(*(running(disk(2000, step)) for step in steps), last).run(task_vars={"inventory_hostname": "vm1"})
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["0", "11", "21", "100", "100"]


def test_a_step_that_takes_long_says_that_it_is_at_work(monkeypatch, capsys):
    monkeypatch.setattr(nbd_copy, "TOLD", 0.05)
    plugin = Scripted()
    plugin._task.name = "The snapshot is gone"
    with plugin._alive("vm1"):
        time.sleep(0.12)
    assert capsys.readouterr().out.splitlines() == ["vm1: The snapshot is gone, at work for 0 s"] * 2


def busy(who):
    return {"failed": True, "busy": True, "msg": f"leased by {who}"}


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that only sleeping moves, as ``SimpleNamespace(now=…)``."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(nbd_copy.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(nbd_copy.time, "sleep", lambda seconds: setattr(clock, "now", clock.now + seconds))
    return clock


def test_what_is_busy_is_asked_for_until_it_is_to_be_had(clock, capsys):
    plugin = Scripted(busy("a"), busy("a"), busy("b"), {"changed": True}, timeout="600")
    assert plugin.run(task_vars={"inventory_hostname": "vm1"}) == {"changed": True}
    assert (plugin.left, clock.now) == ([], 1000 + 1 + 2 + 3)
    assert capsys.readouterr().out.splitlines() == ["vm1: waiting, leased by a"]


def test_what_stays_busy_fails_when_the_time_is_over(clock, capsys):
    plugin = Scripted(*[busy("a")] * 40, timeout=150)
    result = plugin.run(task_vars={"inventory_hostname": "vm1"})
    assert (result["failed"], result["msg"], clock.now) == (True, "leased by a; waited 150 s", 1150)
    assert capsys.readouterr().out.splitlines() == ["vm1: waiting, leased by a"] * 3, "about once a minute"
    assert len(plugin.left) > 5, "and it is not asked all the time"


@pytest.mark.parametrize("arguments", [{}, {"timeout": 0}, {"timeout": ""}])
def test_without_a_timeout_nobody_waits(clock, arguments):
    assert Scripted(busy("a"), **arguments).run(task_vars={}) == busy("a")
    assert clock.now == 1000


def test_another_failure_ends_the_waiting(clock):
    refused = {"failed": True, "msg": "no"}
    assert Scripted(busy("a"), refused, timeout=600).run(task_vars={}) == refused
