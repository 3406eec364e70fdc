# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import ALGORITHMS
from ansible_collections.sendense.backup.plugins.module_utils.transfer import client, copy_unit
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, id_of, session
from ansible_collections.sendense.backup.plugins.modules import nbd_copy

ROOT = Path(__file__).resolve().parents[4]
JOB = "pgtest1-5029f3ab-20261123T140102Z"
DISK = {"key": 2000, "capacity": 512, "path": "[ds] a.vmdk", "target": "nbd://127.0.0.1:1/x"}
WISH = {"job": JOB, "vm": "vm-1", "snapshot": "snapshot-2", "datacenter": "/DC0", "disks": [DISK], "wait": 0}
VCENTER = {
    "vcenter_hostname": "127.0.0.1",
    "vcenter_username": "u",
    "vcenter_password": "Kx7-secret",
    "vcenter_port": 1,
}


def test_check_mode_predicts_and_asks_nobody(run_module, private_run, systemd, tmp_path):
    wish = WISH | VCENTER | {"snapshot": None}
    told = run_module("nbd_copy", wish, check=True, prefix=private_run)
    assert (told["failed"], told["changed"], told["transfer"]["state"]) == (False, True, "predicted")
    assert told["tools"]["nbdkit"].startswith("nbdkit ")
    assert not list((tmp_path / "run").iterdir())


def test_a_copy_that_was_started_is_followed_and_not_started_again(run_module, private_run, systemd, tmp_path):
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "request.json").write_text("{}", encoding="utf-8")
    systemd(f"sendense-copy-{JOB}")
    told = run_module("nbd_copy", WISH | VCENTER, prefix=private_run)
    assert (told["changed"], told["transfer"]["state"]) == (False, "running")
    failed = {"state": "failed", "error": "disk 2000: the export hung up", "resumable": True, "disks": []}
    (folder / "status.json").write_text(json.dumps(failed), encoding="utf-8")
    told = run_module("nbd_copy", {"job": JOB, "follow": True, "wait": 0} | VCENTER, prefix=private_run)
    assert (told["failed"], told["msg"], told["transfer"]) == (True, "disk 2000: the export hung up", failed)
    assert told["resumable"]
    assert run_module("nbd_copy", WISH | VCENTER, check=True, prefix=private_run)["changed"], (
        "it would be started again"
    )


def test_a_copy_of_another_snapshot_is_not_believed(run_module, private_run, systemd, tmp_path):
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "request.json").write_text("{}", encoding="utf-8")
    (folder / "status.json").write_text('{"state": "done", "error": "", "disks": []}', encoding="utf-8")
    (kept := tmp_path / "work" / JOB).mkdir(parents=True)
    (kept / "kept.json").write_text('{"snapshot": {"moref": "snapshot-1"}}', encoding="utf-8")
    work = [*private_run, "unshare", "--mount", "sh", "-c",
            f'mkdir -p /var/lib/sendense/jobs && mount --bind {tmp_path}/work /var/lib/sendense/jobs && exec "$@"', "sh"]  # fmt: skip
    told = run_module("nbd_copy", WISH | VCENTER, prefix=work)
    assert told["failed"]
    assert told["msg"].startswith(f"the copy of job {JOB} reads snapshot snapshot-1, which is not snapshot-2: ")
    assert not run_module("nbd_copy", WISH | VCENTER | {"snapshot": "snapshot-1"}, prefix=work)["failed"]


def test_a_copy_into_an_export_that_was_served_anew_is_started_again(run_module, private_run, systemd, tmp_path):
    """Whatever it says of itself: what it wrote there is gone."""
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    disk = {"key": 2000, "identity": "5f3c snapshot-2 [ds] a.vmdk", "algorithm": "sha256"}
    (folder / "request.json").write_text(json.dumps({"disks": [disk]}), encoding="utf-8")
    (folder / "status.json").write_text('{"state": "done", "error": "", "disks": []}', encoding="utf-8")
    for invocation, due in (("5f3c", False), ("77aa", True), ("", False)):
        wish = WISH | VCENTER | {"disks": [DISK | {"invocation": invocation}]}
        assert run_module("nbd_copy", wish, check=True, prefix=private_run)["changed"] is due, invocation
    same = WISH | VCENTER | {"disks": [DISK | {"invocation": "5f3c"}]}
    other = same | {"digest": "blake2b"}
    assert run_module("nbd_copy", other, check=True, prefix=private_run)["changed"], "it digests by what is not wished"
    del disk["algorithm"]
    (folder / "request.json").write_text(json.dumps({"disks": [disk]}), encoding="utf-8")
    assert run_module("nbd_copy", same, check=True, prefix=private_run)["changed"], "an older version has started it"


