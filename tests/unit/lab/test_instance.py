# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from lab import cache, instance, machine, process
from lab.network import Subnet
from lab.shell import LabError, run


def test_two_checkouts_are_two_labs(tmp_path):
    one, other = instance.Lab(tmp_path / "one"), instance.Lab(tmp_path / "other")
    assert one.id == instance.Lab(tmp_path / "one").id
    assert one.id != other.id
    assert len(one.id) == 6


def test_what_a_lab_remembers_adds_up(lab):
    lab.remember(subnet="198.51.100.0/27")
    lab.remember(more=1)
    assert lab.remembered() == {"checkout": str(lab.checkout), "subnet": "198.51.100.0/27", "more": 1}


def test_machines_are_listed_by_number(lab):
    for name in ("node2", "hub1", "hub3", "node1"):
        lab.machine_dir(name).mkdir(parents=True)
    assert lab.machines() == ["hub1", "node1", "node2", "hub3"]


def test_a_file_is_written_whole_with_its_mode(tmp_path):
    path = tmp_path / "folder" / "secret"
    instance.write(path, "one", 0o600)
    instance.write(path, "two", 0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_the_shared_folder_goes_with_the_last_lab(lab):
    with instance.all_labs():
        pass
    assert instance.STATE_HOME.is_dir()
    lab.remember(subnet="198.51.100.0/27")
    with instance.all_labs(keep=False):
        pass
    assert instance.STATE_HOME.is_dir(), "another lab still stands in it"
    cache.remove(lab.state)
    with instance.all_labs(keep=False):
        pass
    assert not instance.STATE_HOME.exists()


def test_commands_of_one_checkout_follow_one_another(lab, capsys):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with instance.only_one_command(lab):
            os.write(writer, b"x")
            time.sleep(0.3)
        os._exit(0)
    os.read(reader, 1)
    start = time.monotonic()
    with instance.only_one_command(lab):
        waited = time.monotonic() - start
    os.waitpid(child, 0)
    assert waited > 0.1
    assert "waiting for another lab command" in capsys.readouterr().out


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "sources"
    (folder / "sub").mkdir(parents=True)
    (folder / "main.go").write_text("package main")
    (folder / "sub" / "data").write_text("data")
    return folder


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        pytest.param(lambda f: (f / "main.go").write_text("package other"), True, id="content"),
        pytest.param(lambda f: (f / "main.go").rename(f / "other.go"), True, id="name"),
        pytest.param(lambda f: (f / "main.go").chmod(0o755), True, id="execute bit"),
        pytest.param(lambda f: (f / "sub" / "new").write_text(""), True, id="a new empty file"),
        pytest.param(lambda f: (f / "main_test.go").write_text("package main"), False, id="a test"),
        pytest.param(lambda f: (f / "README.md").write_text("words"), False, id="a page for people"),
        pytest.param(lambda f: os.utime(f / "main.go", (1, 1)), False, id="a date"),
    ],
)
def test_what_shapes_a_build_changes_its_fingerprint(sources, change, matters):
    before = cache.fingerprint([sources], "go1")
    change(sources)
    assert (cache.fingerprint([sources], "go1") != before) is matters


def test_the_fingerprint_knows_facts_but_not_places(sources, tmp_path):
    before = cache.fingerprint([sources], "go1")
    assert cache.fingerprint([sources], "go2") != before
    (tmp_path / "elsewhere").mkdir()
    assert cache.fingerprint([sources.rename(tmp_path / "elsewhere" / "sources")], "go1") == before


def test_a_thing_is_built_once(lab):
    builds = []

    def build(part, tool):
        part.mkdir()
        (part / "thing").write_text("done")
        builds.append(part)

    first = cache.built(lab, "kind", "key", build, what="a thing")
    assert cache.built(lab, "kind", "key", build, what="a thing") == first
    assert (first / "thing").read_text() == "done"
    assert len(builds) == 1
    assert cache.built(lab, "kind", "other", build, what="a thing") != first


def test_a_failed_build_is_not_kept_and_the_next_starts_clean(lab):
    def fail(part, tool):
        part.mkdir()
        (part / "half").write_text("")
        raise LabError("no luck")

    def build(part, tool):
        part.mkdir()

    with pytest.raises(LabError, match="no luck"):
        cache.built(lab, "kind", "key", fail, what="a thing")
    assert not list(cache.built(lab, "kind", "key", build, what="a thing").iterdir())


