# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import readiness as host
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import readiness
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session

pytest.importorskip("pyVmomi")
PAPER = Path(__file__).resolve().parents[5] / "docs/privileges.md"


@pytest.fixture
def look(lab):
    """Return ``look(*vms, uses=…, transport=…)``: the checks by name."""

    def run(*vms, uses=("backup",), transport="https", **more):
        where = VCenter.of({"vcenter_validate_certs": True, **lab.options})
        with session(where) as opened:
            return {check.name: check for check in readiness.look(opened, readiness.Wish(vms, uses, transport, **more))}

    return run


def test_the_lab_is_well(look):
    checks = look("pgtest1", "web01")
    assert {check.name: check.seen for check in checks.values() if check.state != "ok"} == {}
    assert checks["VMs of the inventory"].seen.startswith("2 of 2 are found")
    assert "8.0.3 build-24322831" in checks["version of vCenter"].seen
    assert checks["files of datastores"].seen == "[datastore1] pgtest1/pgtest1.vmx can be read over HTTPS"
    assert set(checks) >= {
        "privileges for backup",
        "privileges for https",
        "ESXi host DC0_C0_H0",
        "space of datastore data store 2",
    }


BROKEN = {
    "a privilege on the VM": (
        {"lacks": ["VirtualMachine.State.CreateSnapshot"]}, {}, "privilege VirtualMachine.State.CreateSnapshot", "lacks it on VM vm-",
    ),
    "a privilege on the datastore": ({"lacks": ["Datastore.Browse"]}, {}, "privilege Datastore.Browse", "lacks it on datastore"),
    "a global privilege": (
        {"lacks": ["Global.DisableMethods"]}, {"transport": "vddk"}, "privilege Global.DisableMethods", "needed for vddk",
    ),
    "the clock": ({"clock_skew_seconds": 3600}, {}, "clock of vCenter", "3600 s ahead of the node's"),
    "space": ({"free": {"datastore1": 1 << 20}}, {}, "space of datastore datastore1", "10 % are to stay free"),
    "a VM": ({}, {"vm": "web99"}, "VMs of the inventory", "does not show web99"),
    "a name": ({}, {"vm": "twin"}, "VMs of the inventory", "more than one VM is named twin"),
    "a call": ({"faults": {"CurrentTime": "NoPermission"}}, {}, "clock of vCenter", "lacks"),
}  # fmt: skip


@pytest.mark.parametrize(("knobs", "wish", "name", "seen"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named(look, lab, knobs, wish, *, name, seen):
    lab.knobs(**knobs)
    checks = look(wish.get("vm", "web01"), transport=wish.get("transport", "https"))
    assert checks[name].state == "failed"
    assert seen in checks[name].seen
    assert checks[name].remedy
    others = {
        check.name for check in checks.values() if check.state == "failed" and not check.name.startswith("way to ESXi")
    }
    assert others == {name}


def test_all_that_is_broken_is_told_at_once(look, lab):
    lab.knobs(lacks=["Datastore.Browse", "VirtualMachine.State.RemoveSnapshot"], clock_skew_seconds=-3600)
    failed = [check.name for check in look("web01").values() if check.state == "failed"]
    assert failed == ["clock of vCenter", "privilege VirtualMachine.State.RemoveSnapshot", "privilege Datastore.Browse"]


def test_change_tracking_that_is_off_is_a_warning(look):
    check = look("nocbt1", "web01")["change tracking"]
    assert (check.state, check.seen) == ("warning", "off for 1 of 2 VMs: nocbt1")


def test_privileges_are_asked_for_what_is_wished(look, lab):
    lab.knobs(lacks=["VApp.Import"])
    assert "privilege VApp.Import" not in look("web01")
    assert look("web01", uses=("backup", "restore"))["privilege VApp.Import"].state == "failed"


def test_the_vddk_needs_the_hosts(look):
    """The hosts of the tests' vCenter have names that nobody resolves."""
    check = look("web01", transport="vddk")["way to ESXi host DC0_C0_H0"]
    assert check.state == "failed"
    assert "on port 902" in check.seen


@pytest.mark.parametrize(
    ("wishes", "state", "seen"),
    [
        ({}, "ok", "valid for 29 days|valid for 30 days"),
        ({"days": (-5, 3)}, "warning", "valid for [23] days"),
        ({"days": (-5, -1)}, "failed", "certificate has expired"),
        ({"addresses": ("192.0.2.1",)}, "failed", "IP address mismatch"),
    ],
    ids=["good", "expires soon", "expired", "another name"],
)  # fmt: skip
def test_a_certificate_is_judged(authority, tls_server, wishes, *, state, seen, request):
    port = tls_server(f"cert-{request.node.callspec.id.replace(' ', '-')}", **{"days": (-1, 30), **wishes})
    where = VCenter("127.0.0.1", "u", "p", port=port, ca_file=str(authority.ca_file))
    (reach, certificate), go_on = readiness.before_login(where)
    assert reach.state == "ok"
    assert certificate.state in ("warning", "ok") if not wishes else certificate.state == state
    assert re.search(seen, certificate.seen)
    assert go_on is (state != "failed")


def test_a_vcenter_that_is_not_there_ends_the_look(monkeypatch):
    monkeypatch.setattr(host, "CONNECT", 1.0)
    (only,), go_on = readiness.before_login(VCenter("127.0.0.1", "u", "p", port=1))
    assert (only.state, go_on) == ("failed", False)
    assert only.seen == "127.0.0.1 cannot be reached on port 1: Connection refused"


def test_the_paper_names_what_the_program_asks_for():
    """docs/privileges.md is for people who make roles, PRIVILEGES what is asked for."""
    written = re.findall(r"^\| `([\w.]+)` \|.*\| ([\w ]+) \|$", PAPER.read_text(encoding="utf-8"), re.MULTILINE)
    asked = [(privilege, on) for use in readiness.PRIVILEGES.values() for privilege, on in use.items()]
    assert [privilege for privilege, _on in written] == [privilege for privilege, _on in asked]
    for (privilege, paper), (_same, program) in zip(written, asked, strict=True):
        if program in (readiness.VM, readiness.STORE):
            assert paper == program, privilege
