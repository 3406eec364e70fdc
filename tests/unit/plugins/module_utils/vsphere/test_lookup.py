# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from ansible_collections.sendense.backup.plugins.module_utils.errors import SendenseError
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import lookup
from ansible_collections.sendense.backup.plugins.module_utils.vsphere import session as vcenter
from ansible_collections.sendense.backup.plugins.module_utils.vsphere.session import VCenter, session

pytest.importorskip("pyVmomi")


@pytest.mark.parametrize(
    ("spelt", "by_vcenter"),
    [
        ("pgtest1", "pgtest1"),
        ("a/b", "a%2fb"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("100%", "100%"),
        ("back\\slash", "back%5cslash"),
        ("not%20a space", "not%20a space"),
        ("%2f literally", "%252f literally"),
        ("Müller", "Mu\u0308ller"),
        ("データ ベース", "データ ベース"),
    ],
)
def test_a_name_is_compared_as_people_spell_it(spelt, by_vcenter):
    assert lookup.spelt(by_vcenter) == spelt


@pytest.fixture
def opened(lab):
    with session(VCenter.of({"vcenter_validate_certs": True, **lab.options})) as one:
        yield one


@pytest.fixture
def folders(opened):
    """Return a function that moves a VM into a new folder, or gives it a name; all is undone at the end."""
    vim, undo = vcenter.vim, []
    root = opened.content.rootFolder
    [datacenter] = [each for each in root.childEntity if isinstance(each, vim.Datacenter)]

    def change(moref, name=None, folder=None):
        vm = opened.managed("VirtualMachine", moref)
        before, home = vm.name, vm.parent
        if folder:
            made = datacenter.vmFolder.CreateFolder(folder)
            opened.wait(made.MoveIntoFolder_Task([vm]), "moving")
            undo.append(lambda: opened.wait(made.Destroy_Task(), "undoing"))
            undo.append(lambda: opened.wait(home.MoveIntoFolder_Task([vm]), "undoing"))
        if name:
            opened.wait(vm.Rename_Task(name), "renaming")
            undo.append(lambda: opened.wait(vm.Rename_Task(before), "undoing"))

    yield change
    for step in reversed(undo):
        step()


def test_a_vm_is_found_in_each_of_four_ways(lab, opened):
    vm = lab.vm("pgtest1")
    for way in (
        {"moref": vm["moref"]},
        {"uuid": vm["instance_uuid"]},
        {"path": "/DC0/vm/prod/pgtest1"},
        {"name": "pgtest1"},
    ):
        assert lookup.find(opened, **way) == vm["moref"]
    assert lookup.find(opened, path="DC0/vm/prod/pgtest1/") == vm["moref"]


@pytest.mark.parametrize("name", ["a/b c", "100% voll", "Größe", "база данных", "vm:22", "- x"])
def test_a_vm_is_found_by_an_odd_name(lab, opened, folders, name):
    moref = lab.vm("thin1")["moref"]
    folders(moref, name=name.replace("%", "%25").replace("/", "%2f"))
    assert lookup.find(opened, name=name) == moref
    found = lookup.describe(opened, moref)
    assert found["name"] == name
    assert lookup.find(opened, path=found["inventory_path"]) == moref


def test_a_name_that_two_bear_lists_both(lab, opened, folders):
    one, two = lab.vm("pgtest1")["moref"], lab.vm("thin1")["moref"]
    folders(two, folder="test/ing", name="pgtest1")
    with pytest.raises(SendenseError) as error:
        lookup.find(opened, name="pgtest1")
    sentence = str(error.value)
    assert f"/DC0/vm/prod/pgtest1 ({one}), /DC0/vm/test%2fing/pgtest1 ({two}); choose one by its moref" in sentence
    assert lookup.find(opened, path="/DC0/vm/test%2Fing/pgtest1") == two
    assert lookup.find(opened, path="/DC0/vm/prod/pgtest1") == one


@pytest.mark.parametrize(
    ("way", "says"),
    [
        pytest.param({"name": "pgtest"}, "no VM named pgtest is in vCenter .*; close names: pgtest1", id="name"),
        pytest.param({"name": "PGTEST1"}, "close names: pgtest1", id="name in capitals"),
        pytest.param({"name": "thin1*"}, "close names: thin1", id="no wildcards"),
        pytest.param({"name": "zzz"}, "may not see it$", id="nothing close"),
        pytest.param({"path": "/DC0/vm/pgtest1"}, "no VM at /DC0/vm/pgtest1 .*; close names: pgtest1", id="path"),
        pytest.param({"moref": "vm-9999"}, "no VM with moref vm-9999", id="moref"),
        pytest.param({"moref": "group-v3"}, "no VM with moref group-v3", id="moref of a folder"),
        pytest.param({"uuid": "00000000-0000-0000-0000-000000000000"}, "no VM with instance uuid", id="uuid"),
    ],
)
def test_a_vm_that_is_not_there_is_one_sentence(opened, way, says):
    with pytest.raises(SendenseError, match=says) as error:
        lookup.find(opened, **way)
    assert "\n" not in str(error.value)


def test_a_bios_uuid_is_told_from_an_instance_uuid(lab, opened):
    bios = lookup.describe(opened, lab.vm("thin1")["moref"])["bios_uuid"]
    with pytest.raises(SendenseError, match="it is the BIOS uuid of one"):
        lookup.find(opened, uuid=bios)


def test_where_there_are_vapps_every_name_is_read(lab, opened):
    vim = vcenter.vim
    vm = opened.managed("VirtualMachine", lab.vm("thin1")["moref"])
    share = vim.ResourceAllocationInfo(
        reservation=0, limit=-1, expandableReservation=True, shares=vim.SharesInfo(level="normal", shares=4000)
    )
    resources = vim.ResourceConfigSpec(cpuAllocation=share, memoryAllocation=share)
    vapp = vm.resourcePool.CreateVApp("group", resources, vim.vApp.VAppConfigSpec(), vm.parent)
    try:
        lab.ask("POST", "/stats/reset")
        assert lookup.find(opened, name="thin1") == lab.vm("thin1")["moref"]
        assert "FindChild" not in lab.ask("GET", "/stats")["soap"]
    finally:
        opened.wait(vapp.Destroy_Task(), "undoing")


def test_a_lookup_by_a_plain_name_reads_of_no_other_vm(lab, opened):
    lab.ask("POST", "/stats/reset")
    lookup.find(opened, name="pgtest1")
    soap = lab.ask("GET", "/stats")["soap"]
    assert soap.pop("FindChild") == lab_folders(opened)
    assert soap == {"CreateContainerView": 1, "RetrievePropertiesEx": 1, "DestroyView": 1}
    lab.ask("POST", "/stats/reset")
    lookup.find(opened, path="/DC0/vm/prod/pgtest1")
    assert lab.ask("GET", "/stats")["soap"] == {"FindByInventoryPath": 1}


def lab_folders(opened):
    """Return how many folders of the lab may hold VMs."""
    view = opened.content.viewManager.CreateContainerView(opened.content.rootFolder, [vcenter.vim.Folder], True)
    found = sum("VirtualMachine" in str(each.childType) for each in view.view)
    view.DestroyView()
    return found


def test_a_lookup_by_an_odd_name_reads_names_and_nothing_else(lab, opened, folders):
    folders(lab.vm("thin1")["moref"], name="ü")
    lab.ask("POST", "/stats/reset")
    lookup.find(opened, name="ü")
    assert lab.ask("GET", "/stats")["soap"] == {"CreateContainerView": 1, "RetrievePropertiesEx": 1, "DestroyView": 1}


def test_a_description_is_one_round_trip(lab, opened):
    moref = lab.vm("pgtest1")["moref"]
    lab.ask("POST", "/stats/reset")
    lookup.describe(opened, moref)
    assert lab.ask("GET", "/stats")["soap"] == {"RetrievePropertiesEx": 1}


def test_a_vm_that_is_gone_cannot_be_described(opened):
    with pytest.raises(lookup.Gone, match="^no VM with moref vm-9999 is in vCenter 127.0.0.1:"):
        lookup.describe(opened, "vm-9999")


def test_a_vm_is_described_as_it_is(lab, opened):
    vm = lookup.describe(opened, lab.vm("pgtest1")["moref"])
    assert vm["instance_uuid"] == lab.vm("pgtest1")["instance_uuid"]
    assert (vm["inventory_path"], vm["datacenter"]) == ("/DC0/vm/prod/pgtest1", "DC0")
    assert vm["vcenter"] == {"hostname": "127.0.0.1", "instance_uuid": opened.instance_uuid, "version": "8.0.3"}
    assert (vm["power_state"], vm["connection_state"], vm["cbt_enabled"]) == ("poweredOn", "connected", True)
    assert not any(vm[state] for state in ("template", "encrypted", "fault_tolerant", "consolidation_needed"))
    assert vm["host"]["name"] == "DC0_C0_H0"
    assert vm["vmx_path"] == "[datastore1] pgtest1/pgtest1.vmx"
    assert vm["snapshots"] == []
    assert {store["name"]: store["type"] for store in vm["datastores"]} == {
        "datastore1": "VMFS",
        "data store 2": "VMFS",
    }
    assert all(0 < store["free"] <= store["capacity"] for store in vm["datastores"])


def test_disks_have_their_real_keys_and_sizes(lab, opened):
    disks = lookup.describe(opened, lab.vm("pgtest1")["moref"])["disks"]
    seen = [
        (disk["key"], disk["controller_key"], disk["unit_number"], disk["capacity"], disk["path"]) for disk in disks
    ]
    assert seen == [
        (2000, 1000, 0, 1 << 20, "[datastore1] pgtest1/pgtest1.vmdk"),
        (2001, 1000, 1, (1 << 20) + 1536, "[datastore1] pgtest1/pgtest1_2.vmdk"),
        (16000, 15000, 0, 48 << 20, "[data store 2] pgtest1/pgtest1_1.vmdk"),
    ]
    assert {(disk["kind"], disk["mode"], disk["sharing"], disk["has_parent"]) for disk in disks} == {
        ("flat", "persistent", "sharingNone", False)
    }
    assert len({disk["backing_uuid"] for disk in disks}) == 3


def test_the_configuration_is_enough_to_rebuild_it(lab, opened):
    config = lookup.describe(opened, lab.vm("pgtest1")["moref"])["config"]
    assert (config["firmware"], config["secure_boot"], config["version"]) == ("bios", False, "vmx-19")
    assert (config["cpus"], config["cores_per_socket"], config["memory_mib"]) == (2, 1, 1024)
    kinds = {each["key"]: each["type"] for each in config["controllers"]}
    assert (kinds[1000], kinds[15000]) == ("ParaVirtualSCSIController", "VirtualAHCIController")
    (card,) = config["nics"]
    assert (card["type"], card["network"]) == ("VirtualVmxnet3", "VM Network")


def test_a_port_group_of_a_distributed_switch_has_its_name(lab, opened):
    assert lookup.describe(opened, lab.vm("thin1")["moref"])["config"]["nics"][0]["network"] == "DC0_DVPG0"


def test_snapshots_are_walked_breadth_wise(lab, opened):
    moref = lab.vm("thin1")["moref"]
    vm = opened.managed("VirtualMachine", moref)
    for name in ("one", "two", "three%2fa"):
        opened.wait(vm.CreateSnapshotEx_Task(name, "", False, None), name)
    found = lookup.describe(opened, moref)["snapshots"]
    assert [(each["name"], each["depth"]) for each in found] == [("one", 1), ("two", 2), ("three/a", 3)]
    opened.wait(vm.RemoveAllSnapshots_Task(), "cleaning")


def test_siblings_are_not_missed():
    vim = vcenter.vim

    def node(name, *children):
        return vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(f"snapshot-{name}"),
            name=name,
            description="",
            createTime=datetime(2026, 11, 23, 14, 1, 2, tzinfo=UTC),
            quiesced=False,
            childSnapshotList=list(children),
        )

    tree = [node("a", node("a1", node("a1x")), node("a2")), node("b", node("b1"))]
    assert [each["name"] for each in lookup.walk(tree)] == ["a", "b", "a1", "a2", "b1", "a1x"]
