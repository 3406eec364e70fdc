# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verifying a restore point at level data, beside a tool that does nothing but digest the same files."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.sendense.backup.plugins.module_utils import digests
from ansible_collections.sendense.backup.plugins.module_utils.repository import manifest, scan
from ansible_collections.sendense.backup.plugins.module_utils.repository.layout import open_repository

from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.processes import OURS, cost, python, say, scratch, version

rows = Rows()
MIB = 1 << 20
DISKS = {2000: 1024 * MIB, 2001: 512 * MIB, 16000: 512 * MIB}
UUID, POINT = "5029f3ab-1c2d-4e3f-8a9b-0c1d2e3f4a5b", "20261123T140102Z"
RUNS = 7
OUR_WAY = """
import sys
from ansible_collections.sendense.backup.plugins.module_utils.repository import layout, verification
found = verification.verify(layout.open_repository(sys.argv[1]), sys.argv[2], sys.argv[3], "data")
sys.exit("; ".join(each.sentence for each in found) or 0)
"""
TOOLS = (["openssl", "dgst", "-sha256"], ["sha256sum"])


@rows.row("s", "≤ 1.25")
def verify_data_vs_digest_tool() -> Measured:
    with scratch() as folder:
        files = point(folder)
        tool = min(TOOLS, key=lambda each: min(cost([*each, *files]).seconds for _run in range(2)))
        ours, other = interleaved(
            RUNS,
            lambda: cost([python(), "-c", OUR_WAY, folder, UUID, POINT], OURS).seconds,
            lambda: cost([*tool, *files]).seconds,
        )
    size = sum(DISKS.values()) // MIB
    named = (
        f"{' '.join(tool)} {version(['openssl', 'version'] if tool[0] == 'openssl' else ['sha256sum', '--version'])}"
    )
    note = f"{size} MiB in {len(DISKS)} images; other: {named}, the faster one here, on the same files; two cores for ours, one for it"
    return Measured(ours, other, note)


def point(folder: Path) -> list[Path]:
    """Make a repository with one point of DISKS in *folder*, as a backup would have published it; return its files."""
    (folder / "repository.json").write_text('{"format": 1}')
    target = open_repository(str(folder)).published_folder(UUID, POINT)
    target.mkdir(parents=True)
    disks = []
    for key, size in DISKS.items():
        raw, path = folder / "raw", target / manifest.image_file(key)
        with raw.open("wb") as file:
            for _block in range(size // MIB):
                file.write(os.urandom(MIB))
        say(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path])
        with raw.open("rb") as file:
            leaves = b"".join(digests.leaves(memoryview(block)) for block in iter(lambda: file.read(MIB), b""))
        raw.unlink()
        every = ((at // 32, leaves[at : at + 32]) for at in range(0, len(leaves), 32))
        root = digests.tree(digests.write(target / manifest.digest_file(key), size, every), size).root
        disks.append({"key": key, "type": "full", "provisioned": size, "root": root})
    files = sorted(target.glob("disk-*"))
    facts = {path.name: {"size": path.stat().st_size, "sha256": scan.sha256_of(path)} for path in files}
    said = {"format": 1, "point": POINT, "disks": disks, "files": facts, "vm": {}}
    (target / manifest.FILE).write_text(manifest.text(manifest.sealed(said)))
    return files
