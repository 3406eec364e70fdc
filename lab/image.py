# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine image: a bare Debian that a role would meet on a freshly installed server."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from lab.cache import Tool, built, fingerprint
from lab.instance import Lab
from lab.shell import LabError, run

RECIPE = Path(__file__).parent / "machines"
SUITE = "trixie"


@cache
def mirror() -> str:
    """The Debian mirror that this host's own apt uses, or the one that the environment names."""
    if named := os.environ.get("SENDENSE_LAB_MIRROR"):
        return named
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    wish = ["--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    for line in run(["apt-get", "indextargets", *wish], what="asking apt for this host's mirror").splitlines():
        uri, release, component = line.split()
        if release in (codename, "stable") and component == "main":
            return uri.rstrip("/")
    raise LabError(f"apt names no mirror of Debian {codename} on this host; name one in SENDENSE_LAB_MIRROR")


def packages() -> list[str]:
    lines = (RECIPE / "packages").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def image(lab: Lab) -> Path:
    """The folder of the machine image, built when its recipe has changed."""
    return built(lab, "image", fingerprint([RECIPE], SUITE, mirror()), build, what="the machine image")


def build(target: Path, tool: Tool) -> None:
    tool(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--components=main,contrib",
        # Package lists stay: an `apt update` then transfers only what has changed since.
        "--skip=cleanup/apt/lists",
        f"--include={','.join(packages())}",
        "--dpkgopt=force-unsafe-io",
        f"--customize-hook={RECIPE / 'customize'}",
        SUITE,
        target,
        mirror(),
        what="building the machine image with mmdebstrap",
    )
    target.chmod(0o755)