def test_a_digest_that_nobody_knows_is_refused_by_module_and_role_alike(run_module, private_run, systemd):
    """The role's specification is looked at before anything is done, so there is no snapshot then."""
    told = run_module("nbd_copy", WISH | VCENTER | {"digest": "md5"}, prefix=private_run)
    assert told["msg"] == "value of digest must be one of: sha256, sha512, sha3_256, blake2b, got: md5"
    spec = yaml.safe_load((ROOT / "roles/backup/meta/argument_specs.yml").read_text(encoding="utf-8"))
    assert spec["argument_specs"]["main"]["options"]["backup_digest"]["choices"] == list(ALGORITHMS)


def test_a_copy_that_is_not_there_is_not_followed(run_module, private_run, systemd):
    told = run_module("nbd_copy", {"job": JOB, "follow": True} | VCENTER, prefix=private_run)
    assert (told["failed"], told["resumable"]) == (True, True)
    assert told["msg"] == "the node has lost the copy in a reboot, but what was copied is safe"


def test_what_is_to_be_copied_must_be_said(run_module, private_run, systemd):
    told = run_module("nbd_copy", {"job": JOB, "vm": "vm-1"} | VCENTER, prefix=private_run)
    assert told["msg"] == "a copy is started by its options, and there is no datacenter, disks"


def test_what_it_kept_goes(run_module, private_run, systemd, tmp_path):
    gone = {"job": JOB, "state": "absent", **VCENTER}
    assert not run_module("nbd_copy", gone, prefix=private_run)["changed"]
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "cookie").touch()
    assert run_module("nbd_copy", gone, check=True, prefix=private_run)["changed"]
    assert run_module("nbd_copy", gone, prefix=private_run)["changed"]
    assert not folder.parent.exists()


CLIENT = {"job": JOB, "follow": True, "wait": 0, "transport": "client", "stall": 60}


@pytest.fixture
def idle(tmp_path, systemd):
    """Return a client that runs and asks for a word, as what follows it finds it."""
    (folder := tmp_path / "run" / "sendense" / JOB / "copy").mkdir(parents=True)
    (folder / "request.json").write_text("{}", encoding="utf-8")
    systemd(f"sendense-copy-{JOB}")
    said = {"state": "running", "error": "", "resumable": False, "disks": [{"key": 2000, "wants": client.WORD}]}
    (folder / "status.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def follow(lab, monkeypatch, tmp_path):
    """Follow the client of pgtest1 in this process, which has folders of its own."""
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run" / "sendense")
    params = {"vcenter_validate_certs": True, **lab.options, **CLIENT, "vm": lab.vm("pgtest1")["moref"]}
    try:
        return nbd_copy.follow(params)
    finally:
        lab.ask("POST", "/sessions/kill", {})


def test_a_client_of_which_nothing_moves_is_stopped_unless_vcenter_is_why(lab, idle, monkeypatch, tmp_path):
    lab.knobs(create_snapshot_ms=1500)
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        machine = opened.managed("VirtualMachine", lab.vm("pgtest1")["moref"])
        task = machine.CreateSnapshotEx_Task("sbak", "", False, None)
        assert follow(lab, monkeypatch, tmp_path)["state"] == "running"
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as opened:
        machine = opened.managed("VirtualMachine", lab.vm("pgtest1")["moref"])
        opened.wait(opened.managed("Task", id_of(task)), "it")
        opened.wait(machine.RemoveAllSnapshots_Task(), "cleaning")
    told = follow(lab, monkeypatch, tmp_path)
    assert (told["state"], told["resumable"]) == ("failed", False)
    assert told["error"].startswith("the client has said and written nothing for 60 s (backup_stall)")
    assert copy_unit.COPY.status(JOB)["state"] == "failed", "it was stopped"


class Module:
    """An AnsibleModule, as far as present needs one; what it fails with is kept."""

    check_mode = False

    def __init__(self, **params):
        self.params, self.failure = params, {}

    def fail_json(self, **failure):
        self.failure = failure


def test_a_client_that_failed_is_not_started_again(idle, monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run" / "sendense")
    monkeypatch.setattr(nbd_copy, "versions", lambda _transport: {})
    failed = {"state": "failed", "error": "the client ended with exit code 1", "resumable": True, "disks": []}
    (idle / "status.json").write_text(json.dumps(failed), encoding="utf-8")
    nbd_copy.present(
        module := Module(**WISH | {"transport": "client", "snapshot": None, "follow": False, "keep": None})
    )
    assert (module.failure["msg"], module.failure["resumable"]) == ("the client ended with exit code 1", False)
