# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a restored VM goes, documented once."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment C(sendense.backup.vm_target); its argument spec is C(OPTIONS) of module_utils.restoring."""

    DOCUMENTATION = r"""
options:
  manifest:
    description: Manifest of the restore point, as M(sendense.backup.restore_point_info) returns it.
    type: dict
  disks:
    description: Device keys of the disks to restore. All disks of the point when it is empty.
    type: list
    elements: int
    default: []
  name:
    description: Name of the restored VM. The original's when it is empty.
    type: str
    default: ""
  folder:
    description: Inventory path of the folder for the VM, such as V(/DC0/vm/prod). The original's when it is empty.
    type: str
    default: ""
  pool:
    description:
      - Name or inventory path of the cluster, host or resource pool for the VM.
      - When it is empty, the cluster or host that the original ran on, or else the only one there is.
    type: str
    default: ""
  datastore:
    description: Name of the datastore for all files that O(datastores) does not map. Those of the original when it is empty.
    type: str
    default: ""
  datastores:
    description: New names of datastores by old ones.
    type: dict
    default: {}
  networks:
    description: New names of networks by old ones. A network that is not mapped keeps its name.
    type: dict
    default: {}
  keep:
    description: What else the VM has of the original, V(mac) addresses of its network cards, and its BIOS V(uuid). Otherwise they are new.
    type: list
    elements: str
    choices: [mac, uuid]
    default: []
  datastore_min_free:
    description: Percent of each datastore that must still be free afterwards.
    type: int
    default: 0
  over:
    description:
      - Exact name of an existing VM into whose disks of the same keys and sizes the disks are written, over what they hold.
      - It must be powered off and have no snapshot. Only transport V(vddk) writes so.
    type: str
    default: ""
"""
