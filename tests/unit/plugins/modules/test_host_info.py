# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time


def states(result):
    return {check["name"]: check["state"] for check in result["checks"]}


def test_a_hub_is_looked_at_and_nothing_fails_the_task(run_module, tmp_path):
    (tmp_path / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    options = {"role": "hub", "now": time.time(), "repository": str(tmp_path), "repository_min_free": 0}
    found = run_module("host_info", options)
    assert (found["failed"], found["changed"]) == (False, False)
    assert {
        states(found)[name] for name in ("clock", "qemu-img", "qemu-nbd", "repository", "space of the repository")
    } == {"ok"}
    found = run_module("host_info", {**options, "now": time.time() + 3600, "repository": "/nowhere"}, check=True)
    assert not found["failed"]
    assert {states(found)[name] for name in ("clock", "repository")} == {"failed"}


def test_a_node_tries_each_hub(run_module):
    hubs = [{"name": "hub1", "address": "127.0.0.1", "port": 1}]
    found = run_module("host_info", {"role": "node", "now": time.time(), "transport": "vddk", "hubs": hubs})
    assert not found["failed"]
    assert states(found)["tunnel to hub1"] == "failed"
    assert "transport vddk" in states(found)
