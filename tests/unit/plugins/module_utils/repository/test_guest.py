# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Paths of guests, and what an appliance delivers; the appliance itself is tested in molecule."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import guest


@pytest.mark.parametrize(
    ("where", "volume", "path", "place"),
    [
        ("/etc/fstab", "", "/etc/fstab", "etc/fstab"),
        ("/", "", "/", "root"),
        ("//etc//x/", "", "/etc/x", "etc/x"),
        ("16000:/", "16000", "/", "16000"),
        ("2000-1:/boot", "2000-1", "/boot", "2000-1/boot"),
        ("vg0/root:/a b/Übung:1", "vg0/root", "/a b/Übung:1", "vg0-root/a b/Übung:1"),
        ("/with:colon", "", "/with:colon", "with:colon"),
    ],
)
def test_a_path_has_a_volume_and_a_place(where, volume, path, place):
    assert guest.parse(where) == (volume, path)
    assert guest.place(where) == PurePosixPath(place)


@pytest.mark.parametrize("where", ["", "etc", "2000:etc", "2000:/../x", "/a/../../x", "/a\0b"])
def test_what_is_no_path_is_refused(where):
    with pytest.raises(Refused, match="is no path of a guest"):
        guest.parse(where)


def archive(*entries):
    """Return a tar of ``(name, type, content or link, mode)``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, content, mode in entries:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime = kind, mode, 1_700_000_000
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content
                tar.addfile(member)
    out.seek(0)
    return out


FOLDER, FILE, LINK, HARD, DEVICE = (
    tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
)  # fmt: skip


def test_a_folder_is_unpacked_as_it_was(tmp_path):
    holes = b"a" * 65536 + bytes(1 << 20) + b"z" * 10 + bytes(65536 * 3)
    tar = archive(
        (".", FOLDER, "", 0o755), ("./sub", FOLDER, "", 0o555), ("./sub/file", FILE, b"content", 0o4755),
        ("./sub/same", HARD, "./sub/file", 0o755), ("./away", LINK, "/etc/passwd", 0o777), ("./null", DEVICE, "", 0o666),
        ("./holes", FILE, holes, 0o600), ("./empty", FILE, b"", 0o640),
    )  # fmt: skip
    said = list(guest.unpack(tar, tmp_path / "out"))
    assert [word for word in said if word] == ["./null: neither a file, a folder nor a link"]
    out = tmp_path / "out"
    assert sorted(path.name for path in out.rglob("*")) == ["away", "empty", "file", "holes", "same", "sub"]
    assert (out / "sub" / "file").read_bytes() == b"content"
    assert (out / "sub" / "file").stat().st_mode & 0o7777 == 0o755, "set-id bits are not kept"
    assert (out / "sub").stat().st_mode & 0o777 == 0o755, "we can still remove it"
    assert (out / "sub" / "same").samefile(out / "sub" / "file")
    assert (out / "away").readlink().as_posix() == "/etc/passwd"
    assert (out / "holes").read_bytes() == holes
    assert (out / "holes").stat().st_blocks * 512 < len(holes) // 2
    assert {path.stat().st_mtime for path in (out, out / "sub", out / "empty")} == {1_700_000_000}


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([("../evil", FILE, b"x", 0o644)], id="upwards"),
        pytest.param([("/evil", FILE, b"x", 0o644)], id="absolute"),
        pytest.param([("./in", LINK, "..", 0o777), ("./in/evil", FILE, b"x", 0o644)], id="through a link"),
        pytest.param([("./no/evil", FILE, b"x", 0o644)], id="into a folder that was not delivered"),
        pytest.param([("./a", FOLDER, "", 0o755), ("./a/../../evil", FILE, b"x", 0o644)], id="upwards within"),
    ],
)
def test_an_appliance_that_lies_writes_nothing_elsewhere(tmp_path, entries):
    with pytest.raises(SendenseError, match="out of place; it is not believed"):
        list(guest.unpack(archive(*entries), tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list(tmp_path.rglob("evil"))


def test_a_link_to_what_was_not_delivered_is_left_out(tmp_path):
    (tmp_path / "secret").write_text("x")
    said = list(guest.unpack(archive(("./x", HARD, "../secret", 0o644)), tmp_path / "out"))
    assert said == ["./x: neither a file, a folder nor a link"]


def test_an_entry_twice_does_not_overwrite(tmp_path):
    with pytest.raises(FileExistsError):
        list(guest.unpack(archive(("./x", LINK, "../evil", 0o777), ("./x", FILE, b"x", 0o644)), tmp_path / "out"))
    assert not (tmp_path / "evil").exists()


class Appliance:
    """A guest with a second filesystem at /home, which cannot be mounted; its mount point is an empty folder."""

    def inspect_os(self):
        return ["/dev/sda1"]

    def inspect_get_mountpoints(self, _root):
        return {"/": "/dev/sda1", "/home": "/dev/sdb"}

    def umount_all(self):
        pass

    def mount_ro(self, device, _place):
        if device == "/dev/sdb":
            raise RuntimeError("mount: wrong fs type")

    def lstatns(self, path):
        kind = {"/etc/fstab": stat.S_IFREG, "/var/www": stat.S_IFLNK}.get(path, stat.S_IFDIR)
        return {"st_mode": kind | 0o755, "st_mtime_sec": 0}

    def readlink(self, _path):
        return "/srv/www"

    def realpath(self, path):
        return "/home" if path == "/link" else path

    def download(self, _path, target):
        Path(target).write_bytes(b"content")

    def tar_out(self, _path, target, numericowner):
        Path(target).write_bytes(archive((".", FOLDER, "", 0o755), ("./home", FOLDER, "", 0o755)).read())


@pytest.mark.parametrize("where", ["/", "/home", "/home/ann", "/link/ann"])
def test_a_filesystem_of_the_guest_that_cannot_be_mounted_is_not_passed_over(tmp_path, where):
    found = guest.Guest(Appliance(), [2000, 2001])
    said = rf"{where}: the guest has a filesystem at /home, /dev/sdb, that cannot be mounted \(mount: wrong fs type\)"
    for _time in range(2):  # what is mounted already is not mounted again
        with pytest.raises(SendenseError, match=said):
            list(found.copy(where, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_lies_elsewhere_is_copied_all_the_same(tmp_path):
    found = guest.Guest(Appliance(), [2000, 2001])
    assert list(found.copy("/etc/fstab", tmp_path / "fstab")) == [""]
    assert found.enter("/") == "/", "it can be listed"


def test_a_link_that_was_asked_for_is_copied_and_told_to_be_no_more_than_that(tmp_path):
    found = guest.Guest(Appliance(), [2000, 2001])
    assert list(found.copy("/var/www", tmp_path / "www")) == ["", "/var/www: what it leads to, /srv/www; ask for that"]
    assert (tmp_path / "www").readlink() == Path("/srv/www")
