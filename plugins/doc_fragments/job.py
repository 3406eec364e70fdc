# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whose something is, documented once."""

from __future__ import annotations


class ModuleDocFragment:
    """Fragment C(sendense.backup.job), of modules that make or keep something for a job."""

    DOCUMENTATION = r"""
options:
  job:
    description:
      - Id of the job, as M(sendense.backup.vm_info) makes it. It owns what is made, and what it owns bears its id.
    type: str
    required: true
"""
