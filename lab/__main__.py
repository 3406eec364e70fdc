# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's command line: `python3 -m lab …`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab import compare as comparison
from lab import deps, image, machine, network, simulator, vddk
from lab.cache import remove
from lab.instance import DEFAULT_MACHINES, Lab, here, is_node, machine_number, only_one_command, write_json
from lab.network import Subnet
from lab.process import Process, cgroups, end_cgroup, unmount_below
from lab.shell import LabError, say


def up(lab: Lab, arguments: argparse.Namespace) -> None:
    for name in arguments.machines:
        machine_number(name)
    start = time.monotonic()
    deps.install(deps.PACKAGES)
    with only_one_command(lab), ThreadPoolExecutor() as builders:
        names = sorted({*DEFAULT_MACHINES, *lab.machines(), *arguments.machines}, key=machine_number)
        machine_image = builders.submit(image.image, lab)
        program = None if arguments.without_vcenter else builders.submit(simulator.binary, lab)
        disks = None if arguments.without_vcenter else builders.submit(simulator.guests, lab)
        library = builders.submit(vddk.archive, lab)
        net = network.claim(lab)
        machine.ssh_key(lab)
        network.raise_bridges(lab, net)
        machine.know_hosts(lab, net, names)
        started = [name for name in names if machine.raise_machine(lab, net, name, machine_image.result())]
        if program and disks and simulator.raise_vcenter(lab, net, program.result(), disks.result()):
            started.append("vCenter")
        for name in names:
            machine.wait_booted(lab, name)
        for name in names:
            if name in started:
                network.warn_when_shut_in(lab, name)
        write_json(lab.lab_json, description(lab, net, names, library.result()))
    done = f"{', '.join(started)} started" if started else "everything was up already"
    say(f"up in {time.monotonic() - start:.1f} s: {done}; described in {lab.lab_json}")


def description(lab: Lab, net: Subnet, names: list[str], library: Path) -> dict[str, Any]:
    """What build/lab.json says."""
    machines = [
        {
            "name": name,
            "address": str(net.address(name)),
            "user": "root",
            "ssh_key": str(lab.key),
            "root": str(lab.root(name)),
            "groups": ["nodes" if is_node(name) else "hubs"],
        }
        for name in names
    ]
    return {
        "id": lab.id,
        "subnet": str(net.network),
        "machines": machines,
        "known_hosts": str(lab.known_hosts),
        "host_keys": {name: machine.public(machine.host_key(lab, name)) for name in names},
        "vcenter": simulator.description(lab, net) if simulator.answers(lab) else None,
        "vddk": vddk.description(library),
    }


def down(lab: Lab, arguments: argparse.Namespace) -> None:
    with only_one_command(lab):
        Process(lab, simulator.NAME).stop()
        for name in lab.machines():
            machine.drop(lab, name)
        for unit in {path.name.removesuffix(".scope") for path in cgroups(f"sendense-lab-{lab.id}-")}:
            end_cgroup(unit)
        network.take_down(lab)
        if lab.state.exists():
            for folder in lab.state.glob("apt/*"):
                machine.keep_packages(lab, folder.name)
            unmount_below(lab.state)
            remove(lab.state)
        network.forward(False)
        lab.lab_json.unlink(missing_ok=True)
    say("down; nothing is left but the cache")


