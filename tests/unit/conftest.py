# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all unit tests share: the collection's name resolves, and a module can be run as Ansible runs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# beside the installed collection (ansible-test) the name resolves already; in a checkout by the links in collections/
ROOTS = [path for path in (ROOT / "collections", *ROOT.parents) if (path / "ansible_collections" / "sendense").is_dir()]
COLLECTIONS = str(ROOTS[0])

if COLLECTIONS not in sys.path:
    sys.path.insert(0, COLLECTIONS)

RunModule = Callable[..., dict[str, Any]]


def run(name: str, args: Mapping[str, Any], check: bool = False, *, env: Mapping[str, str] | None = None,
        timeout: float = 120, prefix: Sequence[str] = ()) -> dict[str, Any]:  # fmt: skip
    """Run the real main() of module *name* in a process of its own, behind the command *prefix*, and return its result.

    The arguments go in on stdin, so no secret stands in a command line. The result has ``rc``, the exit code, added, and
    ``failed`` where the module left it out. *env* is added to the environment.
    """
    options = {**args, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
    surroundings = {**os.environ, **(env or {}), "PYTHONDONTWRITEBYTECODE": "1"}
    surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, [surroundings.get("PYTHONPATH"), COLLECTIONS]))
    done = subprocess.run(
        [*prefix, sys.executable, "-m", f"ansible_collections.sendense.backup.plugins.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": options}),
        env=surroundings,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        pytest.fail(f"module {name} gave no result (exit code {done.returncode}):\n{done.stdout}\n{done.stderr}")
    return {"failed": False, **result, "rc": done.returncode}


@pytest.fixture
def run_module() -> RunModule:
    """Return ``run_module(name, args, check=False, *, env=None, timeout=120, prefix=()) -> dict``."""
    return run


@pytest.fixture(scope="session")
def with_run():
    """Return ``with_run(folder)``: a prefix for commands that then see that folder as /run."""

    def prefix(folder) -> list[str]:
        become = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", "--mount", *become, "sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(folder)]

    if subprocess.run([*prefix("/run"), "true"], check=False).returncode:
        pytest.skip("mount namespaces are not to be had here")
    return prefix


@pytest.fixture
def private_run(tmp_path, with_run) -> list[str]:
    """Return a prefix for commands that then see a /run of the test's own."""
    (tmp_path / "run").mkdir()
    return with_run(tmp_path / "run")


@dataclass
class NbdServer:
    """A real NBD server on a unix socket of its own."""

    socket: Path
    process: subprocess.Popen[str]

    @property
    def uri(self) -> str:
        """Return the URI of its unnamed export."""
        return f"nbd+unix:///?socket={self.socket}"

    def stop(self) -> None:
        """Stop it cleanly; it has written everything when this returns."""
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def serve():
    """Return ``serve(*command)``, which starts a server on the socket that stands for SOCKET in the command."""
    folder = Path(tempfile.mkdtemp(prefix="nbd-"))  # the path of a socket is at most 107 bytes long
    servers = []

    def start(*command) -> NbdServer:
        path = folder / f"{len(servers)}.sock"
        words = [str(word).replace("SOCKET", str(path)) for word in command]
        server = NbdServer(path, subprocess.Popen(words, text=True, stderr=subprocess.PIPE))
        servers.append(server)
        for _turn in range(500):
            with socket.socket(socket.AF_UNIX) as probe:
                if path.exists() and probe.connect_ex(str(path)) == 0:
                    return server
            assert server.process.poll() is None, server.process.stderr.read()
            time.sleep(0.02)
        pytest.fail(f"{words[0]} was not up within 10 s")

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()
    shutil.rmtree(folder)


@pytest.fixture
def nbdkit(serve):
    """Return ``nbdkit(*arguments) -> NbdServer``."""
    return lambda *arguments: serve("nbdkit", "--foreground", "--exit-with-parent", "--unix", "SOCKET", *arguments)


@pytest.fixture
def qemu_nbd(serve):
    """Return ``qemu_nbd(*arguments) -> NbdServer``."""
    return lambda *arguments: serve("qemu-nbd", "--persistent", "--shared=8", "--socket=SOCKET", *arguments)


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """Return ``systemd(name=…, active=…, …)``, which adds a unit to those that a stand-in of systemd knows.

    It stands where tests run without systemd and without root; what real units do is tested in molecule.
    """
    folder = tmp_path / "systemd"
    folder.mkdir()
    shown = folder / "systemctl"
    shown.write_text(
        f"""#!/bin/sh
case "$1" in
show) for last; do :; done; [ -f "{folder}/$last" ] && cat "{folder}/$last" || cat "{folder}/unknown" ;;
list-units) shift; cd {folder}; for word; do case "$word" in --*) ;; *) for unit in $word; do
    [ -f "$unit" ] && echo "$unit loaded active running Some unit" || :; done ;; esac; done ;;
stop|reset-failed) rm -f "{folder}/$2" ;;
esac
""",
        encoding="utf-8",
    )
    (folder / "journalctl").write_text(f"#!/bin/sh\ncat {folder}/journal 2>/dev/null || :\n", encoding="utf-8")
    for program in ("systemctl", "journalctl"):
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name, *, active="active", result="success", code="0", status="0", journal=""):
        lines = {
            "ActiveState": active, "SubState": active, "Result": result, "ExecMainCode": code, "ExecMainStatus": status,
            "InvocationID": "5f3c", "MainPID": "1" if active == "active" else "0",
        }  # fmt: skip
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (folder / (name if name == "unknown" else f"{name}.service")).write_text(text, encoding="utf-8")
        if journal:
            (folder / "journal").write_text(journal, encoding="utf-8")

    add("unknown", active="inactive")
    return add
