// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// openDisks opens the VM's disks, making those that do not exist.
func (g *guest) openDisks() error {
	for i, want := range g.vmSpec.disks {
		name := g.files
		if i > 0 {
			name = fmt.Sprintf("%s_%d", g.files, i)
		}
		settings := storage.Spec{
			Dir:      filepath.Join(g.lab.Datastores, want.datastore, g.files),
			Name:     name,
			Capacity: want.capacity,
			Adapter:  "lsilogic",
			UUID:     "6000c29" + g.lab.uuidOf(g.files, fmt.Sprint(want.key))[7:],
		}
		if want.controller == ahciKey {
			settings.Adapter = "ide"
		}
		if want.marked {
			settings.Mark = fmt.Sprintf("%-511s\n", fmt.Sprintf("SENDENSE-GUEST %s disk %d", g.files, want.key))
		}
		if want.golden != "" {
			settings.Golden = filepath.Join(g.lab.Guests, want.golden)
			info, err := os.Stat(settings.Golden)
			if err != nil {
				return fmt.Errorf("no golden disk here, make it with lab/guests/build.py: %w", err)
			}
			settings.Capacity = info.Size()
		}
		opened, err := storage.Open(settings)
		if err != nil {
			return err
		}
		g.disks = append(g.disks, &disk{
			Disk: opened, diskSpec: want, label: fmt.Sprintf("Hard disk %d", i+1), place: g.lab.datastores[want.datastore],
		})
	}
	return nil
}

// register enters the VM into the inventory and gives it its devices.
func (g *guest) register(ctx *simulator.Context, client *vim25.Client, folder *object.Folder) error {
	home := g.home()
	vmx := filepath.Join(home, g.files+".vmx")
	// The simulator refuses to make a VM whose files exist; of an earlier run only the disks matter.
	if err := errors.Join(os.MkdirAll(home, 0o700), os.RemoveAll(vmx), os.RemoveAll(filepath.Join(home, "vmware.log"))); err != nil {
		return err
	}
	nic, err := g.nic(ctx)
	if err != nil {
		return err
	}
	config := types.VirtualMachineConfigSpec{
		Name:                  strings.NewReplacer("%", "_", "/", "_").Replace(g.name),
		GuestId:               g.guestID,
		Uuid:                  "4229" + g.lab.uuidOf(g.files, "bios")[4:],
		InstanceUuid:          "5029" + g.lab.uuidOf(g.files, "instance")[4:],
		Version:               "vmx-19",
		Firmware:              string(types.GuestOsDescriptorFirmwareTypeBios),
		NumCPUs:               2,
		NumCoresPerSocket:     types.NewInt32(1),
		MemoryMB:              1024,
		ChangeTrackingEnabled: types.NewBool(!g.untracked),
		BootOptions:           &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(false)},
		Files:                 &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s] %s/%s.vmx", g.vmx, g.files, g.files)},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: nic,
		}},
	}
	if g.firmware != "" {
		config.Firmware = g.firmware
	}
	if g.configure != nil {
		g.configure(&config)
	}
	compute, _ := ctx.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	pool := object.NewResourcePool(client, *compute.ResourcePool)
	task, err := folder.CreateVM(ctx, config, pool, object.NewHostSystem(client, g.lab.hosts[g.host].Self))
	if err != nil {
		return err
	}
	result, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	ref, _ := result.Result.(types.ManagedObjectReference)
	g.vm, _ = ctx.Map.Get(ref).(*simulator.VirtualMachine)
	// Not by the call: given a name that it must escape, the simulator adds every device twice.
	ctx.WithLock(g.vm, func() {
		name := strings.NewReplacer("%", "%25", "/", "%2f").Replace(g.name)
		g.vm.Name, g.vm.Config.Name, g.vm.Summary.Config.Name = name, name, name
	})
	g.uuid, g.path = g.vm.Config.InstanceUuid, fmt.Sprintf("%s/vm/%s/%s", g.lab.datacenter, g.folder, g.vm.Name)
	if err := os.WriteFile(vmx, []byte(g.vmxText()), 0o600); err != nil {
		return err
	}
	g.giveDisks(ctx)
	if !g.off {
		if task, err = object.NewVirtualMachine(client, ref).PowerOn(ctx); err == nil {
			err = task.Wait(ctx)
		}
	}
	if err != nil {
		return err
	}
	ctx.WithLock(g.vm, func() {
		if g.change != nil {
			g.change(g.vm)
		}
		g.vm.Summary.Runtime = g.vm.Runtime
	})
	g.measureFiles(ctx)
	return nil
}

// giveDisks puts the disks and their controllers into the configuration.
func (g *guest) giveDisks(ctx *simulator.Context) {
	g.trackFromNow()
	devices := append(g.vm.Config.Hardware.Device, g.controllers()...)
	for _, disk := range g.disks {
		devices = append(devices, disk.device(disk.Top(), disk.changeID()))
	}
	ctx.WithLock(g.vm, func() {
		g.vm.Config.Hardware.Device = devices
		g.vm.Summary.Config.NumVirtualDisks = int32(len(g.disks))
		// Clients of pyvmomi cannot read runtime when these are empty.
		g.vm.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
		g.vm.Runtime.RecordReplayState = types.VirtualMachineRecordReplayStateInactive
		g.vm.Summary.Runtime = g.vm.Runtime
		for _, disk := range g.disks {
			if !slices.Contains(g.vm.Datastore, disk.place) {
				g.vm.Datastore = append(g.vm.Datastore, disk.place)
			}
		}
		g.vm.RefreshStorageInfo(ctx, nil)
	})
	g.measureFiles(ctx)
}

