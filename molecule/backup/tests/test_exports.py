# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Exports by themselves: what the module says that starts them."""

from __future__ import annotations

import pytest

JOB = "pgtest9-00000000-20260101T000000Z"


@pytest.fixture
def image(clean):
    """Return an image on the hub, in a folder of its own."""
    clean.hub.check_output("install -d -o sendense /backup/scratch")
    clean.hub.check_output(
        "qemu-img create -q -f qcow2 /backup/scratch/a.qcow2 1M && chown sendense /backup/scratch/a.qcow2"
    )
    yield "/backup/scratch/a.qcow2"
    clean.module("hub1", "nbd_export", job=JOB, state="absent")
    clean.hub.check_output("rm -r /backup/scratch")


def test_an_export_that_does_not_start_says_why(clean, image):
    def start(**export) -> str:
        wish = {"key": 2000, "image": image, "name": f"{JOB}-disk0", "size": 1048576, **export}
        return clean.module("hub1", "nbd_export", job=JOB, exports=[wish])["msg"]

    assert "No such file or directory" in start(image="/backup/scratch/none.qcow2")
    assert "port 22 is not among 10100-10200" in start(port=22)
    assert "offers 1048576 bytes where 512 were expected" in start(size=512)
    holder = clean.hub.run(
        f"systemd-run --quiet --unit=holder-of-the-test qemu-nbd -f qcow2 -t -k /run/holder-of-the-test {image}; sleep 1"
    )
    assert holder.rc == 0
    try:
        assert 'Failed to get "write" lock' in start()
    finally:
        clean.hub.check_output("systemctl stop holder-of-the-test; rm -f /run/holder-of-the-test")
    assert clean.leftovers() == {}


def test_an_export_outlives_the_connection_that_started_it(clean, image):
    wish = {"key": 2000, "image": image, "name": f"{JOB}-disk0", "size": 1048576}
    first = clean.module("hub1", "nbd_export", job=JOB, exports=[wish])
    assert 10100 <= first["exports"][0]["port"] <= 10200
    assert clean.module("hub1", "nbd_export", job=JOB, exports=[wish]) == {**first, "changed": False}
    assert clean.module("hub1", "nbd_export_info", job=JOB)["exports"][0]["running"]