def test_a_machine_knows_its_neighbours(lab):
    net = Subnet(IPv4Network("198.51.100.0/27"))
    assert "vcenter" not in machine.hosts(net, "hub1")
    assert "198.51.100.17 vcenter.lab.example vcenter DC0_C0_H0 DC0_C0_H1\n" in machine.hosts(net, "node1")


@pytest.mark.parametrize(
    ("line", "usable"),
    [
        ("nameserver 192.0.2.53", True),
        ("nameserver 127.0.0.53", False),
        ("nameserver ::1", False),
        ("nameserver fe80::1%eth0", False),
        ("search example.org", True),
        ("options edns0", False),
        ("# comment", False),
        ("", False),
    ],
)
def test_a_machine_gets_the_resolver_lines_it_can_use(line, usable):
    assert machine.usable_resolver_line(line) is usable


def test_packages_are_lent_and_kept(lab):
    store, archive = lab.cache / "packages", machine.package_dir(lab, "hub1")
    store.mkdir(parents=True)
    (store / "old_1_all.deb").write_text("old")
    machine.lend_packages(lab, "hub1")
    (archive / "new_1_all.deb").write_text("new")
    (archive / "partial" / "half_1_all.deb").write_text("half")
    machine.keep_packages(lab, "hub1")
    machine.lend_packages(lab, "node1")
    assert sorted(path.name for path in machine.package_dir(lab, "node1").glob("*.deb")) == [
        "new_1_all.deb",
        "old_1_all.deb",
    ]


def test_a_failing_tool_is_one_sentence():
    with pytest.raises(LabError, match=r"^looking failed: two / three$"):
        run(["sh", "-c", "echo two >&2; echo three >&2; exit 1"], what="looking")
    with pytest.raises(LabError, match=r"^looking failed: E: no such host / error: none$"):
        run(
            ["sh", "-c", "printf 'so far\\nE: no such host\\nerror: none\\nE: failed\\nbye' >&2; exit 1"],
            what="looking",
        )
    with pytest.raises(LabError, match="no-such-tool is not installed"):
        run(["no-such-tool"])


def launch(record: Path, again: str, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([process.LAUNCH, "", record, again, *command], start_new_session=True)


def test_a_launched_process_can_be_found_again(lab):
    found = process.Process(lab, "some")
    found.record.parent.mkdir(parents=True)
    assert not found.alive()
    started = launch(found.record, "", "sleep", "60")
    try:
        process.wait_until(found.record.exists, 5, "no record")
        assert json.loads(found.record.read_text())["pid"] == started.pid
        assert found.alive()
    finally:
        os.kill(started.pid, signal.SIGKILL)
    process.wait_until(lambda: not found.alive(), 5, "it still seems alive as a zombie")
    started.wait()
    assert not found.alive()


def test_a_process_with_a_reused_number_is_not_ours(lab):
    found = process.Process(lab, "some")
    mine = {"pid": os.getpid(), "started": process.start_time(os.getpid()), "boot": process.boot_id()}
    instance.write_json(found.record, mine)
    assert found.alive()
    instance.write_json(found.record, mine | {"started": mine["started"] + 1})
    assert not found.alive()
    instance.write_json(found.record, mine | {"boot": "another"})
    assert not found.alive()


def test_a_reboot_starts_the_machine_again(tmp_path):
    script = f"echo x >> {tmp_path}/runs; [ $(wc -l < {tmp_path}/runs) -ge 3 ] && exit 7; exit 133"
    assert launch(tmp_path / "record", "133", "sh", "-c", script).wait(10) == 7
    assert (tmp_path / "runs").read_text() == "x\nx\nx\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's")
def test_stopping_ends_the_whole_tree(lab):
    tree = process.Process(lab, "tree")
    tree.start(["sh", "-c", "setsid sleep 61 & setsid sleep 61 & wait"])
    assert tree.alive()
    tree.stop()
    assert not tree.alive()
    assert not list(process.cgroups(tree.unit))
    tree.stop()