def reset(lab: Lab, arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    name = arguments.machine
    machine_number(name)
    with only_one_command(lab):
        if name not in lab.machines():
            raise LabError(f"{name} is not up; `make lab` raises the lab")
        net = network.claim(lab)
        network.raise_bridges(lab, net)
        machine.drop(lab, name)
        machine.raise_machine(lab, net, name, image.image(lab))
        machine.wait_booted(lab, name)
    say(f"{name} is a fresh machine after {time.monotonic() - start:.1f} s")


def ssh(lab: Lab, arguments: argparse.Namespace) -> None:
    if arguments.machine not in lab.machines():
        raise LabError(f"{arguments.machine} is not up; `make lab` raises the lab")
    words = ["--", *arguments.command] if arguments.command else []
    os.execvp("ssh", [*machine.ssh(lab, arguments.machine), *words])  # noqa: S606


def cut(lab: Lab, arguments: argparse.Namespace) -> None:
    set_cables(lab, arguments, up=False)


def heal(lab: Lab, arguments: argparse.Namespace) -> None:
    set_cables(lab, arguments, up=True)


def set_cables(lab: Lab, arguments: argparse.Namespace, *, up: bool) -> None:
    name, what = arguments.machine, arguments.what
    machine_number(name)
    net = network.subnet(lab)
    if what in network.NETWORKS:
        network.set_cable(lab, name, [what], up)
    elif what:
        machine_number(what)
        network.set_apart(lab, net, name, what, not up)
    else:
        network.set_cable(lab, name, machine.networks(name), up)
        for pair in network.kept_apart(lab, net) if up else ():
            if name in pair:
                network.set_apart(lab, net, *pair, apart=False)


def status(lab: Lab, arguments: argparse.Namespace) -> None:
    print(f"lab {lab.id} of {lab.checkout}")
    if not lab.remembered().get("subnet"):
        print("down")
        return
    net = network.subnet(lab)
    print(f"subnet {net.network}, LAN {net.lan}, vCenter's network {net.vcenter}")
    for name in lab.machines():
        state = "running" if Process(lab, name).alive() else "stopped"
        cables = [
            f"{net_name} {'plugged' if network.cable_up(lab, net_name, name) else 'cut'}"
            for net_name in machine.networks(name)
        ]
        print(f"{name:8} {state:8} {net.address(name)!s:16} {', '.join(cables)}")

    for one, other in sorted(network.kept_apart(lab, net)) if network.exists(network.bridge(lab, "lan")) else ():
        print(f"cut between {one} and {other}")
    if simulator.answers(lab):
        print(f"vcenter  running  {net.vcenter_server!s:16} {', '.join(vm['name'] for vm in simulator.inventory(lab))}")
    else:
        print("vcenter  stopped")


def show(answer: bytes) -> None:
    """Print a control answer as readable JSON."""
    print(json.dumps(json.loads(answer), indent=2))


def guest_write(lab: Lab, arguments: argparse.Namespace) -> None:
    query = {"vm": arguments.vm, "key": arguments.key, "offset": arguments.offset}
    try:
        body = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    except OSError as why:
        raise LabError(f"{arguments.file} cannot be read: {why.strerror}") from None
    show(simulator.ask(lab, "POST", "/guest/write", query, body))


def guest_read(lab: Lab, arguments: argparse.Namespace) -> None:
    query = {"vm": arguments.vm, "key": arguments.key, "offset": arguments.offset, "length": arguments.length}
    sys.stdout.buffer.write(simulator.ask(lab, "GET", "/guest/read", query))


def truth(lab: Lab, arguments: argparse.Namespace) -> None:
    query = {"vm": arguments.vm}
    if arguments.snapshot:
        query["snapshot"] = arguments.snapshot
    if arguments.sha256:
        query["sha256"] = "1"
    show(simulator.ask(lab, "GET", "/truth", query))


def compare(lab: Lab, arguments: argparse.Namespace) -> None:
    """Print the VM's newest restore point beside the truth; a difference is an error."""
    point, disks = comparison.compare(lab, arguments.vm)
    print(f"{arguments.vm}, restore point {point.name}\n{comparison.HEADER}")
    for disk in disks:
        print(disk)
    if wrong := [str(disk.key) for disk in disks if not disk.equal]:
        raise LabError(f"disk {', '.join(wrong)} of {point} is not what {arguments.vm} held at the snapshot")


def knob(lab: Lab, arguments: argparse.Namespace) -> None:
    """Show vCenter's knobs after turning those that are named."""
    if not arguments.settings:
        show(simulator.ask(lab, "GET", "/knob"))
        return
    tell(lab, "/knob", settings(arguments.settings))


def settings(words: list[str]) -> dict[str, Any]:
    """What NAME=VALUE words say; a value is JSON, or plain words."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise LabError(f"{word!r} sets nothing: write NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def tell(lab: Lab, path: str, wanted: dict[str, Any]) -> None:
    show(simulator.ask(lab, "POST", path, body=json.dumps(wanted).encode()))


def change_vm(lab: Lab, arguments: argparse.Namespace) -> None:
    tell(lab, "/vm", {"vm": arguments.vm, **settings(arguments.settings)})


def change_disk(lab: Lab, arguments: argparse.Namespace) -> None:
    tell(lab, "/disk", {"vm": arguments.vm, "key": arguments.key, **settings(arguments.settings)})


def cbt(lab: Lab, arguments: argparse.Namespace) -> None:
    tell(lab, "/cbt", {"vm": arguments.vm, "enabled": arguments.state == "on"})


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python3 -m lab", description="The lab: machines and a vCenter on this host.")
    words = top.add_subparsers(dest="word", required=True, metavar="WORD")

    def word(name: str, act: Callable[[Lab, argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        found = words.add_parser(name, help=summary, description=summary)
        found.set_defaults(act=act)
        return found

    one = word("up", up, "raise the lab, or what is missing of it")
    one.add_argument("machines", nargs="*", metavar="MACHINE", help="more machines than hub1 and node1, such as node2")
    one.add_argument("--without-vcenter", action="store_true", help="machines only")
    word("down", down, "end the lab and remove all of it but the cache")
    word("reset", reset, "make one machine fresh").add_argument("machine", metavar="MACHINE")
    one = word("ssh", ssh, "a shell, or one command, on a machine")
    one.add_argument("machine", metavar="MACHINE")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    word("status", status, "what is up")
    for name, act, summary in (("cut", cut, "pull a machine's cables"), ("heal", heal, "plug them again")):
        one = word(name, act, summary)
        one.add_argument("machine", metavar="MACHINE")
        one.add_argument(
            "what", nargs="?", metavar="lan|vcenter|MACHINE", help="only this cable, or what passes to that machine"
        )
    word("vms", asker("/vms"), "vCenter's VMs and their disks")
    word("snapshots", asker("/snapshots"), "the snapshots that are open now")
    word("stats", asker("/stats"), "SOAP calls, logins, sessions and datastore reads so far")
    one = word("guest-write", guest_write, "write a file's bytes into a running guest's disk")
    add_disk(one)
    one.add_argument("file", metavar="FILE", help="- for stdin")
    one = word("guest-read", guest_read, "bytes of a guest's disk as it is now, on stdout")
    add_disk(one)
    one.add_argument("length", type=int, metavar="LENGTH")
    one = word("truth", truth, "what a VM's disks held when a snapshot was taken")
    one.add_argument("vm", metavar="VM")
    one.add_argument("--snapshot", metavar="NAME", help="this one instead of the newest")
    one.add_argument("--sha256", action="store_true", help="with digests, which takes a while")
    word("compare", compare, "a VM's newest restore point on hub1 with the truth, byte for byte").add_argument(
        "vm", metavar="VM"
    )
    one = word("knob", knob, "show or turn vCenter's knobs: latency, faults, quiescing")
    one.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    one = word("vm", change_vm, "change a VM: registered=false, host=DC0_C0_H1, consolidation_needed=true")
    one.add_argument("vm", metavar="VM")
    one.add_argument("settings", nargs="+", metavar="NAME=VALUE")
    one = word("disk", change_disk, "change a VM's disk: readable=false, grow_at_snapshot=65536")
    one.add_argument("vm", metavar="VM")
    one.add_argument("key", type=int, metavar="KEY", help="the disk's device key, such as 2000")
    one.add_argument("settings", nargs="+", metavar="NAME=VALUE")
    one = word("cbt", cbt, "switch a VM's change tracking")
    one.add_argument("vm", metavar="VM")
    one.add_argument("state", choices=("on", "off"))
    word(
        "deps", deps.show, "list the Debian packages the lab needs on this host; --install installs them"
    ).add_argument("--install", action="store_true", help="install what is missing")
    return top


def asker(path: str) -> Callable[[Lab, argparse.Namespace], None]:
    return lambda lab, arguments: show(simulator.ask(lab, "GET", path))


def add_disk(word: argparse.ArgumentParser) -> None:
    word.add_argument("vm", metavar="VM")
    word.add_argument("key", type=int, metavar="KEY", help="the disk's device key, such as 2000")
    word.add_argument("offset", type=int, metavar="OFFSET", help="bytes")


def main() -> int:
    arguments = parser().parse_args()
    try:
        if os.geteuid():
            raise LabError("the lab makes machines and networks, so it must run as root")
        # A shell that became root without a login may lack these.
        os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
        arguments.act(here(), arguments)
    except LabError as why:
        print(f"lab: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command again goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
