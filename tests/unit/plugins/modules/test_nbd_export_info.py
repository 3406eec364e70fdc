# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

JOB = "pgtest1-5029f3ab-20261123T140102Z"


def test_what_servers_offer_is_told(run_module, nbdkit):
    one, two = nbdkit("--readonly", "memory", "1049088"), nbdkit("memory", "1M")
    told = run_module("nbd_export_info", {"uris": [one.uri, two.uri]})
    assert not told["changed"]
    assert [(each["uri"], each["size"], each["read_only"]) for each in told["handshakes"]] == [
        (one.uri, 1049088, True), (two.uri, 1 << 20, False)
    ]  # fmt: skip
    assert run_module("nbd_export_info", {"uris": [one.uri]}, check=True)["handshakes"] == told["handshakes"][:1]


def test_a_server_that_is_gone_fails(run_module, nbdkit):
    (server := nbdkit("memory", "1M")).stop()
    told = run_module("nbd_export_info", {"uris": [server.uri]})
    assert told["failed"]
    assert server.uri in told["msg"]


def test_exports_of_a_job_are_listed_the_dead_ones_too(run_module, systemd):
    systemd(f"sendense-export-{JOB}-2000")
    systemd(f"sendense-export-{JOB}-2001", active="failed", result="signal", code="2", status="9")
    systemd("sendense-export-other-5029f3ab-20261123T140102Z-2000")
    assert run_module("nbd_export_info", {"job": JOB})["exports"] == [
        {"unit": f"sendense-export-{JOB}-2000", "running": True, "death": ""},
        {"unit": f"sendense-export-{JOB}-2001", "running": False, "death": "killed by SIGKILL"},
    ]
