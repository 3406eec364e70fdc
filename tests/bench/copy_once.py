# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The engine as a process: ``copy_once.py SOURCE TARGET…`` copies one disk, by as many connections as there are targets.

With ``--leaves FILE`` it is digested.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils.digests import LeafFile
from ansible_collections.sendense.backup.plugins.module_utils.nbd_client import connect
from ansible_collections.sendense.backup.plugins.module_utils.transfer.engine import Copy

words = argparse.ArgumentParser()
words.add_argument("source")
words.add_argument("targets", nargs="+")
words.add_argument("--leaves", type=Path)
asked = words.parse_args()
with contextlib.ExitStack() as stack:
    keep = stack.enter_context(contextlib.closing(LeafFile(asked.leaves))) if asked.leaves else None
    source, target, *also = (stack.enter_context(connect(uri)) for uri in (asked.source, *asked.targets))
    Copy(source, target, keep, lambda: False, also=also).run([(0, source.get_size())])
