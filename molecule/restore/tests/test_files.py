# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of guests, read by libguestfs in an nspawn machine without KVM: what lies there, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest

PLACE = "/srv/restores"
SCRATCH = "/var/lib/sendense/test"

# One disk with three partitions: a filesystem, LVM with another, an encrypted one; made by libguestfs, as no machine of the
# lab has a device mapper. Then what the module does, for many paths, in the same appliance, which takes half a minute to start.
SCRIPT = f"""
import json, pathlib, guestfs, os
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.repository import guest
os.environ["LIBGUESTFS_CACHEDIR"] = os.environ["LIBGUESTFS_TMPDIR"] = "/var/lib/sendense/guestfs"
os.makedirs("/var/lib/sendense/guestfs", 0o700, exist_ok=True)
g = guestfs.GuestFS(python_return_dict=True)
g.set_backend("direct"); g.set_backend_setting("force_tcg", "1")
g.disk_create("{SCRATCH}/disk.qcow2", "qcow2", 200 << 20)
g.add_drive_opts("{SCRATCH}/disk.qcow2", format="qcow2")
g.launch()
g.part_init("/dev/sda", "gpt")
for first, last in ((2048, 104447), (104448, 258047), (258048, 399359)):
    g.part_add("/dev/sda", "p", first, last)
g.mkfs("ext4", "/dev/sda1"); g.mount("/dev/sda1", "/"); g.write("/plain", b"plain"); g.umount_all()
g.pvcreate("/dev/sda2"); g.vgcreate("vg0", ["/dev/sda2"]); g.lvcreate("data", "vg0", 48)
g.mkfs("ext4", "/dev/vg0/data"); g.mount("/dev/vg0/data", "/"); g.mkdir_p("/a/b"); g.write("/a/b/deep", b"deep"); g.ln_s("/a/b/deep", "/link")
g.umount_all()
g.luks_format("/dev/sda3", "secret", 0)
opened = guest.Guest(g, [3000])
found = {{"volumes": [[volume.name, volume.kind] for volume in opened.volumes()]}}
for where in json.loads(input()):
    try:
        found[where] = opened.entries(where)
    except SendenseError as why:
        found[where] = str(why)
found["copied"] = list(opened.copy("vg0/data:/", pathlib.Path("{SCRATCH}/copied")))
g.close()
print(json.dumps(found))
"""
ASKED = [
    "3000-1:/",
    "vg0/data:/a/b",
    "vg0/data:/link",
    "3000-3:/etc",
    "3000-2:/",
    "3000:/",
    "3000-9:/",
    "3000-1:/no",
    "/plain",
]


@pytest.fixture(scope="module")
def odd(site, hub2):
    """Return what is found on a disk with partitions, LVM and encryption."""
    setpriv = "setpriv --reuid=sendense --regid=sendense --init-groups env HOME=/var/lib/sendense"
    collection = site.lab.checkout
    hub2.check_output(f"mkdir -p {SCRATCH}/ansible_collections/sendense/backup/plugins && chown -R sendense {SCRATCH}")
    target = site.root / SCRATCH.lstrip("/") / "ansible_collections/sendense/backup/plugins"
    subprocess.run(["cp", "-r", collection / "plugins/module_utils", target], check=True)
    (site.root / SCRATCH.lstrip("/") / "script.py").write_text(SCRIPT)
    asked = json.dumps(ASKED)
    yield json.loads(
        hub2.check_output(
            f"cd / && echo '{asked}' | {setpriv} PYTHONPATH={SCRATCH} python3 {SCRATCH}/script.py"
        ).splitlines()[-1]
    )
    hub2.check_output(f"rm -r {SCRATCH}")


def test_partitions_and_logical_volumes_are_found(odd):
    assert odd["volumes"] == [["3000-1", "ext4"], ["3000-3", "crypto_LUKS"], ["vg0/data", "ext4"]]


