# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What test_job_leftovers.py does not say of job_info: a node, which has no repository."""

from __future__ import annotations

JOB = "left2-50aa1111-20261123T140102Z"


def test_a_node_tells_what_it_has_and_not_who_is_dead(run_module, private_run, systemd, tmp_path):
    systemd(f"sendense-tunnel-{JOB}")
    (tmp_path / "run/sendense" / JOB).mkdir(parents=True)
    (tmp_path / "run/sendense/notes").touch()
    told = run_module("job_info", {}, prefix=private_run)
    (found,) = (each for each in told["jobs"] if each["job"] == JOB)  # other tests may have jobs on this machine
    assert (found["dead"], found["running"], found["leases"]) == (None, [f"sendense-tunnel-{JOB}"], [])
    assert found["folders"] == [f"/run/sendense/{JOB}"]
    assert {"path": "/run/sendense/notes", "why": "its name is not that of a job"} in told["strangers"]
    assert told["unowned"] == []
