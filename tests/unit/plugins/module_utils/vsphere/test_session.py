# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
import threading

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as util
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import (
    Fault,
    Unreachable,
    VCenter,
    of_job,
    session,
)

pytest.importorskip("pyVmomi")
SECRET = "Kx7!korrekt pferd"
JOB = "pgtest1-5029f3ab-20261123T140102Z"


def at(lab, **changes):
    """Return the lab's vCenter with some options changed."""
    return VCenter.of(
        {"vcenter_validate_certs": True, **lab.options, **{f"vcenter_{name}": value for name, value in changes.items()}}
    )


def failure(vcenter):
    """Return the sentence that a login fails with."""
    with pytest.raises(SendenseError) as error, session(vcenter):
        pass
    assert SECRET not in str(error.value)
    return str(error.value)


def test_a_session_ends_with_its_block(lab):
    with session(at(lab)) as opened:
        assert opened.cookie.startswith("vmware_soap_session=")
        assert ";" not in opened.cookie
        assert opened.content.about.apiType == "VirtualCenter"
        assert opened.instance_uuid
        assert len(lab.sessions()) == 1
    assert lab.sessions() == []


def test_a_session_ends_with_its_block_when_that_fails(lab):
    with pytest.raises(ZeroDivisionError), session(at(lab)):
        raise ZeroDivisionError
    assert lab.sessions() == []


def test_a_kept_session_is_one_login_for_all(lab, tmp_path):
    with session(at(lab), tmp_path) as first:
        cookie = first.cookie
    with session(at(lab), tmp_path) as second:
        assert second.cookie == cookie
    assert lab.logins() == 1
    kept = tmp_path / "session"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["session"]
    assert SECRET not in kept.read_text()
    assert json.loads(kept.read_text())["cookie"] == cookie
    second.end()
    assert not kept.exists()
    assert lab.sessions() == []


def test_a_kept_session_that_vcenter_forgot_is_replaced(lab, tmp_path):
    with session(at(lab), tmp_path):
        lab.ask("POST", "/sessions/kill", {})
    with session(at(lab), tmp_path) as opened:
        assert json.loads((tmp_path / "session").read_text())["cookie"] == opened.cookie
    assert lab.logins() == 2
    opened.end()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cookie": "vmware_soap_session=stolen"}'])
def test_a_kept_session_that_makes_no_sense_is_replaced(lab, tmp_path, content):
    (tmp_path / "session").write_text(content)
    with session(at(lab), tmp_path) as opened:
        pass
    opened.end()
    assert lab.logins() == 1


def test_a_session_lost_on_the_way_is_opened_again(lab, tmp_path):
    with session(at(lab), tmp_path) as opened:
        lab.ask("POST", "/sessions/kill", {})
        vm = opened.managed("VirtualMachine", lab.vm("thin1")["moref"])
        assert opened.retrieve(vm, ["name"]) == {vm._moId: {"name": "thin1"}}
        lab.ask("POST", "/sessions/kill", {})
        opened.call("listing", opened.content.searchIndex.FindAllByUuid, None, "none", True, True)
        assert json.loads((tmp_path / "session").read_text())["cookie"] == opened.cookie
    opened.end()


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """Return a /run/sendense of the test's own."""
    monkeypatch.setattr(jobs, "RUN", tmp_path)
    return tmp_path


def test_the_last_module_of_a_job_ends_its_session(lab, run_folder):
    with of_job(at(lab), JOB):
        pass
    assert len(lab.sessions()) == 1
    with of_job(at(lab), JOB, last=True):
        pass
    assert (lab.logins(), lab.sessions(), list(run_folder.iterdir())) == (1, [], [])


def test_a_module_that_fails_ends_the_session_of_its_job(lab, run_folder):
    with pytest.raises(SendenseError, match="so"), of_job(at(lab), JOB):
        raise SendenseError("so")
    assert (lab.sessions(), list(run_folder.iterdir())) == ([], [])


def test_the_cookie_goes_even_when_vcenter_is_away(lab, run_folder):
    with of_job(at(lab), JOB):
        pass
    with pytest.raises(Unreachable), of_job(at(lab, port=1), JOB, last=True):
        pass
    assert list(run_folder.iterdir()) == []
    lab.ask("POST", "/sessions/kill", {})


