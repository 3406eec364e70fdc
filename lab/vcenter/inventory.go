// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Device keys as ESXi gives them: a disk's key comes from its controller and unit, not from its rank.
const (
	scsiKey  = 1000
	ahciKey  = 15000
	nicKey   = 4000
	scsiDisk = 2000
	ahciDisk = 16000
	nvmeKey  = 31000
	nvmeDisk = 32000
	ideDisk  = 3000
)

const (
	datacenterName = "DC0"
	hosts          = 2
	datastoreSize  = 1 << 40
	smallGolden    = "small.raw"
)

var datastoreNames = []string{"datastore1", "data store 2"}

// diskSpec is a disk of a VM as the lab wants it.
type diskSpec struct {
	key         int32
	controller  int32
	unit        int32
	datastore   string
	golden      string // file in the guests folder; its size is the capacity
	capacity    int64  // of a disk without golden content
	independent bool   // it takes no part in snapshots
	marked      bool   // its first sector names the VM
}

// vmSpec is a VM as the lab wants it.
type vmSpec struct {
	name      string // as a person spells it; vCenter keeps a slash in it as %2f
	folder    string // below the datacenter's folder of VMs
	files     string // name of its files and of their folder
	guestID   string
	network   string
	vmx       string // datastore of the .vmx
	host      int    // index of the ESXi host
	disks     []diskSpec
	odd       bool                            // not one that everybody backs up: group odd of the inventory
	untracked bool                            // change tracking is off
	off       bool                            // it does not run
	sharedBus bool                            // its SCSI controller shares the bus with other VMs
	refuses   string                          // why vSphere takes no snapshot of it
	change    func(*simulator.VirtualMachine) // what else is special
	firmware  string                          // bios when empty
	buses     []types.BaseVirtualDevice       // its controllers, without their disks; those that its disks need when nil
	configure func(*types.VirtualMachineConfigSpec)
}

// vmSpecs is the table of all VMs. Their names are interface: README.md.
func vmSpecs() []vmSpec {
	specs := []vmSpec{
		{name: "pgtest1", folder: "prod", files: "pgtest1", guestID: "debian12_64Guest", network: "VM Network", vmx: "datastore1", disks: []diskSpec{
			{key: scsiDisk, controller: scsiKey, unit: 0, datastore: "datastore1", golden: "pgtest1-boot.raw"},
			{key: ahciDisk, controller: ahciKey, unit: 0, datastore: "data store 2", golden: "pgtest1-data.raw"},
			{key: scsiDisk + 1, controller: scsiKey, unit: 1, datastore: "datastore1", golden: "pgtest1-odd.raw"},
		}},
		{name: "thin1", folder: "prod", files: "thin1", guestID: "otherLinux64Guest", network: "DC0_DVPG0", vmx: "data store 2", disks: []diskSpec{
			{key: scsiDisk, controller: scsiKey, unit: 0, datastore: "data store 2", capacity: 100 << 30},
		}},
	}
	for n := 1; n <= 10; n++ {
		web := small(fmt.Sprintf("web%02d", n), "prod", datastoreNames[(n+1)%2])
		web.host = (n + 1) % 2
		specs = append(specs, web)
	}
	return append(append(specs, oddSpecs()...), benchSpecs()...)
}

