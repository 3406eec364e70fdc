# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules share that keep one thing of a job: it is present or absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, failure

# documented by the fragment job, and by each module
OPTIONS = {
    "job": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


class Module(Protocol):
    """An AnsibleModule, as far as it is used here."""

    params: dict[str, Any]

    def exit_json(self, **result: Any) -> None:
        """Leave with that result."""

    def fail_json(self, msg: str, **result: Any) -> None:
        """Leave with that sentence."""


def run(module: Module, present: Callable[[Any], dict[str, Any]], absent: Callable[[Any], dict[str, Any]]) -> None:
    """Have *module* leave with what *present* or *absent*, whichever is wished, returns, or with the sentence it raises."""
    try:
        jobs.point_id(module.params["job"])
        result = (present if module.params["state"] == "present" else absent)(module)
    except FAILURES as why:
        module.fail_json(**failure(why))
    else:
        module.exit_json(**result)
