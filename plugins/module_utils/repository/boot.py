# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The proof that a restore point boots: QEMU runs its VM, cut off from everything, and what it shows is judged.

It has booted when the serial console says what it is to say; or, where nothing was agreed on, when its guest agent answers
or its screen has come to rest, beyond the firmware's own words, without any of the sentences that a failing boot ends with.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import units
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, SendenseError, sentence
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect
from ansible_collections.sendense.backup.plugins.module_utils.repository import machine, proof
from ansible_collections.sendense.backup.plugins.module_utils.repository.machine import Machine

KIND, RUN = "boot", "run"
FAILED = (  # what firmware, boot loaders and kernels say last when it does not go on
    "No bootable device", "No bootable option", "Operating system not found", "Missing operating system",
    "Operating system load error", "Invalid partition table", "Error loading operating system", "Boot error",
    "Disk error", "NTLDR is missing", "BOOTMGR is missing", "An operating system wasn't found", "grub rescue>",
    "no configuration file found", "Kernel panic", "Unable to mount root", "INACCESSIBLE_BOOT_DEVICE", "(initramfs)",
    "dracut:/#", "emergency mode", "Give root password for maintenance", "Shell>", "Failed to load ldlinux",
)  # fmt: skip
_HANDED_OVER = "Booting from "  # what SeaBIOS says last before it gives the machine to the disk's code
_ESP = bytes.fromhex(
    "28732ac11ff8d211ba4b00a0c93ec93b"
)  # GPT type of an EFI system partition (UEFI specification, 5.3.3)
_KVM_WITHIN = 4.0  # seconds for what takes half a second; one that only just works is slower than none
_PROBE = bytes([0xBA, 0xF4, 0x00, 0xB0, 0x10, 0xEE, 0xF4, 0xEB, 0xFD])  # mov dx,0xf4; mov al,0x10; out dx,al; hlt; jmp
_PROBED = 0x10 << 1 | 1  # what isa-debug-exit makes of it
_LINES = 25  # of a console that are kept
_TEXT_MODES = ((720, 400), (640, 400))  # screens that show the 80 x 25 characters at 0xb8000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?")


@dataclass(frozen=True)
class Wish:
    """When a machine has booted, and how long that may take, in seconds."""

    pattern: str = ""  # of the serial console, a regular expression; empty: agent or screen tell
    settle: float = 30.0  # that the screen has to stay as it is
    timeout: float = 600.0


@dataclass
class Outcome:
    """What came of a boot."""

    ok: bool = False
    bootable: bool = True
    how: str = ""  # pattern, agent or screen
    why: str = ""  # it did not
    accelerator: str = ""
    seconds: float = 0.0
    console: list[str] = field(default_factory=list)  # the last lines
    substituted: list[str] = field(default_factory=list)
    screenshot: bytes = b""  # PNG

    @property
    def facts(self) -> dict[str, Any]:
        """The same as data, without the picture."""
        return {name: value for name, value in vars(self).items() if name != "screenshot"}


def unit_name(instance_uuid: str, point: str, kind: str = KIND) -> str:
    """Return the unit that runs a point. It tells point and VM, and is no unit of the job that made the point."""
    return f"sendense-{kind}-{point}-{instance_uuid}"


