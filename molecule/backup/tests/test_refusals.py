# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an operator gets when it cannot work, or nearly not: one sentence that names the cause, and nothing left behind.

Each condition is made in the lab, really, and taken back. A row's sentence is a pattern of the whole of what the summary
tells of the VM, so whatever else would be told shows.
"""

from __future__ import annotations

import json
import re
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from lab import simulator
from tests.scenarios.matrix import cases
from tests.scenarios.site import SLOW

SECONDS = 60  # that a refusal may take here at most; on a quiet machine it is told within ten
OTHER = "other-00000000-20260101T000000Z"
OTHER_UUID = "00000000-0000-4000-8000-000000000000"
NAME = "sendense-web01-[0-9a-f]{8}-[0-9TZ]+"  # of the snapshot


def change(site: Any, what: str, **request: Any) -> None:
    """Let something happen in vCenter."""
    simulator.ask(site.lab, "POST", what, body=json.dumps(request).encode())


# What is arranged: context managers over the site.


@contextmanager
def read_only(site: Any) -> Iterator[None]:
    """The repository can be read."""
    folder = "/backup/repository"
    site.hub.check_output(f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}")
    try:
        yield
    finally:
        site.hub.check_output(f"umount {folder}")


@contextmanager
def small(site: Any) -> Iterator[None]:
    """A repository of 24 MiB is at /backup/small."""
    site.hub.check_output(
        "mkdir /backup/small && mount -t tmpfs -o size=24m tmpfs /backup/small && "
        "cp /backup/repository/repository.json /backup/small && chown -R sendense: /backup/small"
    )
    try:
        yield
    finally:
        site.hub.check_output("umount /backup/small && rmdir /backup/small")


@contextmanager
def reserved(site: Any) -> Iterator[None]:
    """Most of it is another job's."""
    vm = {"instance_uuid": OTHER_UUID, "disks": [{"key": 2000, "capacity": 18 * 1024**2}]}
    job = {"repository": "/backup/small", "job": OTHER, "vm": vm}
    with small(site):
        said = site.module("hub1", "restore_point", **job, state="partial")
        assert said["changed"], said
        try:
            yield
        finally:
            site.module("hub1", "restore_point", **job, state="absent")


@contextmanager
def scratch(site: Any) -> Iterator[None]:
    """An image of 1 MiB is at /backup/scratch."""
    site.hub.check_output(
        "install -d -o sendense /backup/scratch && cd /backup/scratch && qemu-img create -q -f qcow2 a 1M && chown sendense a"
    )
    try:
        yield
    finally:
        site.module("hub1", "nbd_export", job=OTHER, state="absent")
        site.hub.check_output("rm -r /backup/scratch")


@contextmanager
def leased(site: Any) -> Iterator[None]:
    """Port 10150 is another job's."""
    export = {"key": 2000, "image": "/backup/scratch/a", "name": f"{OTHER}-disk0", "size": 1024**2}
    with scratch(site):
        said = site.module("hub1", "nbd_export", job=OTHER, exports=[export], ports="10150-10150")
        assert said["exports"][0]["port"] == 10150, said
        yield


def partial(prepare: str) -> Callable[[Any], AbstractContextManager[None]]:
    """A folder is where another job's point would be made, and *prepare* has run in it."""

    @contextmanager
    def arranged(site: Any) -> Iterator[None]:
        folder = f"/backup/repository/vms/{OTHER_UUID}"
        site.hub.check_output(f"mkdir -p {folder}/20260101T000000Z.partial && cd {folder}/*.partial && {prepare}")
        try:
            yield
        finally:
            site.module(
                "hub1",
                "restore_point",
                repository="/backup/repository",
                job=OTHER,
                vm={"instance_uuid": OTHER_UUID},
                state="absent",
            )
            site.hub.check_output(f"rm -rf {folder}")

    return arranged


def moved(machine: str, path: str) -> Callable[[Any], AbstractContextManager[None]]:
    """What is at *path* of a machine is away."""
    return lambda site: site.moved(getattr(site, machine), path)


@contextmanager
def other_host_key(site: Any) -> Iterator[None]:
    """The host key that is pinned for the hub is not the one it has."""
    pinned = "/etc/sendense/tunnel/known_hosts"
    site.node.check_output(
        f"cp -p {pinned} {pinned}.away && ssh-keygen -q -t ed25519 -N '' -f /run/other && "
        f"while read host rest; do echo $host $(cut -d' ' -f1,2 /run/other.pub); done < {pinned}.away > {pinned}"
    )
    try:
        yield
    finally:
        site.node.check_output(f"mv {pinned}.away {pinned}; rm /run/other /run/other.pub")


