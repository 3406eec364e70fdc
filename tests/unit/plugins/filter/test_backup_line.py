# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.filter.backup_line import FilterModule, backup_line

MANIFEST = {
    "point": "20261123T140102Z",
    "transport": "https",
    "transport_reason": "",
    "consistency": {"quiesce_requested": "prefer", "quiesce_achieved": True, "quiesce_reason": ""},
    "disks": [
        {"provisioned": 20 << 30, "read": 1 << 30, "written": 512 << 20, "stored": 513 << 20, "map": "used"},
        {"provisioned": 1536, "read": 1536, "written": 1024, "stored": 200, "map": "none"},
    ],
}
BLIND = MANIFEST["disks"][0] | {"key": 2000, "read": None, "allocated": 1 << 30, "map": "client", "digests_of": "image"}
HTTPS = {"name": "https", "reason": "no VDDK on the node"}
NOTHING = {"failure": None, "deaths": [], "left": [], "away": []}
OK = NOTHING | {"manifest": MANIFEST}
WOULD = NOTHING | {"manifest": {}, "transport": HTTPS, "disks": [1 << 30, 1 << 30], "reconciled": []}
FAILED = OK | {"failure": {"step": "The disks are copied", "msg": "disk 2000: no"}, "manifest": None}
UNTOLD = {"quiesce_requested": "prefer", "quiesce_achieved": None, "quiesce_reason": "it does not tell"}
RESTLESS = {"quiesce_requested": "prefer", "quiesce_achieved": False, "quiesce_reason": "no VMware Tools"}


