# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole backups in the lab: beside the same backup by hand, on the wire, of a huge thin disk, of many VMs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import machine, network, simulator
from tests.bench import gotools
from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.processes import say, serving
from tests.bench.site import LAB, Site, site

rows = Rows()
VM, HUGE, THIN = "bench1", "bench2", "thin1"
GIB, MIB = 1 << 30, 1 << 20
FILL = 3 * GIB // 2  # per disk; all of it, since over https nobody tells by hand what is allocated
RUNS = 3
PER_DISK = 50_000_000  # bytes a second
CONNECTIONS = 4  # of nbdkit's curl plugin to the datastore; the knob holds each of them back
IMAGES = "backup/by-hand"  # on the hub


@rows.row("s", "≤ 0.7")
def backup_wall_vs_by_hand() -> Measured:
    here = site()
    with here.filled(VM, FILL) as size:
        transport = here.transport(VM)  # and vCenter has kept its truth, which takes its time once
        with hands(here, "by-hand.sh") as script:

            def by_hand() -> float:
                return seconds(lambda: script(VM, f"root@{here.address('hub1')}", f"/{IMAGES}", TRANSPORT=transport))

            try:
                with here.knobs(folder_bytes_per_second=PER_DISK // CONNECTIONS, nfc_bytes_per_second=PER_DISK):
                    ours, other = interleaved(RUNS, lambda: here.backup(VM), by_hand)
                hold_against_truth()
                free = here.backup(VM), by_hand()
            finally:
                here.run("hub1", f"rm -rf /{IMAGES}")
    note = (
        f"3 disks, {size / GIB:.1f} GiB, transport {transport}, 50 MB/s per disk: tests/bench/by-hand.sh, its images equal to the "
        f"truth; unthrottled {free[0]:.1f} s against {free[1]:.1f} s"
    )
    return Measured(ours, other, note)


@contextmanager
def hands(here: Site, script: str) -> Iterator[Callable[..., str]]:
    """Yield a function that runs a script of the bench on the node, which has all that it takes meanwhile.

    The function takes the script's arguments and, by name, what else its environment is to have; it returns what the script said.
    """
    here.bring_tools("node1")
    here.bring(script, "node1", f"/run/bench/{script}")
    here.run("node1", "mkdir -p ~/.ssh && cp /etc/sendense/tunnel/known_hosts ~/.ssh/known_hosts")
    here.run("node1", "cat > /run/bench/password", given=simulator.Files(LAB).password.read_text())
    shutil.copy(gotools.built("govc"), LAB.root("node1") / "usr/local/bin/govc")
    with agent() as environment:

        def by_hand(*arguments: str, **words: str) -> str:
            given = [f"{name}={value}" for name, value in {**where_vcenter_is(), **words}.items()]
            command = shlex.join(["env", *given, "bash", f"/run/bench/{script}", *arguments])
            return say([*machine.ssh(LAB, "node1", "-A"), "--", command], stdin=subprocess.DEVNULL, env=environment)

        try:
            yield by_hand
        finally:
            here.run("node1", "rm -rf /run/bench ~/.ssh/known_hosts /usr/local/bin/govc")


def where_vcenter_is() -> dict[str, str]:
    """Return what the scripts' environment says of vCenter."""
    vcenter = simulator.description(LAB, network.subnet(LAB))
    return {
        "GOVC_URL": vcenter["url"],
        "GOVC_USERNAME": vcenter["user"],
        "GOVC_TLS_CA_CERTS": "/etc/sendense/vcenter-ca.pem",
        "PASSWORD_FILE": "/run/bench/password",
    }


def seconds(act: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


@contextmanager
def agent() -> Iterator[dict[str, str]]:
    """Yield an environment with an ssh-agent that holds the lab's key, so that the node may use it for the hub without having it."""
    with tempfile.TemporaryDirectory(prefix="sendense-bench-") as folder:
        path = Path(folder, "agent")
        with serving(path, "ssh-agent", "-D", "-a", path):
            environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
            say(["ssh-add", "-q", LAB.key], env=environment)
            yield environment


def hold_against_truth() -> None:
    """Raise BenchError unless the images made by hand are what the disks held at the snapshot."""
    truth = json.loads(simulator.ask(LAB, "GET", "/truth", {"vm": VM}))
    for disk in truth["disks"]:
        image = LAB.root("hub1") / IMAGES / f"disk-{disk['key']}.qcow2"
        say(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", Path(truth["folder"], disk["file"]), image])


@rows.row("bytes", "≤ 1.02")
def wire_bytes_vs_allocated() -> Measured:
    here = site()
    with here.filled(VM, GIB) as allocated:
        before = moved(here)
        here.backup(VM)
        return Measured(
            [moved(here) - before], [allocated], "both ways on hub1's interface, Ansible's too / allocated by 3 disks"
        )


def moved(here: Site) -> int:
    """Return the bytes that hub1's interface has carried, both ways."""
    said = here.run("hub1", "cat /sys/class/net/lan0/statistics/rx_bytes /sys/class/net/lan0/statistics/tx_bytes")
    return sum(int(word) for word in said.split())


@rows.row("s", "≤ 1.2")
def thin_10tib_vs_100gib() -> Measured:
    here = site()
    # How often vCenter divides its answer is not what is asked here.
    with here.filled(HUGE, 256 * MIB), here.filled(THIN, 256 * MIB), here.knobs(cbt_bytes=1 << 50):
        for vm in (HUGE, THIN):
            here.backup(vm)
        figures = interleaved(RUNS, lambda: here.backup(HUGE), lambda: here.backup(THIN))
    return Measured(*figures, "a whole backup of a disk of 10 TiB / of 100 GiB, 256 MiB of data in each")


@rows.row("snapshots", "≤ 1.0")
def max_open_snapshots_vs_forks() -> Measured:
    here, forks = site(), 3
    here.reset_stats()
    here.play("playbooks/backup.yml", "--forks", str(forks))
    names = [each["name"] for each in here.ask("/vms")["vms"] if not each["odd"]]
    for name in names:
        here.forget(name)
    return Measured([here.ask("/stats")["max_open_snapshots"]], [forks], f"{len(names)} VMs in one run / forks")
