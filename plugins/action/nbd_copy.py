# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one action plugin under every module of this collection, by ``plugin_routing`` in meta/runtime.yml.

It bears the name of the module that needs it most, because ansible-test wants a module of each action plugin's name.

A lost connection becomes an ordinary failure, because Ansible runs neither ``rescue`` nor ``always`` for a delegate that
is unreachable. ``VMWARE_*`` is looked up here, on the controller, and not in the environment of the node. A copy that
still runs is asked again and its progress shown.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.sendense.backup.plugins.plugin_utils import controller

VCENTER = frozenset({"nbd_copy", "vm_info", "vm_snapshot"})
ENVIRONMENT = {
    "vcenter_hostname": "VMWARE_HOST",
    "vcenter_username": "VMWARE_USER",
    "vcenter_password": "VMWARE_PASSWORD",
}
PATIENCE = 5  # looks at a running copy that may fail for want of a connection, one after the other
PAUSE = 3.0  # seconds between those

display = Display()


class ActionModule(ActionBase):
    """Runs the module of the task's own name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module once, or until what it started has ended."""
        super().run(tmp, task_vars)
        name = self._task.resolved_action or self._task.action
        arguments = self._complete(name.rpartition(".")[2], self._task.args)
        result = self._once(name, arguments, task_vars)
        lost, followed = 0, result.get("transfer", {}).get("state") == "running"
        while result.get("transfer", {}).get("state") == "running":
            self._show(result["transfer"], task_vars or {})
            again = self._once(name, arguments, task_vars)
            lost = lost + 1 if again.get("connection_lost") else 0
            if 0 < lost <= PATIENCE:
                display.display(f"{again['msg']}; the copy goes on without it, asking again")
                time.sleep(PAUSE)
            else:
                result = {**again, "changed": True}
        if followed and not result.get("failed"):
            self._show(result["transfer"], task_vars or {})
        return result

    def _complete(self, module: str, given: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(given)
        if module in VCENTER:
            for option, variable in ENVIRONMENT.items():
                if not arguments.get(option) and os.environ.get(variable):
                    arguments[option] = os.environ[variable]
        if module == "restore_point":
            arguments.setdefault("controller", controller.parent())
        return arguments

    def _once(self, name: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        try:
            result: dict[str, Any] = self._execute_module(module_name=name, module_args=arguments, task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            result = {"unreachable": True, "msg": str(error)}
        if result.pop("unreachable", False):
            host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "the host")
            words = " ".join(str(result.get("msg", "")).split())
            return {"failed": True, "connection_lost": True, "msg": f"the connection to {host} is lost: {words}"}
        return result

    def _show(self, transfer: dict[str, Any], task_vars: dict[str, Any]) -> None:
        for disk in transfer["disks"]:
            done = disk["read"] * 100 // disk["planned"] if disk["planned"] else 100
            rate = disk["read"] / disk["seconds"] / 2**20 if disk["seconds"] else 0
            display.display(
                f"{task_vars.get('inventory_hostname', '')}: disk {disk['key']} {done} % "
                f"of {disk['planned'] / 2**20:.0f} MiB, {rate:.0f} MiB/s"
            )
