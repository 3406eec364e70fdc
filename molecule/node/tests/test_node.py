# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A node, by what it can do afterwards, and by what it says to VDDK and clients that are not right."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path

import pytest

VDDK = "/opt/sendense/vddk"
CLIENT = Path(__file__).parents[1] / "files/sendense-backup-client"


def test_the_folder_of_running_jobs_comes_back_after_a_boot(node):
    """Seen in a mount namespace with an empty /run: the real folder may be in use."""
    boot = (
        "mount -t tmpfs tmpfs /run && systemd-tmpfiles --create --prefix=/run/sendense && stat -c '%U %a' /run/sendense"
    )
    assert node.check_output(f'unshare --mount sh -c "{boot}"') == "root 755"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("nbdkit --dump-plugin curl", id="the node can read disks over https"),
        pytest.param("/usr/bin/python3 -c 'import nbd'", id="the node can speak NBD"),
        pytest.param("/usr/bin/python3 -c 'import pyVim.connect, pyVmomi'", id="the node can speak to vCenter"),
    ],
)
def test_the_node_has_its_tools(node, command):
    node.run_expect([0], command)


def test_nobody_logs_in_as_the_service_user(node):
    assert node.user("sendense").shell == "/usr/sbin/nologin"
    assert node.user("sendense").home == "/var/lib/sendense"


def test_what_backups_may_use_is_said_in_one_place(node):
    assert node.check_output("systemctl show --property=CPUWeight --value sendense.slice") == "50"


def test_the_service_user_can_load_vddk(node):
    said = node.check_output(f"runuser --user=sendense -- nbdkit vddk --dump-plugin libdir={VDDK}/current")
    assert "vddk_library_version=" in said


def test_the_client_is_called_by_its_name(node):
    assert (
        node.check_output("runuser --user=sendense -- sendense-backup-client") == "sendense-backup-client version 2.7.1"
    )
    assert node.check_output("readlink -f /usr/local/bin/sendense-backup-client").startswith(
        "/opt/sendense/client/2.7.1/"
    )


def test_the_client_finds_vddk_where_it_looks(node):
    assert node.file("/usr/lib64/vmware-vix-disklib/lib64/libvixDiskLib.so.8").exists


def digest(path):
    """Return the SHA-256 of a file, as an operator would give it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def archive(folder, **files):
    """Return a .tar.gz with these files below lib64, named after what they hold."""
    path = folder / "vddk.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = folder / "member"
            member.write_text(content, encoding="utf-8")
            tar.add(member, f"vmware-vix-disklib-distrib/lib64/{name}.so.8")
    return path


def cut_short(folder):
    """Return the first half of an archive."""
    path = archive(folder, libvixDiskLib="no library\n" * 9)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


WRONG_VDDK = {
    "it is not there": (lambda folder: folder / "none", "a" * 64, "on the controller is not there, or is no file"),
    "its sum is wrong": (
        archive,
        "a" * 64,
        f"on the controller has the SHA-256 .* and node_vddk_sha256 is {'a' * 64}; download",
    ),
    "no sum is given": (archive, "", "node_vddk_sha256 is empty and not the SHA-256 of an archive; sha256sum /"),
    "it is no whole archive": (cut_short, None, "is no archive, or not a whole one"),
    "it holds no library": (lambda folder: archive(folder, other="x"), None, "holds no lib64/libvixDiskLib.so"),
    "its library does not load": (
        lambda folder: archive(folder, libvixDiskLib="no library\n"),
        None,
        "does not load on this node: nbdkit: error: .*/libvixDiskLib.so.8: (invalid ELF header|file too short)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_VDDK.values(), ids=WRONG_VDDK)
def test_a_wrong_vddk_leaves_the_old_one_in_use(node, provision, tmp_path, wrong):
    make, sum_, sentence = wrong
    before = node.check_output(f"find {VDDK} | sort; readlink {VDDK}/current")
    path = make(tmp_path)
    given = {"node_vddk_archive": str(path), "node_vddk_sha256": digest(path) if sum_ is None else sum_}
    code, output = provision("--limit=node1", "--tags=node_vddk", f"--extra-vars={json.dumps(given)}")
    assert code != 0
    assert_told(output, sentence)
    assert node.check_output(f"find {VDDK} | sort; readlink {VDDK}/current") == before


def assert_told(output, sentence):
    """Assert that an error says *sentence*, a regular expression."""
    errors = [each for each in output.split("[ERROR]: ")[1:] if re.search(sentence, each)]
    assert errors, output
    assert "Traceback" not in output


def test_a_plugin_that_apt_does_not_know_is_named_with_its_component(node, provision):
    lists = "/var/lib/apt/lists"
    node.check_output(
        "apt-get remove --quiet --yes nbdkit-plugin-vddk && mkdir /root/lists "
        f"&& mv {lists}/*_contrib_* /root/lists && rm -f /var/cache/apt/*.bin"
    )
    try:
        code, output = provision("--limit=node1", "--tags=node_vddk")
        assert code != 0
        assert_told(output, "nbdkit-plugin-vddk cannot be installed: .* enable the component contrib")
    finally:
        node.check_output(f"mv /root/lists/* {lists} && rmdir /root/lists && rm -f /var/cache/apt/*.bin")
        node.check_output("apt-get install --quiet --yes --no-install-recommends nbdkit-plugin-vddk")


WRONG_CLIENT = {
    "its sum is wrong": ("2.7.1", "a" * 64, f"has the SHA-256 .* and node_client_sha256 is {'a' * 64}"),
    "it says another version": ("2.7", None, "does not say that it is version 2.7 but '.* 2.7.1'"),
    "its version leads out of the folder": ("../1", None, r"its version in node_client_version \(now '../1'\)"),
}


@pytest.mark.parametrize("wrong", WRONG_CLIENT.values(), ids=WRONG_CLIENT)
def test_a_wrong_client_leaves_the_old_one_in_use(node, provision, wrong):
    version, sum_, sentence = wrong
    before = node.check_output("find /opt/sendense/client | sort; readlink /opt/sendense/client/current")
    given = {
        "node_client_binary": str(CLIENT),
        "node_client_version": version,
        "node_client_sha256": sum_ or digest(CLIENT),
    }
    code, output = provision("--limit=node1", "--tags=node_client", f"--extra-vars={json.dumps(given)}")
    assert code != 0
    assert_told(output, sentence)
    assert node.check_output("find /opt/sendense/client | sort; readlink /opt/sendense/client/current") == before


def test_what_is_no_longer_wished_for_goes_and_comes_back(node, provision):
    gone = json.dumps({"node_vddk_archive": "", "node_client_binary": ""})
    code, output = provision("--limit=node1", "--tags=node_vddk,node_client", f"--extra-vars={gone}")
    assert code == 0, output
    assert not node.file(VDDK).exists
    assert not node.file("/usr/local/bin/sendense-backup-client").is_symlink
    assert not node.file("/usr/lib64/vmware-vix-disklib").is_symlink
    code, output = provision("--limit=node1", "--tags=node_vddk")
    assert code == 0, output
    assert node.file(f"{VDDK}/current").is_symlink


def test_a_client_that_somebody_else_installed_is_left_alone(node, provision):
    name = "/usr/local/bin/sendense-backup-client"
    node.check_output(f"ln -s /bin/true {name}")
    try:
        code, output = provision("--limit=node1", "--tags=node_client")
        assert code == 0, output
        assert node.file(name).is_symlink
    finally:
        node.check_output(f"rm -f {name}")
