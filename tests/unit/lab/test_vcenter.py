# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The vCenter's own tests are in Go; here they get the door that all tests have."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab import instance, simulator


@pytest.fixture(scope="module")
def go():
    program = simulator.go_command(instance.Lab(Path(__file__).resolve().parents[3]))
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}

    def run(*arguments: str) -> str:
        command = [program, *arguments]
        done = subprocess.run(
            command, cwd=simulator.SOURCES, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_go_code_is_formatted_and_vetted(go):
    gofmt = Path(go("env", "GOROOT").strip()) / "bin" / "gofmt"
    assert subprocess.run([gofmt, "-l", simulator.SOURCES], capture_output=True, text=True, check=True).stdout == ""
    go("vet", "./...")


def test_the_go_tests_pass(go):
    go("test", "./...")
