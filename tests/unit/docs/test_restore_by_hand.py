# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/restore-by-hand.md, followed to the letter, with no program but those it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs/restore-by-hand.md"
PROGRAMS = ("qemu-img", "jq", "sha256sum", "ls", "tail", "sort", "mkdir", "stat", "sync")


@pytest.fixture
def follow(points, tmp_path):
    """Return ``follow(**environment)``: the page's blocks run in one shell, which finds only PROGRAMS."""
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    assert script.count("qemu-img convert") == 1
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, f"{name} is missing; run make deps"
        (tmp_path / "bin" / name).symlink_to(found)

    def run(**environment):
        given = {"REPOSITORY": str(points.repository), "VM": "pgtest1", "OUT": str(tmp_path / "out"), **environment}
        return subprocess.run(
            [shutil.which("bash"), "-euo", "pipefail", "-c", script],
            env={"PATH": str(tmp_path / "bin"), "LC_ALL": "C.UTF-8", **given},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("chosen", [None, "full", "child"])
def test_every_disk_comes_back(follow, points, tmp_path, chosen):
    point = getattr(points, chosen or "child")
    done = follow(**({"POINT": point} if chosen else {}))
    assert done.returncode == 0, done.stderr
    assert f"{point} stands on: " in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"disk-2000.raw", "disk-16000.raw"}
    for key, content in points.truth[point].items():
        assert (tmp_path / "out" / f"disk-{key}.raw").read_bytes() == content


def flip(path):
    content = bytearray(path.read_bytes())
    content[-70_000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda points: flip(points.image(points.full, 2000)), "disk-2000.qcow2: FAILED", id="a byte of the parent has rotted"),
        pytest.param(lambda points: shutil.rmtree(points.folder(points.full)), "No such file", id="the parent is not there"),
        pytest.param(lambda points: points.image(points.child, 16000).unlink(), "disk-16000.qcow2", id="an image is not there"),
    ],
)  # fmt: skip
def test_what_is_damaged_ends_it_before_anything_is_made(follow, points, tmp_path, spoil, said):
    spoil(points)
    done = follow()
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_an_image_that_leads_elsewhere_ends_it(follow, points, tmp_path):
    """Even where the manifest agrees with it."""
    image, manifest = points.image(points.child, 2000), points.folder(points.child) / "manifest.json"
    shutil.copy(points.image(points.full, 2000), tmp_path / "secret.qcow2")
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp_path / "secret.qcow2", image], check=True
    )
    summed = subprocess.run(["sha256sum", image], check=True, capture_output=True, text=True).stdout.split()[0]
    text = manifest.read_text()
    old = re.search(r'"disk-2000.qcow2": {"size": \d+, "sha256": "(\w+)"', text)[1]
    manifest.write_text(text.replace(old, summed))
    done = follow()
    assert done.returncode != 0, done.stdout
    assert not os.path.lexists(tmp_path / "out")