def test_only_the_asked_properties_come(lab):
    with session(at(lab)) as opened:
        moref = lab.vm("pgtest1")["moref"]
        found = opened.retrieve(opened.managed("VirtualMachine", moref), ["name", "runtime.powerState", "config.keyId"])
    assert found == {moref: {"name": "pgtest1", "runtime.powerState": "poweredOn"}}
    assert lab.ask("GET", "/stats")["soap"]["RetrievePropertiesEx"] == 1


def test_a_fault_of_a_task_has_its_own_words(lab):
    lab.knobs(quiesce="fail")
    with session(at(lab)) as opened:
        vm = opened.managed("VirtualMachine", lab.vm("thin1")["moref"])
        task = opened.call("x", vm.CreateSnapshotEx_Task, "s", "", False, util.vim.vm.GuestQuiesceSpec())
        with pytest.raises(Fault, match=r"^taking s failed: .*An error occurred while quiescing") as fault:
            opened.wait(task, "taking s")
    assert isinstance(fault.value.fault, util.vim.fault.ApplicationQuiesceFault)


def test_a_missing_privilege_is_named(lab):
    lab.knobs(faults={"CreateSnapshotEx_Task": "NoPermission"})
    with session(at(lab)) as opened:
        vm = opened.managed("VirtualMachine", lab.vm("thin1")["moref"])
        with pytest.raises(Fault) as fault:
            opened.call("taking s", vm.CreateSnapshotEx_Task, "s", "", False, None)
    assert str(fault.value).startswith("taking s failed: user backup@vsphere.local of vCenter 127.0.0.1")
    assert " lacks " in str(fault.value)


def test_a_wrong_password_is_said_without_it(lab):
    assert "check vcenter_username and vcenter_password" in failure(at(lab, password="Kx7!falsches pferd"))
    assert lab.sessions() == []


def test_an_untrusted_certificate_says_both_remedies(lab):
    sentence = failure(at(lab, ca_file=""))
    assert "is not trusted" in sentence
    assert "vcenter_ca_file" in sentence
    assert "vcenter_validate_certs" in sentence


def test_an_untrusted_certificate_can_be_waved_through(lab):
    with session(at(lab, ca_file="", validate_certs=False)) as opened:
        assert opened.cookie


def test_the_certificate_itself_may_stand_in_the_ca_file(authority, tls_server):
    port = tls_server("pinned")
    vcenter = VCenter("127.0.0.1", "u", SECRET, port, ca_file=str(authority.folder / "pinned.pem"))
    assert "does not answer as a vCenter (404 Not Found)" in failure(vcenter)


@pytest.mark.parametrize(
    ("wishes", "says", "remedy"),
    [
        pytest.param({"days": (-9, -1)}, "certificate has expired", "renew its certificate", id="expired"),
        pytest.param({"days": (1, 9)}, "not yet valid", "set the clock", id="of tomorrow"),
        pytest.param({"addresses": ("192.0.2.7",)}, "IP address mismatch", "in vcenter_hostname", id="other address"),
        pytest.param({"addresses": (), "hosts": ("vc.test",)}, "mismatch", "in vcenter_hostname", id="other name"),
    ],
)
def test_a_certificate_that_does_not_fit_says_what_to_do(authority, tls_server, wishes, says, remedy):
    port = tls_server("odd", **wishes)
    sentence = failure(VCenter("127.0.0.1", "u", SECRET, port, ca_file=str(authority.ca_file)))
    assert says in sentence
    assert remedy in sentence


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "cannot be read: No such file", id="missing"),
        pytest.param("no certificate", "holds no certificate in PEM form", id="no PEM"),
    ],
)
def test_a_ca_file_that_is_none_is_named(tmp_path, content, says):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    assert f"vcenter_ca_file {path} {says}" in failure(VCenter("127.0.0.1", "u", SECRET, 1, ca_file=str(path)))


def test_a_refused_connection_is_said():
    assert "Connection refused; check vcenter_hostname, vcenter_port" in failure(VCenter("127.0.0.1", "u", SECRET, 1))