def check(pattern: str) -> None:
    """Raise Refused for a pattern that is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as why:
        raise Refused(f"'{pattern}' is no regular expression: {why}") from None


@cache
def accelerator() -> str:
    """Return kvm where a guest really runs under it, else tcg. Raises SendenseError where QEMU is not installed."""
    if not shutil.which(machine.PROGRAM):
        raise SendenseError(f"{machine.PROGRAM} is not installed on this host; {machine.PROVISION}")
    if not Path("/dev/kvm").exists():
        return "tcg"
    with tempfile.NamedTemporaryFile(prefix="sendense-probe-") as disk:
        disk.write(_PROBE.ljust(510, b"\0") + b"\x55\xaa")
        disk.flush()
        drive = f"file={disk.name},format=raw,if=ide,snapshot=on"
        options = ["-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none", "-drive", drive]
        command = [machine.PROGRAM, *options, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_KVM_WITHIN, check=False)
        except subprocess.TimeoutExpired:
            return "tcg"
    return "kvm" if done.returncode == _PROBED else "tcg"


def bootable(layers: Mapping[int, list[Path]], firmware: str) -> bool:
    """Whether any disk has what the firmware starts: code and mark of a boot sector, or for UEFI a system partition."""
    return any(_starts(_head(images[0]), firmware) for images in layers.values())


def _head(path: Path) -> bytes:
    with proof.served(path) as uri, connect(uri) as handle:
        return bytes(handle.pread(min(34 * 512, handle.get_size()), 0))


def _starts(head: bytes, firmware: str) -> bool:
    marked = head[510:512] == b"\x55\xaa"
    if firmware == "bios":
        return marked and any(head[:440])
    types = [head[at + 4] for at in range(446, 510, 16)] if marked else []
    entries = (head[at : at + 16] for at in range(1024, len(head), 128)) if head[512:520] == b"EFI PART" else ()
    return 0xEF in types or _ESP in entries


def prove(wanted: Machine, unit: str, wish: Wish) -> Outcome:
    """Boot the machine in that unit, and return what came of it. It is ended, and its folder gone, whatever comes."""
    result = Outcome(accelerator=accelerator(), substituted=machine.substituted(wanted))
    began = time.monotonic()
    claim(wanted.folder, unit)
    try:
        machine.prepare(wanted)
        serial = machine.serial(wanted, log=True)
        command = machine.command(wanted, result.accelerator, *serial, "-display", "none")
        limit = f"RuntimeMaxSec={wish.timeout + 300:.0f}"  # it ends, also when we are killed
        start(unit, command, wanted, result.accelerator, limit)
        try:
            _watch(wanted, unit, wish, result)
        finally:
            units.stop(unit)
    finally:
        result.seconds = round(time.monotonic() - began, 1)
        shutil.rmtree(wanted.folder)
    return result


def claim(folder: Path, unit: str) -> None:
    """Make the folder of a machine, in the place of one whose unit has ended. Raises Refused while that one runs."""
    if units.read(unit).running:
        raise Refused(f"{unit} runs already; wait for its end, or stop it")
    if folder.exists():  # of a task that was killed
        shutil.rmtree(folder)
    machine.make_folder(folder)


def runs(unit: str) -> bool:
    """Whether the unit runs."""
    return units.read(unit).running


def run(wanted: Machine, unit: str) -> str:
    """Have the machine run until ``end``, its screen and console on sockets in its folder; return how it is accelerated."""
    way = accelerator()
    claim(wanted.folder, unit)
    try:
        machine.prepare(wanted)
        command = machine.command(
            wanted, way, *machine.serial(wanted, log=False), "-vnc", f"unix:{wanted.folder}/vnc,power-control=on"
        )
        start(unit, command, wanted, way)
        with _qmp(wanted.folder / "qmp.sock", unit) as qmp:
            qmp.ask("query-status")
    except FAILURES as why:
        said = "" if runs(unit) else units.words(unit)
        end(wanted.folder, unit)
        raise SendenseError(f"{unit} does not run: {said or sentence(why)}") from None
    return way


def running(scratch: Path, instance_uuid: str, point: str | None) -> list[str]:
    """Return the units that run points of a VM, or that one, and those of which something is left in *scratch*."""
    known = [unit_name(instance_uuid, point, RUN)] if point else []
    if not point and scratch.is_dir():
        ending = f"-{instance_uuid}"
        known = sorted(
            path.name for path in scratch.glob(f"sendense-{RUN}-*") if path.name.endswith(ending) and path.is_dir()
        )
    return [unit for unit in known if (scratch / unit).is_dir() or runs(unit)]


def end(folder: Path, unit: str) -> None:
    """End the machine, and remove what it wrote."""
    units.stop(unit)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def start(unit: str, command: Sequence[str], wanted: Machine, way: str, *more: str) -> None:
    """Start QEMU as a unit with no rights beyond its folder, and the points as their owner reads them."""
    kvm = ("SupplementaryGroups=kvm", "DeviceAllow=/dev/kvm rw") if way == "kvm" else ()
    about = f"Description=Sendense runs a restore point of {wanted.name}"
    units.start(unit, command, about, *machine.PROPERTIES, f"ReadWritePaths={wanted.folder}", *kvm, *more)


def _watch(wanted: Machine, unit: str, wish: Wish, result: Outcome) -> None:
    """Look at the machine until it has booted, has failed, or its time is over."""
    deadline = time.monotonic() + wish.timeout
    screen = _Screen(wish.settle)
    try:
        with _qmp(wanted.folder / "qmp.sock", unit) as qmp:
            while not _judge(wanted, wish, result, screen):
                if time.monotonic() > deadline:
                    result.why = f"it did not boot within {wish.timeout:.0f} s: {_missing(wish, screen)}"
                    break
                _state(qmp)
                screen.look(qmp, wanted.folder)
                time.sleep(1)
            if result.why:
                time.sleep(1)  # what it says last is on its way to the screen
            with suppress(SendenseError):
                screen.look(qmp, wanted.folder)
                qmp.ask("screendump", filename=f"{wanted.folder}/screen.png", format="png")
                result.screenshot = machine.read(wanted.folder / "screen.png")
    except SendenseError as why:
        deadline = time.monotonic() + (5 if isinstance(why, _Closed) else 0)
        while (died := units.read(unit)).running and time.monotonic() < deadline:
            time.sleep(0.1)
        said = "" if died.running else units.words(unit) or died.death
        result.ok, result.why = False, f"QEMU ended: {said}" if said else sentence(why)
    result.console = _lines(_serial(wanted))[-_LINES:] + [line for line in screen.text if line.strip()]


def _missing(wish: Wish, screen: _Screen) -> str:
    if wish.pattern:
        return f"'{wish.pattern}' was not on its serial console"
    if screen.settled:
        return "no guest agent answered, and its screen did not go beyond the firmware's"
    return "no guest agent answered, and its screen did not come to rest"


def _judge(wanted: Machine, wish: Wish, result: Outcome, screen: _Screen) -> bool:
    """Return whether it is decided, and say in *result* how."""
    said = _serial(wanted)
    told = f"{said}\n{machine.read(wanted.folder / 'firmware.log').decode(errors='replace')}\n" + "\n".join(screen.text)
    if wish.pattern and re.search(wish.pattern, said):
        result.ok, result.how = True, "pattern"
    elif failed := next((each for each in FAILED if each in told), None):
        result.why = f"it did not boot: '{failed}'"
    elif not wish.pattern and _agent_answers(wanted.folder / "agent.sock"):
        result.ok, result.how = True, "agent"
    elif not wish.pattern and screen.settled and (said.strip("\0\r\n ") or not screen.handed_over):
        result.ok, result.how = True, "screen"
    return result.ok or bool(result.why)


def _serial(wanted: Machine) -> str:
    return machine.read(wanted.folder / "serial.log").decode(errors="replace")


def _lines(text: str) -> list[str]:
    plain = (_ESCAPES.sub("", line).strip("\0\r ") for line in re.split(r"[\r\n]+", text))
    return ["".join(sign if sign.isprintable() else "?" for sign in line)[:200] for line in plain if line]


class _Screen:
    """What the screen shows, and whether it has come to rest."""

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._shots: deque[tuple[float, str]] = deque()
        self._blank = True
        self.text: list[str] = []

    def look(self, qmp: _Qmp, folder: Path) -> None:
        """Take a picture, and the characters where it shows any."""
        qmp.ask("screendump", filename=f"{folder}/screen.ppm")
        picture = machine.read(folder / "screen.ppm", 64 << 20)
        size = re.match(rb"P6\n(\d+) (\d+)\n255\n", picture)
        if not size:
            return
        self._blank = len(set(picture[size.end() :])) <= 1
        self._shots.append((time.monotonic(), sha256(picture).hexdigest()))
        while len(self._shots) > 2 and self._shots[1][0] < time.monotonic() - self._settle:
            self._shots.popleft()
        self.text = []
        if (int(size[1]), int(size[2])) in _TEXT_MODES:
            qmp.ask("pmemsave", val=0xB8000, size=80 * 25 * 2, filename=f"{folder}/text")
            signs = machine.read(folder / "text")[::2].decode("cp437").replace("\0", " ")
            self.text = [signs[at : at + 80].rstrip() for at in range(0, len(signs), 80)]

    @property
    def handed_over(self) -> bool:
        """Whether the firmware's words are the last that it shows: the disk's own code has said nothing."""
        last = next((line for line in reversed(self.text) if line.strip()), "")
        return last.startswith(_HANDED_OVER)

    @property
    def settled(self) -> bool:
        """Whether it shows something, and has shown it for long enough; two pictures in turn are a cursor that blinks."""
        long = len(self._shots) > 2 and self._shots[-1][0] - self._shots[0][0] >= self._settle
        return long and not self._blank and len({picture for _when, picture in self._shots}) <= 2


class _Closed(SendenseError):
    """QEMU ends."""


class _Qmp:
    """QEMU's monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rwb")

    def greet(self) -> None:
        """Take its greeting and enter command mode."""
        self._read()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer to a command. Raises SendenseError with QEMU's own words."""
        try:
            self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            self._file.flush()
            while True:
                answer = self._read()
                if "error" in answer:
                    raise SendenseError(f"QEMU refused {command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]
        except (OSError, ValueError) as why:
            raise SendenseError(f"QEMU's monitor does not answer to {command}: {why}") from None

    def _read(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except ConnectionResetError:  # it ended before it had read what we said
            line = b""
        if not line:
            raise _Closed("QEMU has closed its monitor")
        return dict(json.loads(line))


def _state(qmp: _Qmp) -> None:
    """Raise SendenseError when the guest has stopped by itself."""
    status = qmp.ask("query-status")["status"]
    if status in ("shutdown", "guest-panicked", "internal-error", "io-error"):
        raise SendenseError(f"the guest stopped by itself: {status}")


@contextmanager
def _qmp(path: Path, unit: str) -> Iterator[_Qmp]:
    """Yield the monitor of the machine that has just been started."""
    deadline = time.monotonic() + 30
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        while connection.connect_ex(str(path)):
            if not units.read(unit).running:
                raise SendenseError("QEMU did not start")
            if time.monotonic() > deadline:
                raise SendenseError("QEMU did not open its monitor within 30 s")
            time.sleep(0.1)
        qmp = _Qmp(connection)
        qmp.greet()
        yield qmp


def _agent_answers(path: Path) -> bool:
    """Whether a guest agent answers a ping (qemu-ga's protocol: 0xff brings its parser to rest first)."""
    with suppress(*FAILURES, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b'\xff{"execute": "guest-ping"}\n')
        said = b""
        while not said.endswith(b"\n"):
            if not (more := connection.recv(4096)):
                return False
            said += more
        return any(json.loads(line.strip(b"\xff")) == {"return": {}} for line in said.splitlines() if b"{" in line)
    return False
