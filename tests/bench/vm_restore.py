# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole restores of a VM into the lab's vCenter, beside the same restore by hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import median

from lab.compare import points
from tests.bench.backup import GIB, MIB, VM, hands, seconds, where_vcenter_is
from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.processes import say
from tests.bench.site import LAB, Site, site

rows = Rows()
FILL = 512 * MIB  # per disk
RUNS = 3
FOLDER, DATASTORE = "/DC0/vm/bench", "datastore1"
RESTORED = f"{VM}-restored"


@rows.row("s", "≤ 1.1")
def vm_restore_vs_by_hand() -> Measured:
    here = site()
    here.bring_tools("hub1", "python3-vmdkstream qemu-utils")
    with here.filled(VM, FILL) as size, hands(here, "restore-by-hand.sh") as script:
        try:
            here.play("playbooks/backup.yml", "-e", f"vm_name={VM}")
            made: list[float] = []
            ours, other = interleaved(
                RUNS,
                lambda: restored(here, lambda: by_playbook(here, "https")),
                lambda: restored(here, lambda: made.append(by_hand(here, script))),
            )
            vddk = restored(here, lambda: by_playbook(here, "vddk"))
        finally:
            here.forget(VM)
    note = (
        f"3 disks, {size / GIB:.1f} GiB that nothing compresses, by import over https: tests/bench/restore-by-hand.sh, VMs of both equal to "
        f"the truth; by hand {median(made):.1f} s of it until zlib was done and the disks were on the node; ours by vddk {vddk:.1f} s"
    )
    return Measured(ours, other, note)


def restored(here: Site, restore: Callable[[], object]) -> float:
    """Return the seconds that a restore takes; its VM is held against the truth and removed."""
    try:
        taken = seconds(restore)
        hold_against_truth(here)
    finally:
        remove(here)
    return taken


def by_playbook(here: Site, transport: str) -> None:
    """Restore the VM as an operator does."""
    wishes = {
        "restore_to": "vm",
        "restore_vm": VM,
        "restore_name": RESTORED,
        "restore_transport": transport,
        "restore_datastore_min_free": 0,  # the lab's datastores have what this machine has
    }
    here.play("playbooks/restore.yml", "-e", json.dumps(wishes))


def by_hand(here: Site, script: Callable[..., str]) -> float:
    """Restore the VM by hand; return the seconds until its disks were on the node, ready to be imported."""
    point = Path("/", points(LAB, VM)[-1].relative_to(here.root("hub1")))
    said = script(RESTORED, f"root@{here.address('hub1')}", str(point), FOLDER, DATASTORE)
    return float(re.findall(r"on the node after (\d+) s", said)[0])


def hold_against_truth(here: Site) -> None:
    """Raise BenchError unless the restored disks hold what those of the VM did at the snapshot."""
    truth = here.ask("/truth", vm=VM)
    files = {disk["key"]: disk["file"] for disk in here.vm(RESTORED)["disks"]}
    for disk in truth["disks"]:
        say(
            [
                *("qemu-img", "compare", "-f", "raw", "-F", "raw"),
                *(Path(truth["folder"], disk["file"]), files[disk["key"]]),
            ]
        )


def remove(here: Site) -> None:
    """Have an administrator delete the restored VM, if there is one."""
    if RESTORED in (each["name"] for each in here.ask("/vms")["vms"]):
        words = shlex.join(f"{name}={value}" for name, value in where_vcenter_is().items())
        destroy = f'export {words}; GOVC_PASSWORD=$(cat "$PASSWORD_FILE") govc object.destroy {FOLDER}/{RESTORED}'
        here.run("node1", "bash", given=f"set -e; {destroy}\n")
