# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a guest had on its disks: filesystems, folders and files of a restore point, read by libguestfs.

A foreign filesystem is never mounted by this host's kernel: libguestfs starts a small virtual machine that does it, and
that runs as the service user. The images are opened read-only, with a throw-away layer above, so that a journal can be
replayed there.
"""

from __future__ import annotations

import os
import signal
import stat
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError

libguestfs: Any
try:
    libguestfs = import_module("guestfs")  # Debian's own, without types
except ImportError:
    libguestfs = None  # check() says so in our own words

READY_WITHIN = 600  # seconds; the first start makes the appliance, and where KVM does not work all is emulated
ENCRYPTED = {"crypto_LUKS": "LUKS", "BitLocker": "BitLocker"}
_NOT_FILES = {"unknown", "swap", "LVM2_member", "linux_raid_member", *ENCRYPTED}
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Volume:
    """One filesystem, or what lies in the place of one."""

    name: str  # disk key, disk key and partition, or volume group and logical volume: 16000, 2000-1, vg0/root
    device: str  # as libguestfs calls it
    kind: str  # ext4, vfat, …, swap, crypto_LUKS, unknown

    @property
    def readable(self) -> bool:
        """Whether there are files in it."""
        return self.kind not in _NOT_FILES


def check() -> None:
    """Raise SendenseError when this hub cannot read guests' files."""
    if libguestfs is None:
        raise SendenseError(
            "this hub cannot read the files of guests: python3-guestfs is not installed; set hub_file_restore: true and "
            "run the provision playbook"
        )


