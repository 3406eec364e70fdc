# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The manifest of a restore point: everything needed to rebuild the VM, and to know that its images are intact.

Its keys are interface: programs of others read them. ``format`` grows when a reader must know more than before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ansible_collections.sendense.backup.plugins.module_utils import jobs
from ansible_collections.sendense.backup.plugins.module_utils.digests import ALGORITHM
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError

FORMAT = 1
FILE = "manifest.json"
SEAL = "manifest_sha256"  # SHA-256 of the manifest as it is without the line that says this
_SEAL_LINE = re.compile(rb'^  "' + SEAL.encode() + rb'": "([0-9a-f]{64})",?\n', re.MULTILINE)


def image_file(key: int) -> str:
    """Return the name of a disk's image within its point."""
    return f"disk-{key}.qcow2"


def digest_file(key: int) -> str:
    """Return the name of a disk's digests within its point."""
    return f"disk-{key}.digests"


@dataclass(frozen=True)
class Run:
    """A finished run, as its steps reported it."""

    job: str
    vm: Mapping[str, Any]  # what vm_info said before the snapshot
    snapshot: Mapping[str, Any]  # what vm_snapshot returned
    after: Mapping[str, Any]  # the VM once the snapshot was gone
    copies: list[dict[str, Any]]  # the disks of nbd_copy
    facts: Mapping[str, Any]  # what else goes into the manifest as it is: transport, times, tools


def build(run: Run, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest of the full point that *run* made; *files* gives size and sha256 of each file by name."""
    frozen = {disk["key"]: disk for disk in run.snapshot["disks"]}
    copied = {disk["key"]: disk for disk in run.copies}
    apart = ("disks", "skipped", "datastores", "snapshots", "host", "unfinished")
    return {
        **run.facts,
        "format": FORMAT,
        "job": run.job,
        "point": jobs.point_id(run.job),
        "type": "full",
        "parent": None,
        "vm": {key: value for key, value in run.vm.items() if key not in apart},
        "host": {"before": run.vm["host"], "after": run.after["host"]},
        "consistency": {key: run.snapshot[key] for key in ("quiesce_requested", "quiesce_achieved", "quiesce_reason")},
        "disks": [_disk(disk, frozen[disk["key"]], copied[disk["key"]], files) for disk in run.vm["disks"]],
        "skipped": run.vm.get("skipped", []),
        "files": dict(files),
    }


def _disk(
    looked: Mapping[str, Any],
    frozen: Mapping[str, Any],
    copied: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    image = image_file(looked["key"])
    counted = ("provisioned", "allocated", "map", "read", "written", "zeroed", "seconds")
    digests_of = copied.get("digests_of", "source")  # as delivered; or "image", as found in it once it was closed
    # nothing may stand on what is not held against its source, so there is no change id to begin from
    unknown = {} if digests_of == "source" else {"read": None, "zeroed": None, "change_id": None}
    return {
        **looked,
        "type": "full",
        "reason": "a full backup was asked for",
        "image": image,
        "digests": digest_file(looked["key"]),
        "root": copied["tree"]["root"],
        "digest_algorithm": copied["tree"].get("algorithm", ALGORITHM),
        "digests_of": digests_of,
        "change_id": frozen["change_id"],
        "source": frozen["path"],
        "stored": files[image]["size"],
        **{name: copied[name] for name in counted},
        **unknown,
        **{name: copied[name] for name in ("resumed", "fetched", "wire") if name in copied},
    }


def algorithm(disk: Mapping[str, Any]) -> str:
    """Return by what the digests of a disk of a manifest are, from which its root comes."""
    return str(disk.get("digest_algorithm", ALGORITHM))  # points of the first days do not say it


def check_unmoved(run: Run) -> None:
    """Raise SendenseError when a disk lies elsewhere than before the snapshot: what was read is then not to be believed.

    Nothing stops Storage vMotion during the copy (nbdkit does not call VixDiskLib_PrepareForAccess), so it is looked for.
    """
    before, after = ({disk["key"]: disk["path"] for disk in vm["disks"]} for vm in (run.vm, run.after))
    for key, path in before.items():
        if after.get(key) != path:
            raise SendenseError(
                f"disk {key} moved during the backup, from {path} to {after.get(key, 'nowhere')}; run the backup again"
            )


def load(path: Path) -> dict[str, Any]:
    """Return the manifest in the folder of a point. Raises SendenseError when it is missing, damaged or newer than us."""
    file = path / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["format"]
    except FileNotFoundError:
        raise SendenseError(f"{path} has no manifest, so it is no restore point") from None
    except (ValueError, KeyError, TypeError):
        raise SendenseError(f"{file} is damaged") from None
    if found != FORMAT:
        raise SendenseError(f"{file} has format {found}, this version reads format {FORMAT}; use a newer collection")
    return dict(content)


def text(content: Mapping[str, Any]) -> str:
    """Return JSON as it is written into a repository."""
    return json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the digest that tells whether it still is what was written."""
    unsealed = _SEAL_LINE.sub(b"", text({**content, SEAL: "0" * 64}).encode())
    return {**content, SEAL: sha256(unsealed).hexdigest()}


def check_seal(path: Path) -> None:
    """Raise SendenseError unless the manifest in the folder of a point is, to the bit, what was written."""
    file = path / FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise SendenseError(f"{path} has no manifest, so it is no restore point") from None
    seals = _SEAL_LINE.findall(content)
    if len(seals) != 1:
        raise SendenseError(f"{file} is damaged: it does not say its own digest ({SEAL})")
    if sha256(_SEAL_LINE.sub(b"", content)).hexdigest() != seals[0].decode():
        raise SendenseError(f"{file} is damaged: it is not what its own digest ({SEAL}) says")
