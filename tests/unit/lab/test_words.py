# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest

from lab import __main__ as command
from lab import simulator
from lab.shell import LabError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("vm web01 registered=false", ("/vm", {"vm": "web01", "registered": False}), id="a VM leaves"),
        pytest.param("vm web01 host=DC0_C0_H1", ("/vm", {"vm": "web01", "host": "DC0_C0_H1"}), id="a VM moves"),
        pytest.param(
            "disk web01 2000 readable=true grow_at_snapshot=512",
            ("/disk", {"vm": "web01", "key": 2000, "readable": True, "grow_at_snapshot": 512}),
            id="a disk changes twice",
        ),
        pytest.param(
            'knob quiesce=fail faults={"Login":"NoPermission"}',
            ("/knob", {"quiesce": "fail", "faults": {"Login": "NoPermission"}}),
            id="knobs turn",
        ),
        pytest.param("cbt thin1 off", ("/cbt", {"vm": "thin1", "enabled": False}), id="tracking stops"),
    ],
)
def test_a_word_becomes_one_request(lab, monkeypatch, capsys, words, expected):
    asked = []

    def ask(_lab, method, where, query=None, body=None):
        asked.append((method, where, json.loads(body)))
        return b'{"done": true}'

    monkeypatch.setattr(simulator, "ask", ask)
    arguments = command.parser().parse_args(words.split())
    arguments.act(lab, arguments)
    assert asked == [("POST", *expected)]
    assert json.loads(capsys.readouterr().out) == {"done": True}


def test_a_word_without_a_value_is_named():
    with pytest.raises(LabError, match="'registered' sets nothing: write NAME=VALUE"):
        command.settings(["registered"])
