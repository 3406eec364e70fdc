# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: ssh_tunnel
short_description: Keep the tunnel of a job from node to hub
version_added: 0.1.0
description:
  - Opens one ssh from the node to the hub, in a systemd unit of its own, and forwards a unix socket in the job's folder to
    each export of the hub. The sockets belong to the service user and are closed to others.
  - The tunnel is up once every export has answered an NBD handshake through it, with its name and its size.
  - Host keys are checked against O(known_hosts) alone.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
  - sendense.backup.job
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description: Whether the tunnel is there.
    type: str
    choices: [present, absent]
    default: present
  hub_address:
    description: Name or address of the hub, as it stands in O(known_hosts). Required with O(state=present).
    type: str
  hub_port:
    description: Port of the hub's sshd.
    type: int
    default: 22
  hub_user:
    description: User of the hub that may forward and nothing else.
    type: str
    default: sendense-tunnel
  key_file:
    description: Private key of this node.
    type: path
    default: /etc/sendense/tunnel/id_ed25519
  known_hosts:
    description: File with the pinned host keys of the hub.
    type: path
    default: /etc/sendense/tunnel/known_hosts
  streams:
    description:
      - How many ssh connections carry the tunnel. One is as fast as one core encrypts, on either side. With several, each
        carries every export once; a disk is written through all of them when its export takes more than one connection.
    type: int
    default: 2
  forwards:
    description: The exports to reach. Required with O(state=present).
    type: list
    elements: dict
    suboptions:
      key:
        description: Device key of the disk, by which its socket is named.
        type: int
        required: true
      port:
        description: Port of the export on the hub's loopback interface. Null in check mode.
        type: int
      read_only:
        description: Whether the export is only read.
        type: bool
        default: false
      name:
        description: Name of the export.
        type: str
        required: true
      size:
        description: Size of the export in bytes.
        type: int
        required: true
      invocation:
        description: Which start of the export it is, as M(sendense.backup.nbd_export) tells it; it is handed on.
        type: str
        default: ""
"""

EXAMPLES = r"""
- name: The tunnel carries the export
  sendense.backup.ssh_tunnel:
    job: pgtest1-5029f3ab-20261123T140102Z
    hub_address: hub.example.com
    forwards:
      - key: 2000
        port: 10100
        name: pgtest1-5029f3ab-20261123T140102Z-disk0
        size: 21474836480
"""

RETURN = r"""
forwards:
  description:
    - Per disk the NBD URI at which the node reaches its export, those of the other streams (C(also)), and which start of the
      export that is (C(invocation)).
  returned: when O(state=present)
  type: list
  elements: dict
  sample:
    - key: 2000
      uri: nbd+unix:///pgtest1-5029f3ab-20261123T140102Z-disk0?socket=/run/sendense/pgtest1-5029f3ab-20261123T140102Z/2000.sock
      also:
        - nbd+unix:///pgtest1-5029f3ab-20261123T140102Z-disk0?socket=/run/sendense/pgtest1-5029f3ab-20261123T140102Z/2000-1.sock
      invocation: 8f3c2d1e0b5a4f6987a6b5c4d3e2f101
unit:
  description: The systemd unit of the first stream; those of the others end in C(-1) and so on.
  returned: always
  type: str
  sample: sendense-tunnel-pgtest1-5029f3ab-20261123T140102Z
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import job_state
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.transfer import tunnel


def present(module: AnsibleModule) -> dict:
    """Open the tunnel, unless it is open and carries every export."""
    params, job = module.params, module.params["job"]
    forwards = [tunnel.Forward(**each) for each in params["forwards"]]
    streams = params["streams"]
    if streams < 1:
        raise SendenseError(f"a tunnel of {streams} streams carries nothing; give 1 or more")
    uris = {each.key: tunnel.uris(job, each, streams) for each in forwards}
    changed = not tunnel.carries(job, forwards, streams)
    if changed and not module.check_mode:
        hub = tunnel.Hub(
            params["hub_address"], params["hub_port"], params["hub_user"], params["key_file"], params["known_hosts"]
        )
        tunnel.start(job, hub, forwards, streams)
    return {
        "changed": changed,
        "unit": tunnel.unit_name(job),
        "forwards": [
            {"key": each.key, "uri": uris[each.key][0], "also": uris[each.key][1:], "invocation": each.invocation}
            for each in forwards
        ],
    }


def absent(module: AnsibleModule) -> dict:
    """Close the tunnel."""
    job = module.params["job"]
    changed = tunnel.present(job)
    if changed and not module.check_mode:
        tunnel.stop(job)
    return {"changed": changed, "unit": tunnel.unit_name(job)}


def main() -> None:
    """Run the module."""
    forward = {
        "key": {"type": "int", "required": True, "no_log": False},
        "port": {"type": "int"},
        "read_only": {"type": "bool", "default": False},
        "name": {"type": "str", "required": True},
        "size": {"type": "int", "required": True},
        "invocation": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            **job_state.OPTIONS,
            "hub_address": {"type": "str"},
            "hub_port": {"type": "int", "default": 22},
            "hub_user": {"type": "str", "default": "sendense-tunnel"},
            "key_file": {"type": "path", "default": "/etc/sendense/tunnel/id_ed25519", "no_log": False},
            "known_hosts": {"type": "path", "default": "/etc/sendense/tunnel/known_hosts"},
            "streams": {"type": "int", "default": 2},
            "forwards": {"type": "list", "elements": "dict", "options": forward},
        },
        required_if=[("state", "present", ["hub_address", "forwards"])],
        supports_check_mode=True,
    )
    job_state.run(module, present, absent)


if __name__ == "__main__":
    main()
