# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A site as its operator has it: the playbook to run, the lab's knobs to turn, and a look for what was left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
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
# Bytes per second and open disk, whichever way it is read, for copies that are to be disturbed: of a small VM 4 MiB are
# sampled, then 3 MiB copied.
SLOW, SLOWER = ({"folder_bytes_per_second": speed, "nfc_bytes_per_second": speed} for speed in (512 * 1024, 15_000))

# What an administrator does by hand; the password comes by stdin.
BY_HAND = """
import ssl, sys, time
from pyVim.connect import SmartConnect
from pyVmomi import vim
host, user, moref, act = sys.argv[1:]
there = SmartConnect(host=host, user=user, pwd=sys.stdin.readline().strip(), sslContext=ssl._create_unverified_context())
try:
    task = eval("vm." + act, {"vm": vim.VirtualMachine(moref, there._stub)})
    while task.info.state in ("queued", "running"):
        time.sleep(0.1)
    assert not task.info.error, task.info.error
finally:
    there.content.sessionManager.Logout()
"""


@dataclass(frozen=True)
class Run:
    """One ansible-playbook that has ended."""

    code: int
    output: str
    seconds: float

    @property
    def told(self) -> str:
        """The output with its wrapped lines joined, to look for a sentence in it."""
        return re.sub(r"\s+", " ", self.output)

    def line(self, vm: str) -> str:
        """Return what the summary says of *vm*."""
        summary = self.told.partition("TASK [One line for each VM]")[2].partition(" TASK [")[0]
        found = re.search(rf"- '?{re.escape(vm)}: (.*?)'?(?= - '?[\w-]+: (?:ok|FAILED)|$)", summary.strip())
        return found[1].replace("''", "'") if found else f"no line for {vm} in: {self.output}"


@contextmanager
def inventory_slice(vm: str, **machines: str | list[str]) -> Iterator[Path]:
    """Yield an inventory as a slice of AWX is: one VM, which says in these variables how hub and nodes are reached."""
    told = subprocess.check_output([PROJECT / "inventories/lab/inventory.py", "--list"], text=True)
    listed: dict[str, Any] = json.loads(told)
    known = listed["_meta"]["hostvars"]

    def described(machine: str | list[str]) -> Any:
        return (
            {"name": machine, **known[machine]} if isinstance(machine, str) else [described(each) for each in machine]
        )

    inventory = PROJECT / "build" / "slice-of-the-tests.json"
    said = {**listed["all"]["vars"], **{variable: described(machine) for variable, machine in machines.items()}}
    inventory.write_text(json.dumps({"vms": {"hosts": {vm: {}}, "vars": said}}), encoding="utf-8")
    try:
        yield inventory
    finally:
        inventory.unlink()


