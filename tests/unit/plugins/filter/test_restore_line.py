# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.restore_line import FilterModule, restore_line

DONE = {"what": "3 disk(s) as raw", "changed": True, "path": "/srv/r", "fetched": ""}
OK = {"vm": "pgtest1", "to": "file", "point": "20261123T140102Z", "passed_over": [], "failure": {}, "done": DONE}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param({}, "pgtest1 20261123T140102Z: ok 3 disk(s) as raw, in /srv/r", id="it went well"),
        pytest.param(
            {"check": True},
            "pgtest1 20261123T140102Z: ok, the run would say: 3 disk(s) as raw, in /srv/r; nothing was done (check mode)",
            id="nothing was done",
        ),
        pytest.param(
            {"done": DONE | {"changed": False}},
            "pgtest1 20261123T140102Z: ok 3 disk(s) as raw, in /srv/r, there already",
            id="it was there",
        ),
        pytest.param(
            {"done": DONE | {"fetched": "/home/me/r", "said": ["it took 3 s"], "left_out": ["./null: no file"]}},
            "pgtest1 20261123T140102Z: ok 3 disk(s) as raw, in /srv/r; copied to /home/me/r on the controller; "
            "left out: ./null: no file; it took 3 s",
            id="more is told",
        ),
        pytest.param(
            {"done": {"what": "2 filesystem(s) shown", "changed": False}},
            "pgtest1 20261123T140102Z: ok 2 filesystem(s) shown, nothing changed",
            id="nothing was to be made",
        ),
        pytest.param({"done": {}}, "pgtest1 20261123T140102Z: ok file", id="a target that says nothing"),
        pytest.param(
            {"passed_over": ["restore point 2: it is damaged"]},
            "pgtest1 20261123T140102Z: ok 3 disk(s) as raw, in /srv/r; newer points were passed over: "
            "restore point 2: it is damaged",
            id="the newest point was not whole",
        ),
        pytest.param(
            {"distrusted": "level data on 2026-11-24T01:00:00Z: disk 2000 rotted"},
            "pgtest1 20261123T140102Z: ok 3 disk(s) as raw, in /srv/r; the point is known to be damaged: "
            "level data on 2026-11-24T01:00:00Z: disk 2000 rotted",
            id="a damaged point was asked for by name",
        ),
        pytest.param(
            {"failure": {"step": "The point is found", "msg": "there is none"}, "done": {}, "point": ""},
            "pgtest1: FAILED at 'The point is found': there is none",
            id="it failed",
        ),
        pytest.param(
            {"vm": "", "failure": {"step": "VM and hub are known", "msg": "Name the VM"}, "done": {}, "point": ""},
            "no VM: FAILED at 'VM and hub are known': Name the VM",
            id="no VM was named",
        ),
    ],
)
def test_the_outcome_is_one_line(changes, line):
    assert restore_line(OK | changes) == line


def test_ansible_finds_it():
    assert FilterModule().filters() == {"restore_line": restore_line}
