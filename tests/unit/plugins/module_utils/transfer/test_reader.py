# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect, handshake
from ansible_collections.sendense.backup.plugins.module_utils.transfer.reader import HttpsSource, command, served

SOURCE = HttpsSource("https://vc/folder/a.vmdk?dcPath=DC0", "/run/x/cookie", None, validate_certs=True)


def test_nbdkit_reads_only_and_listens_on_its_socket_only():
    words = command(SOURCE, Path("/run/x/s.sock"), Path("/run/x/s.pid"))
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


def test_the_cookie_stands_in_a_file_and_not_in_the_command():
    assert "cookie=+/run/x/cookie" in command(SOURCE, Path("s"), Path("p"))


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
        assert "401" in reader.words()


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
