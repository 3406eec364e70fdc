# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

JOB = "pgtest1-5029f3ab-20261123T140102Z"


def test_check_mode_predicts_where_the_exports_will_be(run_module, private_run, systemd, tmp_path):
    wish = {"job": JOB, "hub_address": "hub", "forwards": [{"key": 2000, "name": f"{JOB}-disk0", "size": 512}]}
    told = run_module("ssh_tunnel", wish, check=True, prefix=private_run)
    uri, other = (f"nbd+unix:///{JOB}-disk0?socket=/run/sendense/{JOB}/{name}.sock" for name in ("2000", "2000-1"))
    assert (told["changed"], told["forwards"]) == (True, [{"key": 2000, "uri": uri, "also": [other], "invocation": ""}])
    assert not list((tmp_path / "run").iterdir())


def test_what_a_dead_tunnel_left_goes(run_module, private_run, systemd, tmp_path):
    gone = {"job": JOB, "state": "absent"}
    assert not run_module("ssh_tunnel", gone, prefix=private_run)["changed"]
    (folder := tmp_path / "run" / "sendense" / JOB).mkdir(parents=True)
    (folder / "2000.sock").touch()
    assert run_module("ssh_tunnel", gone, check=True, prefix=private_run)["changed"]
    assert folder.exists()
    assert run_module("ssh_tunnel", gone, prefix=private_run)["changed"]
    assert not folder.exists()
    assert not run_module("ssh_tunnel", gone, prefix=private_run)["changed"]
