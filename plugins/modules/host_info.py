#!/usr/bin/python
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Check whether a host has what backups need of a hub or a node
version_added: 0.1.0
description:
  - Looks at tools, libraries, clock, the repository and its space on a hub, and at transports and tunnels on a node.
  - Nothing is changed. What is wrong is told as a check that failed; the task itself does not fail for it.
author:
  - Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes.info_module
options:
  role:
    description: What the host is.
    type: str
    choices: [hub, node]
    required: true
  now:
    description: The time of the controller in seconds since the epoch.
    type: float
    required: true
  repository:
    description: Folder of the repository of a hub.
    type: path
    default: /backup/repository
  repository_min_free:
    description: Percent of its file system that are to stay free.
    type: int
    default: 5
  transport:
    description: How a node is to read. With V(auto) it reads over HTTPS where it has no VDDK, which is then a warning.
    type: str
    choices: [auto, vddk, https, client]
    default: auto
  hubs:
    description: The hubs that a node sends to.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The hub as the inventory calls it.
        type: str
        required: true
      address:
        description: What the node dials.
        type: str
        required: true
      port:
        description: Port of the hub's sshd.
        type: int
        default: 22
seealso:
  - module: sendense.backup.vcenter_info
"""

EXAMPLES = r"""
- name: The hub is looked at
  sendense.backup.host_info:
    role: hub
    now: "{{ now().timestamp() }}"
  register: look
"""

RETURN = r"""
checks:
  description: What was looked at.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: What it is., type: str, sample: transport vddk}
    state: {description: 'V(ok), V(warning) or V(failed).', type: str}
    seen: {description: What was seen., type: str}
    remedy: {description: 'What to do, empty when there is nothing to do.', type: str}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import preflight, readiness


def main() -> None:
    """Run the module."""
    hub = {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "port": {"type": "int", "default": 22},
    }
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "choices": ["hub", "node"], "required": True},
            "now": {"type": "float", "required": True},
            "repository": {"type": "path", "default": "/backup/repository"},
            "repository_min_free": {"type": "int", "default": 5},
            "transport": {"type": "str", "choices": ["auto", "vddk", "https", "client"], "default": "auto"},
            "hubs": {"type": "list", "elements": "dict", "default": [], "options": hub},
        },
        supports_check_mode=True,
    )
    params = module.params
    checks = readiness.everywhere(params["now"])
    if params["role"] == "hub":
        checks += readiness.hub(params["repository"], params["repository_min_free"])
    else:
        checks += readiness.node(params["transport"], [readiness.Hub(**each) for each in params["hubs"]])
    module.exit_json(changed=False, checks=preflight.told(checks))


if __name__ == "__main__":
    main()
