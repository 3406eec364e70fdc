# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Debian packages the lab needs on its host."""

from __future__ import annotations

import argparse
import os
import subprocess

from lab.instance import Lab
from lab.shell import LabError, last_words, say

# package: what `dpkg-query` calls it; all are in Debian 12 and 13.
PACKAGES = (
    "debian-archive-keyring",
    "iproute2",
    "mmdebstrap",
    "nftables",
    "openssh-client",
    "openssl",
    "systemd-container",
)


def missing() -> list[str]:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("installed ")}
    return [package for package in PACKAGES if package not in present]


def install() -> None:
    """Install what is missing, with one line of notice."""
    wanted = missing()
    if not wanted:
        return
    say(f"installing {' '.join(wanted)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", *options, *wanted]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode and command[1] == "install":
            raise LabError(f"installing {' '.join(wanted)} failed: {last_words(done.stderr or done.stdout)}")


def show(lab: Lab, arguments: argparse.Namespace) -> None:
    if arguments.install:
        install()
    else:
        print("\n".join(PACKAGES))
