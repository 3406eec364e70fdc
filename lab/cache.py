# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Things that are built once and kept by what they were built from."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.instance import Lab, locked
from lab.shell import run, say

Build = Callable[[Path, "Tool"], None]

# The whole process tree of a tool goes when the command that started it goes, however it goes.
TIED = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


@dataclass(frozen=True)
class Tool:
    """Runs the tools of one build. They share its lock, so that the next build cannot begin among their last writes."""

    lock: int

    def __call__(
        self, *command: str | Path, what: str, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> str:
        return run([*TIED, *command], what=what, folder=folder, environment=environment, pass_fds=[self.lock])


def fingerprint(paths: Iterable[Path], *facts: str) -> str:
    """12 hex digits that change with the name, the mode's execute bit or the content of any file below `paths`, or a fact."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not ignored(file):
                name = file.relative_to(path.parent)
                content = file.read_bytes()
                digest.update(f"{name}\0{file.stat().st_mode & 0o100}\0{len(content)}\0".encode() + content)
    for fact in facts:
        digest.update(f"{fact}\0".encode())
    return digest.hexdigest()[:12]


def ignored(file: Path) -> bool:
    """Whether a file among sources does not shape what is built from them."""
    return file.name.endswith(("_test.go", ".md", ".pyc")) or file.name.startswith((".", "test_"))


def built(lab: Lab, kind: str, key: str, build: Build, *, what: str) -> Path:
    """The cached thing `<kind>-<key>`; built by `build(path, tool)` under a lock when it is missing, and then put in place whole.

    Labs that want the same thing wait for one build. What a killed build left is removed by the next one.
    """
    lab.cache.mkdir(parents=True, exist_ok=True)
    wanted = lab.cache / f"{kind}-{key}"
    if wanted.exists():
        return wanted
    lock = lab.cache / f".{kind}.lock"
    lock.touch()
    with locked(lock, f"another build of {what}") as handle:
        if wanted.exists():
            return wanted
        for leftover in lab.cache.glob(f".{kind}-*.part"):
            remove(leftover)
        say(f"building {what} (kept as {wanted})")
        start = time.monotonic()
        part = lab.cache / f".{kind}-{key}.part"
        build(part, Tool(handle))
        part.rename(wanted)
        say(f"built {what} in {time.monotonic() - start:.0f} s")
    return wanted


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
