# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.sendense.backup.plugins.module_utils import job_state
from ansible_collections.sendense.backup.plugins.module_utils.errors import Busy, Refused

JOB = "pgtest1-5029f3ab-20261123T140102Z"


class Left(Exception):
    """What the module left with; as with Ansible's own, nothing runs after it."""


class Module:
    def __init__(self, job, state):
        self.params = {"job": job, "state": state}

    def exit_json(self, **result):
        raise Left({"failed": False, **result})

    def fail_json(self, msg, **result):
        raise Left({"failed": True, "msg": msg, **result})


def left_with(state, act, job=JOB):
    acts = {"present": dict, "absent": dict, state: act}
    with pytest.raises(Left) as left:
        job_state.run(Module(job, state), acts["present"], acts["absent"])
    return left.value.args[0]


def refuse(why):
    def act(_module):
        raise why

    return act


@pytest.mark.parametrize("state", ["present", "absent"])
def test_what_is_wished_is_done(state):
    assert left_with(state, lambda module: {"was": module.params["state"]}) == {"failed": False, "was": state}


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (Refused("no"), {"msg": "no", "busy": False}),
        (Busy("later"), {"msg": "later", "busy": True}),
        (OSError(28, "No space left on device"), {"msg": "No space left on device", "busy": False}),
    ],
)
def test_what_fails_is_one_sentence(why, told):
    assert left_with("present", refuse(why)) == {"failed": True, **told}


def test_for_what_is_no_job_nothing_is_done():
    told = left_with("absent", refuse(AssertionError("it was done")), job="../x")
    assert (told["failed"], "is not a job id" in told["msg"]) == (True, True)
