# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a module reaches vCenter, documented once."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment C(sendense.backup.vcenter); its argument spec is C(OPTIONS) of module_utils.vsphere.session."""

    DOCUMENTATION = r"""
options:
  vcenter_hostname:
    description:
      - Name or address of the vCenter Server, or of a licensed ESXi host, as the host that runs this module reaches it.
      - When it is not given, the environment variable E(VMWARE_HOST) of the controller is used.
    type: str
  vcenter_port:
    description: Port of the vCenter API.
    type: int
    default: 443
  vcenter_username:
    description:
      - User of the vCenter.
      - When it is not given, the environment variable E(VMWARE_USER) of the controller is used.
    type: str
  vcenter_password:
    description:
      - Password of O(vcenter_username). It is used for the login and stored nowhere.
      - When it is not given, the environment variable E(VMWARE_PASSWORD) of the controller is used.
    type: str
  vcenter_validate_certs:
    description: Whether the certificate of vCenter must be valid, trusted and made out to O(vcenter_hostname).
    type: bool
    default: true
  vcenter_ca_file:
    description:
      - Path, on the host that runs this module, of a PEM file with the authority (or the certificate itself) to trust.
      - When it is not given, the authorities that this host trusts are used.
    type: path
requirements:
  - pyvmomi 8.0.3 or newer (Debian package C(python3-pyvmomi)) on the host that runs this module
notes:
  - The environment variables are those of the controller, as its VMware credential in AWX sets them, not of the node.
"""
