# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finding one VM among 5,000, on govmomi's own simulator."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from ansible_collections.sendense.backup.plugins.module_utils.vsphere import lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import Session, VCenter, session

from tests.bench import gotools
from tests.bench.measure import Measured, Rows

rows = Rows()
COUNT = 5000
RUNS = 9


@rows.row("ms", "≤ 5")
def lookup_ms_5000() -> Measured:
    with opened() as here:
        name = f"DC0_C0_RP0_VM{COUNT * 4 // 5}"
        moref = lookup.find(here, name=name)
        uuid = lookup.describe(here, moref)["instance_uuid"]
        by_name = taken(lambda: lookup.find(here, name=name))
        others = {
            "uuid": taken(lambda: lookup.find(here, uuid=uuid)),
            "path": taken(lambda: lookup.find(here, path=f"/DC0/vm/{name}")),
            "moref": taken(lambda: lookup.find(here, moref=moref)),
        }
    rest = ", ".join(f"by {way} {min(figures):.1f}" for way, figures in others.items())
    return Measured(by_name, note=f"calls to vCenter by name, as the playbook does it; {rest}; vcsim of govmomi 0.56")


def taken(find: Callable[[], object]) -> list[float]:
    """Return the milliseconds that each of RUNS looks took."""
    found = []
    for _run in range(RUNS):
        began = time.perf_counter()
        find()
        found.append((time.perf_counter() - began) * 1000)
    return found


@contextmanager
def opened() -> Iterator[Session]:
    """Yield a session with a vCenter of COUNT VMs."""
    with subprocess.Popen([gotools.built("vcsim"), "-vm", str(COUNT)], stdout=subprocess.PIPE, text=True) as server:
        try:
            address = urlsplit(server.stdout.readline().strip())
            vcenter = VCenter(address.hostname, "user", "pass", address.port, validate_certs=False)
            with session(vcenter) as one:
                yield one
        finally:
            server.terminate()
