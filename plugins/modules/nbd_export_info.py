# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: nbd_export_info
short_description: Tell what NBD servers offer, and which exports of ours run here
version_added: 0.1.0
description:
  - Does an NBD handshake with each URI and tells what it offered. No data is read.
  - Lists the export units of a job on this host, those that have died too.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  uris:
    description: NBD URIs to ask. One that does not answer within O(timeout) fails the task.
    type: list
    elements: str
    default: []
  job:
    description: Id of the job whose exports are listed.
    type: str
  timeout:
    description: Seconds that each handshake may take.
    type: int
    default: 10
"""

EXAMPLES = r"""
- name: The export answers through the tunnel
  sendense.backup.nbd_export_info:
    uris:
      - nbd+unix:///pgtest1-5029f3ab-20261123T140102Z-disk0?socket=/run/sendense/pgtest1-5029f3ab-20261123T140102Z/2000.sock
"""

RETURN = r"""
handshakes:
  description: Per URI what the server offered.
  returned: always
  type: list
  elements: dict
  sample:
    - uri: nbd://127.0.0.1:10100/pgtest1-5029f3ab-20261123T140102Z-disk0
      size: 21474836480
      read_only: false
      can_flush: true
      can_multi_conn: true
exports:
  description: Units of the job's exports; C(death) is empty for one that runs.
  returned: always
  type: list
  elements: dict
  sample:
    - unit: sendense-export-pgtest1-5029f3ab-20261123T140102Z-2000
      running: true
      death: ""
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import units
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import handshake
from ansible_collections.sendense.backup.plugins.module_utils.transfer import export


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "uris": {"type": "list", "elements": "str", "default": []},
            "job": {"type": "str"},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        handshakes = [{"uri": uri, **asdict(handshake(uri, params["timeout"]))} for uri in params["uris"]]
        known = [units.read(name) for name in export.known(params["job"])] if params["job"] else []
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    exports = [{"unit": unit.name, "running": unit.running, "death": unit.death} for unit in known]
    module.exit_json(changed=False, handshakes=handshakes, exports=exports)


if __name__ == "__main__":
    main()
