# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks as files: the bytes of the truth, on a hub that has nothing but a copy of the repository."""

from __future__ import annotations

import subprocess

import pytest

from lab.compare import points

PLACE = "/srv/restores"


def test_every_point_of_a_copied_repository_is_listed(site, hub2):
    told = site.module("restore_point_info", repository="/backup/repository")
    there = hub2.check_output("find /backup/repository/vms -mindepth 2 -maxdepth 2 -name '*Z'").split()
    assert sorted(point["path"] for point in told["points"]) == sorted(there) != []
    assert {point["error"] for point in told["points"]} == {""}


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk"])
def test_every_byte_is_the_truths(clean, image_format):
    run = clean.restore(restore_to="file", restore_format=image_format, restore_path=f"{PLACE}/pgtest1")
    assert run.code == 0, run.output
    point = points(clean.lab, "pgtest1")[-1].name
    assert run.line == f"pgtest1 {point}: ok 3 disk(s) as {image_format}, in {PLACE}/pgtest1"
    truth = clean.truth()
    assert sorted(truth) == [2000, 2001, 16000]
    for key, raw in truth.items():
        made = clean.root / PLACE.lstrip("/") / "pgtest1" / f"disk-{key}.{image_format}"
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", image_format, raw, made], check=True)


def test_a_disk_is_fetched_to_the_controller(clean, here):
    wish = {"restore_to": "file", "restore_format": "qcow2", "restore_disks": [2001], "restore_path": f"{PLACE}/one"}
    run = clean.restore("--check", **wish)
    assert (run.code, clean.places()) == (0, []), run.output
    run = clean.restore(**wish, restore_fetch_to=str(here))
    assert run.code == 0, run.output
    assert run.line.endswith(f"in {PLACE}/one; copied to {here} on the controller")
    assert sorted(path.name for path in here.iterdir()) == ["disk-2001.qcow2", "restored.json"]
    truth = clean.truth()[2001]
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", truth, here / "disk-2001.qcow2"], check=True)
    again = clean.restore(**wish)
    assert (again.code, again.line) == (0, f"{run.line.partition(';')[0]}, there already")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"restore_to": "tape"}, "restore_to is 'tape', which is no target; give one of file, files"),
        ({"restore_to": "file", "restore_vm": "pgtest9"}, "the repository /backup/repository knows no VM named pgtest9; it knows "),
        ({"restore_to": "file"}, "Say with restore_path which folder on the hub is to hold the disks"),
        ({"restore_to": "files", "restore_files": ["16000:/empty"]}, "Say with restore_path which folder on the hub is to hold the files"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(clean, wish, said):
    run = clean.restore(**wish)
    assert run.code != 0
    assert said in run.line, run.output
    assert "FAILED at" in run.line
    assert clean.places() == []


def test_a_limit_is_refused(site):
    run = site.restore("--limit=hub2", restore_to="file")
    assert run.code != 0
    assert "A restore takes no --limit" in " ".join(run.output.split())
