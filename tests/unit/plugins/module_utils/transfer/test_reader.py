# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect, handshake
from ansible_collections.sendense.backup.plugins.module_utils.transfer import reader as module
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import (
    HttpsSource,
    Reader,
    VddkSource,
    command,
    lacks,
    served,
    source,
    versions,
)

SOURCE = HttpsSource("https://vc/folder/a.vmdk?dcPath=DC0", "/run/x/cookie", None, validate_certs=True)
VDDK = VddkSource(
    "vc.example.com", 443, "backup@vsphere.local", "/run/x/password", "AA:BB", "vm-42", "snapshot-43", "[ds 1] a/a.vmdk"
)


@pytest.mark.parametrize("read", [SOURCE, VDDK], ids=lambda read: read.transport)
def test_nbdkit_reads_only_and_listens_on_its_socket_only(read):
    words = command(read, Path("/run/x/s.sock"), Path("/run/x/s.pid"))
    assert "--readonly" in words
    assert words[words.index("--unix") + 1] == "/run/x/s.sock"
    assert not {"--port", "-p", "--ipaddr"} & set(words)


@pytest.mark.parametrize(
    ("source", "there", "absent"),
    [
        pytest.param(SOURCE, [], ["cainfo=", "sslverify="], id="the system's authorities are trusted by default"),
        pytest.param(replace(SOURCE, ca_file="/ca.pem"), ["cainfo=/ca.pem"], ["sslverify="], id="or one of our own"),
        pytest.param(replace(SOURCE, validate_certs=False), ["sslverify=false"], [], id="or nobody is asked"),
    ],
)
def test_whom_nbdkit_trusts(source, there, absent):
    words = command(source, Path("s"), Path("p"))
    assert set(there) <= set(words)
    assert not [word for word in words if word.startswith(tuple(absent or ["\0"]))]


def test_secrets_stand_in_files_and_not_in_the_command():
    assert "cookie=+/run/x/cookie" in command(SOURCE, Path("s"), Path("p"))
    assert "password=+/run/x/password" in command(VDDK, Path("s"), Path("p"))


def test_vddk_is_told_everything_that_it_would_else_guess(tmp_path, monkeypatch):
    (tmp_path / "8.0.2").mkdir()
    (tmp_path / "current").symlink_to("8.0.2")
    monkeypatch.setattr(module, "VDDK", tmp_path / "current")
    words = command(VDDK, Path("s"), Path("p"))
    assert words.index("--filter=multi-conn") < words.index("--filter=blocksize") < words.index("--filter=retry")
    assert {
        f"libdir={tmp_path}/8.0.2",
        *("server=vc.example.com", "user=backup@vsphere.local", "thumbprint=AA:BB", "transports=nbdssl:nbd"),
        *("vm=moref=vm-42", "snapshot=snapshot-43", "file=[ds 1] a/a.vmdk"),
    } <= set(words)
    # Else nbdkit starts itself again, and hands the password on in a file in /tmp.
    assert VDDK.environment() == {"LD_LIBRARY_PATH": f"{tmp_path}/8.0.2/lib64"}


@pytest.mark.parametrize("read", [SOURCE, VDDK], ids=lambda read: read.transport)
def test_a_source_survives_the_request_file(read):
    assert source(json.loads(json.dumps(asdict(read)))) == read


# What nbdkit said under the lab's stand-in, whose words for each code are VMware's.
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "VixDiskLib_ConnectEx: Insufficient permissions in the host operating system",
            "vCenter does not let this user",
        ),
        ("VixDiskLib_Open: [ds] a.vmdk: A file was not found", "the disk or its snapshot is gone"),
        ("VixDiskLib_Open: [ds] a.vmdk: The server refused connection", "the ESXi host serves no more disks at once"),
        ("VixDiskLib_ConnectEx: Cannot connect to the host", "the disk cannot be reached"),
        (
            "VixDiskLib_Open: [ds] a.vmdk: You do not have access rights to this file",
            "the disk is locked on the ESXi host",
        ),
        ("pread: curl_easy_perform: The requested URL returned error: 401", "vCenter ended the session while"),
        ("problem doing HEAD request: The requested URL returned error: 404", "the disk is gone from its datastore"),
    ],
)
def test_what_is_known_becomes_one_sentence(said, sentence, tmp_path):
    reader = Reader(io.StringIO(f"nbdkit: vddk[1]: error: {said}\n"), tmp_path / "s")
    found = reader.explain("nbd_connect_uri: the server has no export named ''")
    assert found.startswith(sentence)
    assert found.endswith(f"nbdkit said: {said}")


def test_what_nobody_foresaw_is_passed_on(tmp_path):
    reader = Reader(io.StringIO("nbdkit: curl[1]: error: problem doing HEAD request\nadvice\n"), tmp_path / "s")
    assert reader.explain("it hung up") == "it hung up; nbdkit said: problem doing HEAD request"


