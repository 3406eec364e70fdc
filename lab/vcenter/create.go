// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// VMs that clients make. The simulator enters them into its inventory without their disks and controllers, which are ours:
// files of real size, and keys as ESXi gives them, whatever the client's specification called them.

// madeMark is the file that a folder of a VM made by a client has, so that the next start can tell it from those of the table.
const madeMark = ".made-by-a-client"

// folderMethods are the calls to a folder that we answer.
type folderMethods struct {
	Self types.ManagedObjectReference
	lab  *Lab
}

// Reference makes it an object that the simulator can dispatch to.
func (f *folderMethods) Reference() types.ManagedObjectReference { return f.Self }

// CreateVMTask makes a VM with disks of real size.
func (f *folderMethods) CreateVMTask(ctx *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	work := func(func(int32)) (types.AnyType, types.BaseMethodFault) {
		made, fault := f.lab.make(f.Self, req.Config, req.Pool, req.Host)
		if fault != nil {
			return nil, fault
		}
		return made.vm.Self, nil
	}
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{
		Returnval: f.lab.start(ctx, f.Self, req.Config.Name, "createVm", work),
	}}
}

// DestroyTask takes a VM out of the inventory and deletes its files.
func (v *vmMethods) DestroyTask(ctx *simulator.Context, _ *types.Destroy_Task) soap.HasFault {
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{
		Returnval: v.guest.start(ctx, "destroy", func(func(int32)) (types.AnyType, types.BaseMethodFault) {
			return nil, v.guest.destroy()
		}),
	}}
}

func (g *guest) destroy() types.BaseMethodFault {
	g.busy.Lock()
	defer g.busy.Unlock()
	ctx := g.lab.fresh()
	answer := g.vm.UnregisterVM(ctx, &types.UnregisterVM{This: g.vm.Self})
	if fault := answer.Fault(); fault != nil {
		known, _ := fault.VimFault().(types.BaseMethodFault)
		return known
	}
	g.gone.Store(true)
	ctx.Map.Remove(ctx, g.vm.Self)
	g.lab.guestsMu.Lock()
	g.lab.guests = slices.DeleteFunc(g.lab.guests, func(each *guest) bool { return each == g })
	g.lab.guestsMu.Unlock()
	if err := g.removeFiles(); err != nil {
		return failure(err)
	}
	g.lab.refreshFree()
	return nil
}

func (g *guest) removeFiles() error {
	err := os.RemoveAll(g.home())
	for _, d := range g.disks {
		err = errors.Join(err, d.Close(), os.RemoveAll(d.Dir))
	}
	return err
}

// wishes is what a client's specification of a VM comes to.
type wishes struct {
	disks       []diskSpec
	controllers []types.BaseVirtualDevice
	cards       []types.BaseVirtualDeviceConfigSpec
	keys        map[int32]int32 // of controllers: ours by the client's
}

// make makes the VM that a client's specification wants, powered off.
func (l *Lab) make(folder types.ManagedObjectReference, config types.VirtualMachineConfigSpec, pool types.ManagedObjectReference, host *types.ManagedObjectReference) (*guest, types.BaseMethodFault) {
	ctx := l.fresh()
	parent, isFolder := ctx.Map.Get(folder).(*simulator.Folder)
	if !isFolder || config.Name == "" || config.Files == nil {
		return nil, &types.InvalidArgument{InvalidProperty: "config"}
	}
	if taken := ctx.Map.FindByName(config.Name, parent.ChildEntity); taken != nil {
		return nil, &types.DuplicateName{Name: config.Name, Object: taken.Reference()}
	}
	vmx, files, fault := l.home(config.Files.VmPathName, config.Name)
	if fault != nil {
		return nil, fault
	}
	wish, fault := l.understand(config, vmx)
	if fault != nil {
		return nil, fault
	}
	config.Files = &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s] %s/%s.vmx", vmx, files, files)}
	config.DeviceChange = wish.cards
	if config.Uuid == "" {
		config.Uuid = "4229" + uuid.NewString()[4:]
	}
	if config.InstanceUuid == "" {
		config.InstanceUuid = "5029" + uuid.NewString()[4:]
	}
	g := &guest{lab: l, uuid: config.InstanceUuid, vmSpec: vmSpec{
		name: config.Name, files: files, guestID: config.GuestId, vmx: vmx, disks: wish.disks, buses: wish.controllers, off: true,
		firmware: config.Firmware, odd: true,
	}}
	if err := g.makeFiles(); err != nil {
		return nil, failure(errors.Join(err, g.removeFiles()))
	}
	if fault := g.enter(ctx, parent, config, pool, host); fault != nil {
		_ = g.removeFiles()
		return nil, fault
	}
	l.guestsMu.Lock()
	l.guests = append(l.guests, g)
	l.guestsMu.Unlock()
	l.refreshFree()
	return g, nil
}

