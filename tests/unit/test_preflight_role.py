# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the trial of role preflight asks of other roles, whatever the site says of transports and digests."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.sendense.backup.plugins.module_utils.digests import ALGORITHM

ROLES = Path(__file__).resolve().parents[2] / "roles"


def options(role):
    """Return the options of a role's argument specification."""
    return yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]


def asked(file, role, transport):
    """Return what a file of the trial asks of a role by *transport*, as Ansible would have it."""
    loader = DataLoader()
    tasks = loader.load_from_file(str(ROLES / "preflight/tasks" / file), trusted_as_template=True)
    every = [each for task in tasks for each in (task, *task.get("block", []))]
    (found,) = [task for task in every if task.get("ansible.builtin.include_role", {}).get("name", "").endswith(role)]
    seen = {
        "preflight_transport": transport, "__preflight_transport": transport, "inventory_hostname": "localhost",
        "hostvars": {"localhost": {"backup_cbt": "leave", "backup_digest": "blake2b", "backup_verify": "boot"}},
    }  # fmt: skip
    wanted = ("restore_transport", "backup_transport", "backup_cbt", "backup_digest", "backup_verify")
    return {
        name: Templar(loader, variables=seen).template(found["vars"][name]) for name in wanted if name in found["vars"]
    }


@pytest.mark.parametrize("transport", options("preflight")["preflight_transport"]["choices"])
def test_a_trial_by_any_transport_asks_for_what_restore_can_do(transport):
    how = asked("trial.yml", ".restore", transport)["restore_transport"]
    assert how in options("restore")["restore_transport"]["choices"]
    assert transport in (how, "client")


@pytest.mark.parametrize(("transport", "cbt"), [("https", "leave"), ("vddk", "leave"), ("client", "enable")])
def test_a_trial_is_backed_up_as_its_content_is_known_and_a_client_may_track_changes(transport, cbt):
    assert asked("backup.yml", ".backup", transport) == {
        "backup_transport": transport, "backup_cbt": cbt, "backup_digest": ALGORITHM, "backup_verify": "none",
    }  # fmt: skip
