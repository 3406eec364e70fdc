# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one action plugin under every module of this collection, by ``plugin_routing`` in meta/runtime.yml.

It bears the name of the module that needs it most, because ansible-test wants a module of each action plugin's name.

A lost connection becomes an ordinary failure, because Ansible runs neither ``rescue`` nor ``always`` for a delegate that
is unreachable. ``VMWARE_*`` is looked up here, on the controller, and not in the environment of the node. A copy that
still runs is asked again and its progress shown, as long as the task has patience. What is busy is asked for again until
the task's timeout is over. Of a step that takes long it is said now and then that it is at work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.sendense.backup.plugins.plugin_utils import controller

VCENTER = frozenset(
    {
        "nbd_copy", "trial_vm", "vcenter_info", "vm_cbt", "vm_info", "vm_restore", "vm_restore_info", "vm_snapshot",
        "vm_snapshot_info",
    }
)  # fmt: skip
ENVIRONMENT = {
    "vcenter_hostname": "VMWARE_HOST",
    "vcenter_username": "VMWARE_USER",
    "vcenter_password": "VMWARE_PASSWORD",
}
RECONNECT = 90  # seconds that a node which does not answer is asked again for what it does: it may be booting
PAUSE = 3.0  # seconds between two asks
QUEUE = 5.0  # seconds at most between two asks for what is busy
TOLD = 60.0  # seconds between two words about what is waited for, and between two of progress when it is slow
STEP = 10.0  # percent after which progress is told in any case

display = Display()


