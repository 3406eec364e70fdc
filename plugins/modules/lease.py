# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: lease
short_description: Hold a job's shares of what jobs may use together only up to a limit
version_added: 0.1.0
description:
  - Jobs of many controllers meet on the hub, so the hub keeps count of what they use together, for example of the snapshots
    that are open on one datastore.
  - A share belongs to its job and is released with it. A job that is dead counts no more.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.job
attributes:
  check_mode:
    support: full
    details: Refuses what could never be had, and does not wait for what others hold.
  diff_mode:
    support: full
options:
  state:
    description:
      - With V(present) the job holds exactly O(shares), all or none. Shares that it held before and that are not among them
        are released in the same step. If they are not to be had, the job keeps what it held.
      - With V(absent) it holds none.
    type: str
    choices: [present, absent]
    default: present
  shares:
    description: What the job holds. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      thing:
        description:
          - What there is only so much of. C(disks-<host>) are the open disks of an ESXi host, C(snapshots-<datastore>) the open
            snapshots and C(removals-<datastore>) the running removals of snapshots on a datastore, each by its managed object id.
        type: str
        required: true
      amount:
        description: How much of it the job needs.
        type: int
        default: 1
      limit:
        description: How much of it all jobs together may hold, as this one sees it.
        type: int
        required: true
  timeout:
    description: Seconds to wait for what other jobs hold. The task asks again by itself until then.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: The snapshot and the disks are not too many for vCenter
  sendense.backup.lease:
    job: pgtest1-5029f3ab-20261123T140102Z
    shares:
      - thing: disks-host-12
        amount: 3
        limit: 24
      - thing: snapshots-datastore-14
        limit: 8
    timeout: 600
"""

RETURN = r"""
shares:
  description: What the job holds now, the amount by thing.
  returned: success
  type: dict
  sample:
    disks-host-12: 3
    snapshots-datastore-14: 1
busy:
  description: Whether it failed because other jobs hold too much, so that asking again later may help.
  returned: on failure
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import job_state, shares
from ansible_collections.sendense.backup.plugins.module_utils.leases import Leases
from ansible_collections.sendense.backup.plugins.module_utils.shares import Share


def settle(module: AnsibleModule, wished: list[Share]) -> dict:
    """Have the job hold the shares that it wishes, and no others."""
    leases, job = Leases(), module.params["job"]
    before, after = shares.held(leases, job), {each.thing: each.amount for each in wished}
    shares.check(wished)
    if not module.check_mode:
        shares.hold(leases, job, wished)
    return {"changed": before != after, "shares": after, "diff": {"before": before, "after": after}}


def present(module: AnsibleModule) -> dict:
    """Have the job hold the shares that are asked for."""
    return settle(module, [Share(**each) for each in module.params["shares"]])


def absent(module: AnsibleModule) -> dict:
    """Have the job hold no shares."""
    return settle(module, [])


def main() -> None:
    """Run the module."""
    share = {
        "thing": {"type": "str", "required": True},
        "amount": {"type": "int", "default": 1},
        "limit": {"type": "int", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            **job_state.OPTIONS,
            "shares": {"type": "list", "elements": "dict", "options": share},
            "timeout": {"type": "int", "default": 0},  # of the action plugin, which asks again while the answer is busy
        },
        required_if=[("state", "present", ["shares"])],
        supports_check_mode=True,
    )
    job_state.run(module, present, absent)


if __name__ == "__main__":
    main()
