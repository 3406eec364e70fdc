# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all unit tests share: the collection's name resolves, and a module can be run as Ansible runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# beside the installed collection (ansible-test) the name resolves already; in a checkout by the links in collections/
ROOTS = [path for path in (ROOT / "collections", *ROOT.parents) if (path / "ansible_collections" / "sendense").is_dir()]
COLLECTIONS = str(ROOTS[0])

if COLLECTIONS not in sys.path:
    sys.path.insert(0, COLLECTIONS)

RunModule = Callable[..., dict[str, Any]]


def run(name: str, args: Mapping[str, Any], check: bool = False, *, env: Mapping[str, str] | None = None,
        timeout: float = 120) -> dict[str, Any]:  # fmt: skip
    """Run the real main() of module *name* in a process of its own and return its result.

    The arguments go in on stdin, so no secret stands in a command line. The result has ``rc``, the exit code, added, and
    ``failed`` where the module left it out. *env* is added to the environment.
    """
    options = {**args, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}  # noqa: S108
    path = os.pathsep.join(filter(None, [COLLECTIONS, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.sendense.backup.plugins.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": options}),
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        pytest.fail(f"module {name} gave no result (exit code {done.returncode}):\n{done.stdout}\n{done.stderr}")
    return {"failed": False, **result, "rc": done.returncode}


@pytest.fixture
def run_module() -> RunModule:
    """Return ``run_module(name, args, check=False, *, env=None, timeout=120) -> dict``."""
    return run
