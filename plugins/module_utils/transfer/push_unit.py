# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sending of a point's disks as a unit of its own on the node: what is special about it among detached programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.transfer import push
from ansible_collections.sendense.backup.plugins.module_utils.transfer.detached import Detached
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter

PUSH = Detached("push", push.__name__, "the sending")
VM = "vm.json"  # what this job makes at vCenter


def remember(job: str, **what: Any) -> None:
    """Keep what the job makes at vCenter, where whoever takes it away finds it."""
    jobs.write_private(PUSH.make_folder(job) / VM, json.dumps({**remembered(job), **what}))


def remembered(job: str) -> dict[str, Any]:
    """Return what was kept."""
    try:
        found: dict[str, Any] = json.loads((PUSH.folder(job) / VM).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def start(job: str, disks: list[push.Disk], vcenter: VCenter, lease: Mapping[str, Any] | None) -> None:
    """Start sending *disks*. Raises SendenseError when systemd refuses."""
    work, password = PUSH.make_work(job), PUSH.make_folder(job) / "password"
    jobs.write_private(password, vcenter.password)
    login = {name: value for name, value in asdict(vcenter).items() if name != "password"}
    request = {
        "work": str(work),
        "vcenter": login,
        "password_file": str(password),
        "lease": lease,
        "disks": [asdict(disk) for disk in disks],
    }
    PUSH.start(job, request, [jobs.folder(job), work])


def password_file(job: str) -> str:
    """Return where the password lies while the push runs."""
    return str(PUSH.folder(job) / "password")