@pytest.mark.parametrize(
    ("result", "line"),
    [
        pytest.param(
            OK,
            "ok full 20261123T140102Z, 2 disk(s), 1 of them read whole for want of change tracking: "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https",
            id="it went well",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": MANIFEST["disks"][1:]}},
            "ok full 20261123T140102Z, 1 disk(s), 1 of them read whole for want of change tracking: "
            "provisioned 1.5 KiB, read 1.5 KiB, written 1.0 KiB, stored 200 B, by https",
            id="a small disk is told in small units",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": [MANIFEST["disks"][0] | {"provisioned": 3 << 40}]}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 3.0 TiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https",
            id="a large one in large units",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": [MANIFEST["disks"][0] | {"map": "refuted"}]}},
            "ok full 20261123T140102Z, 1 disk(s), 1 of them read whole because vCenter's map left data out: "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https",
            id="a map that was not believed is told",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": MANIFEST["disks"][:1], "consistency": RESTLESS}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, guest not brought to rest, by https",
            id="a guest that was not brought to rest is told",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": [BLIND], "consistency": UNTOLD, "transport": "client"}},
            "ok full 20261123T140102Z, 1 disk(s): provisioned 20.0 GiB, allocated 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, "
            "nobody knows whether the guest was brought to rest, not held against the source: disk 2000, by client",
            id="what a client copied is told with what is not known of it",
        ),
        pytest.param(
            OK | {"manifest": MANIFEST | {"disks": MANIFEST["disks"][:1], "transport_reason": "no VDDK on the node"}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https (no VDDK on the node)",
            id="why it was read so is told",
        ),
        pytest.param(
            OK
            | {
                "manifest": MANIFEST
                | {"disks": MANIFEST["disks"][:1], "skipped": [{"key": 2002, "label": "Hard disk 3"}]}
            },
            "ok full 20261123T140102Z, 1 disk(s), disk 2002 (Hard disk 3) left out: "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https",
            id="a disk that is not in it is told",
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
        pytest.param(
            OK | {"away": ["node9 could not be reached"], "manifest": MANIFEST | {"disks": MANIFEST["disks"][:1]}},
            "ok full 20261123T140102Z, 1 disk(s): "
            "provisioned 20.0 GiB, read 1.0 GiB, written 512.0 MiB, stored 513.0 MiB, by https; node9 could not be reached",
            id="a node that is away spoils no good point",
        ),
        pytest.param(
            WOULD,
            "ok, would back up 2 disk(s) of 2.0 GiB by https (no VDDK on the node); nothing was done (check mode)",
            id="check mode",
        ),
        pytest.param(
            WOULD | {"reconciled": ["job-a", "job-b"]},
            "ok, would take away what job-a, job-b left, and back up 2 disk(s) of 2.0 GiB by https (no VDDK on the node); "
            "nothing was done (check mode)",
            id="check mode after a crash",
        ),
    ],
)
def test_one_line_tells_how_it_went(result, line):
    assert backup_line(result) == line


def copied(seconds, **waited):
    return {"seconds": seconds, **{f"waited_{name}": value for name, value in waited.items()}}


@pytest.mark.parametrize(
    ("copies", "tunnel", "told"),
    [
        pytest.param([copied(10, source=8, target=1)], 0, "10 s, 80% of it waiting for the source", id="source"),
        pytest.param([copied(10, source=1, target=8)], 1, "10 s, 80% of it waiting for the hub's disks", id="target"),
        pytest.param([copied(10, source=1, target=8)], 7, "10 s, 80% of it waiting for the tunnel", id="tunnel"),
        pytest.param([copied(10, source=2, target=1)], 9, "10 s, 70% of it waiting for the CPU of the node", id="CPU"),
        pytest.param(
            [copied(10, digest=6)], 0, "10 s, 60% of it waiting for digests, which is CPU of the node", id="digests"
        ),
        pytest.param([copied(10, limit=9)], 0, "10 s, 90% of it waiting for the rate limit", id="the limit"),
        pytest.param([copied(10, both=9, source=1)], 0, "10 s, 10% of it waiting for the source", id="a balance"),
        pytest.param(
            [copied(10, source=9), copied(4, source=1, target=3)], 0, "10 s, 71% of it waiting for the source", id="two"
        ),
    ],
)
def test_the_stage_that_was_waited_for_most_is_told(copies, tunnel, told):
    result = OK | {"copies": copies, "tunnel": {"sent": 5 << 20, "received": 1 << 20, "busy": tunnel}}
    assert backup_line(result).endswith(f"; the copy took {told}")


def test_a_copy_that_took_no_time_waited_for_nothing():
    assert "waiting" not in backup_line(OK | {"copies": [copied(0.4, source=0.4)], "tunnel": {}})


def test_bytes_are_told_apart():
    disks = [disk | {"allocated": 1 << 30} for disk in MANIFEST["disks"]]
    line = backup_line(
        OK | {"manifest": MANIFEST | {"disks": disks}, "tunnel": {"sent": 600 << 20, "received": 5 << 20, "busy": 1}}
    )
    counted = "provisioned 20.0 GiB, allocated 2.0 GiB, read 1.0 GiB, written 512.0 MiB, on the wire 605.0 MiB, stored 513.0 MiB"
    assert counted in line


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ({"resumed": "job-a"}, "; went on with job-a"),
        ({"resumed": "job-a", "interruptions": 2}, "; went on with job-a; went on after 2 interruption(s)"),
        (
            {"anew": "its snapshot is gone", "reconciled": ["job-a"]},
            "; began anew instead of going on with job-a: its snapshot is gone",
        ),
        ({"anew": "", "reconciled": ["job-a"]}, ", by https"),
    ],
)
def test_what_was_not_done_in_one_go_is_told(history, told):
    tunnel = {"sent": 1, "received": 1, "busy": 1}
    line = backup_line(OK | {"tunnel": tunnel} | history)
    assert line.endswith(told)
    assert ("on the wire" in line) == ("anew" in history), "of an earlier tunnel nobody knows"


def test_check_mode_says_what_it_would_go_on_with():
    told = "ok, would go on with job-a, and back up 2 disk(s) of 2.0 GiB by https (no VDDK on the node); nothing was done (check mode)"
    assert backup_line(WOULD | {"resumed": "job-a"}) == told


def test_a_good_point_whose_job_left_something_is_no_success():
    line = backup_line(OK | {"left": ["the snapshot"]})
    assert line.startswith("FAILED full 20261123T140102Z")
    assert line.endswith("; could not be cleaned up: the snapshot")


def test_a_good_point_is_good_though_the_export_of_a_dead_job_had_been_killed():
    assert backup_line(OK | {"deaths": ["sendense-export-x killed by SIGKILL"]}) == backup_line(OK)


def test_playbooks_use_this_name():
    assert FilterModule().filters() == {"backup_line": backup_line}
