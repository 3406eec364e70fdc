# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all unit tests share: the collection's name resolves, and a module can be run as Ansible runs it."""

from __future__ import annotations

import hashlib
import json
import os
import random
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

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # speed is for the bench to measure
hypothesis.settings.load_profile("any machine")

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


@pytest.fixture
def small_filesystem(tmp_path, with_run):
    """Return a folder that is a file system of its own, of 100 MiB, as a mount namespace beside ours sees it."""
    (tmp_path / "small").mkdir()
    words = 'mount -t tmpfs -o size=100m,mode=755 small "$0" && echo ready && exec sleep infinity'
    # with_run sees to the namespace; what it mounts besides does not matter
    command = [*with_run("/run"), "sh", "-c", words, str(tmp_path / "small")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "ready\n"
            yield Path(f"/proc/{holder.pid}/root{tmp_path}/small")
        finally:
            holder.kill()


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


@dataclass
class Points:
    """A repository with a full point of a VM and an incremental one on it, and the bytes that each of them holds."""

    repository: Path
    uuid: str
    full: str
    child: str
    truth: dict[str, dict[int, bytes]]  # by point and key

    def folder(self, point: str) -> Path:
        """Return where a point lies."""
        return self.repository / "vms" / self.uuid / point

    def image(self, point: str, key: int) -> Path:
        """Return the image of a disk."""
        return self.folder(point) / f"disk-{key}.qcow2"


@pytest.fixture
def points(tmp_path) -> Points:
    """Return a repository in which the second of two points stands on the first; one disk has an odd size and holes."""
    made = Points(
        tmp_path / "repository", "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "20261123T140102Z", "20261124T140102Z", {}
    )
    made.folder(made.full).mkdir(parents=True)
    made.folder(made.child).mkdir()
    (made.repository / "repository.json").write_text('{"format": 1}', encoding="utf-8")
    told = {"name": "pgtest1", "inventory_path": "/DC0/vm/pgtest1"}
    (made.repository / "vms" / made.uuid / "vm.json").write_text(json.dumps(told), encoding="utf-8")
    contents = {}
    for key, size in {2000: (2 << 20) + 1536, 16000: 1 << 20}.items():
        content = bytearray(random.Random(key).randbytes(size))
        content[1 << 18 : 1 << 19] = bytes(1 << 18)
        (raw := tmp_path / "raw").write_bytes(content)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, made.image(made.full, key)], check=True)
        contents[key] = content
    _publish(made, made.full, contents, None)
    for key, content in contents.items():
        below = ["-F", "qcow2", "-b", f"../{made.full}/disk-{key}.qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, made.image(made.child, key)], check=True)
        content[65536:131072], content[720896:786432] = b"A" * 65536, bytes(65536)
        writes = ["-c", "write -q -P 65 65536 65536", "-c", "write -q -z 720896 65536"]
        subprocess.run(["qemu-io", "-f", "qcow2", *writes, made.image(made.child, key)], check=True)
    _publish(made, made.child, contents, made.full)
    return made


def _publish(made: Points, point: str, contents: Mapping[int, bytearray], parent: str | None) -> None:
    """Write the manifest of a point as this collection does."""
    from ansible_collections.sendense.backup.plugins.module_utils import digests

    kind = "incremental" if parent else "full"
    disks, files = [], {}
    for key, content in contents.items():
        leaves = digests.leaves(memoryview(content))
        every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
        root = digests.tree(
            digests.write(made.folder(point) / f"disk-{key}.digests", len(content), every), len(content)
        ).root
        disk = {
            "key": key,
            "label": f"Hard disk {key}",
            "capacity": len(content),
            "provisioned": len(content),
            "root": root,
        }
        names = {"image": f"disk-{key}.qcow2", "digests": f"disk-{key}.digests"}
        disks.append({**disk, **names, "type": kind, "parent": parent})
        for name in names.values():
            path = made.folder(point) / name
            files[name] = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    told = {
        "format": 1, "job": f"pgtest1-5029f3ab-{point}", "point": point, "type": kind, "parent": parent,
        "vm": {"name": "pgtest1", "inventory_path": "/DC0/vm/pgtest1", "config": {"cpus": 2}}, "disks": disks, "files": files,
    }  # fmt: skip
    (made.folder(point) / "manifest.json").write_text(json.dumps(told), encoding="utf-8")
    made.truth[point] = {key: bytes(content) for key, content in contents.items()}


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


@pytest.fixture
def host_units(tmp_path, monkeypatch):
    """Stand in for systemd with real processes: units start, run, end and are read, without systemd and without root.

    Returns the folder in which each unit has the command that it was started with, ``<unit>.command``.
    """
    folder = tmp_path / "units"
    folder.mkdir()
    start = r"""#!/bin/bash
for word; do case "$word" in --unit=*) unit=${word#--unit=} ;; esac; done
printf '%s\n' "$@" > "$HOME_OF_UNITS/$unit.command"
while [ "$1" != -- ]; do shift; done; shift
setsid "$@" < /dev/null >> "$HOME_OF_UNITS/$unit.journal" 2>&1 &
echo $! > "$HOME_OF_UNITS/$unit.pid"
"""
    control = r"""#!/bin/bash
for last; do :; done
unit=${last%.service} pid=$(cat "$HOME_OF_UNITS/${last%.service}.pid" 2>/dev/null)
alive() { [ -n "$pid" ] && [ -e /proc/$pid ] && ! grep -q '^State:.Z' /proc/$pid/status; }
case "$1" in
stop) kill "$pid" 2>/dev/null; while alive; do sleep 0.05; done ;;
reset-failed) ;;
list-units) ;;
show) case "$*" in *--value*) exit ;; esac
    if alive; then echo ActiveState=active; else echo ActiveState=inactive; fi
    printf 'SubState=x\nResult=success\nExecMainCode=1\nExecMainStatus=0\n' ;;
esac
"""
    says = '#!/bin/bash\nfor word; do case "$word" in _SYSTEMD_UNIT=*) u=${word#*=}; cat "$HOME_OF_UNITS/${u%.service}.journal"; esac; done\n'
    for name, text in (("systemd-run", start), ("systemctl", control), ("journalctl", says)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("HOME_OF_UNITS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    for path in folder.glob("*.pid"):
        subprocess.run([folder / "systemctl", "stop", path.stem], check=False)
