# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A second hub that has a copy of the repository and nothing else, and the playbook that restores there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra

from lab import simulator
from lab.compare import compare, points
from lab.instance import Lab

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
PLACE = "/srv/restores"


@dataclass(frozen=True)
class Run:
    """One ansible-playbook that has ended."""

    code: int
    output: str

    @property
    def line(self) -> str:
        """What its last words say of the restore, in one piece."""
        told = re.sub(r"\s+", " ", self.output).partition("TASK [How it went]")[2].partition(" TASK [")[0]
        return told.partition("msg: ")[2].strip().strip("'").replace("''", "'")


class Site:
    """The lab, its second hub, and what the newest point of pgtest1 has to hold."""

    def __init__(self, hub: Any) -> None:
        self.hub, self.lab = hub, Lab(PROJECT)
        self.root = self.lab.root("hub2")

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        """Run a playbook to its end."""
        command = [
            *("ansible-playbook", f"--inventory={PROJECT}/inventories/lab", f"{PROJECT}/playbooks/{playbook}.yml"),
            *("-e", json.dumps(variables), *arguments),
        ]
        done = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        return Run(done.returncode, done.stdout)

    def restore(self, *arguments: str, **variables: Any) -> Run:
        """Restore on the second hub, from its own repository."""
        return self.play(
            "restore", *arguments, **{"restore_vm": "pgtest1", "restore_hub": {"name": "hub2"}, **variables}
        )

    def module(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Return the result of one module on the second hub."""
        command = ["ansible", f"--inventory={PROJECT}/inventories/lab", "hub2", "-m", f"sendense.backup.{name}"]
        done = subprocess.run(
            [*command, "-a", json.dumps(arguments)],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        found: dict[str, Any] = json.loads(done.stdout.partition(" => ")[2])
        return found

    def truth(self) -> dict[int, Path]:
        """Return what each disk of pgtest1 held when the snapshot of its newest point was taken."""
        manifest = json.loads((points(self.lab, "pgtest1")[-1] / "manifest.json").read_text())
        query = {"vm": "pgtest1", "snapshot": f"sendense-{manifest['job']}"}
        told = json.loads(simulator.ask(self.lab, "GET", "/truth", query))
        return {disk["key"]: Path(told["folder"]) / disk["file"] for disk in told["disks"]}

    def places(self) -> list[str]:
        """Return what lies where restores go to."""
        return self.hub.check_output(f"ls -A {PLACE}").split()


@pytest.fixture(scope="session")
def hub2() -> Any:
    """Return the second hub."""
    return testinfra.get_host(f"ansible://hub2?ansible_inventory={PROJECT / 'inventories/lab'}")


@pytest.fixture(scope="session")
def site(hub2: Any) -> Iterator[Site]:
    """Return the site: pgtest1 is backed up on hub1, and the newest point of each VM is copied to hub2, which knows no VM."""
    found = Site(hub2)
    run = found.play("backup", vm_name="pgtest1")
    assert run.code == 0, run.output
    assert all(disk.equal for disk in compare(found.lab, "pgtest1")[1])
    here, there = (found.lab.root(name) / "backup/repository" for name in ("hub1", "hub2"))
    hub2.check_output(f"rm -rf /backup/repository/vms {PLACE} && mkdir {PLACE}")
    for vm in sorted((here / "vms").iterdir()):
        newest = [path for path in sorted(vm.glob("*Z")) if (path / "manifest.json").exists()][-1:]
        for path in (*newest, vm / "vm.json"):
            target = there / path.relative_to(here)
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--recursive", "--sparse=auto", path, target], check=True)
    hub2.check_output("chown -R sendense:sendense /backup/repository")
    yield found
    hub2.check_output(f"rm -rf /backup/repository/vms {PLACE}")


@pytest.fixture
def clean(site: Site) -> Iterator[Site]:
    """Return the site, and hold it to this: nothing runs on after a restore, and no partial folder stays."""
    yield site
    assert site.hub.run("pgrep -a 'qemu|guestfs'").stdout == ""
    assert [name for name in site.places() if name.endswith(".partial")] == []
    site.hub.check_output(f"find {PLACE} -mindepth 1 -delete")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Return a folder of the controller's."""
    yield tmp_path / "here"
    shutil.rmtree(tmp_path / "here", ignore_errors=True)