def test_an_unknown_name_is_said():
    assert "vCenter no-such-vcenter.invalid is not found" in failure(VCenter("no-such-vcenter.invalid", "u", SECRET))


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(util, "CONNECT_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "no answer within" in failure(VCenter("127.0.0.1", "u", SECRET, mute.getsockname()[1]))
    assert util.CONNECT_TIMEOUT <= 10


def test_what_speaks_no_tls_is_said(lab):
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def greet():
            peer, _address = plain.accept()
            peer.sendall(b"SSH-2.0-OpenSSH_10.0\r\n" * 3)

        threading.Thread(target=greet, daemon=True).start()
        assert "does not speak TLS" in failure(VCenter("127.0.0.1", "u", SECRET, plain.getsockname()[1]))


def test_a_vcenter_away_for_too_long_ends_the_waiting(lab, monkeypatch):
    monkeypatch.setattr(util, "PATIENCE", 0.2)
    with session(at(lab)) as opened:
        opened._stub.host = "127.0.0.1:1"
        opened._stub.DropConnections()
        with pytest.raises(Unreachable, match="the task may still be running there"):
            opened.wait(opened.managed("Task", "task-1"), "removing s")
        opened._stub.host = f"127.0.0.1:{lab.port}"


@pytest.mark.parametrize("option", ["hostname", "username", "password"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_option_names_its_variable(option, value):
    params = {"vcenter_hostname": "vc", "vcenter_username": "u", "vcenter_password": SECRET, f"vcenter_{option}": value}
    with pytest.raises(SendenseError, match=f"vcenter_{option} is not set: .*VMWARE_"):
        VCenter.of(params)


def test_a_url_is_no_host_name(lab):
    with pytest.raises(SendenseError, match="is a host name or an address, not 'https://vc/'"):
        at(lab, hostname="https://vc/")


def test_the_password_shows_nowhere():
    assert SECRET not in repr(VCenter("vc", "u", SECRET)) + str(VCenter("vc", "u", SECRET))


def test_the_folder_of_a_job_keeps_the_session(lab, run_folder):
    with of_job(at(lab), JOB):
        kept = run_folder / JOB / "session"
        assert kept.stat().st_uid == kept.parent.stat().st_uid
    with of_job(at(lab), JOB, last=True):
        pass


VC = VCenter("vc.example.com", "backup@vsphere.local", SECRET)
VM = util.vim and util.vim.VirtualMachine("vm-7")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        pytest.param(
            util.vim.fault.NoPermission(object=VM, privilegeId="VirtualMachine.State.CreateSnapshot"),
            "taking s failed: user backup@vsphere.local of vCenter vc.example.com lacks VirtualMachine.State.CreateSnapshot on vm-7",
            id="a privilege is missing",
        ),
        pytest.param(
            util.vim.fault.RestrictedVersion(msg="Current license or ESXi version prohibits execution."),
            "taking s failed: the licence of this ESXi host lets its API only read, so no snapshot can be taken there "
            "(Current license or ESXi version prohibits execution)",
            id="an unlicensed host",
        ),
        pytest.param(
            util.vmodl.fault.ManagedObjectNotFound(msg="The object has already been deleted.", obj=VM),
            "taking s failed: vCenter vc.example.com knows no vm-7",
            id="an object that is gone",
        ),
        pytest.param(
            util.vim.fault.InvalidLogin(msg="Cannot complete login due to an incorrect user name or password."),
            "vCenter vc.example.com refuses user backup@vsphere.local: Cannot complete login due to an incorrect user name "
            "or password; check vcenter_username and vcenter_password",
            id="a wrong password",
        ),
        pytest.param(
            util.vim.fault.GenericVmConfigFault(
                msg="An error occurred\nwhile saving.",
                faultMessage=[util.vmodl.LocalizableMessage(message="No space left.")],
            ),
            "taking s failed: vCenter vc.example.com says: An error occurred while saving / No space left",
            id="words on several lines",
        ),
        pytest.param(
            util.vim.fault.TooManySnapshotLevels(),
            "taking s failed: vCenter vc.example.com says: TooManySnapshotLevels",
            id="a fault without words",
        ),
    ],
)
def test_a_fault_is_one_sentence(fault, sentence):
    assert util.explain(VC, "taking s", fault) == sentence


def test_the_thumbprint_is_that_of_the_verified_certificate(lab):
    certificate = ssl.get_server_certificate(("127.0.0.1", lab.options["vcenter_port"]))
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha1"]
    shown = subprocess.run(command, input=certificate, capture_output=True, text=True, check=True).stdout
    with session(at(lab)) as opened:
        assert opened.thumbprint == shown.strip().partition("=")[2]
