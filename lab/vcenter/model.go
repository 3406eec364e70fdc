// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// Device keys as ESXi gives them: a disk's key comes from its controller and unit, not from its rank.
const (
	scsiKey  = 1000
	ahciKey  = 15000
	nicKey   = 4000
	scsiDisk = 2000
	ahciDisk = 16000
)

// diskSpec is a disk of a VM as the lab wants it.
type diskSpec struct {
	key        int32
	controller int32
	unit       int32
	datastore  string
	golden     string // file in the guests folder; its size is the capacity
	capacity   int64  // of a disk without golden content
}

type vmSpec struct {
	name    string
	guestID string
	network string
	vmx     string // datastore of the .vmx
	disks   []diskSpec
}

const (
	datacenterName = "DC0"
	vmFolder       = "prod"
	datastoreSize  = 1 << 40
)

var datastoreNames = []string{"datastore1", "data store 2"}

func vmSpecs() []vmSpec {
	return []vmSpec{
		{name: "pgtest1", guestID: "debian12_64Guest", network: "VM Network", vmx: "datastore1", disks: []diskSpec{
			{key: scsiDisk, controller: scsiKey, unit: 0, datastore: "datastore1", golden: "pgtest1-boot.raw"},
			{key: ahciDisk, controller: ahciKey, unit: 0, datastore: "data store 2", golden: "pgtest1-data.raw"},
			{key: scsiDisk + 1, controller: scsiKey, unit: 1, datastore: "datastore1", golden: "pgtest1-odd.raw"},
		}},
		{name: "thin1", guestID: "otherLinux64Guest", network: "DC0_DVPG0", vmx: "data store 2", disks: []diskSpec{
			{key: scsiDisk, controller: scsiKey, unit: 0, datastore: "data store 2", capacity: 100 << 30},
		}},
	}
}

// build makes the inventory: the simulator's own model for all but datastores and VMs, which need real files.
func (l *Lab) build() error {
	model := simulator.VPX()
	model.Host, model.ClusterHost, model.Datastore, model.Machine = 0, 1, 0, 0
	ctx, instance := simulator.NewServiceInstance(simulator.NewContext(), model.ServiceContent, model.RootFolder)
	about := &instance.Content.About
	about.InstanceUuid = l.instance.String()
	about.Version, about.ApiVersion, about.Build = "8.0.3", "8.0.3.0", "24322831"
	about.FullName = "VMware vCenter Server 8.0.3 build-24322831"
	model.Service = simulator.New(ctx, instance)
	l.service = model.Service
	// Without Model.Create nothing is made in /tmp that would outlive a kill.
	if err := model.CreateInfrastructure(ctx); err != nil {
		return err
	}
	client, err := vim25.NewClient(ctx, l.service)
	if err != nil {
		return err
	}
	host, ok := ctx.Map.Any("HostSystem").(*simulator.HostSystem)
	if !ok {
		return errors.New("the simulator made no host")
	}
	if err := l.addDatastores(ctx, object.NewHostSystem(client, host.Self)); err != nil {
		return err
	}
	dc, _ := ctx.Map.Any("Datacenter").(*simulator.Datacenter)
	l.datacenter = "/" + dc.Name
	folder, err := object.NewFolder(client, dc.VmFolder).CreateFolder(ctx, vmFolder)
	if err != nil {
		return err
	}
	for _, spec := range vmSpecs() {
		g := &guest{lab: l, name: spec.name, home: spec.vmx, path: fmt.Sprintf("%s/vm/%s/%s", l.datacenter, vmFolder, spec.name)}
		l.guests = append(l.guests, g)
		if err := g.openDisks(spec); err != nil {
			return err
		}
		if err := g.register(ctx, spec, client, folder, host); err != nil {
			return fmt.Errorf("VM %s: %w", spec.name, err)
		}
	}
	l.refreshFree()
	return nil
}