def test_a_file_of_the_datastore_can_be_read_and_nothing_is_left(datastore, tmp_path):
    (datastore.folder / "a.vmdk").write_bytes(b"x" * 1024)
    with served(datastore.source("a.vmdk"), socket := tmp_path / "s.sock") as reader:
        assert handshake(reader.uri).size == 1024
        with connect(reader.uri) as handle:
            assert handle.pread(1024, 0) == b"x" * 1024
    assert not socket.exists()
    with pytest.raises(SendenseError):
        handshake(reader.uri)


def test_what_nbdkit_said_is_kept(datastore, tmp_path):
    (datastore.folder / "a.vmdk").write_bytes(b"x" * 1024)
    datastore.cookie_file.write_text("vmware_soap_session=expired", encoding="utf-8")
    with served(datastore.source("a.vmdk"), tmp_path / "s.sock") as reader:
        with pytest.raises(SendenseError):
            handshake(reader.uri)
        assert reader.explain("it hung up").startswith("vCenter ended the session while the disk was read; nbdkit said")
        assert reader.kind() == "session"


def test_a_certificate_that_nobody_vouches_for_is_not_taken(datastore, tmp_path):
    (datastore.folder / "a.vmdk").write_bytes(b"x" * 1024)
    with served(datastore.source("a.vmdk", trusted=False), tmp_path / "s.sock") as reader:
        with pytest.raises(SendenseError):
            handshake(reader.uri)
        assert "certificate" in reader.words()


def test_an_nbdkit_that_does_not_start_is_heard(datastore, tmp_path):
    broken = replace(datastore.source("a.vmdk"), cookie_file=str(tmp_path / "nowhere"))
    with (
        pytest.raises(SendenseError, match=r"^nbdkit did not start: .*nowhere: No such file"),
        served(broken, tmp_path / "s.sock"),
    ):
        pass


# What nbdkit 1.42 said on Debian 13, of a library that loads and of one that does not.
NBDKIT = """#!/bin/sh
case "$*" in
    --version) echo nbdkit 1.42.3 ;;
    *libdir=*--dump-plugin) printf 'name=vddk\\nversion=1.42.3\\n%b' "{loaded}" ;;
    *--dump-plugin) printf 'name=vddk\\nversion=1.42.3\\n' ;;
    *--run*) cat >&2 <<END
nbdkit: error: /opt/x/lib64/libvixDiskLib.so.8: file too short

If 'lib64/libvixDiskLib.so.8' is located on a non-standard path you may need to
set libdir=/path/to/vmware-vix-disklib-distrib.

See nbdkit-vddk-plugin(1) man page section "LIBRARY LOCATION" for details.
END
        exit 1 ;;
esac
"""
LOADED = "vddk_library_version=8\\nvddk_dll=/opt/x/8.0.2/lib64/libvixDiskLib.so.8.0.2\\n"


@pytest.fixture
def vddk(tmp_path, monkeypatch):
    """Return how to make a node with nbdkit's plugin vddk, and with a VDDK in a folder that it returns."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(module, "VDDK", tmp_path / "current")

    def make(loaded):
        (program := tmp_path / "nbdkit").write_text(NBDKIT.format(loaded=loaded), encoding="utf-8")
        program.chmod(0o755)
        (tmp_path / "8.0.2").mkdir()
        (tmp_path / "current").symlink_to("8.0.2")
        return tmp_path / "8.0.2"

    return make


def test_a_node_with_a_library_that_loads_lacks_nothing(vddk):
    vddk(LOADED)
    assert lacks("vddk") == ""
    assert versions("vddk") == {"nbdkit": "nbdkit 1.42.3", "plugin": "vddk 1.42.3", "library": "8.0.2"}


def test_a_library_that_does_not_load_is_named_with_the_reason(vddk):
    place = vddk("")
    assert lacks("vddk") == (
        f"the VDDK in {place} does not load on this node: /opt/x/lib64/libvixDiskLib.so.8: file too short"
    )


def test_a_library_that_is_not_there_is_asked_for(vddk, tmp_path):
    vddk(LOADED)
    (tmp_path / "current").unlink()
    assert lacks("vddk") == (
        f"there is no VDDK on this node: {tmp_path}/current is missing; give node_vddk_archive and run the provision playbook"
    )


def test_a_plugin_that_is_not_there_is_asked_for(monkeypatch):
    monkeypatch.setitem(module.PLUGINS, "vddk", "nosuch")
    assert lacks("vddk").startswith(
        "nbdkit has no plugin nosuch on this node; install it (Debian: nbdkit-plugin-nosuch)"
    )
    assert lacks("vddk").endswith("cannot open shared object file: No such file or directory")


def test_nbdkit_that_is_not_there_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lacks("https") == "nbdkit is not installed on this host; run the provision playbook"


def test_this_host_reads_by_https():
    assert lacks("https") == ""
    assert versions("https")["plugin"].startswith("curl ")
