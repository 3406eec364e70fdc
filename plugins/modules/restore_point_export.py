# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_export
short_description: Write disks of a restore point to files that stand alone
version_added: 0.1.0
description:
  - Writes each disk as one file C(disk-<key>.<format>), whatever the point stands on, into a folder of their own on the hub.
  - The folder is there whole or not at all. It is made as C(<path>.partial) and renamed once each file was written, read
    again, found to hold what the manifest of the point says (its Merkle root), and is on stable storage.
  - What an interrupted run leaves is that partial folder, which no later step takes for a restore; the next run removes
    it and begins anew. Nothing is resumed.
  - The point is only read.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
    details: Looks at the point, the images it stands on, the place and its free space, so it refuses what the run would refuse.
  diff_mode:
    support: none
options:
  repository:
    description: Folder of the repository on the hub.
    type: path
    required: true
  vm:
    description: The VM as M(sendense.backup.restore_point_info) takes it, by uuid, name or inventory path.
    type: str
    required: true
  point:
    description: Id of the point, or V(latest).
    type: str
    default: latest
  disks:
    description: Device keys of the disks. All of the point when empty.
    type: list
    elements: int
    default: []
  format:
    description: V(raw) and sparse, V(qcow2) without a backing file, or V(vmdk), streamOptimized, the compressed form in which VMDKs travel.
    type: str
    choices: [qcow2, raw, vmdk]
    default: qcow2
  path:
    description:
      - Folder on the hub that is to hold the files. What it lies in is there already; it itself is not.
      - A folder that an earlier run made with the same wish is left as it is, provided that its files have the size and
        the time that they had then. They are not read again. Any other folder is refused.
    type: path
    required: true
  owner:
    description: User of the hub to whom folder and files belong (C(0700), C(0600)). Without it who runs the module, usually root.
    type: str
"""

EXAMPLES = r"""
- name: The newest point of pgtest1 lies in raw files
  sendense.backup.restore_point_export:
    repository: /backup/repository
    vm: pgtest1
    format: raw
    path: /srv/restores/pgtest1
"""

RETURN = r"""
path:
  description: The folder. Beside the files it holds C(restored.json), which says what they are.
  returned: always
  type: str
point:
  description: Id of the point.
  returned: always
  type: str
disks:
  description: The files, in order of device key. In check mode only C(key), C(file) and C(capacity) are known.
  returned: always
  type: list
  elements: dict
  sample:
    - key: 2000
      file: disk-2000.raw
      capacity: 21474836480
      root: 0c9f3a5e1c2b4d6f8091a2b3c4d5e6f70123456789abcdef0123456789abcdef
      stored: 1073741824
      seconds_written: 4.2
      seconds_proven: 2.1
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import files
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, failure
from ansible_collections.sendense.backup.plugins.module_utils.repository import choice, delivery, flatten
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository


def act(module: AnsibleModule) -> dict:
    """Look, and write the files unless they are there."""
    params = module.params
    owner = files.owner(params["owner"]) if params["owner"] else None
    repository = open_repository(params["repository"])
    uuid = choice.find_vm(repository, params["vm"])
    point = choice.find_point(repository, uuid, params["point"], params["disks"])
    disks = flatten.disks(repository, uuid, point, params["disks"])
    wished = flatten.wish(uuid, point, disks, params["format"], Path(params["path"]), owner=owner)
    record = delivery.done(wished, repository.path)
    result = {"changed": record is None, "path": params["path"], "point": point["point"]}
    if record is None and module.check_mode:
        record = {
            "disks": [
                {"key": disk.key, "file": disk.file(params["format"]), "capacity": disk.capacity} for disk in disks
            ]
        }
    elif record is None:
        about = {"vm": point["vm"]["name"], "job": point["job"]}
        record = flatten.make(wished, disks, params["format"], about)
    return {**result, "disks": record["disks"]}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "vm": {"type": "str", "required": True},
            "point": {"type": "str", "default": "latest"},
            "disks": {"type": "list", "elements": "int", "default": []},
            "format": {"type": "str", "choices": flatten.FORMATS, "default": "qcow2"},
            "path": {"type": "path", "required": True},
            "owner": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except FAILURES as why:
        module.fail_json(**failure(why))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
