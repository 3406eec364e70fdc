# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian packages the lab needs on its host."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.instance import Lab
from lab.shell import run, say, succeeds

# package: what `dpkg-query` calls it; all are in Debian 12 and 13.
PACKAGES = (
    "debian-archive-keyring",
    "gcc",
    "iproute2",
    "libc6-dev",
    "mmdebstrap",
    "nftables",
    "openssh-client",
    "openssl",
    "systemd-container",
)


GUESTS = Path(__file__).parent / "guests" / "build.py"


def for_guests() -> list[str]:
    """The packages that building the guests' disks needs besides."""
    return run([sys.executable, GUESTS, "--packages"]).split()


def missing(packages: Sequence[str]) -> list[str]:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("installed ")}
    return [package for package in packages if package not in present]


def install(packages: Sequence[str]) -> None:
    """Install what is missing, with one line of notice."""
    wanted = missing(packages)
    if not wanted:
        return
    say(f"installing {' '.join(wanted)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    lock = ("-o", "DPkg::Lock::Timeout=300")
    # An interrupted run may have left a package half configured; an update that fails does not matter if the install works.
    succeeds(["dpkg", "--configure", "-a"])
    succeeds(["apt-get", "update", "-q", *lock])
    run(
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", *lock, *wanted],
        what=f"installing {' '.join(wanted)}",
        environment=environment,
    )


def show(lab: Lab, arguments: argparse.Namespace) -> None:
    """Print what the lab needs, or install it."""
    packages = [*PACKAGES, *for_guests()]
    if arguments.install:
        install(packages)
    else:
        print("\n".join(sorted(packages)))
