# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The password of vCenter is nowhere that somebody could read it: no command line, no log, no file, no output."""

from __future__ import annotations

import subprocess
import sys

import pytest

PATTERN = "/run/canary"  # holds the password while a test looks for it; the search takes it from there, not from argv
FOUND = "/run/canary-found"
# Short-lived processes too: every process of the machine is looked at again and again while the backup runs.
SAMPLER = f"""
    touch {FOUND}
    while [ -e {PATTERN} ]; do
        grep -slF -f {PATTERN} /proc/[0-9]*/cmdline /proc/[0-9]*/environ >> {FOUND}
        grep -srlF -f {PATTERN} /root/.ansible /tmp /var/tmp >> {FOUND}
        sleep 0.05
    done
"""


@pytest.fixture
def password(clean):
    """Return the password, of which every machine looks for copies from now on."""
    secret = clean.lab_json["vcenter"]["password_file"].read_text().strip()
    for machine in ("hub1", "node1"):
        lab = [sys.executable, "-m", "lab", "ssh", machine]
        subprocess.run(
            [*lab, f"umask 077; cat > {PATTERN}"], input=secret, text=True, check=True, cwd=clean.lab.checkout
        )
    for host in (clean.hub, clean.node):
        host.check_output(f"systemd-run --quiet --unit=canary sh -c '{SAMPLER}'")
    yield secret
    for host in (clean.hub, clean.node):
        host.check_output(f"rm -f {PATTERN} {FOUND}; systemctl stop canary 2>/dev/null; true")


@pytest.mark.parametrize("transport", [pytest.param("https", marks=pytest.mark.matrix), "vddk"])
def test_the_password_shows_nowhere(clean, password, transport):
    everywhere = "/etc /home /opt /root /srv /tmp /usr/local /var /backup"
    with clean.knobs(folder_bytes_per_second=60 * 1024**2, nfc_bytes_per_second=60 * 1024**2):
        run = clean.backup("-e", "vm_name=pgtest1", "-e", f"backup_transport={transport}", "-vvv")
    assert run.code == 0, run.output
    assert password not in run.output
    for host in (clean.hub, clean.node):
        assert host.check_output("systemctl is-active canary") == "active", "nobody looked"
        assert host.file(FOUND).content_string == ""
        assert host.run(f"grep -srlF -f {PATTERN} {everywhere}").stdout == ""
        assert host.run(f"journalctl --no-pager | grep -cF -f {PATTERN}").stdout.strip() == "0"


def test_the_search_would_find_it(clean, password):
    """The look itself must be able to fail."""
    clean.node.check_output(f"bash -c 'exec -a \"$(cat {PATTERN})\" sleep 2'")
    assert "cmdline" in clean.node.file(FOUND).content_string
    assert password


def test_the_environment_of_the_controller_will_do(clean):
    vcenter = clean.lab_json["vcenter"]
    empty = '{"vcenter_hostname": "", "vcenter_username": "", "vcenter_password": ""}'
    run = clean.backup(
        *("-e", "vm_name=thin1", "-e", empty),
        environment={
            "VMWARE_HOST": vcenter["hostname"],
            "VMWARE_USER": vcenter["user"],
            "VMWARE_PASSWORD": vcenter["password_file"].read_text().strip(),
        },
    )
    assert run.code == 0, run.output