class Guest:
    """The disks of a point, attached to a running appliance."""

    def __init__(self, handle: Any, keys: Sequence[int]) -> None:
        self._handle, self._keys = handle, keys
        self._mounted = ""
        self._unmounted: dict[str, str] = {}  # of what the guest sees: where a filesystem is missing, and why
        self._known: list[Volume] = []

    def volumes(self) -> list[Volume]:
        """Return what lies on the disks, in the order of their keys; logical volumes come last."""
        if not self._known:  # it takes seconds
            found = self._handle.list_filesystems()
            for device in self._devices():  # it leaves out what is encrypted
                if device not in found and (kind := self._handle.vfs_type(device)) in ENCRYPTED:
                    found[device] = kind
            listed = [Volume(self._name(device), device, kind) for device, kind in found.items()]
            self._known = sorted(listed, key=lambda volume: (not volume.device.startswith("/dev/sd"), volume.device))
        return self._known

    def _devices(self) -> list[str]:
        """Return the disks, partitions and logical volumes."""
        return [*self._handle.list_devices(), *self._handle.list_partitions(), *self._handle.lvs()]

    def _name(self, device: str) -> str:
        if not device.startswith("/dev/sd"):
            return device.removeprefix("/dev/").removeprefix("mapper/")
        whole = self._handle.list_devices()
        if device in whole:
            return str(self._keys[self._handle.device_index(device)])
        disk = self._handle.part_to_dev(device)
        return f"{self._keys[self._handle.device_index(disk)]}-{self._handle.part_to_partnum(device)}"

    def entries(self, where: str) -> list[dict[str, Any]]:
        """Return what lies in the folder that *where* names, or the file itself, by name."""
        path = self.enter(where)
        with _said(where):
            if not self._handle.is_dir(path):
                return [self._entry(path, self._handle.lstatns(path))]
            names = self._handle.ls(path)
            found = self._handle.lstatnslist(path, names)
            return [self._entry(str(PurePosixPath(path) / name), seen) for name, seen in zip(names, found, strict=True)]

    def _entry(self, path: str, seen: dict[str, int]) -> dict[str, Any]:
        kind = _KINDS.get(stat.S_IFMT(seen["st_mode"]), "special")
        return {
            "path": path,
            "kind": kind,
            "size": seen["st_size"],
            "mode": f"{stat.S_IMODE(seen['st_mode']):04o}",
            "uid": seen["st_uid"],
            "gid": seen["st_gid"],
            "mtime": datetime.fromtimestamp(seen["st_mtime_sec"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            **({"target": self._handle.readlink(path)} if kind == "link" else {}),
        }

    def enter(self, where: str) -> str:
        """Mount the filesystem that *where* means (``VOLUME:/path``, or ``/path`` as the guest sees it); return the path.

        Raises Refused when there is no such filesystem, when it cannot be told which is meant, and for no such path;
        SendenseError when it lies on one that cannot be mounted, where an empty folder would be seen instead.
        """
        volume, path = parse(where)
        if volume:
            self._mount(self._volume(volume))
        else:
            self._mount_as_the_guest(where)
        for place in self._unmounted:
            if self._real(path).is_relative_to(place):
                raise self._lacking(where, place)
        with _said(where):
            try:
                self._handle.lstatns(path)
            except RuntimeError:
                raise Refused(f"{where}: there is no such path in the point") from None
        return path

    def _real(self, path: str) -> PurePosixPath:
        """Return where *path* lies, with links on the way to it followed; as it is when there is no such folder."""
        given = PurePosixPath(path)
        try:
            return PurePosixPath(self._handle.realpath(str(given.parent))) / given.name
        except RuntimeError:
            return given

    def _lacking(self, where: str, place: str) -> SendenseError:
        return SendenseError(
            f"{where}: the guest has a filesystem at {place}, {self._unmounted[place]}; nothing is copied, for what lies "
            "there would be missing: name what you need of the others one by one, or restore the disk to a file"
        )

    def _volume(self, name: str) -> Volume:
        """Return the volume of that name, without a look at all others, which would take longer than the copy of a file."""
        for device in self._devices():
            if self._name(device) == name:
                kind = self._handle.vfs_type(device)
                if kind:
                    return Volume(name, device, kind)
        known = self.volumes()
        if not (found := [volume for volume in known if volume.name == name]):
            raise Refused(f"the point has no filesystem {name}; {told(known)}")
        return found[0]

    def _mount(self, volume: Volume) -> None:
        if volume.kind in ENCRYPTED:
            raise Refused(
                f"{volume.name} is encrypted ({ENCRYPTED[volume.kind]}); its files cannot be read without the guest's key: "
                "restore the disk to a file, or the VM"
            )
        if not volume.readable:
            raise Refused(f"{volume.name} holds no files ({volume.kind})")
        if self._mounted == volume.device:
            return
        with _said(volume.name):
            self._handle.umount_all()
            self._handle.mount_ro(volume.device, "/")
        self._mounted, self._unmounted = volume.device, {}

    def _mount_as_the_guest(self, where: str) -> None:
        if self._mounted == "guest":
            return
        with _said(where):
            roots = self._handle.inspect_os()
        if len(roots) != 1:
            self._mount_the_only_one(where, roots)
            return
        points = self._handle.inspect_get_mountpoints(roots[0])
        unmounted = {}
        with _said(where):
            self._handle.umount_all()
            for place in sorted(points, key=len):
                try:
                    self._handle.mount_ro(points[place], place)
                except RuntimeError as why:
                    if place == "/":
                        raise
                    unmounted[place] = f"{points[place]}, that cannot be mounted ({why})"
        self._mounted, self._unmounted = "guest", unmounted

    def _mount_the_only_one(self, where: str, roots: list[str]) -> None:
        known = self.volumes()
        readable = [volume for volume in known if volume.readable]
        if len(readable) == 1 and not roots:
            self._mount(readable[0])
            return
        count = f"{len(roots)} operating systems" if roots else "no operating system"
        raise Refused(
            f"{where} may lie in several places, as the disks hold {count}: say which filesystem, such as "
            f"{readable[0].name if readable else 'VOLUME'}:{where}; {told(known)}"
        )

    def copy(self, where: str, target: Path) -> Iterator[str]:
        """Copy what *where* names to *target*, which is not there yet; yield after each file, and what was left out.

        Contents, times and permissions are kept; owners, set-id bits, ACLs and devices are not. Raises SendenseError for a
        folder below which a filesystem of the guest cannot be mounted.
        """
        path = self.enter(where)
        for place in self._unmounted:
            if PurePosixPath(place).is_relative_to(self._real(path)):
                raise self._lacking(where, place)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _said(where):
            seen = self._handle.lstatns(path)
            kind = _KINDS.get(stat.S_IFMT(seen["st_mode"]), "special")
            if kind == "folder":
                yield from self._tree(path, target)
            elif kind == "link":
                leads_to = self._handle.readlink(path)
                target.symlink_to(leads_to)
                yield ""
                yield f"{where}: what it leads to, {leads_to}; ask for that"
            elif kind == "file":
                self._handle.download(path, str(target))
                _like(target, seen["st_mode"], seen["st_mtime_sec"])
                yield ""
            else:
                yield f"{where}: neither a file, a folder nor a link"

    def _tree(self, path: str, target: Path) -> Iterator[str]:
        """Copy a folder: the appliance's tar, unpacked by ourselves, since it may be lying."""
        reader, writer = os.pipe()
        failures: list[Exception] = []

        def send() -> None:
            try:
                self._handle.tar_out(path, f"/dev/fd/{writer}", numericowner=True)
            except RuntimeError as why:
                failures.append(why)
            finally:
                os.close(writer)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            with os.fdopen(reader, "rb") as stream:
                try:
                    yield from unpack(stream, target)
                except (tarfile.TarError, EOFError) as why:
                    failures.append(why)
                while stream.read(1 << 20):  # or the appliance would wait for ever
                    pass
        finally:
            sender.join()
        if failures:
            raise RuntimeError(str(failures[0]))


def parse(where: str) -> tuple[str, str]:
    """Return volume (empty: as the guest sees it) and path of what an operator wrote. Raises Refused for anything else."""
    volume, colon, path = where.partition(":") if not where.startswith("/") else ("", ":", where)
    if not colon or not path.startswith("/") or "\0" in where or ".." in PurePosixPath(path).parts:
        raise Refused(
            f"'{where}' is no path of a guest; one looks like /etc/fstab, or with its filesystem like 2000-1:/boot/grub"
        )
    return volume, str(PurePosixPath("/" + path.lstrip("/")))


def place(where: str) -> PurePosixPath:
    """Return where what *where* names lies below the folder of a restore: its volume's name, then its path."""
    volume, path = parse(where)
    below = PurePosixPath(volume.replace("/", "-")) if volume else PurePosixPath()
    return below / (path.lstrip("/") or ("root" if not volume else ""))


def told(volumes: list[Volume]) -> str:
    """Return what there is instead, in words."""
    if not volumes:
        return "libguestfs sees no filesystem on its disks"
    return f"there are {', '.join(f'{volume.name} ({volume.kind})' for volume in volumes)}"


def unpack(stream: IO[bytes], target: Path) -> Iterator[str]:
    """Unpack a tar stream to the new folder *target*; yield after each entry, with a word for one that was left out.

    Nothing is written through a link: each entry's folder must be one that this stream made here.
    """
    target.mkdir(mode=0o700)
    made = {PurePosixPath("."): target}
    found: dict[PurePosixPath, Path] = {}
    later: list[tuple[Path, int, float]] = []
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name == PurePosixPath("."):
                later.append((target, member.mode, member.mtime))
                continue
            if name.is_absolute() or ".." in name.parts or name.parent not in made:
                raise SendenseError(
                    f"the appliance delivered an entry '{member.name}' out of place; it is not believed"
                )
            path = made[name.parent] / name.name
            if member.isdir():
                path.mkdir(mode=0o700)
                made[name] = path
                later.append((path, member.mode, member.mtime))
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.islnk() and PurePosixPath(member.linkname) in found:
                path.hardlink_to(found[PurePosixPath(member.linkname)])
            elif member.isreg():
                _write(archive, member, path)
                found[name] = path
            else:
                yield f"{member.name}: neither a file, a folder nor a link"
                continue
            yield ""
    for path, mode, mtime in reversed(later):  # a folder that may not be written to is filled before
        _like(path, mode | 0o700, mtime)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = archive.extractfile(member)
    with path.open("xb") as file:
        while source and (block := source.read(_BLOCK)):
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)  # a hole stays one
            else:
                file.write(block)
        file.truncate(member.size)
    _like(path, member.mode, member.mtime)


def _like(path: Path, mode: int, mtime: float) -> None:
    path.chmod(mode & 0o777)
    os.utime(path, (mtime, mtime))


@contextmanager
def _said(where: str) -> Iterator[None]:
    """Turn what libguestfs says into our sentence."""
    try:
        yield
    except RuntimeError as why:
        raise SendenseError(f"{where} cannot be read: {why}") from None


@contextmanager
def attached(images: dict[int, Path], cache: Path, accelerator: str) -> Iterator[Guest]:
    """Start an appliance with the images, by key, attached read-only, and yield what is on them.

    The appliance is kept in *cache*. Raises SendenseError when it does not start.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["LIBGUESTFS_CACHEDIR"] = os.environ["LIBGUESTFS_TMPDIR"] = os.environ["TMPDIR"] = str(cache)
    handle = libguestfs.GuestFS(python_return_dict=True)
    try:
        handle.set_backend("direct")
        if accelerator == "tcg":
            handle.set_backend_setting("force_tcg", "1")
        handle.set_network(False)
        handle.set_identifier("sendense")
        for _key, image in sorted(images.items()):
            handle.add_drive_opts(str(image), readonly=True, format="qcow2")
        _launch(handle)
        yield Guest(handle, sorted(images))
    except RuntimeError as why:
        raise SendenseError(f"libguestfs failed: {why}") from None
    finally:
        handle.close()


def _launch(handle: Any) -> None:
    began = time.monotonic()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a guest that hangs takes us with it, and our parent says so
    signal.alarm(READY_WITHIN)
    try:
        handle.launch()
    except RuntimeError as why:
        raise SendenseError(
            f"libguestfs does not start after {time.monotonic() - began:.0f} s: {why}; libguestfs-test-tool, run on the hub as "
            "user sendense, says more"
        ) from None
    finally:
        signal.alarm(0)
