# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""For the record: what a newcomer waits for, in a copy of this checkout with a lab and caches of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.bench.measure import Measured, Rows
from tests.bench.processes import ROOT, say

rows = Rows()


@rows.row("s")
def demo_cold_s() -> Measured:
    return Measured([demos()[0]], note="make demo with no cache and no .venv; the machine's Debian packages are there")


@rows.row("s")
def demo_warm_s() -> Measured:
    return Measured([demos()[1]], note="make demo again, after make lab-down")


@rows.row("s")
def test_s() -> Measured:
    with copy_of_checkout() as folder:
        return Measured([make(folder, "test")], note="make test, .venv made on the way; it raises a lab of its own")


@cache
def demos() -> tuple[float, float]:
    """Return the seconds of a cold and of a warm `make demo`."""
    with (
        copy_of_checkout() as folder,
        tempfile.TemporaryDirectory(prefix="sendense-bench-cache-", dir="/var/tmp") as empty,
    ):
        seconds = []
        for _turn in ("cold", "warm"):
            try:
                seconds.append(make(folder, "demo", SENDENSE_LAB_CACHE=empty))
            finally:
                make(folder, "lab-down", SENDENSE_LAB_CACHE=empty)
    return seconds[0], seconds[1]


@contextmanager
def copy_of_checkout() -> Iterator[Path]:
    """Yield a copy of what git knows here, and of new files."""
    with tempfile.TemporaryDirectory(prefix="sendense-bench-checkout-", dir="/var/tmp") as folder:
        names = say(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
        there = "\0".join(name for name in names.split("\0") if name and os.path.lexists(ROOT / name))
        packed = subprocess.run(
            ["tar", "--null", "--files-from=-", "--create"],
            input=there.encode(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        subprocess.run(["tar", "--extract"], input=packed.stdout, cwd=folder, check=True)
        yield Path(folder)


def make(folder: Path, word: str, **settings: str) -> float:
    """Return the seconds that `make WORD` took."""
    began = time.monotonic()
    # as from a shell of its own: the words of this make, and its .venv, are not for that one
    environment = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    say(["make", word], cwd=folder, env={**environment, **settings}, stdin=subprocess.DEVNULL)
    return time.monotonic() - began
