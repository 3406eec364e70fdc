# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A site as its operator has it: the playbook to run, the lab's knobs to turn, and a look for what was left behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import simulator
from lab.compare import Compared, compare
from lab.instance import Lab

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
PATIENCE = 120.0  # seconds that a state may take to come about


@dataclass(frozen=True)
class Run:
    """One ansible-playbook that has ended."""

    code: int
    output: str
    seconds: float


class Site:
    """The lab, used as an operator uses a site."""

    def __init__(self, hub: Any, node: Any) -> None:
        self.hub, self.node = hub, node
        self.lab = Lab(PROJECT)
        self.lab_json: dict[str, Any] = json.loads(self.lab.lab_json.read_text())
        self.lab_json["vcenter"]["password_file"] = Path(self.lab_json["vcenter"]["password_file"])

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start playbooks/backup.yml in a process group of its own."""
        command = [
            "ansible-playbook",
            f"--inventory={PROJECT}/inventories/lab",
            f"{PROJECT}/playbooks/backup.yml",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def backup(self, *arguments: str, environment: dict[str, str] | None = None) -> Run:
        """Run playbooks/backup.yml to its end."""
        began = time.monotonic()
        process = self.start(*arguments, environment=environment)
        output, _nothing = process.communicate(timeout=600)
        return Run(process.returncode, output, time.monotonic() - began)

    def ask(self, path: str, **query: Any) -> Any:
        """Return what vCenter's control socket answers."""
        return json.loads(simulator.ask(self.lab, "GET", path, query))

    @contextmanager
    def knobs(self, **settings: Any) -> Iterator[None]:
        """Turn knobs of vCenter while the context lasts."""
        before = self.ask("/knob")
        simulator.ask(self.lab, "POST", "/knob", body=json.dumps(settings).encode())
        try:
            yield
        finally:
            simulator.ask(
                self.lab, "POST", "/knob", body=json.dumps({name: before[name] for name in settings}).encode()
            )

    def write(self, vm: str, key: int, offset: int, data: bytes) -> None:
        """Let the guest write."""
        simulator.ask(self.lab, "POST", "/guest/write", {"vm": vm, "key": key, "offset": offset}, data)

    def read(self, vm: str, key: int, offset: int, length: int) -> bytes:
        """Return what the guest sees."""
        return simulator.ask(self.lab, "GET", "/guest/read", {"vm": vm, "key": key, "offset": offset, "length": length})

    def compare(self, vm: str) -> tuple[dict[str, Any], list[Compared]]:
        """Return the manifest of the VM's newest point, and its disks beside the truth."""
        point, disks = compare(self.lab, vm)
        return json.loads((point / "manifest.json").read_text()), disks

    def points(self) -> list[str]:
        """Return what is published on the hub."""
        found = self.hub.run("find /backup/repository/vms -mindepth 2 -maxdepth 2 -name '*Z'")
        return sorted(found.stdout.split())

    def leftovers(self) -> dict[str, str]:
        """Return what jobs left, by where it lies; empty when all is clean."""
        looks = {
            "units": "systemctl list-units --all --plain --no-legend 'sendense-*'",
            "processes": "pgrep -ax 'qemu-nbd|nbdkit|ssh' ; pgrep -af module_utils.transfer.run",
            "run": "find /run/sendense -mindepth 1 -not -path '*/leases' -not -name .lock",
            "work": "find /var/lib/sendense/jobs -mindepth 1 2>/dev/null",
            "partial": "find /backup/repository -name '*.partial' -o -name '.*.new' 2>/dev/null",
            "temporary": "find /tmp /var/tmp /root/.ansible/tmp -mindepth 1 -name '*ensense*' -o -path '*ansible-tmp*' 2>/dev/null",
        }
        found = {
            f"{name}: {what}": host.run(look).stdout.strip()
            for name, host in (("hub", self.hub), ("node", self.node))
            for what, look in looks.items()
        }
        found["vCenter: snapshots"] = "".join(each["name"] for each in self.ask("/snapshots")["snapshots"])
        found["vCenter: sessions"] = "".join(each["agent"] for each in self.ask("/stats")["sessions"] or [])
        deltas = simulator.Files(self.lab).datastores.glob("*/*/*-0000*")
        found["vCenter: deltas"] = " ".join(str(path) for path in deltas)
        return {where: what for where, what in found.items() if what}

    def wait_for(self, what: str, state: Callable[[], Any]) -> Any:
        """Return the first truth that *state* gives; fail the test when there is none in time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := state():
                return found
            time.sleep(0.2)
        return pytest.fail(f"{what} did not come about within {PATIENCE:.0f} s")

    def wait_for_copy(self, vm: str) -> str:
        """Return the job of the VM once its copy has read something."""
        slug = vm.replace(" ", "-")

        def reading() -> str:
            seen = self.node.run(f"cat /run/sendense/{slug}-*/copy/status.json").stdout
            if not seen or not any(disk["read"] for disk in json.loads(seen)["disks"]):
                return ""
            return self.node.run(f"basename /run/sendense/{slug}-*").stdout.strip()

        return self.wait_for(f"the copy of {vm}", reading)


@pytest.fixture(scope="session")
def site(hub: Any, node: Any) -> Site:
    """Return the lab as a site."""
    return Site(hub, node)


@pytest.fixture
def clean(site: Site) -> Iterator[Site]:
    """Return the site, and hold it to this: no test leaves anything behind, and none publishes what it should not."""
    yield site
    assert site.leftovers() == {}
