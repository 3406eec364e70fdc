# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as somebody has it who restores VMs into vCenter: backups, restores, and a look at what is there afterwards."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import network, simulator
from lab.cache import remove
from lab.process import Process
from tests.scenarios import site as scenarios


class Site(scenarios.Site):
    """A site whose VMs are restored."""

    def __init__(self, hub: Any, node: Any) -> None:
        super().__init__(hub, node, node)
        self.made: set[str] = set()

    def back_up(self, vm: str) -> dict[str, Any]:
        """Back a VM up, whatever folder it is in, and return the manifest of its point."""
        run = self.backup("-e", json.dumps({"vm_name": vm}))
        assert run.code == 0, run.output
        return self.manifest(vm)

    def have(self, vm: str) -> None:
        """Back a VM up unless it has a point that its newest truth is of."""
        if not list(self.shelf(vm).glob("*Z/manifest.json")):
            self.back_up(vm)

    def shelf(self, vm: str) -> Path:
        """Return the folder of a VM's points, seen from here."""
        return self.lab.root("hub1") / "backup/repository/vms" / self.vm(vm)["instance_uuid"]

    def manifest(self, vm: str) -> dict[str, Any]:
        """Return the manifest of a VM's newest point."""
        newest = max(self.shelf(vm).glob("*Z/manifest.json"))
        return json.loads(newest.read_text())

    def start_restore(self, vm: str, **wishes: Any) -> subprocess.Popen[str]:
        """Start the restore of a VM's newest point."""
        self.made.add(wishes.get("restore_name", ""))
        given = {"restore_to": "vm", "restore_vm": self.vm(vm)["instance_uuid"], **wishes}
        return self.start("-e", json.dumps(given), playbook="restore")

    def restore(self, vm: str, **wishes: Any) -> scenarios.Run:
        """Restore a VM's newest point."""
        return self.end(self.start_restore(vm, **wishes))

    def vm(self, name: str, vcenter: str = simulator.NAME) -> dict[str, Any]:
        """Return one of them."""
        return self.vms(vcenter)[name]

    def destroy(self, vm: str) -> None:
        """Have an administrator delete a VM that a test made."""
        if self.vm(vm)["power_state"] == "poweredOn":
            self.administrator(vm, "PowerOffVM_Task()")
        shelf = self.shelf(vm)
        self.administrator(vm, "Destroy_Task()")
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