def test_what_lies_in_a_partition_and_in_a_logical_volume_is_told(odd):
    assert {each["path"]: each["kind"] for each in odd["3000-1:/"]} == {"/lost+found": "folder", "/plain": "file"}
    (deep,) = odd["vg0/data:/a/b"]
    assert (deep["path"], deep["size"], deep["mode"]) == ("/a/b/deep", 4, "0644")
    assert odd["vg0/data:/link"][0]["target"] == "/a/b/deep"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("3000-3:/etc", "3000-3 is encrypted (LUKS); its files cannot be read without the guest's key"),
        ("3000-2:/", "3000-2 holds no files (LVM2_member)"),
        ("3000:/", "the point has no filesystem 3000; there are 3000-1 (ext4), 3000-3 (crypto_LUKS), vg0/data (ext4)"),
        ("3000-9:/", "the point has no filesystem 3000-9; there are 3000-1 (ext4)"),
        ("3000-1:/no", "3000-1:/no: there is no such path in the point"),
        ("/plain", "/plain may lie in several places, as the disks hold no operating system: say which filesystem"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(odd, where, said):
    assert said in odd[where]


def test_a_logical_volume_is_copied(odd, site):
    assert set(odd["copied"]) == {""}
    # the machine's files are gone by then only when all tests are through
    copied = site.root / SCRATCH.lstrip("/") / "copied"
    assert (copied / "a/b/deep").read_bytes() == b"deep"
    assert (copied / "link").readlink().as_posix() == "/a/b/deep"


def test_files_are_copied_with_their_content_and_fetched(clean, here, hub2):
    wish = {
        "restore_to": "files", "restore_path": f"{PLACE}/files",
        "restore_files": ["16000:/MANIFEST.sha256", "16000:/base-07", "16000:/notes and Übung", "2000-1:/syslinux.cfg"],
    }  # fmt: skip
    before = image_times(hub2)
    run = clean.restore(**wish, restore_fetch_to=str(here))
    assert run.code == 0, run.output
    assert (
        f"ok 4 path(s) of the guest, in {PLACE}/files; copied to {here} on the controller; the first file after "
        in run.line
    )
    told = (here / "16000/MANIFEST.sha256").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in told)
    wanted = {name for name in sums if name.startswith(("base-07/", "notes and Übung/"))}
    assert len(wanted) == 5 + 200
    for root in (here, clean.root / PLACE.lstrip("/") / "files"):
        made = {str(path.relative_to(root / "16000")): path for path in (root / "16000").rglob("*") if path.is_file()}
        assert set(made) == wanted | {"MANIFEST.sha256"}
        assert {name: hashlib.sha256(made[name].read_bytes()).hexdigest() for name in wanted} == {
            name: sums[name] for name in wanted
        }
        assert "LABEL guest" in (root / "2000-1/syslinux.cfg").read_text()
        assert not (root / ".fetch.tar").exists()
    assert image_times(hub2) == before, "the images are only read"
    again = clean.restore(**wish)
    assert (again.code, again.line.partition(";")[0]) == (0, f"{run.line.partition(';')[0]}, there already")


def image_times(hub2):
    return hub2.check_output("find /backup/repository -type f -printf '%p %T@ %s\n' | sort")


def test_a_path_that_is_not_there_leaves_nothing(clean):
    run = clean.restore(
        restore_to="files",
        restore_path=f"{PLACE}/files",
        restore_files=["2000-1:/syslinux.cfg", "2000-1:/no such file"],
        restore_disks=[2000],
    )
    assert run.code != 0
    assert "2000-1:/no such file: there is no such path in the point" in run.line
    assert clean.places() == []


def test_filesystems_and_folders_are_shown(clean):
    run = clean.restore(restore_to="files", restore_browse=["2000-1:/"], restore_disks=[2000])
    assert run.code == 0, run.output
    assert run.line.endswith("ok 1 filesystem(s) shown, nothing changed")
    assert "path: /syslinux.cfg" in run.output
