# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import asdict

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, point
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import Draft, lock_name, open_repository

UUID = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b"
DISKS = {2000: (2 << 20) + 1536, 16000: 1 << 20}


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    return open_repository(str(tmp_path / "r"))


@pytest.fixture
def leases(tmp_path, systemd):
    return Leases(tmp_path / "leases")


@pytest.fixture
def finished(repository, leases, tmp_path):
    """Return ``finished(job, by="sha256") -> Run``: it has the lock, and its partial point's images hold what was delivered."""

    def make(job, by="sha256"):
        leases.take(lock_name(UUID), job)
        copies = []
        for key, path in point.make(repository, Draft(UUID, job, DISKS)).items():
            content = random.Random(f"{job}{key}").randbytes(DISKS[key])
            (raw := tmp_path / "raw").write_bytes(content)
            fill = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, path]
            subprocess.run(fill, check=True)
            leaves = digests.leaves(memoryview(content), by)
            every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
            tree = json.loads(json.dumps(asdict(digests.tree(every, DISKS[key], by))))  # as a module hands it on
            moved = dict.fromkeys(("read", "written"), DISKS[key])
            counted = {
                "provisioned": DISKS[key],
                "allocated": None,
                "map": "none",
                "zeroed": 0,
                "seconds": 0.1,
                **moved,
            }
            copies.append({"key": key, "tree": tree, **counted})
        disks = [
            {"key": key, "capacity": size, "path": f"[ds] {key}.vmdk", "label": f"Hard disk {key}"}
            for key, size in DISKS.items()
        ]
        vm = {
            "name": "pgtest1", "instance_uuid": UUID, "inventory_path": "/DC0/vm/pgtest1", "vcenter": {"version": "8"},
            "config": {"cpus": 2}, "host": {"name": "esx1"}, "disks": disks,
        }  # fmt: skip
        frozen = [disk | {"change_id": f"52 ab/{disk['key']}"} for disk in disks]
        quiesced = {"quiesce_requested": "prefer", "quiesce_achieved": True, "quiesce_reason": ""}
        return manifest.Run(
            job, vm, quiesced | {"disks": frozen}, vm | {"host": {"name": "esx2"}}, copies, {"transport": "https"}
        )

    return make