func (l *Lab) addDatastores(ctx *simulator.Context, host *object.HostSystem) error {
	l.datastores = map[string]types.ManagedObjectReference{}
	system, err := host.ConfigManager().DatastoreSystem(ctx)
	if err != nil {
		return err
	}
	for _, name := range datastoreNames {
		folder := filepath.Join(l.Datastores, name)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		made, err := system.CreateLocalDatastore(ctx, name, folder)
		if err != nil {
			return err
		}
		l.datastores[name] = made.Reference()
		ds, _ := ctx.Map.Get(made.Reference()).(*simulator.Datastore)
		ds.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVMFS)
		ds.Summary.MultipleHostAccess = types.NewBool(false)
		ds.Info = &types.VmfsDatastoreInfo{DatastoreInfo: *ds.Info.GetDatastoreInfo()}
	}
	return nil
}

// refreshFree makes what the datastores claim agree with the files in them, or with the knob.
func (l *Lab) refreshFree() {
	claimed := l.knobs.get().Free
	ctx := l.fresh()
	for name, ref := range l.datastores {
		free, told := claimed[name]
		if !told {
			var used int64
			_ = filepath.WalkDir(filepath.Join(l.Datastores, name), func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.Type().IsRegular() {
					used += storage.Allocated(path)
				}
				return nil
			})
			free = max(datastoreSize-used, 0)
		}
		ds, _ := ctx.Map.Get(ref).(*simulator.Datastore)
		ctx.WithLock(ds, func() {
			info := *ds.Info.GetDatastoreInfo()
			info.FreeSpace = free
			l.sizes.Lock()
			defer l.sizes.Unlock()
			ctx.Update(ds, []types.PropertyChange{
				{Name: "summary.capacity", Val: int64(datastoreSize)},
				{Name: "summary.freeSpace", Val: free},
				{Name: "info", Val: &types.VmfsDatastoreInfo{DatastoreInfo: info}},
			})
		})
	}
}

// uuidOf returns an identifier that is the same at each start of this lab.
func (l *Lab) uuidOf(parts ...string) string {
	return uuid.NewSHA1(l.instance, []byte(strings.Join(parts, "\x00"))).String()
}

