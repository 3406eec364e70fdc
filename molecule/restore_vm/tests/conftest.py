# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as somebody has it who restores VMs into vCenter: backups, restores, and a look at what is there afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import network, simulator
from lab.cache import remove
from lab.instance import Lab
from lab.process import Process
from tests.scenarios.site import settled

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
PLAYBOOK = PROJECT / "playbooks/restore.yml"
PATIENCE = 120.0  # seconds that a state may take to come about
# What an administrator does by hand; the password comes by stdin.
BY_HAND = """
import ssl, sys, time
from pyVim.connect import SmartConnect
from pyVmomi import vim
host, user, moref, what = sys.argv[1:]
there = SmartConnect(host=host, user=user, pwd=sys.stdin.readline().strip(), sslContext=ssl._create_unverified_context())
vm = vim.VirtualMachine(moref, there._stub)
task = getattr(vm, what)()
while task.info.state in ("queued", "running"):
    time.sleep(0.1)
failed = task.info.error
there.content.sessionManager.Logout()
assert not failed, failed
"""


@dataclass(frozen=True)
class Run:
    """One ansible-playbook that has ended."""

    code: int
    output: str

    @property
    def told(self) -> str:
        """The output with its wrapped lines joined, to look for a sentence in it."""
        return re.sub(r"\s+", " ", self.output)


