# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every molecule scenario converges, repeats without a change and verifies, all in the one lab of this checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
SCENARIOS.sort(key=lambda name: name != "default")  # it provisions; the others stand on that
STATE = ROOT / "build/molecule"  # by default it is one for all checkouts of the same name


@pytest.fixture(scope="module")
def molecule(request):
    """Return a function that runs molecule in the lab, showing its output; a lab that it raised goes down at the end."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def run(*arguments: str) -> int:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MOLECULE_COMMAND_BORDERS": "false",
            "MOLECULE_EPHEMERAL_DIRECTORY": str(STATE),
            "MOLECULE_GLOB": "molecule/*/molecule.yml",
        }
        with capture.global_and_fixture_disabled():
            return subprocess.run(["molecule", *arguments], cwd=ROOT, env=environment, check=False).returncode

    shutil.rmtree(STATE, ignore_errors=True)  # what a run that was killed took for true
    try:
        assert run("create", "--scenario-name", "default") == 0, "the lab does not come up"
        yield run
    finally:
        assert run("destroy", "--scenario-name", "default") == 0, "the lab does not go down"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(molecule, scenario):
    assert molecule("test", "--scenario-name", scenario, "--destroy=never") == 0