// openDisks opens the VM's disks, making those that do not exist.
func (g *guest) openDisks(spec vmSpec) error {
	for i, want := range spec.disks {
		name := spec.name
		if i > 0 {
			name = fmt.Sprintf("%s_%d", spec.name, i)
		}
		settings := storage.Spec{
			Dir:      filepath.Join(g.lab.Datastores, want.datastore, spec.name),
			Name:     name,
			Capacity: want.capacity,
			Adapter:  "lsilogic",
			UUID:     "6000c29" + g.lab.uuidOf(spec.name, fmt.Sprint(want.key))[7:],
		}
		if want.controller == ahciKey {
			settings.Adapter = "ide"
		}
		if want.golden != "" {
			settings.Golden = filepath.Join(g.lab.Guests, want.golden)
			info, err := os.Stat(settings.Golden)
			if err != nil {
				return fmt.Errorf("no golden disk for %s, make it with lab/guests/build.py: %w", spec.name, err)
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
func (g *guest) register(ctx *simulator.Context, spec vmSpec, client *vim25.Client, folder *object.Folder, host *simulator.HostSystem) error {
	home := filepath.Join(g.lab.Datastores, spec.vmx, spec.name)
	vmx := filepath.Join(home, spec.name+".vmx")
	// The simulator refuses to make a VM whose files exist; of an earlier run only the disks matter.
	if err := errors.Join(os.MkdirAll(home, 0o700), os.RemoveAll(vmx), os.RemoveAll(filepath.Join(home, "vmware.log"))); err != nil {
		return err
	}
	nic, err := g.nic(ctx, spec)
	if err != nil {
		return err
	}
	config := types.VirtualMachineConfigSpec{
		Name:                  spec.name,
		GuestId:               spec.guestID,
		Uuid:                  "4229" + g.lab.uuidOf(spec.name, "bios")[4:],
		InstanceUuid:          "5029" + g.lab.uuidOf(spec.name, "instance")[4:],
		Version:               "vmx-19",
		Firmware:              string(types.GuestOsDescriptorFirmwareTypeBios),
		NumCPUs:               2,
		NumCoresPerSocket:     types.NewInt32(1),
		MemoryMB:              1024,
		ChangeTrackingEnabled: types.NewBool(true),
		BootOptions:           &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(false)},
		Files:                 &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s] %s/%s.vmx", spec.vmx, spec.name, spec.name)},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: nic,
		}},
	}
	compute, _ := ctx.Map.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	pool := object.NewResourcePool(client, *compute.ResourcePool)
	task, err := folder.CreateVM(ctx, config, pool, object.NewHostSystem(client, host.Self))
	if err != nil {
		return err
	}
	result, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return err
	}
	ref, _ := result.Result.(types.ManagedObjectReference)
	g.vm, _ = ctx.Map.Get(ref).(*simulator.VirtualMachine)
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
		g.vm.RefreshStorageInfo(ctx, nil)
	})
	if task, err = object.NewVirtualMachine(client, ref).PowerOn(ctx); err == nil {
		err = task.Wait(ctx)
	}
	if err != nil {
		return err
	}
	ctx.WithLock(g.vm, func() {
		g.vm.Summary.Runtime = g.vm.Runtime
		g.uuid = g.vm.Config.InstanceUuid
	})
	return os.WriteFile(vmx, []byte(g.vmx(spec)), 0o600)
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
	scsi := &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
		VirtualController: types.VirtualController{
			VirtualDevice: types.VirtualDevice{
				Key: scsiKey, ControllerKey: 100, UnitNumber: types.NewInt32(3),
				DeviceInfo: &types.Description{Label: "SCSI controller 0", Summary: "VMware paravirtual SCSI"},
			},
			Device: attached(scsiKey),
		},
		SharedBus: types.VirtualSCSISharingNoSharing, ScsiCtlrUnitNumber: 7, HotAddRemove: types.NewBool(true),
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
func (g *guest) nic(ctx *simulator.Context, spec vmSpec) (types.BaseVirtualDevice, error) {
	card := &types.VirtualVmxnet3{}
	card.Key = nicKey
	card.UnitNumber = types.NewInt32(7)
	card.ControllerKey = 100
	card.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
	card.MacAddress = "00:50:56:" + g.lab.uuidOf(spec.name, "mac")[0:2] + ":" + g.lab.uuidOf(spec.name, "mac")[2:4] + ":01"
	card.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: spec.network},
	}
	for _, entity := range ctx.Map.All("DistributedVirtualPortgroup") {
		group, _ := entity.(*simulator.DistributedVirtualPortgroup)
		if group.Name != spec.network {
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

// vmx returns the text of the VM's configuration file.
func (g *guest) vmx(spec vmSpec) string {
	var out strings.Builder
	line := func(key, value string) { fmt.Fprintf(&out, "%s = %q\n", key, value) }
	line(".encoding", "UTF-8")
	line("config.version", "8")
	line("virtualHW.version", "19")
	line("displayName", spec.name)
	line("guestOS", strings.ToLower(strings.TrimSuffix(spec.guestID, "Guest")))
	line("numvcpus", "2")
	line("memSize", "1024")
	line("firmware", "bios")
	line("ctkEnabled", "TRUE")
	line("scsi0.virtualDev", "pvscsi")
	line("scsi0.present", "TRUE")
	for _, disk := range g.disks {
		bus := "scsi0"
		if disk.controller == ahciKey {
			bus = "sata0"
			line("sata0.present", "TRUE")
		}
		file := disk.Name + ".vmdk"
		if disk.datastore != spec.vmx {
			file = fmt.Sprintf("/vmfs/volumes/%s/%s/%s", disk.datastore, spec.name, file)
		}
		line(fmt.Sprintf("%s:%d.fileName", bus, disk.unit), file)
		line(fmt.Sprintf("%s:%d.present", bus, disk.unit), "TRUE")
		line(fmt.Sprintf("%s:%d.ctkEnabled", bus, disk.unit), "TRUE")
	}
	line("ethernet0.virtualDev", "vmxnet3")
	line("ethernet0.networkName", spec.network)
	line("ethernet0.present", "TRUE")
	return out.String()
}
