# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make bench`: measures the rows, writes build/bench.json and prints the table."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.bench import (
    backup,
    copying,
    demo,
    later,
    lookup,
    overhead,
    restore,
    resume,
    site,
    tunnel,
    verify,
    vm_restore,
)
from tests.bench.measure import HEADER, BenchError, Result, choose, run

FAMILIES = (copying, resume, tunnel, backup, overhead, lookup, restore, vm_restore, verify, later, demo)
FILE = Path("build/bench.json")


def main(only: str) -> int:
    """Measure the rows that *only* names; the lab goes down again if it was raised for them."""
    try:
        rows = choose((row for family in FAMILIES for row in family.rows.found), only)
    except BenchError as why:
        tell(str(why))
        return 1
    results: list[Result] = []
    try:
        for row in rows:
            began = time.monotonic()
            results.append(run(row))
            tell(f"{row.name} took {time.monotonic() - began:.0f} s")
    except KeyboardInterrupt:
        tell("interrupted; what follows was measured until then")
    finally:
        site.leave()
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps([result.json() for result in results], indent=2, ensure_ascii=False) + "\n")
    sys.stdout.write("\n".join([HEADER, *(result.line() for result in results), ""]))
    return 0


def tell(words: str) -> None:
    """Say something beside the table."""
    sys.stderr.write(f"bench: {words}\n")


if __name__ == "__main__":
    sys.exit(main(",".join(sys.argv[1:])))
