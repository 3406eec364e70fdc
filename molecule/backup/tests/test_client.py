# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks copied by sendense-backup-client, for which the lab has a stand-in: what is believed of it, and what it shows."""

from __future__ import annotations

import hashlib
import signal

import pytest

from tests.scenarios.site import PROJECT

STAND_IN = PROJECT / "lab/client_stand_in.py"
BY_CLIENT = ("-e", "vm_name=web01", "-e", "backup_transport=client")
TAGS = ("--limit=node1", "--tags=node_client,tunnel_configure")


@pytest.fixture(scope="module", autouse=True)
def client(provision):
    """Give the node the stand-in, and the tunnel that it needs; both are gone at the end."""
    wishes = {
        "node_client_binary": STAND_IN,
        "node_client_sha256": hashlib.sha256(STAND_IN.read_bytes()).hexdigest(),
        "node_client_version": "stand-in-1",
        "tunnel_client_ports": "true",
    }
    code, output = provision(*TAGS, *(f"--extra-vars={name}={value}" for name, value in wishes.items()))
    assert code == 0, output
    yield
    code, output = provision(*TAGS)
    assert code == 0, output


@pytest.fixture
def wrong(clean):
    """Return ``wrong(what)``, which makes the stand-in do something wrong until the test ends."""
    yield lambda what: clean.node.check_output(f"echo {what} > /run/client-stand-in")
    clean.node.check_output("rm -f /run/client-stand-in")


def test_every_byte_is_there_and_what_is_not_proven_is_told(clean):
    check = clean.backup(*BY_CLIENT, "--check")
    assert (check.code, clean.ask("/snapshots")["snapshots"]) == (0, []), check.output
    assert "would back up 1 disk(s) of 32.0 MiB by client (it was asked for)" in check.line("web01")
    run = clean.backup(*BY_CLIENT)
    assert run.code == 0, run.output
    assert "not held against the source: disk 2000, by client (it was asked for)" in run.line("web01")
    manifest, disks = clean.compare("web01")
    assert [disk.equal for disk in disks] == [True]
    assert (manifest["transport"], manifest["tools"]["client"]) == ("client", "stand-in-1")
    (disk,) = manifest["disks"]
    assert (disk["digests_of"], disk["map"], disk["read"], disk["change_id"]) == ("image", "client", None, None)
    assert manifest["consistency"]["quiesce_achieved"] is None
    log = clean.node.file(f"/var/log/sendense/backup-{manifest['job']}.log").content_string
    assert 'level=info msg="Migration completed"' in log
    assert clean.lab_json["vcenter"]["password_file"].read_text().strip() not in log + run.output


def test_a_client_that_wrote_nothing_is_not_believed(clean, wrong):
    before = clean.points()
    wrong("nothing")
    run = clean.backup(*BY_CLIENT)
    assert run.code != 0
    assert "the client ended well and wrote nothing into disk 2000" in run.line("web01")
    assert clean.points() == before


@pytest.mark.matrix
def test_one_that_outlives_its_controller_is_followed_by_the_next_run(clean, wrong):
    wrong("slow")
    process = clean.start(*BY_CLIENT)
    (found,) = clean.wait_for("the client", lambda: clean.ask("/snapshots")["snapshots"])
    assert clean.end(process, signal.SIGKILL).code != 0
    run = clean.backup(*BY_CLIENT)
    assert run.code == 0, run.output
    assert f"went on with {found['name'].removeprefix('sbak-')}" in run.line("web01")
    manifest, disks = clean.compare("web01")
    assert [disk.equal for disk in disks] == [True]
    assert manifest["consistency"]["quiesce_requested"] == "prefer", "as it was asked for by the run that is gone"


def test_one_that_hangs_shows_the_password_in_its_argv_alone_and_leaves_nothing(clean, wrong):
    """The program takes the password so, and in no other way: the documentation says it, and this says who shows it."""
    before, secret = clean.points(), clean.lab_json["vcenter"]["password_file"].read_text().strip()
    wrong("hang")
    process = clean.start(*BY_CLIENT, "-e", "backup_stall=6")
    clean.wait_for("the client", lambda: clean.ask("/snapshots")["snapshots"])
    shown = "for each in /proc/[0-9]*; do tr '\\0' ' ' < $each/{}; echo; done 2>/dev/null"
    argv, environments = (clean.node.run(shown.format(what)).stdout for what in ("cmdline", "environ"))
    with clean.knobs(latency_ms=50):  # its logout takes longer than systemd needs for a second SIGTERM
        run = clean.end(process)
    assert run.code != 0
    assert "the client has said and written nothing for 6 s (backup_stall)" in run.line("web01")
    assert clean.points() == before
    (line,) = [line for line in argv.splitlines() if secret in line]
    assert f"sendense-backup-client migrate --vmware-endpoint {clean.lab_json['vcenter']['hostname']} " in line
    assert "MIGRATEKIT_JOB_ID=web01-" in environments, "the look must be able to see the client"
    assert secret not in environments + run.output
