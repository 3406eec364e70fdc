# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import point
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import (
    Draft,
    lock_name,
    open_repository,
    unfinished,
)

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, LATER = "pgtest1-5029f3ab-20261123T140102Z", "pgtest1-5029f3ab-20261124T140102Z"
DISKS = {2000: (2 << 20) + 1536, 16000: 1 << 20}


def draft(job, **more):
    return Draft(**{"instance_uuid": UUID, "job": job, "disks": DISKS, **more})


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        pytest.param(None, r"there is no repository at .* \(.*repository.json is missing\)", id="none"),
        pytest.param("{", "cannot be read as a repository's mark", id="damaged"),
        pytest.param('{"format": 2}', "has format 2, this version knows format 1", id="newer"),
    ],
)
def test_what_is_no_repository_is_said_so(tmp_path, mark, sentence):
    if mark is not None:
        (tmp_path / "repository.json").write_text(mark, encoding="utf-8")
    with pytest.raises(SendenseError, match=sentence):
        open_repository(str(tmp_path))


@pytest.mark.parametrize("uuid", ["", "..", "../../etc", UUID.upper(), f"{UUID}/x", f"{UUID}\n"])
def test_what_is_no_uuid_names_no_folder(repository, uuid):
    with pytest.raises(Refused, match="is not an instance uuid"):
        repository.vm_folder(uuid)


def test_points_are_told_oldest_first_and_a_damaged_one_with_its_error(repository, finished, leases):
    for job in (LATER, JOB):
        point.publish(repository, finished(job), leases)
        leases.release(job)
    (repository.point_folder(UUID, LATER) / "manifest.json").write_text("{", encoding="utf-8")
    point.make(repository, draft("pgtest1-5029f3ab-20261125T140102Z"))
    one, two = repository.points(UUID)
    assert (one["point"], one["error"]) == ("20261123T140102Z", "")
    assert two["point"] == "20261124T140102Z"
    assert "is damaged" in two["error"]


def test_an_unfinished_job_is_told_with_whom_to_ask(repository, leases, tmp_path, systemd):
    assert unfinished(repository, UUID, leases) == []
    leases.take(lock_name(UUID), JOB, "boot/ns/1/2", "node1")
    point.make(repository, draft(JOB, node="node1"))
    assert unfinished(repository, UUID, leases) == [
        {"job": JOB, "controller": "boot/ns/1/2", "node": "node1", "dead": False}
    ]
    lease = tmp_path / "leases" / lock_name(UUID)
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"expires": time.time() - 1}), encoding="utf-8")
    assert [each["dead"] for each in unfinished(repository, UUID, leases)] == [True]
    lease.unlink()  # as a reboot does
    assert unfinished(repository, UUID, leases) == [{"job": JOB, "controller": "", "node": "node1", "dead": True}]
    systemd(f"sendense-export-{JOB}-2000")
    assert [each["dead"] for each in unfinished(repository, UUID, leases)] == [True], "nobody is connected to it"
    systemd(f"sendense-other-{JOB}")
    assert [each["dead"] for each in unfinished(repository, UUID, leases)] == [False]


def test_a_job_that_died_right_before_the_rename_is_told(repository, finished, leases):
    point.publish(repository, finished(JOB), leases).rename(repository.partial_folder(UUID, JOB))
    leases.release(JOB)  # as a reboot does
    assert [each["job"] for each in unfinished(repository, UUID, leases)] == [JOB]


def test_a_partial_folder_that_nobody_owns_is_left_alone(repository, leases):
    (foreign := repository.vm_folder(UUID) / "20261123T140102Z.partial").mkdir(parents=True)
    assert unfinished(repository, UUID, leases) == []
    (foreign / "job.json").write_text("{", encoding="utf-8")
    assert unfinished(repository, UUID, leases) == []


@pytest.mark.parametrize("said", ["[]", '{"job": 7}', '{"job": "../x"}', '{"job": ""}'])
def test_a_partial_folder_that_names_no_job_is_nobodys(repository, leases, said):
    (foreign := repository.vm_folder(UUID) / "20261123T140102Z.partial").mkdir(parents=True)
    (foreign / "job.json").write_text(said, encoding="utf-8")
    assert unfinished(repository, UUID, leases) == []


def test_a_damaged_lock_names_no_job(repository, leases, tmp_path):
    leases.take(lock_name(UUID), JOB)
    (tmp_path / "leases" / lock_name(UUID)).write_text("{", encoding="utf-8")
    assert unfinished(repository, UUID, leases) == []
    with pytest.raises(Refused, match="is being backed up by a job that its damaged lease 'vm-.*' does not name"):
        point.plan(repository, draft(LATER), leases)


def test_a_job_that_begins_while_one_looks_is_not_taken_for_dead(repository, leases, monkeypatch):
    held = leases.held

    def begin_then(thing):
        found = held(thing)
        monkeypatch.undo()
        leases.take(lock_name(UUID), JOB)
        point.make(repository, draft(JOB))
        return found

    monkeypatch.setattr(leases, "held", begin_then)
    assert not any(each["dead"] for each in unfinished(repository, UUID, leases))