def settled(vms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return VMs without what their disks take on the datastore, which the file system beneath decides when it likes."""
    for vm in vms:
        for disk in vm["disks"]:
            del disk["allocated"]
    return vms


class Site:
    """The lab, used as an operator uses a site."""

    def __init__(self, hub: Any, node: Any, other_node: Any) -> None:
        self.hub, self.node, self.other_node = hub, node, other_node
        self.lab = Lab(PROJECT)
        self.lab_json: dict[str, Any] = json.loads(self.lab.lab_json.read_text())
        self.lab_json["vcenter"]["password_file"] = Path(self.lab_json["vcenter"]["password_file"])

    def start(
        self,
        *arguments: str,
        playbook: str = "backup",
        environment: dict[str, str] | None = None,
        inventory: str = "inventories/lab",
    ) -> subprocess.Popen[str]:
        """Start a playbook in a process group of its own."""
        command = [
            "ansible-playbook",
            f"--inventory={PROJECT / inventory}",
            f"{PROJECT}/playbooks/{playbook}.yml",
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

    def end(self, process: subprocess.Popen[str], end: signal.Signals | None = None) -> Run:
        """Wait for the end of a playbook, after ending it with a signal if one is given."""
        began = time.monotonic()
        if end:
            os.killpg(process.pid, end)
        output, _nothing = process.communicate(timeout=600)
        return Run(process.returncode, output, time.monotonic() - began)

    def backup(self, *arguments: str, **settings: Any) -> Run:
        """Run playbooks/backup.yml to its end."""
        return self.end(self.start(*arguments, **settings))

    def word(self, *words: str) -> str:
        """Say a word of the lab, as a person does with python3 -m lab."""
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "lab", *words], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        return done.stdout

    def module(self, host: str, module: str, /, **arguments: Any) -> dict[str, Any]:
        """Return the result of one module on a host; vCenter's options are those of the lab."""
        vcenter = self.lab_json["vcenter"]
        done = subprocess.run(
            [
                *("ansible", f"--inventory={PROJECT}/inventories/lab", host, "-m", f"sendense.backup.{module}"),
                *("-a", json.dumps(arguments)),
            ],
            cwd=PROJECT,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),  # with pipelining, so that a look leaves no trace
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                "VMWARE_HOST": vcenter["hostname"],
                "VMWARE_USER": vcenter["user"],
                "VMWARE_PASSWORD": vcenter["password_file"].read_text().strip(),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        try:
            found: dict[str, Any] = json.loads(done.stdout.partition(" => ")[2])
        except ValueError:
            return pytest.fail(done.stdout + done.stderr)
        return found

    def ask(self, path: str, *, vcenter: str = simulator.NAME, **query: Any) -> Any:
        """Return what a vCenter's control socket answers."""
        return json.loads(simulator.ask(self.lab, "GET", path, query, name=vcenter))

    def vms(self, vcenter: str = simulator.NAME) -> dict[str, dict[str, Any]]:
        """Return the VMs that a vCenter has, by name."""
        return {each["name"]: each for each in settled(self.ask("/vms", vcenter=vcenter)["vms"])}

    def administrator(self, vm: str, act: str) -> None:
        """Have an administrator do something to a VM by hand, such as ``PowerOffVM_Task()``, from the node."""
        vcenter = self.lab_json["vcenter"]
        words = ["python3", "-c", BY_HAND, vcenter["hostname"], vcenter["user"], self.vms()[vm]["moref"], act]
        subprocess.run(
            ["/usr/bin/python3", "-m", "lab", "ssh", "node1", shlex.join(words)],
            cwd=PROJECT,
            input=vcenter["password_file"].read_text(),
            text=True,
            check=True,
        )

    def turn(self, settings: dict[str, Any]) -> None:
        """Turn knobs of vCenter."""
        simulator.ask(self.lab, "POST", "/knob", body=json.dumps(settings).encode())

    def ask_to(self, what: str) -> None:
        """Let something happen in vCenter."""
        simulator.ask(self.lab, "POST", what, body=b"{}")

    @contextmanager
    def knobs(self, **settings: Any) -> Iterator[None]:
        """Turn knobs of vCenter while the context lasts."""
        before = self.ask("/knob")
        self.turn(settings)
        try:
            yield
        finally:
            self.turn({name: before[name] for name in settings})

    @contextmanager
    def moved(self, host: Any, path: str) -> Iterator[None]:
        """Have what is at *path* of a machine away while the context lasts."""
        host.check_output(f"mv {path} {path}.away")
        try:
            yield
        finally:
            host.check_output(f"mv {path}.away {path}")

    @contextmanager
    def slow(self, *vms: str, arguments: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
        """Back up small VMs, and hold their copies up while the context lasts; yields the playbook and the jobs."""
        with self.knobs(**SLOW):
            run = self.start(f"--limit={','.join(vms)}", *arguments)
            jobs = [self.wait_for_copy(vm) for vm in vms]
            self.turn(SLOWER)
            yield run, jobs

    def write(self, vm: str, key: int, offset: int, data: bytes) -> None:
        """Let the guest write."""
        simulator.ask(self.lab, "POST", "/guest/write", {"vm": vm, "key": key, "offset": offset}, data)

    @contextmanager
    def restoring(self, vm: str, places: Sequence[tuple[int, int, int]]) -> Iterator[None]:
        """Write back what stood at the *places*, each (key, offset, length): later scenarios read, boot and mount this VM."""
        before = [self.read(vm, *place) for place in places]
        try:
            yield
        finally:
            for (key, offset, _length), data in zip(places, before, strict=True):
                self.write(vm, key, offset, data)

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

    def leftovers(self, but: str = "") -> dict[str, str]:
        """Return what jobs left, by where it lies; empty when all is clean. One machine may be left out."""
        looks = {
            "units": "systemctl list-units --all --plain --no-legend 'sendense-*-*'",
            # ssh of a tunnel that stays is nobody's leftover
            "processes": "pgrep -ax 'qemu-nbd|nbdkit|ssh' | grep -v -- ' -F /etc/sendense/tunnel/ssh_config '"
            " ; pgrep -af 'module_utils[.]transfer[.](run|client|push)'",
            "run": "find /run/sendense -mindepth 1 -not -path '*/leases' -not -path '*/progress' -not -name .lock",
            "work": "find /var/lib/sendense/jobs -mindepth 1 2>/dev/null",
            "partial": "find /backup/repository -name '*.partial' -o -name '*.gone' -o -name '.*.new' 2>/dev/null",
            "temporary": "find /tmp /var/tmp /root/.ansible/tmp -mindepth 1 -name '*ensense*' -o -path '*ansible-tmp*' 2>/dev/null",
        }
        at_once = "; echo '|'; ".join(looks.values())
        found = {
            f"{name}: {what}": seen.strip()
            for name, host in (("hub", self.hub), ("node", self.node), ("other node", self.other_node))
            if name != but
            for what, seen in zip(looks, re.split(r"^\|$", host.run(at_once).stdout, flags=re.MULTILINE), strict=True)
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

        def reading() -> str:
            seen = self.node.run(f"cat /run/sendense/{vm}-*/copy/status.json").stdout
            if not seen or not any(disk["read"] for disk in json.loads(seen)["disks"]):
                return ""
            return self.node.run(f"basename /run/sendense/{vm}-*").stdout.strip()

        return self.wait_for(f"the copy of {vm}", reading)

    def state(self, vm: str) -> dict[str, Any]:
        """Return all that a run of check mode could change, by where it lies; any module touches the date of /tmp itself."""
        look = """
            find /etc /opt /root /home /srv /tmp /var/tmp /usr/local /var/lib/sendense /var/log/sendense /backup /run/sendense \\
                -mindepth 1 -printf '%p %y %m %U %G %s %T@\n' 2>/dev/null | sort
            systemctl list-units --all --plain --no-legend 'sendense-*' | sort
            ps -eo pid,lstart,args | grep -E 'qemu-nbd|nbdkit|ssh -F|transfer.(run|client)' | grep -v grep
            nft list ruleset 2>/dev/null
        """
        hosts = {"hub": self.hub, "node": self.node, "other node": self.other_node}
        found = {name: host.run(look).stdout.splitlines() for name, host in hosts.items()}
        found["vms"] = settled(self.ask("/vms")["vms"])
        found["snapshots"] = self.ask("/snapshots")["snapshots"]
        found["sessions"] = self.ask("/stats")["sessions"]
        described = self.module("node1", "vm_info", name=vm, vcenter_ca_file="/etc/sendense/vcenter-ca.pem")["vm"]
        found["change ids"] = [(disk["key"], disk["change_id"], disk["path"]) for disk in described["disks"]]
        return found