class Site:
    """The lab, used as an operator uses a site."""

    def __init__(self, hub: Any, node: Any) -> None:
        self.hub, self.node = hub, node
        self.lab = Lab(PROJECT)
        self.made: set[str] = set()

    def start(self, playbook: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own."""
        return subprocess.Popen(
            ["ansible-playbook", f"--inventory={PROJECT}/inventories/lab", str(playbook), *arguments],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str], end: signal.Signals | None = None) -> Run:
        """Wait for the end of a playbook, after ending it with a signal if one is given."""
        if end:
            os.killpg(process.pid, end)
        output, _nothing = process.communicate(timeout=600)
        return Run(process.returncode, output)

    def backup(self, vm: str) -> dict[str, Any]:
        """Back a VM up, whatever folder it is in, and return the manifest of its point."""
        run = self.end(self.start(PROJECT / "playbooks/backup.yml", "-e", json.dumps({"vm_name": vm})))
        assert run.code == 0, run.output
        return self.manifest(vm)

    def have(self, vm: str) -> None:
        """Back a VM up unless it has a point that its newest truth is of."""
        if not list(self.points(vm).glob("*Z/manifest.json")):
            self.backup(vm)

    def points(self, vm: str) -> Path:
        """Return the folder of a VM's points, seen from here."""
        return self.lab.root("hub1") / "backup/repository/vms" / self.vm(vm)["instance_uuid"]

    def manifest(self, vm: str) -> dict[str, Any]:
        """Return the manifest of a VM's newest point."""
        newest = max(self.points(vm).glob("*Z/manifest.json"))
        return json.loads(newest.read_text())

    def start_restore(self, vm: str, **wishes: Any) -> subprocess.Popen[str]:
        """Start the restore of a VM's newest point."""
        self.made.add(wishes.get("restore_name", ""))
        given = {"restore_to": "vm", "restore_vm": self.vm(vm)["instance_uuid"], **wishes}
        return self.start(PLAYBOOK, "-e", json.dumps(given))

    def restore(self, vm: str, **wishes: Any) -> Run:
        """Restore a VM's newest point."""
        return self.end(self.start_restore(vm, **wishes))

    def ask(self, path: str, *, vcenter: str = simulator.NAME, **query: Any) -> Any:
        """Return what a vCenter's control socket answers."""
        return json.loads(simulator.ask(self.lab, "GET", path, query, name=vcenter))

    def vms(self, vcenter: str = simulator.NAME) -> dict[str, dict[str, Any]]:
        """Return the VMs that a vCenter has, by name."""
        return {each["name"]: each for each in settled(self.ask("/vms", vcenter=vcenter)["vms"])}

    def vm(self, name: str, vcenter: str = simulator.NAME) -> dict[str, Any]:
        """Return one of them."""
        return self.vms(vcenter)[name]

    def write(self, vm: str, key: int, offset: int, data: bytes) -> None:
        """Let the guest write."""
        simulator.ask(self.lab, "POST", "/guest/write", {"vm": vm, "key": key, "offset": offset}, data)

    @contextmanager
    def knobs(self, **settings: Any) -> Iterator[None]:
        """Turn knobs of vCenter while the context lasts."""
        before = self.ask("/knob")
        self.turn(settings)
        try:
            yield
        finally:
            self.turn({name: before[name] for name in settings})

    def turn(self, settings: dict[str, Any]) -> None:
        """Turn knobs of vCenter."""
        simulator.ask(self.lab, "POST", "/knob", body=json.dumps(settings).encode())

    def administrator(self, vm: str, what: str) -> None:
        """Have an administrator do something to a VM by hand, such as ``PowerOffVM_Task``."""
        vcenter = json.loads(self.lab.lab_json.read_text())["vcenter"]
        command = f"python3 -c '{BY_HAND}' {vcenter['hostname']} {vcenter['user']} {self.vm(vm)['moref']} {what}"
        subprocess.run(
            ["/usr/bin/python3", "-m", "lab", "ssh", "node1", command],
            cwd=PROJECT,
            input=Path(vcenter["password_file"]).read_text(),
            text=True,
            check=True,
        )

    def destroy(self, vm: str) -> None:
        """Have an administrator delete a VM that a test made."""
        if self.vm(vm)["power_state"] == "poweredOn":
            self.administrator(vm, "PowerOffVM_Task")
        shelf = self.points(vm)
        self.administrator(vm, "Destroy_Task")
        if shelf.exists():
            subprocess.run(["rm", "-r", "--", str(shelf)], check=True)

    def differing(self, vm: str, truth: str, vcenter: str = simulator.NAME) -> list[int]:
        """Return the disks of a VM that do not hold, byte for byte, what those of another did at its last snapshot."""
        kept, disks = self.ask("/truth", vm=truth), self.vm(vm, vcenter)["disks"]
        files = {disk["key"]: disk["file"] for disk in disks}
        assert files.keys() == {disk["key"] for disk in kept["disks"]}
        sizes = {disk["key"]: disk["capacity"] for disk in disks}
        assert sizes == {disk["key"]: disk["capacity"] for disk in kept["disks"]}
        compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw"]
        return [
            disk["key"]
            for disk in kept["disks"]
            if subprocess.run(
                [*compare, f"{kept['folder']}/{disk['file']}", files[disk["key"]]], check=False
            ).returncode
        ]

    def leftovers(self) -> dict[str, str]:
        """Return what jobs left, by where it lies; empty when all is clean."""
        looks = {
            "units": "systemctl list-units --all --plain --no-legend 'sendense-*-restore-*'",
            "processes": "pgrep -ax 'qemu-nbd|nbdkit' ; pgrep -af 'module_utils[.]transfer[.]push'",
            "run": "find /run/sendense -mindepth 1 -not -path '*/leases' -not -path '*/progress' -not -name .lock",
            "work": "find /var/lib/sendense/jobs -mindepth 1 2>/dev/null",
        }
        found = {
            f"{name}: {what}": host.run(look).stdout.strip()
            for name, host in (("hub", self.hub), ("node", self.node))
            for what, look in looks.items()
        }
        found["vCenter: sessions"] = "".join(each["agent"] for each in self.ask("/stats")["sessions"] or [])
        return {where: what for where, what in found.items() if what}

    def wait_for(self, what: str, state: Callable[[], Any]) -> Any:
        """Return the first truth that *state* gives; fail the test when there is none in time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := state():
                return found
            time.sleep(0.2)
        return pytest.fail(f"{what} did not come about within {PATIENCE:.0f} s")

    def wait_for_sending(self) -> str:
        """Return the job of the one restore once it has sent something."""

        def sending() -> str:
            seen = self.node.run("cat /run/sendense/restore-*/push/status.json").stdout
            if not seen or not any(disk["read"] for disk in json.loads(seen)["disks"]):
                return ""
            return self.node.run("basename /run/sendense/restore-*").stdout.strip()

        return self.wait_for("the sending", sending)


@pytest.fixture(scope="session")
def shared(hub: Any, node: Any) -> Site:
    """Return the lab as a site."""
    return Site(hub, node)


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """Return the site, and hold it to this: no test leaves anything behind. VMs that it made go at its end."""
    before = shared.vms().keys()
    yield shared
    left = shared.leftovers()
    new = shared.vms().keys() - before
    for vm in new:
        with contextlib.suppress(subprocess.CalledProcessError):
            shared.destroy(vm)
    assert left == {}
    assert new <= shared.made


@pytest.fixture
def other_vcenter(shared: Site) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the name of another vCenter, of another authority and account, and what a restore is told to go there."""
    lab, name, port, ca = shared.lab, "other-vcenter", 8443, "/run/other-vcenter-ca.pem"
    net, files = network.claim(lab), simulator.Files(lab, name)
    try:
        simulator.raise_vcenter(lab, net, simulator.binary(lab), simulator.guests(lab), name=name, ports=(port, 9902))
        shared.node.check_output(f"umask 022; cat > {ca} <<'END'\n{files.ca.read_text()}END")
        where = {
            "restore_vcenter_hostname": str(net.vcenter_server),
            "restore_vcenter_port": port,
            "restore_vcenter_username": simulator.USER,
            "restore_vcenter_password": files.password.read_text().strip(),
            "restore_vcenter_ca_file": ca,
        }
        yield name, where
    finally:
        Process(lab, name).stop()
        remove(files.folder)
        shared.node.run(f"rm -f {ca}")
