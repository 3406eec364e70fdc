# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which lab this is: its id, its folders and what it remembers between commands."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.shell import LabError, say

STATE_HOME = Path("/var/lib/sendense-lab")
DEFAULT_MACHINES = ("hub1", "node1")


def machine_number(name: str) -> int:
    """The host number of a machine in both networks: hubs are even, nodes odd, 2 for hub1."""
    match = re.fullmatch(r"(hub|node)([1-6])", name)
    if not match:
        raise LabError(f"{name!r} is no machine of a lab: they are called hub1 to hub6 and node1 to node6")
    return 2 * int(match[2]) + (match[1] == "node")


def is_node(name: str) -> bool:
    return name.startswith("node")


@dataclass(frozen=True)
class Lab:
    """One checkout's lab. Every name it gives to a thing on the host holds its id."""

    checkout: Path

    @property
    def id(self) -> str:
        return hashlib.sha256(str(self.checkout).encode()).hexdigest()[:6]

    @property
    def state(self) -> Path:
        return STATE_HOME / self.id

    @property
    def cache(self) -> Path:
        return Path(os.environ.get("SENDENSE_LAB_CACHE") or "/var/cache/sendense-lab")

    @property
    def key(self) -> Path:
        return self.state / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.state / "ssh" / "known_hosts"

    @property
    def truth(self) -> Path:
        return self.state / "truth"

    @property
    def lab_json(self) -> Path:
        return self.checkout / "build" / "lab.json"

    def machine_dir(self, name: str) -> Path:
        return self.state / "machines" / name

    def root(self, name: str) -> Path:
        return self.machine_dir(name) / "root"

    def machines(self) -> list[str]:
        """The machines this lab has had raised, by number."""
        folder = self.state / "machines"
        found = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(found, key=machine_number)

    def remembered(self) -> dict[str, Any]:
        return read_json(self.state / "state.json") or {}

    def remember(self, **facts: Any) -> None:
        write_json(self.state / "state.json", self.remembered() | {"checkout": str(self.checkout)} | facts)


def here() -> Lab:
    """The lab of the checkout this package lies in."""
    return Lab(Path(__file__).resolve().parent.parent)


@contextmanager
def only_one_command(lab: Lab) -> Iterator[None]:
    """Commands that change a lab follow one another. The lock lies on the checkout folder, so no file stays behind."""
    with locked(lab.checkout, "another lab command of this checkout"):
        yield


@contextmanager
def all_labs(*, keep: bool = True) -> Iterator[None]:
    """What is shared by the labs of this host changes under this lock; the folder goes with the last lab unless kept."""
    while True:
        STATE_HOME.mkdir(mode=0o755, exist_ok=True)
        with locked(STATE_HOME, "another lab of this host") as handle:
            try:
                fresh = os.path.samestat(STATE_HOME.stat(), os.fstat(handle))
            except FileNotFoundError:
                fresh = False
            if not fresh:
                continue
            yield
            # A folder that is a filesystem of its own stays.
            if not keep and not any(STATE_HOME.iterdir()) and not STATE_HOME.is_mount():
                STATE_HOME.rmdir()
            return


@contextmanager
def locked(path: Path, holder: str) -> Iterator[int]:
    """Hold a lock on an existing file or folder, waiting for its holder with one line of notice."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {holder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """The file's value; None when it is absent."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2) + "\n")


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Put a file in place whole: a reader, or a command killed half way, never leaves or sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    part.replace(path)
