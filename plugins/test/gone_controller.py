# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

DOCUMENTATION = r"""
name: gone_controller
short_description: Whether the run that took a lock is proven to be gone
version_added: 0.1.0
description:
  - A lock names the ansible-playbook that took it. This test is true when that process ran on this machine since its last
    boot, in this process namespace, and runs no more. It is false when nothing can be known from here.
author: Contributors to sendense.backup (@sendense)
options:
  _input:
    description: The C(controller) of an unfinished job, as M(sendense.backup.restore_point_info) returns it.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Jobs whose run is gone
  ansible.builtin.debug:
    msg: "{{ look.unfinished | selectattr('controller', 'sendense.backup.gone_controller') }}"
"""

RETURN = r"""
_value:
  description: Whether the run is proven gone.
  type: bool
"""

from collections.abc import Callable

from ansible_collections.sendense.backup.plugins.plugin_utils.controller import is_gone


class TestModule:
    """Ansible's way to find the test."""

    def tests(self) -> dict[str, Callable[[str], bool]]:
        """Return the test by its name."""
        return {"gone_controller": is_gone}
