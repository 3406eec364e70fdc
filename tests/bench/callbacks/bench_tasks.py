# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes down when each task began and ended, for the bench: a JSON line per task and host in the file BENCH_TASKS."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: bench_tasks
type: notification
short_description: Writes down when each task began and ended
description: A JSON line per task and host, in the file that the environment variable BENCH_TASKS names.
"""


class CallbackModule(CallbackBase):
    """One line per task that ended."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "bench_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._began: dict[tuple[str, str], float] = {}

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note the time."""
        self._began[host.name, task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Write the line."""
        self._write(result, "")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Write the line, with the reason."""
        self._write(result, "" if ignore_errors else str(result._result.get("msg", "no reason is told")))

    v2_runner_on_skipped = v2_runner_on_ok

    def _write(self, result: Any, failure: str) -> None:
        ended, task = time.monotonic(), result._task
        began = self._began.pop((result._host.name, task._uuid), ended)
        line = {
            "task": task.name, "action": task.action, "delegate": task.delegate_to, "began": began, "ended": ended, "failure": failure,
        }  # fmt: skip
        with Path(os.environ["BENCH_TASKS"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
