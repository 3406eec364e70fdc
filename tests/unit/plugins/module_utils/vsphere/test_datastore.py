# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import Refused, SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.datastore import (
    flat_extent,
    folder_path,
    quotings,
    split,
)
from hypothesis import given
from hypothesis import strategies as st

FLAT = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 41943040 VMFS "pg test-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.uuid = "60 00 C2 9d 1a 2b 3c 4d-5e 6f 70 81 92 a3 b4 c5"
# Change Tracking File
changeTrackPath="pg test-ctk.vmdk"
"""


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.sampled_from([1, 2]))
def test_a_server_that_unquotes_as_often_gets_the_very_names(datacenter, store, file, times):
    address = urlsplit(folder_path(datacenter, store, file, times))
    names = [parse_qs(address.query)[name][0] for name in ("dcPath", "dsName")]
    for _time in range(times - 1):
        names = [unquote(name) for name in names]
    assert names == [datacenter, store]
    assert unquote(address.path) == f"/folder/{file}"


def test_a_path_keeps_its_folders():
    assert (
        folder_path("DC0", "data store 2", "a b/c#d.vmdk")
        == "/folder/a%20b/c%23d.vmdk?dcPath=DC0&dsName=data%20store%202"
    )


@pytest.mark.parametrize(
    ("datacenter", "store", "times"),
    [
        pytest.param("DC0", "datastore1", (1,), id="plain names are one way only"),
        pytest.param("DC0", "data store 2", (1, 2), id="a space"),
        pytest.param("prod/DC0", "datastore1", (1, 2), id="a nested datacenter"),
        pytest.param("a%2fb", "datastore1", (1, 2), id="a slash in a name"),
    ],
)
def test_odd_names_are_tried_quoted_once_and_twice(datacenter, store, times):
    assert quotings(datacenter, store) == times


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("[datastore1] pgtest1/pgtest1.vmdk", ("datastore1", "pgtest1/pgtest1.vmdk")),
        ("[data store 2] a/b c.vmdk", ("data store 2", "a/b c.vmdk")),
        ("[ds]x.vmdk", ("ds", "x.vmdk")),
        ("[ds (1)] имя/диск.vmdk", ("ds (1)", "имя/диск.vmdk")),
    ],
)
def test_a_datastore_path_splits(path, parts):
    assert split(path) == parts


@pytest.mark.parametrize("path", ["", "pgtest1.vmdk", "[] x.vmdk", "[ds]", "ds/x.vmdk"])
def test_what_is_no_datastore_path_is_said_to_be_none(path):
    with pytest.raises(SendenseError, match="is not a datastore path"):
        split(path)


def test_a_flat_disk_names_its_extent_and_size():
    assert flat_extent("[ds] x", FLAT) == ("pg test-flat.vmdk", 41943040 * 512)
    assert flat_extent("[ds] x", FLAT.replace("\n", "\r\n")) == ("pg test-flat.vmdk", 41943040 * 512)


DELTA = FLAT.replace("parentCID=ffffffff", 'parentCID=a1b2c3d4\nparentFileNameHint="pg test.vmdk"').replace(
    "VMFS ", "VMFSSPARSE "
)
EXTENT = 'RW 41943040 VMFS "pg test-flat.vmdk"'


@pytest.mark.parametrize(
    ("descriptor", "says"),
    [
        pytest.param(DELTA, "is a delta on top of an older snapshot", id="delta"),
        pytest.param(FLAT.replace("ID=ffffffff", "ID=a1b2c3d4"), "is a delta", id="flat file with a parent"),
        pytest.param(FLAT.replace("VMFS ", "SESPARSE "), "is not one flat file", id="sesparse"),
        pytest.param(FLAT.replace("VMFS ", "VMFSRDM "), "is not one flat file", id="raw device mapping"),
        pytest.param(FLAT.replace(EXTENT, f"{EXTENT}\n{EXTENT}"), "is not one flat file", id="two extents"),
        pytest.param(FLAT.replace(EXTENT, ""), "is not one flat file", id="no extent"),
        pytest.param(FLAT.replace("pg test-flat.vmdk", "vsan://52aa-77"), "is no file beside it", id="vSAN object"),
        pytest.param(FLAT.replace("pg test-flat.vmdk", "../other/x.vmdk"), "is no file beside it", id="other folder"),
        pytest.param("KDMV\x00\x00", "is no disk descriptor", id="binary"),
        pytest.param("", "is no disk descriptor", id="empty"),
    ],
)
def test_what_is_not_one_flat_file_points_to_vddk(descriptor, says):
    with pytest.raises(Refused, match=says) as refused:
        flat_extent("[ds] x.vmdk", descriptor)
    assert "vddk" in str(refused.value)
