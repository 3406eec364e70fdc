# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""meta/runtime.yml knows every module: what it forgets runs without our action plugin or its group's defaults."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
MODULES = {path.stem: path for path in sorted((ROOT / "plugins/modules").glob("*.py")) if path.stem != "__init__"}


def fragments(path: Path) -> list[str]:
    """Return the documentation fragments that the module at *path* names."""
    named = {
        node.targets[0].id: node.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return list(yaml.safe_load(ast.literal_eval(named["DOCUMENTATION"])).get("extends_documentation_fragment", []))


def test_there_are_modules():
    assert MODULES


def test_the_group_all_is_every_module():
    assert RUNTIME["action_groups"]["all"] == sorted(MODULES)


def test_every_module_goes_through_our_action_plugin():
    expected = {name: {"action_plugin": "sendense.backup.nbd_copy"} for name in MODULES}
    assert RUNTIME["plugin_routing"]["modules"] == expected
    assert (ROOT / "plugins/action/nbd_copy.py").is_file()


def test_the_group_vcenter_is_every_module_with_vcenter_options():
    with_options = {name for name, path in MODULES.items() if "sendense.backup.vcenter" in fragments(path)}
    assert set(RUNTIME["action_groups"]["vcenter"]) == with_options


@pytest.mark.parametrize("name", MODULES)
def test_a_module_declares_what_it_does_in_check_mode(name):
    text = MODULES[name].read_text()
    assert "attributes" in text
    assert "check_mode" in text