class ActionModule(ActionBase):
    """Runs the module of the task's own name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module once, or until what it started has ended."""
        super().run(tmp, task_vars)
        name = self._task.resolved_action or self._task.action
        arguments = self._complete(name.rpartition(".")[2], self._task.args)
        result = self._queue(name, arguments, task_vars)
        if self._task.check_mode:
            return result
        copies = name.rpartition(".")[2] == "nbd_copy" and arguments.get("state") != "absent"
        if result.get("connection_lost") and copies:
            result = {"transfer": {"state": "running", "disks": []}}  # as far as anybody knows
        if result.get("transfer", {}).get("state") != "running":
            return result
        if copies:  # from now on it is only looked at
            arguments = {**{key: value for key, value in arguments.items() if key != "keep"}, "follow": True}
        return self._follow(result, name, arguments, task_vars or {})

    def _follow(
        self, result: dict[str, Any], name: str, arguments: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Ask again for a copy until it has ended, or the task's patience has, and show how far it is."""
        progress, lost = Progress(task_vars.get("inventory_hostname", "")), 0.0
        began, patience = time.monotonic(), int(arguments.get("patience") or 0)
        reconnect = int(arguments.get("reconnect", RECONNECT))
        while result.get("transfer", {}).get("state") == "running":
            progress.show(result["transfer"])
            if patience and not lost and time.monotonic() - began >= patience:
                return result
            if result["transfer"].get("waits"):
                display.display(f"the copy waits for a session with vCenter: {result['transfer']['waits']}")
            again = self._once(name, arguments, task_vars)
            if not again.get("connection_lost"):
                result, lost = {**again, "changed": True}, 0.0
            elif lost and time.monotonic() - lost > reconnect:
                return {**again, "changed": True}
            else:
                lost = lost or time.monotonic()
                display.display(f"{again['msg']}; the copy goes on without it, asking again")
                time.sleep(PAUSE)
        progress.show(result.get("transfer", {}), last=True)
        return result

    def _complete(self, module: str, given: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(given)
        if module in VCENTER:
            for option, variable in ENVIRONMENT.items():
                if not arguments.get(option) and os.environ.get(variable):
                    arguments[option] = os.environ[variable]
        if module in ("job_leftovers", "restore_point", "trial_point", "vm_restore"):
            arguments.setdefault("controller", controller.parent())
        return arguments

    def _queue(self, name: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module, again and again while what it asks for is held by others and ``timeout`` is not over."""
        began, told, pause = time.monotonic(), -TOLD, 1.0
        while (result := self._once(name, arguments, task_vars)).get("busy"):
            timeout, waited = int(arguments.get("timeout") or 0), time.monotonic() - began
            if waited >= timeout:
                return {**result, "msg": f"{result['msg']}; waited {waited:.0f} s"} if timeout else result
            if waited - told >= TOLD:
                display.display(f"{(task_vars or {}).get('inventory_hostname', '')}: waiting, {result['msg']}")
                told = waited
            time.sleep(min(pause, timeout - waited))
            pause = min(pause + 1, QUEUE)
        return result

    def _once(self, name: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        try:
            with self._alive((task_vars or {}).get("inventory_hostname", "")):
                result: dict[str, Any] = self._execute_module(
                    module_name=name, module_args=arguments, task_vars=task_vars
                )
        except AnsibleConnectionFailure as error:
            result = {"unreachable": True, "msg": str(error)}
        if result.pop("unreachable", False):
            host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "the host")
            words = " ".join(str(result.get("msg", "")).split())
            return {"failed": True, "connection_lost": True, "msg": f"the connection to {host} is lost: {words}"}
        return result

    @contextmanager
    def _alive(self, host: str) -> Iterator[None]:
        """Say now and then that a long step is still at work."""
        over, began = threading.Event(), time.monotonic()

        def tell() -> None:
            while not over.wait(TOLD):
                display.display(f"{host}: {self._task.name}, at work for {time.monotonic() - began:.0f} s")

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


class Progress:
    """What is told of a running copy: plain lines, and on a terminal one that lives. It never goes back."""

    def __init__(self, vm: str) -> None:
        self._vm, self._told, self._told_at = vm, -STEP, 0.0
        self._furthest: dict[int, int] = {}  # bytes read, by disk
        self._live = _terminal()

    def show(self, transfer: Mapping[str, Any], *, last: bool = False) -> None:
        """Tell how far *transfer* is, if it is time."""
        disks = [self._forward(disk) for disk in transfer.get("disks", [])]
        if not disks:
            return
        whole = {name: sum(disk[name] or 0 for disk in disks) for name in ("read", "planned", "rate", "written")}
        percent = _percent(whole)
        rests = [disk["eta"] for disk in disks if disk["read"] < disk["planned"]]
        whole["eta"] = None if None in rests else max(rests, default=0)
        told = time.monotonic()
        if last or percent - self._told >= STEP or told - self._told_at >= TOLD:
            end = "\r\x1b[K" if self._live else ""
            display.display(f"{end}{self._vm}: {_words(whole)}")
            for disk in disks if len(disks) > 1 else []:
                display.display(f"{self._vm}: disk {disk['key']} {_words(disk)}")
            self._told, self._told_at = percent, told
        if self._live and not last:
            display.display(f"\r\x1b[K{self._vm}: {_words(whole)} ", newline=False)

    def _forward(self, disk: Mapping[str, Any]) -> dict[str, Any]:
        """Return the disk with what was told of it at least: a copy that was interrupted begins at what is safe."""
        furthest = self._furthest[disk["key"]] = max(disk["read"], self._furthest.get(disk["key"], 0))
        return {"rate": 0, "eta": None, **disk, "read": min(furthest, disk["planned"])}


def _percent(counted: Mapping[str, Any]) -> float:
    return counted["read"] * 100 / counted["planned"] if counted["planned"] else 100.0


def _words(counted: Mapping[str, Any]) -> str:
    """Return how far something is: percent, bytes, rate, and how long it takes yet."""
    eta, done = counted["eta"], counted["read"] >= counted["planned"]
    left = "" if done or eta is None else f", {timedelta(seconds=eta)} left"
    return (
        f"{int(_percent(counted))} % of {counted['planned'] / 2**20:.0f} MiB read, "
        f"{counted['written'] / 2**20:.0f} MiB written, {counted['rate'] / 2**20:.1f} MiB/s{left}"
    )


def _terminal() -> bool:
    """Whether the ansible-playbook whose worker this is writes to a terminal; AWX and logs want whole lines."""
    try:
        return str(Path(f"/proc/{os.getppid()}/fd/1").readlink()).startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
