# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import units
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.units import Unit

JOB, OTHER = "pgtest1-5029f3ab-20261123T140102Z", "pgtest1-5029f3ab-20261123T140103Z"
EXPORT = f"sendense-export-{JOB}-2000"


def unit(active, result, code="1", status="0"):
    return Unit("u", active, result, code, status)


@pytest.mark.parametrize(
    ("found", "death"),
    [
        pytest.param(unit("active", "success"), "", id="it runs"),
        pytest.param(unit("activating", "exit-code", status="1"), "", id="it is being started again"),
        pytest.param(unit("inactive", "success"), "", id="it ended cleanly, or never was"),
        pytest.param(unit("failed", "exit-code", "1", "3"), "ended with exit code 3", id="it gave up"),
        pytest.param(unit("failed", "signal", "2", "9"), "killed by SIGKILL", id="it was killed"),
        pytest.param(unit("failed", "signal", "2", "35"), "killed by signal 35", id="by a signal without a name"),
        pytest.param(unit("deactivating", "exit-code", "1", "3"), "", id="it is not gone yet"),
        pytest.param(unit("failed", "core-dump", "3", "11"), "killed by SIGSEGV", id="it crashed"),
        pytest.param(unit("failed", "oom-kill", "2", "9"), "killed by SIGKILL", id="memory ran out"),
        pytest.param(
            unit("failed", "timeout", "1", "0"), "did not stop in time and was killed", id="it would not stop"
        ),
    ],
)
def test_how_a_unit_ended_in_words(found, death):
    assert found.death == death


def test_a_unit_is_read_as_systemd_shows_it(systemd):
    systemd(EXPORT, active="failed", result="signal", code="2", status="9")
    assert units.read(EXPORT) == Unit(EXPORT, "failed", "signal", "2", "9")
    assert not units.read("sendense-nobody").running


@pytest.mark.parametrize(
    ("state", "runs"),
    [("active", True), ("activating", True), ("deactivating", True), ("inactive", False), ("failed", False)],
)
def test_a_unit_runs_until_its_program_is_gone(state, runs):
    assert unit(state, "success").running is runs


def test_only_units_of_the_job_are_its_own(systemd):
    for name in (EXPORT, f"sendense-tunnel-{JOB}", f"sendense-export-{OTHER}-2000", f"other-export-{JOB}"):
        systemd(name)
    assert units.names(JOB) == [EXPORT, f"sendense-tunnel-{JOB}"]
    assert units.names(JOB, "export") == [EXPORT]
    assert units.any_running(JOB)
    with pytest.raises(Refused):
        units.names("*")


def test_units_of_a_job_whose_name_ends_alike_are_not_its_own(systemd):
    systemd(f"sendense-export-restore-{JOB}-2000")  # of a restore of the same VM that began in the same second
    systemd(f"sendense-tunnel-restore-{JOB}")
    systemd(EXPORT)
    assert units.names(JOB) == [EXPORT]
    assert units.names(f"restore-{JOB}") == [f"sendense-export-restore-{JOB}-2000", f"sendense-tunnel-restore-{JOB}"]


def test_a_dead_unit_does_not_run(systemd):
    systemd(EXPORT, active="failed", result="exit-code", code="1", status="1")
    assert units.names(JOB) == [EXPORT]
    assert not units.any_running(JOB)


def test_a_dead_unit_is_forgotten_once_it_was_stopped(systemd):
    systemd(EXPORT, active="failed", result="exit-code", code="1", status="1")
    assert units.stop(EXPORT).death == "ended with exit code 1"
    assert units.names(JOB) == []


def test_the_last_words_come_from_the_journal(systemd):
    systemd(EXPORT, journal='one\nqemu-nbd: Failed to get "write" lock\n')
    assert units.words(EXPORT) == 'one / qemu-nbd: Failed to get "write" lock'


def test_a_systemd_that_refuses_is_named(systemd, tmp_path):
    refusing = tmp_path / "systemd" / "systemd-run"
    refusing.write_text("#!/bin/sh\necho Failed to connect to bus >&2\nexit 1\n", encoding="utf-8")
    refusing.chmod(0o755)
    with pytest.raises(SendenseError, match=f"systemd did not start {EXPORT}: .*Failed to connect to bus"):
        units.start(EXPORT, ["true"])
