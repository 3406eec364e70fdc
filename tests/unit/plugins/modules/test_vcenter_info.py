# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest

pytest.importorskip("pyVmomi")


def failed(result):
    return [check["name"] for check in result["checks"] if check["state"] == "failed"]


@pytest.mark.parametrize("check", [True, False])
def test_a_vcenter_that_is_well(lab, run_module, check):
    found = run_module("vcenter_info", {**lab.options, "vms": ["web01"], "transport": "https"}, check=check)
    assert (found["failed"], found["changed"], failed(found)) == (False, False, [])
    assert lab.options["vcenter_password"] not in json.dumps(found["checks"])


def test_a_wrong_password_is_a_failed_check(lab, run_module):
    found = run_module("vcenter_info", {**lab.options, "vcenter_password": "wrong"})
    assert (found["failed"], failed(found)) == (False, ["login at vCenter"])


def test_a_closed_port_is_a_failed_check_and_the_last(lab, run_module):
    found = run_module("vcenter_info", {**lab.options, "vcenter_port": 1})
    assert (found["failed"], failed(found), len(found["checks"])) == (False, ["way to vCenter"], 1)


def test_an_authority_that_is_not_known_is_a_failed_check(lab, run_module):
    found = run_module("vcenter_info", {**lab.options, "vcenter_ca_file": None})
    assert failed(found) == ["certificate of vCenter"]


def test_a_missing_option_is_a_failed_check(run_module):
    assert failed(run_module("vcenter_info", {})) == ["options of vCenter"]
