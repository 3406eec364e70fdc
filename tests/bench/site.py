# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as the bench uses it: raised if it is not up, provisioned, asked and changed only for as long as a row takes."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab import machine, network, simulator
from lab.compare import points
from lab.instance import here
from tests.bench.measure import BenchError
from tests.bench.processes import ROOT, say

LAB = here()
VCENTER_PYTHON = "/usr/bin/python3"  # what `make lab` runs the lab with
PIECE = 64 << 20


@dataclass(frozen=True)
class Task:
    """One task of a playbook that was run."""

    task: str
    action: str
    delegate: str | None
    began: float  # seconds
    ended: float
    failure: str  # why it failed; empty when it did not


@cache
def site() -> Site:
    """Return the lab, up and provisioned."""
    if not simulator.answers(LAB):
        _raised.append(True)
        say([VCENTER_PYTHON, "-m", "lab", "up"], cwd=ROOT)
    Site.play("playbooks/provision.yml")
    return Site()


_raised: list[bool] = []


def leave() -> None:
    """Take the lab down if it was raised for the bench."""
    if _raised:
        say([VCENTER_PYTHON, "-m", "lab", "down"], cwd=ROOT)


class Site:
    """The lab's hub1, node1 and vCenter."""

    @staticmethod
    def play(playbook: str, *arguments: str) -> list[Task]:
        """Run a playbook and return its tasks; raise BenchError with the reason of the first that failed when it fails."""
        with tempfile.NamedTemporaryFile("r", prefix="sendense-bench-", suffix=".jsonl") as tasks:
            environment = {
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
                "ANSIBLE_CALLBACKS_ENABLED": "bench_tasks",
                "BENCH_TASKS": tasks.name,
            }
            command = ["ansible-playbook", f"--inventory={ROOT}/inventories/lab", ROOT / playbook, *arguments]
            failed: BenchError | None = None
            try:
                say(command, cwd=ROOT, env=environment)
            except BenchError as why:
                failed = why
            done = [Task(**json.loads(line)) for line in tasks]
        if failed:
            told = next((task.failure for task in done if task.failure), str(failed))
            raise BenchError(f"{playbook} failed: {told}")
        return done

    def backup(self, vm: str, *arguments: str) -> float:
        """Back up a VM and return the seconds that the whole command took; the point is removed."""
        began = time.monotonic()
        self.play("playbooks/backup.yml", "-e", f"vm_name={vm}", *arguments)
        seconds = time.monotonic() - began
        self.forget(vm)
        return seconds

    def forget(self, vm: str) -> None:
        """Remove the VM's restore points from hub1."""
        self.run("hub1", "rm -rf", f"/backup/repository/vms/{self.vm(vm)['instance_uuid']}")

    def transport(self, vm: str) -> str:
        """Return by which transport a backup of the VM reads."""
        self.play("playbooks/backup.yml", "-e", f"vm_name={vm}")
        manifest = json.loads((points(LAB, vm)[-1] / "manifest.json").read_text())
        self.forget(vm)
        return str(manifest["transport"])

    def run(self, name: str, *command: str | Path, given: str = "") -> str:
        """Run a command on a machine, with *given* on its standard input, and return what it said."""
        return say([*machine.ssh(LAB, name), "--", *command], input=given)

    def seconds(self, name: str, command: str) -> float:
        """Return the seconds that a command takes on a machine, by its own clock."""
        return float(
            self.run(
                name, "bash", given=f"TIMEFORMAT=%R\nset -e\nexec 3>&2\n{{ time {command} >/dev/null 2>&3; }} 2>&1\n"
            )
        )

    def bring(self, file: str, name: str, path: str) -> None:
        """Put a file of the bench on a machine."""
        content = (Path(__file__).parent / file).read_text()
        self.run(name, f"mkdir -p {Path(path).parent} && cat > {path}", given=content)

    def bring_tools(self, name: str, packages: str = "jq libnbd-bin openssl qemu-utils") -> None:
        """Install on a machine what work by hand and the copiers beside ours take."""
        self.run(
            name, f"dpkg -s {packages} >/dev/null 2>&1 || apt-get install -qq -y --no-install-recommends {packages}"
        )

    def bring_collection(self, name: str, folder: str) -> None:
        """Put the engine on a machine."""
        inside = f"{folder}/ansible_collections/sendense/backup"
        with tarfile.open(self.root(name) / "root/bench.tar", "w") as archive:
            archive.add(ROOT / "plugins/module_utils", "plugins/module_utils")
        self.run(name, f"mkdir -p {inside} && tar -C {inside} -xf /root/bench.tar && rm /root/bench.tar")
        self.bring("copy_once.py", name, f"{folder}/copy_once.py")

    def module(self, name: str, module: str, **options: Any) -> dict[str, Any]:
        """Run one of our modules on a machine and return its result."""
        said = say(
            [
                *("ansible", name, f"--inventory={ROOT}/inventories/lab", "--module-name", f"sendense.backup.{module}"),
                *("--args", json.dumps(options)),
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        )
        result: dict[str, Any] = json.loads(said.partition("=>")[2])
        return result

    def address(self, name: str) -> str:
        """Return where a machine is."""
        return str(network.subnet(LAB).address(name))

    def root(self, name: str) -> Path:
        """Return a machine's files, seen from here."""
        return LAB.root(name)

    def ask(self, path: str, **query: Any) -> Any:
        """Return what vCenter's control socket answers."""
        return json.loads(simulator.ask(LAB, "GET", path, query))

    def reset_stats(self) -> None:
        """Let vCenter count from zero."""
        simulator.ask(LAB, "POST", "/stats/reset")

    def vm(self, name: str) -> dict[str, Any]:
        """Return the VM as the control socket describes it."""
        return next(each for each in self.ask("/vms")["vms"] if each["name"] == name)

    @contextmanager
    def knobs(self, **settings: Any) -> Iterator[None]:
        """Turn knobs of vCenter while the context lasts."""
        before = self.ask("/knob")
        simulator.ask(LAB, "POST", "/knob", body=json.dumps(settings).encode())
        try:
            yield
        finally:
            again = {name: before[name] for name in settings}
            simulator.ask(LAB, "POST", "/knob", body=json.dumps(again).encode())

    @contextmanager
    def filled(self, vm: str, size: int) -> Iterator[int]:
        """Give each disk of a VM *size* bytes that nothing can compress while the context lasts; yield the bytes of all."""
        disks = self.vm(vm)["disks"]
        try:
            for disk in disks:
                for offset in range(0, size, PIECE):
                    place = {"vm": vm, "key": disk["key"], "offset": offset}
                    simulator.ask(LAB, "POST", "/guest/write", place, os.urandom(min(PIECE, size - offset)))
            yield sum(disk["allocated"] for disk in self.vm(vm)["disks"])
        finally:
            for disk in self.vm(vm)["disks"]:
                place = {"vm": vm, "key": disk["key"], "offset": 0, "zero": size}
                simulator.ask(LAB, "POST", "/guest/write", place)
                say(["fallocate", "--dig-holes", disk["file"]])
