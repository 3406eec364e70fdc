# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: qcow2_image
short_description: Keep a QCOW2 image of an exact size
version_added: 0.1.0
description:
  - Makes an empty QCOW2 image (compat 1.1, no lazy refcounts), optionally on top of a backing file, or removes one.
  - An image is never shrunk and never made anew over another; a larger O(size) grows it.
  - M(sendense.backup.restore_point) uses the same code; this module is there for other uses of it.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  path:
    description: Where the image is.
    type: path
    required: true
  state:
    description: Whether it is there.
    type: str
    choices: [present, absent]
    default: present
  size:
    description: Size that a guest sees, in bytes, a multiple of 512. Required with O(state=present).
    type: int
  backing_file:
    description: QCOW2 image that shows through where this one holds nothing, relative to the folder of O(path).
    type: str
  cluster_size:
    description: Cluster size in bytes.
    type: int
    default: 65536
"""

EXAMPLES = r"""
- name: An image of 20 GiB is there
  sendense.backup.qcow2_image:
    path: /backup/scratch/disk.qcow2
    size: 21474836480
"""

RETURN = r"""
image:
  description: The image as it is now; empty when there is none.
  returned: always
  type: dict
  sample: {size: 21474836480, backing: null, cluster_size: 65536}
"""

from dataclasses import asdict
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils.commands import run
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, sentence
from ansible_collections.sendense.backup.plugins.module_utils.repository.image import CLUSTER, Image, plan, read


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "size": {"type": "int"},
            "backing_file": {"type": "str"},
            "cluster_size": {"type": "int", "default": CLUSTER},
        },
        required_if=[("state", "present", ["size"])],
        supports_check_mode=True,
    )
    params, path = module.params, Path(module.params["path"])
    wish = (
        Image(params["size"], params["backing_file"] or None, params["cluster_size"])
        if params["state"] == "present"
        else None
    )
    try:
        current = read(path)
        commands = plan(path, current, wish)
        if not module.check_mode:
            for command in commands:
                run(command)
    except FAILURES as why:
        module.fail_json(msg=sentence(why))
    before, after = (asdict(image) if image else {} for image in (current, wish))
    module.exit_json(changed=bool(commands), image=after, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