// home returns the datastore of a new VM's files and their folder there, which no other VM has.
func (l *Lab) home(wanted, name string) (string, string, types.BaseMethodFault) {
	var place object.DatastorePath
	if !place.FromString(wanted) {
		return "", "", &types.InvalidDatastorePath{DatastorePath: wanted}
	}
	if fault := l.writable(place.Datastore); fault != nil {
		return "", "", fault
	}
	files := path.Dir(place.Path)
	if place.Path == "" {
		files = strings.NewReplacer("%2f", "_", "%5c", "_", "%25", "_", "/", "_").Replace(name)
	}
	taken := func(folder string) bool {
		for _, datastore := range datastoreNames {
			if exists(filepath.Join(l.Datastores, datastore, folder)) {
				return true
			}
		}
		return false
	}
	free := files
	for n := 1; taken(free); n++ {
		free = fmt.Sprintf("%s_%d", files, n)
	}
	return place.Datastore, free, nil
}

// writable returns why nothing can be made on a datastore, as a fault.
func (l *Lab) writable(datastore string) types.BaseMethodFault {
	switch {
	case !slices.Contains(datastoreNames, datastore):
		return &types.InvalidDatastorePath{DatastorePath: "[" + datastore + "]"}
	case slices.Contains(l.knobs.get().ReadOnly, datastore):
		return &types.CannotCreateFile{FileFault: types.FileFault{File: "[" + datastore + "]"}}
	}
	return nil
}

// understand sorts the devices of a specification and gives controllers and disks their keys.
func (l *Lab) understand(config types.VirtualMachineConfigSpec, vmx string) (*wishes, types.BaseMethodFault) {
	wish := &wishes{keys: map[int32]int32{200: 200, 201: 201}}
	var disks []*types.VirtualDisk
	for i, change := range config.DeviceChange {
		spec := change.GetVirtualDeviceConfigSpec()
		invalid := &types.InvalidDeviceSpec{DeviceIndex: int32(i)}
		if spec.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			return nil, invalid
		}
		switch device := spec.Device.(type) {
		case *types.VirtualDisk:
			if spec.FileOperation != types.VirtualDeviceConfigSpecFileOperationCreate {
				return nil, invalid
			}
			disks = append(disks, device)
		case types.BaseVirtualEthernetCard:
			card := device.GetVirtualEthernetCard()
			card.Key, card.ControllerKey, card.UnitNumber = int32(nicKey+len(wish.cards)), 100, types.NewInt32(int32(7+len(wish.cards)))
			wish.cards = append(wish.cards, change)
		case types.BaseVirtualController:
			base, known := controllerBase(spec.Device)
			if !known {
				return nil, invalid
			}
			controller := device.GetVirtualController()
			wish.keys[controller.Key] = base + controller.BusNumber
			controller.Key, controller.ControllerKey, controller.Device = base+controller.BusNumber, 100, nil
			if slices.ContainsFunc(wish.controllers, func(each types.BaseVirtualDevice) bool { return each.GetVirtualDevice().Key == controller.Key }) {
				return nil, invalid
			}
			controller.DeviceInfo = &types.Description{Label: fmt.Sprintf("controller %d", controller.Key), Summary: fmt.Sprintf("%T", spec.Device)}
			wish.controllers = append(wish.controllers, spec.Device)
		default:
			return nil, invalid
		}
	}
	for i, disk := range disks {
		made, fault := l.understandDisk(disk, wish, vmx)
		if fault != nil {
			return nil, fault
		}
		if slices.ContainsFunc(wish.disks[:i], func(each diskSpec) bool { return each.key == made.key }) {
			return nil, &types.InvalidDeviceSpec{DeviceIndex: int32(i)}
		}
		wish.disks = append(wish.disks, made)
	}
	return wish, nil
}

