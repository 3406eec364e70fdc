# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
module: restore_point_files
short_description: Look into the filesystems of a restore point, and copy files out of them
version_added: 0.1.0
description:
  - Lists the filesystems of a point and what lies in a folder of them, or copies files and folders to a folder on the hub.
  - Filesystems, partitions and logical volumes are read by libguestfs in a small virtual machine that the user C(sendense)
    runs; this host's kernel mounts nothing. The images are opened read-only. The first start on a hub, and after a new kernel, takes
    longer, because that machine is made then.
  - Role P(sendense.backup.hub#role) installs libguestfs where C(hub_file_restore) is true.
  - A path is written as the guest sees it, C(/etc/fstab), where the disks hold one operating system whose mount points can be
    found, or just one filesystem. Otherwise, and wherever that is plainer, its filesystem goes before it. C(16000:/base) lies on the
    whole disk with key 16000, C(2000-1:/boot) on the first partition of disk 2000, and C(vg0/root:/etc) on a logical volume.
author: Contributors to sendense.backup (@sendense)
extends_documentation_fragment:
  - sendense.backup.attributes
attributes:
  check_mode:
    support: full
    details: Looks whether each path is there, so it refuses what the run would refuse.
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
    description: Device keys of the disks to look at. All of the point when empty. A volume group may need several.
    type: list
    elements: int
    default: []
  browse:
    description: Folders to be listed.
    type: list
    elements: str
    default: []
  copy:
    description: Files and folders to be copied, folders with all in them.
    type: list
    elements: str
    default: []
  path:
    description:
      - Folder on the hub that is to hold the copies, each below the name of its filesystem and with its whole path. What it lies in is
        there already; it itself is not. Required with O(copy).
      - It is there whole or not at all, made as C(<path>.partial) and renamed. What an interrupted run leaves is that partial
        folder; the next run removes it and begins anew.
      - A folder that an earlier run made with the same wish is left as it is. Any other is refused.
    type: path
  owner:
    description:
      - User of the hub to whom the copies belong. Without it who runs the module, usually root.
      - Contents, times and permissions are those of the guest, but owners, set-id bits and ACLs are not.
    type: str
  accelerator:
    description:
      - How the small virtual machine runs. V(tcg) works everywhere, V(kvm) is faster where KVM works for the user C(sendense).
    type: str
    choices: [kvm, tcg]
    default: tcg
"""

EXAMPLES = r"""
- name: What is on the disks is known
  sendense.backup.restore_point_files:
    repository: /backup/repository
    vm: pgtest1
    browse: ["16000:/"]

- name: A folder of yesterday is there
  sendense.backup.restore_point_files:
    repository: /backup/repository
    vm: pgtest1
    point: 20261123T140102Z
    copy: ["16000:/base-00"]
    path: /srv/restores/pgtest1-base
"""

RETURN = r"""
point:
  description: Id of the point.
  returned: always
  type: str
filesystems:
  description: What the disks hold, filesystems and others; encrypted ones have the C(kind) C(crypto_LUKS) or C(BitLocker).
  returned: when O(copy) is empty
  type: list
  elements: dict
  sample:
    - {name: 2000-1, kind: vfat, readable: true}
entries:
  description: Per path of O(browse) what lies there.
  returned: when O(copy) is empty
  type: dict
  sample:
    "16000:/":
      - {path: /empty, kind: file, size: 0, mode: "0644", uid: 0, gid: 0, mtime: "2026-11-23T14:01:02Z"}
path:
  description: Folder with the copies. Beside them it holds C(restored.json), which says what they are.
  returned: when O(copy) is not empty
  type: str
copied:
  description: How many files, folders and links were copied; 0 in check mode and when they were there.
  returned: when O(copy) is not empty
  type: int
left_out:
  description: Devices, sockets and the like, which are not copied; also when the copies were there.
  returned: when O(copy) is not empty
  type: list
  elements: str
seconds_to_first_file:
  description: Seconds until the first file was there, the start of the virtual machine included.
  returned: when something was copied
  type: float
seconds:
  description: Seconds that all of it took.
  returned: when something was copied
  type: float
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sendense.backup.plugins.module_utils import files, jobs
from ansible_collections.sendense.backup.plugins.module_utils.errors import FAILURES, Refused, failure
from ansible_collections.sendense.backup.plugins.module_utils.repository import (
    chain,
    choice,
    delivery,
    guest,
    unprivileged,
)
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository


@dataclass(frozen=True)
class Source:
    """The images of a point, and how they are read."""

    images: dict[int, Path]
    accelerator: str

    def read(self, work: Callable) -> object:
        """Return what *work* returns, given the running guest, done as the service user."""

        def inside() -> object:
            with guest.attached(self.images, Path.home() / "guestfs", self.accelerator) as found:
                return work(found)

        return unprivileged.run(jobs.USER, inside)


def look(source: Source, browse: list[str]) -> dict:
    """List the filesystems, and the folders to be browsed."""

    def work(found: guest.Guest) -> dict:
        known = [{"name": each.name, "kind": each.kind, "readable": each.readable} for each in found.volumes()]
        return {"filesystems": known, "entries": {where: found.entries(where) for where in browse}}

    return {"changed": False, **source.read(work)}


def fetch(source: Source, wished: delivery.Delivery, wanted: list[str], about: dict) -> dict:
    """Copy the files."""
    began, folder = time.monotonic(), -1

    def work(found: guest.Guest) -> dict:
        os.fchdir(folder)  # the service user need not be able to enter what it lies in
        for where in wanted:  # what is missing is said before anything is copied
            found.enter(where)
        said, first = [], None
        for where in wanted:
            for word in found.copy(where, Path(guest.place(where))):
                first = first or time.monotonic() - began
                said.append(word)
        left_out = [word for word in said if word]
        return {
            "copied": len(said) - len(left_out),
            "left_out": left_out,
            "seconds_to_first_file": round(first or 0, 2),
        }

    with delivery.making(wished) as record:
        record.update(about)
        if os.geteuid() == 0:
            files.give(wished.partial, files.owner(jobs.USER))
        folder = os.open(wished.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            result = source.read(work)
        finally:
            os.close(folder)
        record["left_out"] = result["left_out"]
    return {**result, "seconds": round(time.monotonic() - began, 2)}


def act(module: AnsibleModule) -> dict:
    """Look at the point, then list or copy."""
    params = module.params
    if params["copy"] and (params["browse"] or not params["path"]):
        raise Refused("give copy with path, the folder for the copies, or browse alone")
    wanted = outermost(params["copy"])
    for where in [*wanted, *params["browse"]]:
        guest.parse(where)
    repository = open_repository(params["repository"])
    uuid = choice.find_vm(repository, params["vm"])
    point = choice.find_point(repository, uuid, params["point"], params["disks"])
    keys = params["disks"] or [disk["key"] for disk in point["disks"]]
    wish = {"kind": "files", "vm": uuid, "point": point["point"], "disks": sorted(keys), "paths": wanted}
    owner = files.owner(params["owner"]) if params["owner"] else (os.geteuid(), os.getegid())
    wished = delivery.Delivery(Path(params["path"] or "/"), wish, owner=owner)
    answer = {"point": point["point"]} | ({"path": params["path"]} if wanted else {})
    nothing = {"copied": 0, "left_out": []}
    if wanted and (record := delivery.done(wished, repository.path)):
        return {"changed": False, **answer, **nothing, "left_out": record.get("left_out", [])}
    guest.check()
    images = {key: chain.layers(repository, uuid, point["point"], key)[0] for key in keys}
    source = Source(images, params["accelerator"])
    if not wanted:
        return {**answer, **look(source, params["browse"])}
    if module.check_mode:
        source.read(lambda found: [found.enter(where) for where in wanted])
        return {"changed": True, **answer, **nothing}
    about = {"vm": point["vm"]["name"], "job": point["job"]}
    return {"changed": True, **answer, **fetch(source, wished, wanted, about)}


def outermost(wanted: list[str]) -> list[str]:
    """Return the paths without those that lie within another one, which would be copied twice."""
    places = {str(guest.place(where)): where for where in wanted}
    if len(places) < len(set(wanted)):
        raise Refused(f"two of {', '.join(wanted)} would lie at the same place; copy them in two runs")
    return sorted(
        where
        for where in places.values()
        if not any(guest.place(other) in guest.place(where).parents for other in places.values() if other != where)
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "repository": {"type": "path", "required": True},
            "vm": {"type": "str", "required": True},
            "point": {"type": "str", "default": "latest"},
            "disks": {"type": "list", "elements": "int", "default": []},
            "browse": {"type": "list", "elements": "str", "default": []},
            "copy": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "path"},
            "owner": {"type": "str"},
            "accelerator": {"type": "str", "choices": ["kvm", "tcg"], "default": "tcg"},
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
