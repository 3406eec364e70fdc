# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.backup_line import FilterModule, backup_line

MANIFEST = {
    "point": "20261123T140102Z",
    "consistency": {"quiesce_requested": "prefer", "quiesce_achieved": True, "quiesce_reason": ""},
    "disks": [
        {"provisioned": 20 << 30, "read": 1 << 30, "written": 512 << 20, "stored": 513 << 20, "map": "used"},
        {"provisioned": 1536, "read": 1536, "written": 1024, "stored": 200, "map": "none"},
    ],
}
OK = {"failure": None, "manifest": MANIFEST, "deaths": [], "left": []}
FAILED = OK | {"failure": {"step": "The disks are copied", "msg": "disk 2000: no"}, "manifest": None}
RESTLESS = {"quiesce_requested": "prefer", "quiesce_achieved": False, "quiesce_reason": "no VMware Tools"}


@pytest.mark.parametrize(
    ("result", "line"),
    [
        pytest.param(
            OK,
            "ok full 20261123T140102Z, 2 disk(s), 1 of them read whole for want of change tracking: "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB",
            id="it went well",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": MANIFEST["disks"][1:]}},
            "ok full 20261123T140102Z, 1 disk(s), 1 of them read whole for want of change tracking: "
            "provisioned 1.5 KiB, read 1.5 KiB, written 1.0 KiB, stored 200 B",
            id="a small disk is told in small units",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": [MANIFEST["disks"][0] | {"provisioned": 3 << 40}]}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 3.0 TiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB",
            id="a large one in large units",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": [MANIFEST["disks"][0] | {"map": "refuted"}]}},
            "ok full 20261123T140102Z, 1 disk(s), 1 of them read whole because vCenter's map left data out: "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB",
            id="a map that was not believed is told",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": MANIFEST["disks"][:1], "consistency": RESTLESS}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, guest not brought to rest",
            id="a guest that was not brought to rest is told",
        ),
        pytest.param(FAILED, "FAILED at 'The disks are copied': disk 2000: no", id="it failed"),
        pytest.param(
            FAILED | {"left": ["a snapshot", "a lease"]},
            "FAILED at 'The disks are copied': disk 2000: no; could not be cleaned up: a snapshot; a lease",
            id="and left something",
        ),
        pytest.param(
            FAILED | {"deaths": ["an export was killed"], "left": ["a lease"]},
            "FAILED at 'The disks are copied': disk 2000: no; an export was killed; could not be cleaned up: a lease",
            id="an export that had died is told, and is not what was left",
        ),
        pytest.param({}, "FAILED without an outcome; its own output above says why", id="it never came to an outcome"),
        pytest.param(OK | {"manifest": {}}, "ok, nothing was done (check mode)", id="check mode"),
    ],
)
def test_one_line_tells_how_it_went(result, line):
    assert backup_line(result) == line


def test_a_good_point_whose_job_left_something_is_no_success():
    line = backup_line(OK | {"left": ["the snapshot"]})
    assert line.startswith("FAILED full 20261123T140102Z")
    assert line.endswith("; could not be cleaned up: the snapshot")


def test_a_good_point_is_good_though_the_export_of_a_dead_job_had_been_killed():
    assert backup_line(OK | {"deaths": ["sendense-export-x killed by SIGKILL"]}) == backup_line(OK)


def test_playbooks_use_this_name():
    assert FilterModule().filters() == {"backup_line": backup_line}
