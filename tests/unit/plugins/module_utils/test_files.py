# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import files, jobs

MINE = os.getuid(), os.getgid()


@pytest.fixture
def victim(tmp_path):
    """Return a file that somebody would have us write to or give away; it must be as it was afterwards."""
    (path := tmp_path / "victim").write_text("precious", encoding="utf-8")
    path.chmod(0o604)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_text(encoding="utf-8") == "precious"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def write(path):
    files.write(path, b"new", mode=0o640, owner=MINE)


def write_durably(path):
    files.write(path, b"new", mode=0o640, owner=MINE, durable=True)


def write_private(path):
    jobs.write_private(path, "new")


@pytest.mark.parametrize("writer", [write, write_durably, write_private])
@pytest.mark.parametrize("planted", [".f.new", "f"])
def test_a_planted_link_is_replaced_and_not_followed(tmp_path, victim, writer, planted):
    (folder := tmp_path / "folder").mkdir()
    (folder / planted).symlink_to(victim)
    writer(folder / "f")
    assert not (folder / "f").is_symlink()
    assert (folder / "f").read_bytes() == b"new"
    assert list(folder.iterdir()) == [folder / "f"]


@pytest.mark.parametrize("planted", [".f.new", "f"])
def test_a_link_to_nothing_makes_nothing(tmp_path, planted):
    (folder := tmp_path / "folder").mkdir()
    (folder / planted).symlink_to(tmp_path / "nowhere")
    write(folder / "f")
    assert (folder / "f").read_bytes() == b"new"
    assert not (tmp_path / "nowhere").exists()


def test_what_is_written_has_mode_and_owner(tmp_path):
    owner = (12345, 12346) if os.geteuid() == 0 else MINE
    (tmp_path / "f").write_text("old", encoding="utf-8")
    files.write(tmp_path / "f", b"new", mode=0o640, owner=owner)
    found = (tmp_path / "f").stat()
    assert (stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)) == (0o640, owner)


def test_a_link_is_given_away_itself(tmp_path, victim):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (link := tmp_path / "link").symlink_to(victim)
    files.give(link, (12345, 12346))
    found = link.lstat()
    assert (found.st_uid, found.st_gid) == (12345, 12346)


def test_a_link_is_not_synced_through(tmp_path, victim):
    (link := tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        files.sync(link)
    files.sync(victim)
    files.sync(tmp_path)
