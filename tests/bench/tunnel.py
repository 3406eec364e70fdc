# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tunnel costs, in the lab: a job's own export and tunnel, made by our modules, and others through the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.bench.measure import Measured, Rows, interleaved
from tests.bench.site import Site, site

rows = Rows()
JOB = "bench-00000000-20260101T000000Z"
FOLDER = "/dev/shm/sendense-bench"  # on hub and node
MIB = 1 << 20
SIZE = 512 * MIB
RUNS = 5
READS = 500


@rows.row("s", "≤ 0.5")
def copy_tunnel_vs_qemu_img_convert() -> Measured:
    with tunnel() as (here, uris):
        here.bring_tools("node1")
        here.bring_collection("node1", FOLDER)
        here.run("node1", f"head -c {SIZE} /dev/urandom > {FOLDER}/source.raw")
        code = f"PYTHONPATH={FOLDER} python3 {FOLDER}/copy_once.py"

        def ours() -> float:
            return here.seconds("node1", reading(f'{code} --leaves {FOLDER}/leaves "$uri" {quoted(uris)}'))

        def convert() -> float:
            return here.seconds("node1", reading(f'qemu-img convert -n -f raw -O raw "$uri" "{uris[0]}"'))

        convert()  # the image has its clusters then, for both
        figures = interleaved(RUNS, ours, convert)
        version = here.run("node1", "qemu-img", "--version").split()[2]
    return Measured(
        *figures,
        f"{SIZE // MIB} MiB, node1 to hub1, digested: qemu-img {version} convert -n, its defaults, without digests",
    )


def quoted(uris: Sequence[str]) -> str:
    """Return *uris* as words of a shell, within single quotes."""
    return " ".join(f'"{uri}"' for uri in uris)


def reading(command: str) -> str:
    """Return *command* with "$uri" being an nbdkit that serves the source meanwhile."""
    return f"nbdkit --readonly --unix - file {FOLDER}/source.raw --run '{command}'"


@rows.row("ms", "≤ 4")
def tunnel_latency_vs_direct() -> Measured:
    with tunnel() as (here, [uri, *_also]):
        for name in ("hub1", "node1"):
            here.bring("latency.py", name, f"{FOLDER}/latency.py")
        direct = here.run("hub1", f"cat {FOLDER}/uri").strip()
        here.run(
            "hub1",
            "python3",
            "-c",
            f'\'import nbd; h = nbd.NBD(); h.connect_uri("{direct}"); h.pwrite(b"x" * {16 * MIB}, 0)\'',
        )
        figures = interleaved(
            RUNS,
            lambda: float(here.run("node1", "python3", f"{FOLDER}/latency.py", f"'{uri}'", str(READS))),
            lambda: float(here.run("hub1", "python3", f"{FOLDER}/latency.py", f"'{direct}'", str(READS))),
        )
    return Measured(*figures, f"median of {READS} reads of 64 KiB, one in flight: TCP on hub1's loopback")


@contextmanager
def tunnel() -> Iterator[tuple[Site, list[str]]]:
    """Yield the lab and the URIs, on the node, of an image on the hub that is served and reached as in a backup."""
    here = site()
    for name in ("hub1", "node1"):
        here.run(name, f"install -d -o sendense -g sendense {FOLDER}")
    try:
        image = f"{FOLDER}/disk.qcow2"
        here.run("hub1", f"qemu-img create -q -f qcow2 {image} {SIZE} && chown sendense: {image}")
        wish = {"key": 2000, "image": image, "name": f"{JOB}-disk0", "size": SIZE}
        [served] = here.module("hub1", "nbd_export", job=JOB, exports=[wish])["exports"]
        here.run("hub1", f"echo 'nbd://127.0.0.1:{served['port']}/{served['name']}' > {FOLDER}/uri")
        [forward] = here.module("node1", "ssh_tunnel", job=JOB, hub_address=here.address("hub1"), forwards=[served])[
            "forwards"
        ]
        yield here, [forward["uri"], *forward["also"]]
    finally:
        here.module("node1", "ssh_tunnel", job=JOB, state="absent")
        here.module("hub1", "nbd_export", job=JOB, state="absent")
        for name in ("hub1", "node1"):
            here.run(name, f"rm -rf {FOLDER}")
