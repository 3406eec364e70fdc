# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules support, documented once."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments C(sendense.backup.attributes) and, by suffix, C(.info_module) and C(.actiongroup_vcenter)."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what it would change, without changing anything.
  diff_mode:
    description: Will return details on what has changed (or would change in C(check_mode)), when in diff mode.
"""

    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what it would change, without changing anything.
    support: full
    details:
      - This module only reads.
  diff_mode:
    description: Will return details on what has changed (or would change in C(check_mode)), when in diff mode.
    support: N/A
    details:
      - This module only reads.
"""

    ACTIONGROUP_VCENTER = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/sendense.backup.vcenter) in C(module_defaults) to set the connection options once.
    support: full
    membership:
      - sendense.backup.vcenter
"""