def knobs(**settings: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """Knobs of vCenter are turned."""
    return lambda site: site.knobs(**settings)


def changed(what: str, then: Mapping[str, Any], **request: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """Something has happened in vCenter; *then* takes it back."""

    @contextmanager
    def arranged(site: Any) -> Iterator[None]:
        change(site, what, **request)
        try:
            yield
        finally:
            change(site, what, **{**request, **then})

    return arranged


def slowly(what: str, **back: Any) -> Callable[[Any], AbstractContextManager[None]]:
    """Reading is slow, and what happens in the course of the run is taken back."""

    @contextmanager
    def arranged(site: Any) -> Iterator[None]:
        with site.knobs(**SLOW):
            try:
                yield
            finally:
                if what:
                    change(site, what, **back)

    return arranged


@contextmanager
def removed(site: Any) -> Iterator[None]:
    """Reading is slow, and the VM is back at the end, with its snapshot: the job is forgotten, so an operator takes it away."""
    with slowly("/vm", vm="web01", registered=True)(site):
        yield
    for each in site.ask("/snapshots", vm="web01")["snapshots"]:
        job = json.loads(each["description"])["sendense"]["job"]
        moref = next(vm["moref"] for vm in site.ask("/vms")["vms"] if vm["name"] == "web01")
        ca_file = "/etc/sendense/vcenter-ca.pem"
        assert site.module("node1", "vm_snapshot", job=job, vm=moref, state="absent", vcenter_ca_file=ca_file)[
            "changed"
        ]


# What happens after a step: functions of the site.


def at_once(what: str, **request: Any) -> Callable[[Any], None]:
    """Something happens in vCenter."""
    return lambda site: change(site, what, **request)


def kill(site: Any) -> None:
    """The job's session is ended."""
    assert json.loads(simulator.ask(site.lab, "POST", "/sessions/kill", body=b"{}"))["killed"], "there was none"


def in_mid_copy(what: str, **request: Any) -> Callable[[Any], None]:
    """Something happens in vCenter once data was read."""

    def act(site: Any) -> None:
        site.wait_for_copy("web01")
        change(site, what, **request)

    return act


LOOK, MAY = "The VM is looked at", "The VM can be backed up"
IMAGES, EXPORTS, TUNNEL = "The images are there", "The images are served", "The tunnel carries them"
SNAPSHOT, COPY, STOOD = "The snapshot is taken", "The disks are copied", "The snapshot stood until the copy had ended"
PUBLISHED = "The restore point is published"


@dataclass(frozen=True)
class Row:
    """A condition, and what a run of the playbook then tells of the VM."""

    step: str  # at which it fails; empty: it works, or fails before a VM's turn comes
    sentence: str  # a regular expression of all that is told
    vm: str = "web01"
    arguments: tuple[str, ...] = ()
    arranged: Callable[[Any], AbstractContextManager[Any]] = field(default=lambda _site: nullcontext())
    after: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)  # what happens once a step is done
    before: str = SNAPSHOT  # the step that is not reached

    @property
    def works(self) -> bool:
        """Whether it ends well."""
        return self.sentence.startswith("ok ")

    @property
    def told(self) -> str:
        """The pattern of the VM's line."""
        told = f"FAILED at '{self.step}': {self.sentence}" if self.step else self.sentence
        return f"{re.escape(self.vm)}: {told}" if self.step or self.works else told


def extra(**variables: Any) -> tuple[str, ...]:
    """Return the arguments that set variables."""
    return "-e", json.dumps(variables)


def odd(vm: str, sentence: str) -> Row:
    """A VM that is refused for what it is."""
    return Row(MAY, sentence, vm=vm)


ROWS = {
    # who is meant
    "no such VM": Row(
        LOOK, r"no VM named web99 is in vCenter \S+, or user \S+ may not see it; close names: web\d\d.*", vm="web99"
    ),
    "an ambiguous name": Row(
        LOOK,
        r"2 VMs named twin are in vCenter \S+: /DC0/vm/prod/twin \(vm-\d+\), /DC0/vm/test/twin \(vm-\d+\); choose one by its moref",
        vm="twin",
    ),
    "an odd name works": Row("", r"ok full .*", vm="Büro/Kasse 1"),
    "an empty name": Row("", r"vm_name is empty\. Give the name of a VM.*", vm=""),
    "no VM selected": Row(
        "", r"No VM is selected\. Name one with -e vm_name=NAME.*", vm="-", arguments=("--limit=hub1",)
    ),
    "two ways to select": Row("", r"Give -e vm_name=NAME or --limit, not both\.", arguments=("--limit=thin1",)),
    # vCenter
    "a vCenter that does not answer": Row(
        LOOK,
        r"vCenter \S+:4433 cannot be reached from this node: .*; check vcenter_hostname, vcenter_port and firewalls",
        arguments=extra(vcenter_port=4433),
    ),
    "a wrong password": Row(
        LOOK,
        r"vCenter \S+ refuses user \S+: .*; check vcenter_username and vcenter_password",
        arguments=extra(vcenter_password="made-up"),
    ),
    "an untrusted certificate": Row(
        LOOK,
        r"vCenter \S+ is not trusted: .*; give the certificate of its authority in vcenter_ca_file.*",
        arguments=extra(vcenter_ca_file=""),
    ),
    # what the VM is
    "a template": odd("template1", r"VM template1 is a template: convert it to a VM, or leave it out"),
    "a shared bus": odd(
        "sharedbus1",
        r"disk 2000 \(Hard disk 1\) of VM sharedbus1 hangs on a controller with bus sharing \(\w+\), so no snapshot can be taken",
    ),
    "a fault tolerant VM": odd(
        "ft1", r"VM ft1 is fault tolerant, and vSphere takes no disk-only snapshot of such a VM"
    ),
    "an encrypted VM": odd(
        "encrypted1",
        r"VM encrypted1 is encrypted, and its backup would lie readable in the repository, by whichever transport: back it up from within the guest",
    ),
    "an independent disk": odd(
        "independent1",
        r"disk 2001 \(Hard disk 2\) of VM independent1 has mode independent_persistent, so it takes no part in snapshots: "
        r"set it to dependent, or leave such disks out \(\w*independent: skip\)",
    ),
    "an independent disk that may be left out works": Row(
        "",
        r"ok full \S+, 1 disk\(s\), disk 2001 \(Hard disk 2\) left out: .*",
        vm="independent1",
        arguments=extra(backup_independent="skip"),
    ),
    "change tracking is off works": Row(
        "",
        r"ok full \S+, 1 disk\(s\), 1 of them read whole for want of change tracking: provisioned (\S+ MiB), read \1, .*",
        vm="nocbt1",
        arguments=extra(backup_transport="https"),
    ),
    "change tracking is off, and the library knows what holds data works": Row(
        "",
        r"ok full \S+, 1 disk\(s\)(?!.*read whole).*: provisioned 32.0 MiB, .*",
        vm="nocbt1",
        arguments=extra(backup_transport="vddk"),
    ),
    "consolidation is needed": Row(
        MAY,
        r"VM web01 needs consolidation of its disks: consolidate them in vCenter first.*",
        arranged=changed("/vm", {"consolidation_needed": False}, vm="web01", consolidation_needed=True),
    ),
    "a datastore below its minimum": Row(
        MAY,
        r"datastore datastore1 of VM web01 has \S+ GiB free of \S+ GiB, and datastore_min_free wants 10 %, which is \S+ GiB: make room.*",
        arranged=knobs(free={"datastore1": 1024**2}),
    ),
    # the repository
    "no repository": Row(
        "The repository is looked at",
        r"there is no repository at /nowhere on this hub .*; run the provision playbook",
        arguments=extra(backup_repository="/nowhere"),
    ),
    "a repository that cannot be written to": Row(
        IMAGES,
        r"the repository /backup/repository cannot be written to: its file system is read-only",
        arranged=read_only,
    ),
    "a repository that is too small": Row(
        IMAGES,
        r"the repository /backup/small is too small for this backup: it needs up to \S+ GiB, \S+ MiB of 24.0 MiB are free, .*; make room there",
        vm="pgtest1",
        arguments=extra(backup_repository="/backup/small"),
        arranged=small,
    ),
    "a repository that is too small beside another job": Row(
        IMAGES,
        rf"the repository /backup/small is too small for this backup "
        rf"beside those that run: .* by job {OTHER} .*; make room there, or run again once they have ended",
        arguments=extra(backup_repository="/backup/small"),
        arranged=reserved,
    ),
    # the way to it
    "all ports are leased": Row(
        EXPORTS,
        rf"1 of the ports 10150-10150 on this hub cannot be had: they are leased by job {OTHER} \(1\); waited [23] s",
        arguments=extra(backup_ports="10150-10150", backup_timeout=2),
        arranged=leased,
    ),
    "a tunnel that sshd refuses": Row(
        TUNNEL,
        r"the tunnel to sendense-tunnel@\S+ port 22 does not carry disk 2000: .*Permission denied \(publickey\).*",
        arranged=moved("hub", "/etc/sendense/tunnel/authorized_keys"),
    ),
    "ports that sshd does not open": Row(
        TUNNEL,
        r"the tunnel to sendense-tunnel@\S+ port 22 does not carry disk 2000: .*administratively prohibited.*",
        arguments=extra(backup_ports="10300-10310"),
    ),
    "a hub with another host key": Row(
        TUNNEL,
        r"the tunnel to sendense-tunnel@\S+ port 22 does not carry disk 2000: .*Host key verification failed.*",
        arranged=other_host_key,
    ),
    # the node
    "a node without nbdkit": Row(
        MAY, r"transport \w+ cannot be used: .*nbdkit.*provision playbook", arranged=moved("node", "/usr/bin/nbdkit")
    ),
    "a node without the plugin": Row(
        MAY,
        r"transport vddk cannot be used: nbdkit has no plugin vddk on this node; install it .*",
        arguments=extra(backup_transport="vddk"),
        arranged=moved("node", "/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-vddk-plugin.so"),
    ),
    "a plugin without its library": Row(
        MAY,
        r"transport vddk cannot be used: there is no VDDK on this node: .* give node_vddk_archive and run the provision playbook",
        arguments=extra(backup_transport="vddk"),
        arranged=moved("node", "/opt/sendense/vddk/current"),
    ),
    # the snapshot
    "a disk that has grown since the look": Row(
        SNAPSHOT,
        r"the VM was changed after it was looked at: disk 2000 \(Hard disk 1\) had \d+ bytes and has \d+ now; run the backup again",
        vm="nocbt1",
        after={TUNNEL: at_once("/disk", vm="nocbt1", key=2000, grow_at_snapshot=65536)},
        before=COPY,
    ),
    "a snapshot that vCenter refuses": Row(
        SNAPSHOT,
        rf"taking snapshot {NAME} of VM web01 failed: vCenter \S+ says: .*",
        arranged=knobs(faults={"CreateSnapshotEx_Task": "TooManySnapshotLevels"}),
        before=COPY,
    ),
    "a snapshot that timed out and is there": Row(
        SNAPSHOT,
        rf"taking snapshot {NAME} of VM web01 failed: vCenter \S+ says: Operation timed out",
        arranged=knobs(create_snapshot_fault="Timedout"),
        before=COPY,
    ),
    # the copy
    "a disk that vanishes in mid-copy": Row(
        COPY,
        r"disk 2000: the disk is gone from its datastore; run the backup again; nbdkit said: .* 404",
        arguments=extra(backup_transport="https"),
        arranged=slowly("/disk", vm="web01", readable=True),
        after={SNAPSHOT: in_mid_copy("/disk", vm="web01", readable=False)},
        before=PUBLISHED,
    ),
    "a disk that vanishes in mid-copy by VDDK": Row(
        COPY,
        r"disk 2000: the disk or its snapshot is gone; run the backup again; nbdkit said: .* was not found",
        arguments=extra(backup_transport="vddk"),
        arranged=slowly("/disk", vm="web01", readable=True),
        after={SNAPSHOT: in_mid_copy("/disk", vm="web01", readable=False)},
        before=PUBLISHED,
    ),
    "a VM that is removed before its snapshot": Row(
        SNAPSHOT,
        r"no VM with moref vm-\d+ is in vCenter \S+, or user \S+ may not see it",
        arranged=slowly("/vm", vm="web01", registered=True),
        after={TUNNEL: at_once("/vm", vm="web01", registered=False)},
        before=COPY,
    ),
    "a VM that is removed in mid-copy": Row(
        STOOD,
        r"The VM went from vCenter while the disks were read, so what was read is not to be believed; run the backup again",
        arranged=removed,
        after={SNAPSHOT: in_mid_copy("/vm", vm="web01", registered=False)},
        before=PUBLISHED,
    ),
    "sessions that are ended in mid-copy work": Row(  # who follows the copy logs in again
        "",
        r"ok full .*",
        arguments=extra(backup_transport="https"),
        arranged=slowly(""),
        after={SNAPSHOT: in_mid_copy("/sessions/kill")},
    ),
    "sessions that are ended between steps work": Row(
        "", r"ok full .*", after={SNAPSHOT: kill, COPY: at_once("/sessions/kill")}
    ),
}

SAMPLE = {  # of each step some, and what no test of a module arranges
    "an ambiguous name",
    "an odd name works",
    "no VM selected",
    "a wrong password",
    "an encrypted VM",
    "an independent disk that may be left out works",
    "a datastore below its minimum",
    "a repository that cannot be written to",
    "a repository that is too small beside another job",
    "all ports are leased",
    "a hub with another host key",
    "a plugin without its library",
    "a disk that has grown since the look",
    "a snapshot that timed out and is there",
    "a disk that vanishes in mid-copy by VDDK",
    "a VM that is removed in mid-copy",
    "sessions that are ended in mid-copy work",
}


def run(site: Any, row: Row) -> tuple[int, str, float]:
    """Run the playbook as a row says; return its end, its output and the seconds it took."""
    began = time.monotonic()
    process = site.start(*(() if row.vm == "-" else extra(vm_name=row.vm)), *row.arguments)
    lines = []
    for line in process.stdout:
        lines.append(line)
        for step, act in row.after.items():
            if of(step, line):
                act(site)
    return process.wait(), "".join(lines), time.monotonic() - began


def of(step: str, line: str) -> bool:
    """Whether a line of the output is the title of a step; under host_pinned it comes with the step's first result."""
    return re.match(rf"TASK \[(\S+ : )?{step}\]", line) is not None


def summary(output: str) -> list[str]:
    """Return the lines of the summary; without one, what the task said that failed last."""
    found = re.findall(
        r"^(?:TASK \[(.+?)\].*\n)?(?:\[.*\n)?(?:ok|fatal): .*=> *\n((?:    .*\n)+)", output, re.MULTILINE
    )
    told = {name: yaml.safe_load(textwrap.dedent(block))["msg"] for name, block in found if "msg:" in block}
    lines = told.get("One line for each VM") or [*told.values()][-1:]
    return [re.sub(r"\s+", " ", line) for line in lines]


@pytest.mark.parametrize("row", cases(ROWS, SAMPLE))
def test_what_goes_wrong_is_told_in_one_sentence(clean, row):
    before = clean.points()
    with row.arranged(clean):
        code, output, seconds = run(clean, row)
        made = len(clean.points()) - len(before)
    lines = summary(output)
    print(f"{seconds:.1f} s: {lines}")  # noqa: T201
    assert len(lines) == 1
    assert re.fullmatch(row.told, lines[0]), output
    assert (code == 0) == row.works, output
    assert row.works or not any(of(row.before, line) for line in output.splitlines())
    assert "Traceback" not in output
    assert made == row.works
    assert row.works or seconds < SECONDS


MODULES = {
    "a folder that another has made": (
        "restore_point",
        {
            "repository": "/backup/repository",
            "vm": {"instance_uuid": OTHER_UUID, "disks": [{"key": 2000, "capacity": 1024**2}]},
            "state": "partial",
        },
        partial("true"),
        r"20260101T000000Z.partial is there already, and job \S+ did not make it; move it away and run again",
    ),
    "an image that is there and larger": (
        "restore_point",
        {
            "repository": "/backup/repository",
            "vm": {"instance_uuid": OTHER_UUID, "disks": [{"key": 2000, "capacity": 1024**2}]},
            "state": "partial",
        },
        partial(f"""echo '{{"job": "{OTHER}"}}' > job.json; qemu-img create -q -f qcow2 disk-2000.qcow2 2M"""),
        r"disk-2000.qcow2 .*2097152 bytes.*never",
    ),
    "an export of wrong size": (
        "nbd_export",
        {"exports": [{"key": 2000, "image": "/backup/scratch/a", "name": f"{OTHER}-disk0", "size": 512}]},
        scratch,
        r"offers 1048576 bytes where 512 were expected",
    ),
    "an export with another job's name": (
        "nbd_export",
        {
            "exports": [
                {
                    "key": 2000,
                    "image": "/backup/scratch/a",
                    "name": "web01-00000000-20260101T000000Z-disk0",
                    "size": 1024**2,
                }
            ]
        },
        scratch,
        r"disk 2000: an export named 'web01-00000000-20260101T000000Z-disk0' is not one of job other-",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "arranged", "sentence"), MODULES.values(), ids=MODULES)
def test_what_is_on_the_hub_and_wrong_is_refused(clean, name, arguments, arranged, sentence):
    with arranged(clean):
        said = clean.module("hub1", name, job=OTHER, **arguments)
    assert re.search(sentence, said["msg"]), said
    assert "Traceback" not in said["msg"]


def test_a_disk_that_was_left_out_is_in_the_manifest(clean):
    manifest, disks = clean.compare("independent1")
    assert [(disk["key"], disk["label"]) for disk in manifest["skipped"]] == [(2001, "Hard disk 2")]
    assert [disk.key for disk in disks if disk.equal] == [2000]