func (g *guest) controllers() []types.BaseVirtualDevice {
	attached := func(controller int32) []int32 {
		var keys []int32
		for _, disk := range g.disks {
			if disk.controller == controller {
				keys = append(keys, disk.key)
			}
		}
		return keys
	}
	for _, bus := range g.buses {
		if controller, isOne := bus.(types.BaseVirtualController); isOne {
			controller.GetVirtualController().Device = attached(bus.GetVirtualDevice().Key)
		}
	}
	if g.buses != nil {
		return g.buses
	}
	sharing := types.VirtualSCSISharingNoSharing
	if g.sharedBus {
		sharing = types.VirtualSCSISharingPhysicalSharing
	}
	scsi := &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
		VirtualController: types.VirtualController{
			VirtualDevice: types.VirtualDevice{
				Key: scsiKey, ControllerKey: 100, UnitNumber: types.NewInt32(3),
				DeviceInfo: &types.Description{Label: "SCSI controller 0", Summary: "VMware paravirtual SCSI"},
			},
			Device: attached(scsiKey),
		},
		SharedBus: sharing, ScsiCtlrUnitNumber: 7, HotAddRemove: types.NewBool(true),
	}}
	devices := []types.BaseVirtualDevice{scsi}
	if keys := attached(ahciKey); len(keys) > 0 {
		devices = append(devices, &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{
			VirtualController: types.VirtualController{
				VirtualDevice: types.VirtualDevice{
					Key: ahciKey, ControllerKey: 100, UnitNumber: types.NewInt32(24),
					DeviceInfo: &types.Description{Label: "SATA controller 0", Summary: "AHCI"},
				},
				Device: keys,
			},
		}})
	}
	return devices
}

// nic returns a vmxnet3 on the VM's network, which is a standard or a distributed one.
func (g *guest) nic(ctx *simulator.Context) (types.BaseVirtualDevice, error) {
	card := &types.VirtualVmxnet3{}
	card.Key = nicKey
	card.UnitNumber = types.NewInt32(7)
	card.ControllerKey = 100
	card.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
	card.MacAddress = "00:50:56:" + g.lab.uuidOf(g.files, "mac")[0:2] + ":" + g.lab.uuidOf(g.files, "mac")[2:4] + ":01"
	card.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: g.network},
	}
	for _, entity := range ctx.Map.All("DistributedVirtualPortgroup") {
		group, _ := entity.(*simulator.DistributedVirtualPortgroup)
		if group.Name != g.network {
			continue
		}
		var dvs mo.DistributedVirtualSwitch
		if sw, ok := ctx.Map.Get(*group.Config.DistributedVirtualSwitch).(*simulator.DistributedVirtualSwitch); ok {
			dvs = sw.DistributedVirtualSwitch
		}
		card.Backing = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{SwitchUuid: dvs.Uuid, PortgroupKey: group.Key},
		}
	}
	return card, nil
}

// vmxText returns the text of the VM's configuration file.
func (g *guest) vmxText() string {
	var out strings.Builder
	line := func(key, value string) { fmt.Fprintf(&out, "%s = %q\n", key, value) }
	flag := func(key string, on bool) { line(key, strings.ToUpper(fmt.Sprint(on))) }
	line(".encoding", "UTF-8")
	line("config.version", "8")
	line("virtualHW.version", "19")
	line("displayName", g.name)
	line("guestOS", strings.ToLower(strings.TrimSuffix(g.guestID, "Guest")))
	line("numvcpus", "2")
	line("memSize", "1024")
	line("firmware", cmp.Or(g.firmware, "bios"))
	flag("ctkEnabled", !g.untracked)
	line("scsi0.virtualDev", "pvscsi")
	flag("scsi0.present", true)
	for _, disk := range g.disks {
		bus := fmt.Sprintf("scsi%d", disk.controller-scsiKey)
		switch {
		case disk.controller >= nvmeKey:
			bus = fmt.Sprintf("nvme%d", disk.controller-nvmeKey)
		case disk.controller >= ahciKey:
			bus = fmt.Sprintf("sata%d", disk.controller-ahciKey)
		}
		if bus != "scsi0" {
			flag(bus+".present", true)
		}
		file := disk.Name + ".vmdk"
		if disk.datastore != g.vmx {
			file = fmt.Sprintf("/vmfs/volumes/%s/%s/%s", disk.datastore, g.files, file)
		}
		line(fmt.Sprintf("%s:%d.fileName", bus, disk.unit), file)
		flag(fmt.Sprintf("%s:%d.present", bus, disk.unit), true)
		if disk.independent {
			line(fmt.Sprintf("%s:%d.mode", bus, disk.unit), "independent-persistent")
		} else {
			flag(fmt.Sprintf("%s:%d.ctkEnabled", bus, disk.unit), !g.untracked)
		}
	}
	line("ethernet0.virtualDev", "vmxnet3")
	line("ethernet0.networkName", g.network)
	flag("ethernet0.present", true)
	return out.String()
}