// oddSpecs are VMs that a backup refuses, or must look at twice.
func oddSpecs() []vmSpec {
	odd := func(name string) vmSpec { return small(name, "odd", "datastore1") }

	// vCenter gives the second one's folder another name.
	twins := []vmSpec{small("twin", "prod", "datastore1"), small("twin", "test", "datastore1")}
	twins[1].files = "twin_1"

	independent := odd("independent1")
	second := independent.disks[0]
	second.key, second.unit, second.independent = scsiDisk+1, 1, true
	independent.disks = append(independent.disks, second)

	untracked := odd("nocbt1")
	untracked.untracked = true

	template := odd("template1")
	template.off, template.refuses = true, "The operation is not supported on a template."
	template.change = func(vm *simulator.VirtualMachine) {
		vm.Config.Template, vm.Summary.Config.Template, vm.ResourcePool = true, true, nil
	}

	encrypted := odd("encrypted1")
	encrypted.change = func(vm *simulator.VirtualMachine) {
		vm.Config.KeyId = &types.CryptoKeyId{KeyId: "lab-key-1", ProviderId: &types.KeyProviderId{Id: "lab-kms"}}
	}

	shared := odd("sharedbus1")
	shared.sharedBus, shared.refuses = true, "The virtual machine has a SCSI controller that is engaged in bus-sharing."

	tolerant := odd("ft1")
	tolerant.refuses = "The operation is not supported on a fault tolerant virtual machine."
	tolerant.change = func(vm *simulator.VirtualMachine) {
		vm.Config.FtInfo = &types.FaultTolerancePrimaryConfigInfo{FaultToleranceConfigInfo: types.FaultToleranceConfigInfo{
			Role: 1, InstanceUuids: []string{vm.Config.InstanceUuid}, ConfigPaths: []string{vm.Config.Files.VmPathName},
		}}
		vm.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateRunning
	}

	// What a restore has to make again: EFI, controllers of other kinds with other numbers, two cards, words of its owner.
	modern := odd("uefi1")
	modern.firmware, modern.guestID = string(types.GuestOsDescriptorFirmwareTypeEfi), "ubuntu64Guest"
	modern.buses = []types.BaseVirtualDevice{
		&types.VirtualNVMEController{VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: nvmeKey}}},
		&types.VirtualLsiLogicSASController{VirtualSCSIController: types.VirtualSCSIController{
			VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: scsiKey + 1}, BusNumber: 1},
			SharedBus:         types.VirtualSCSISharingNoSharing, ScsiCtlrUnitNumber: 7,
		}},
	}
	modern.disks[0].controller, modern.disks[0].key = nvmeKey, nvmeDisk
	modern.disks = append(modern.disks, diskSpec{
		key: scsiDisk + 16 + 3, controller: scsiKey + 1, unit: 3, datastore: "data store 2", golden: "pgtest1-odd.raw",
	})
	modern.configure = func(config *types.VirtualMachineConfigSpec) {
		config.NumCPUs, config.NumCoresPerSocket, config.MemoryMB = 4, types.NewInt32(2), 2048
		config.BootOptions.EfiSecureBootEnabled = types.NewBool(true)
		config.Annotation = "the mail server; ask Ülkü before you touch it"
		config.CpuHotAddEnabled, config.MemoryHotAddEnabled = types.NewBool(true), types.NewBool(true)
		config.ExtraConfig = []types.BaseOptionValue{
			&types.OptionValue{Key: "disk.EnableUUID", Value: "TRUE"},
			&types.OptionValue{Key: "ethernet0.pciSlotNumber", Value: "192"},
			&types.OptionValue{Key: "guestinfo.password", Value: "not for the manifest"},
			&types.OptionValue{Key: "migrate.hostLog", Value: "uefi1-1234.hlog"},
		}
		second := &types.VirtualE1000e{}
		second.Key, second.ControllerKey, second.UnitNumber = nicKey+1, 100, types.NewInt32(8)
		second.AddressType, second.MacAddress = string(types.VirtualEthernetCardMacTypeManual), "00:50:56:00:00:77"
		second.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: false, AllowGuestControl: true}
		second.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "VM Network"},
		}
		config.DeviceChange = append(config.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: second,
		})
	}

	// Its folder's name has what URLs and shells take for something else.
	spelt := odd("Büro/Kasse 1")
	spelt.files = "Büro_Kasse 1 (50%, #1 + 2)"

	// Unit 7 of a SCSI bus is the controller's own, so the sixteenth disk hangs on the other one.
	wide := odd("wide1")
	for unit := int32(1); unit < 16; unit++ {
		disk := wide.disks[0]
		if disk.key, disk.unit = scsiDisk+unit, unit; unit == 7 {
			disk.key, disk.controller, disk.unit = ahciDisk, ahciKey, 0
		}
		wide.disks = append(wide.disks, disk)
	}

	specs := append(twins, independent, untracked, template, encrypted, shared, tolerant, modern, spelt, wide)
	for i := range specs {
		specs[i].odd = true
	}
	return specs
}

// benchSpecs are VMs with nothing in them, which the bench fills for as long as it measures.
func benchSpecs() []vmSpec {
	disk := func(unit int32, capacity int64) diskSpec {
		return diskSpec{key: scsiDisk + unit, controller: scsiKey, unit: unit, datastore: "datastore1", capacity: capacity}
	}
	specs := []vmSpec{
		{name: "bench1", disks: []diskSpec{disk(0, 3<<29), disk(1, 3<<29), disk(2, 3<<29)}},
		{name: "bench2", disks: []diskSpec{disk(0, 10<<40)}},
	}
	for i := range specs {
		specs[i].folder, specs[i].files, specs[i].guestID = "bench", specs[i].name, "otherLinux64Guest"
		specs[i].network, specs[i].vmx, specs[i].odd = "VM Network", "datastore1", true
	}
	return specs
}

// small is a VM that costs next to nothing: one disk, mostly a hole.
func small(name, folder, datastore string) vmSpec {
	return vmSpec{
		name: name, folder: folder, files: name, guestID: "otherLinux64Guest", network: "VM Network", vmx: datastore,
		disks: []diskSpec{{key: scsiDisk, controller: scsiKey, unit: 0, datastore: datastore, golden: smallGolden, marked: true}},
	}
}