func (l *Lab) understandDisk(disk *types.VirtualDisk, wish *wishes, vmx string) (diskSpec, types.BaseMethodFault) {
	backing, isFlat := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	controller, known := wish.keys[disk.ControllerKey]
	if !isFlat || !known || disk.UnitNumber == nil {
		return diskSpec{}, &types.InvalidArgument{InvalidProperty: "config.deviceChange.device"}
	}
	made := diskSpec{controller: controller, unit: *disk.UnitNumber, capacity: disk.CapacityInBytes, datastore: vmx}
	made.key = diskKey(controller, made.unit)
	if made.capacity == 0 {
		made.capacity = disk.CapacityInKB * 1024
	}
	made.independent = strings.HasPrefix(backing.DiskMode, "independent")
	var place object.DatastorePath
	if place.FromString(backing.FileName) {
		made.datastore = place.Datastore
	}
	if backing.Datastore != nil {
		for name, ref := range l.datastores {
			if ref == *backing.Datastore {
				made.datastore = name
			}
		}
	}
	return made, l.writable(made.datastore)
}

// controllerBase returns the key of the first controller of that kind.
func controllerBase(device types.BaseVirtualDevice) (int32, bool) {
	switch device.(type) {
	case types.BaseVirtualSCSIController:
		return scsiKey, true
	case types.BaseVirtualSATAController:
		return ahciKey, true
	case *types.VirtualNVMEController:
		return nvmeKey, true
	}
	return 0, false
}

// diskKey returns the key that ESXi gives the disk with that unit on that controller.
func diskKey(controller, unit int32) int32 {
	switch {
	case controller >= nvmeKey:
		return nvmeDisk + 15*(controller-nvmeKey) + unit
	case controller >= ahciKey:
		return ahciDisk + 30*(controller-ahciKey) + unit
	case controller >= scsiKey:
		return scsiDisk + 16*(controller-scsiKey) + unit
	}
	return ideDisk + 2*(controller-200) + unit
}

// makeFiles makes the folders and disks of a new VM, each folder marked.
func (g *guest) makeFiles() error {
	if err := g.markFolder(g.home()); err != nil {
		return err
	}
	for _, d := range g.vmSpec.disks {
		if err := g.markFolder(filepath.Join(g.lab.Datastores, d.datastore, g.files)); err != nil {
			return err
		}
	}
	return g.openDisks()
}

func (g *guest) markFolder(folder string) error {
	return errors.Join(os.MkdirAll(folder, 0o700), os.WriteFile(filepath.Join(folder, madeMark), nil, 0o600))
}

// enter has the simulator make the VM without its disks, and gives it those.
func (g *guest) enter(ctx *simulator.Context, folder *simulator.Folder, config types.VirtualMachineConfigSpec, pool types.ManagedObjectReference, host *types.ManagedObjectReference) types.BaseMethodFault {
	body, _ := folder.CreateVMTask(ctx, &types.CreateVM_Task{This: folder.Self, Config: config, Pool: pool, Host: host}).(*methods.CreateVM_TaskBody)
	if body == nil || body.Res == nil {
		return failure(errors.New("the simulator makes no VM in this folder"))
	}
	task, _ := ctx.Map.Get(body.Res.Returnval).(*simulator.Task)
	task.Wait()
	if task.Info.Error != nil {
		fault, _ := task.Info.Error.Fault.(types.BaseMethodFault)
		return fault
	}
	ref, _ := task.Info.Result.(types.ManagedObjectReference)
	g.vm, _ = ctx.Map.Get(ref).(*simulator.VirtualMachine)
	g.path = inventoryPath(ctx, g.vm.Reference())
	if err := os.WriteFile(filepath.Join(g.home(), g.files+".vmx"), []byte(g.vmxText()), 0o600); err != nil {
		return failure(err)
	}
	g.giveDisks(ctx)
	return nil
}

// inventoryPath returns where an object stands, such as /DC0/vm/prod/pgtest1.
func inventoryPath(ctx *simulator.Context, ref types.ManagedObjectReference) string {
	var steps []string
	for here := ref; ; {
		entity, isEntity := ctx.Map.Get(here).(mo.Entity)
		if !isEntity || entity.Entity().Parent == nil {
			return "/" + strings.Join(steps, "/")
		}
		steps = append([]string{entity.Entity().Name}, steps...)
		here = *entity.Entity().Parent
	}
}
