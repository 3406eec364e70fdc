# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest

JOB = "pgtest1-5029f3ab-20261123T140102Z"
SKIPPED = {"key": 2001, "label": "Hard disk 2", "capacity": 512, "reason": "has mode independent_persistent"}


def run(**changes):
    looked = {
        "name": "pgtest1",
        "host": {"moref": "host-1", "name": "esx1"},
        "datastores": [{"free": 1}],
        "snapshots": [],
        "config": {"cpus": 2},
        "disks": [{"key": 2000, "capacity": 1536, "path": "[ds] a.vmdk", "label": "Hard disk 1"}],
        "skipped": [SKIPPED],
    }
    values = {
        "job": JOB,
        "vm": looked,
        "snapshot": {
            "quiesce_requested": "prefer",
            "quiesce_achieved": False,
            "quiesce_reason": "no VMware Tools",
            "disks": [{"key": 2000, "path": "[ds] a.vmdk", "change_id": "52 de/7"}],
        },
        "after": looked | {"host": {"moref": "host-2", "name": "esx2"}},
        "copies": [
            {
                "key": 2000, "provisioned": 1536, "allocated": None, "map": "none", "planned": 1536, "read": 1536, "written": 1024,
                "zeroed": 512, "seconds": 0.5, "tree": {"root": "5a", "section_size": 65536, "sections": {}, "algorithm": "sha256"},
            }
        ],
        "facts": {"transport": "https"},
    }  # fmt: skip
    return manifest.Run(**(values | changes))


def test_a_manifest_says_all_that_is_needed_to_rebuild_the_vm_and_to_trust_its_images():
    files = {"disk-2000.qcow2": {"size": 196_608, "sha256": "ab"}, "disk-2000.digests": {"size": 90, "sha256": "cd"}}
    assert manifest.build(run(), files) == {
        "format": 1,
        "job": JOB,
        "point": "20261123T140102Z",
        "type": "full",
        "parent": None,
        "vm": {"name": "pgtest1", "config": {"cpus": 2}},
        "host": {"before": {"moref": "host-1", "name": "esx1"}, "after": {"moref": "host-2", "name": "esx2"}},
        "consistency": {
            "quiesce_requested": "prefer", "quiesce_achieved": False, "quiesce_reason": "no VMware Tools",
        },
        "disks": [
            {
                "key": 2000, "capacity": 1536, "path": "[ds] a.vmdk", "label": "Hard disk 1", "type": "full",
                "reason": "a full backup was asked for", "image": "disk-2000.qcow2", "digests": "disk-2000.digests",
                "root": "5a", "digest_algorithm": "sha256", "digests_of": "source", "change_id": "52 de/7",
                "source": "[ds] a.vmdk", "stored": 196_608,
                "provisioned": 1536, "allocated": None, "map": "none", "read": 1536, "written": 1024, "zeroed": 512, "seconds": 0.5,
            }
        ],
        "skipped": [SKIPPED],
        "files": files,
        "transport": "https",
    }  # fmt: skip


def test_a_vm_on_another_host_has_not_moved_its_disks():
    manifest.check_unmoved(run())


@pytest.mark.parametrize(
    ("disks", "where"),
    [
        pytest.param([{"key": 2000, "path": "[other] a.vmdk"}], r"to \[other\] a.vmdk", id="on another datastore"),
        pytest.param([], "to nowhere", id="no longer there"),
    ],
)
def test_a_disk_that_moved_is_not_to_be_believed(disks, where):
    with pytest.raises(SendenseError, match=rf"disk 2000 moved during the backup, from \[ds\] a.vmdk {where}"):
        manifest.check_unmoved(run(after={"disks": disks}))


def test_what_was_written_is_loaded(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "point": "x", "new": "key"}), encoding="utf-8")
    assert manifest.load(tmp_path) == {"format": 1, "point": "x", "new": "key"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(None, "has no manifest, so it is no restore point", id="none"),
        pytest.param("", "is damaged", id="empty"),
        pytest.param('{"format": 1, "po', "is damaged", id="torn"),
        pytest.param("[]", "is damaged", id="no object"),
        pytest.param("{}", "is damaged", id="no format"),
        pytest.param('{"format": 2}', "has format 2, this version reads format 1", id="newer"),
    ],
)
def test_what_is_no_manifest_of_ours_is_said_so(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(SendenseError, match=sentence):
        manifest.load(tmp_path)
