# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.repository import evidence, layout, point

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
JOB, POINT = "pgtest1-5029f3ab-20261123T140102Z", "20261123T140102Z"


@pytest.fixture
def published(repository, finished, leases):
    return point.publish(repository, finished(JOB), leases)


def ago(days):
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def result(level="data", days=0.0, ok=True, findings=()):
    return {
        "level": level,
        "date": ago(days),
        "ok": ok,
        "msg": "a sentence",
        "findings": list(findings),
        "boot": None,
        "seconds": 1,
    }


DAMAGED = [{"point": POINT, "disk": 2000}]


def test_results_are_kept_beside_the_point_which_stays_as_it_is(repository, published, leases):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in published.iterdir()}
    when = published.stat().st_mtime_ns
    evidence.keep(repository, UUID, POINT, kept := result("boot", 1), b"\x89PNG")
    evidence.keep(repository, UUID, POINT, later := result("data"))
    assert evidence.results(repository, UUID, POINT) == [kept, later]
    assert sorted(path.name for path in evidence.folder(repository, UUID, POINT).iterdir()) == [
        "boot.json",
        "boot.png",
        "data.json",
    ]
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in published.iterdir()} == before
    assert published.stat().st_mtime_ns == when


def test_nobody_takes_the_results_for_a_point_or_for_work(repository, published, leases):
    evidence.keep(repository, UUID, POINT, result())
    assert [each["point"] for each in repository.points(UUID)] == [POINT]
    assert repository.folders(UUID) == [published]
    leases.release(JOB)
    assert layout.unfinished(repository, UUID, leases) == []
    point.remove(repository, UUID, JOB, leases)
    assert evidence.results(repository, UUID, POINT) != []


def test_results_go_with_their_point(repository, published):
    evidence.keep(repository, UUID, POINT, result())
    evidence.remove(repository, UUID, POINT)
    evidence.remove(repository, UUID, POINT)
    assert not evidence.folder(repository, UUID, POINT).exists()
    assert published.is_dir()


def test_results_belong_to_whom_the_repository_belongs(repository, published):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(repository.path, 12345, 12346)
    evidence.keep(repository, UUID, POINT, result("boot"), b"\x89PNG")
    path = evidence.folder(repository, UUID, POINT)
    assert {(each.stat().st_uid, each.stat().st_gid) for each in (path, *path.iterdir())} == {(12345, 12346)}
    assert all(each.stat().st_mode & 0o007 == 0 for each in path.iterdir())


def test_a_result_that_cannot_be_read_counts_as_none(repository, published):
    evidence.keep(repository, UUID, POINT, result())
    path = evidence.folder(repository, UUID, POINT) / "data.json"
    for content in (
        "{",
        "[]",
        "{}",
        path.read_text().replace("data", "image"),
        path.read_text().replace("true", '"yes"'),
    ):
        path.write_text(content)
        assert evidence.results(repository, UUID, POINT) == []


@pytest.mark.parametrize(("found", "level", "days", "enough"), [
    pytest.param([], "metadata", 7, False, id="never verified"),
    pytest.param([result("data", 3)], "data", 7, True, id="good and young"),
    pytest.param([result("data", 8)], "data", 7, False, id="good and old"),
    pytest.param([result("boot", 3)], "data", 7, True, id="a level beyond"),
    pytest.param([result("image", 3)], "data", 7, False, id="a level below"),
    pytest.param([result("data", 3), result("image", 2, ok=False)], "data", 7, False, id="contradicted since"),
    pytest.param([result("data", 0)], "data", 0, False, id="always to be verified"),
])  # fmt: skip
def test_what_was_verified_lately_is_not_again(found, level, days, enough):
    assert bool(evidence.fresh(found, level, days)) is enough


@pytest.mark.parametrize(("found", "believed"), [
    pytest.param([], True, id="never verified: proven when it was published"),
    pytest.param([result("data")], True, id="good"),
    pytest.param([result("data", 2, ok=False, findings=DAMAGED)], False, id="damaged"),
    pytest.param([result("data", 2, ok=False, findings=DAMAGED), result("metadata", 1)], False, id="a lesser look since"),
    pytest.param([result("data", 2, ok=False, findings=DAMAGED), result("boot", 1)], True, id="good since, at a level beyond"),
    pytest.param([result("boot", 2, ok=False)], True, id="whole, though it does not boot"),
])  # fmt: skip
def test_damage_is_believed_until_a_better_look_finds_none(repository, published, found, believed):
    for each in found:
        evidence.keep(repository, UUID, POINT, each)
    assert (evidence.distrusted(repository, UUID, POINT) == "") is believed
