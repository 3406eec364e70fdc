// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// kinds are the files beside the disks that a VM at rest has, by suffix.
var kinds = map[string]types.VirtualMachineFileLayoutExFileType{
	".vmx":   types.VirtualMachineFileLayoutExFileTypeConfig,
	".nvram": types.VirtualMachineFileLayoutExFileTypeNvram,
	".log":   types.VirtualMachineFileLayoutExFileTypeLog,
}

// layout gathers which files a VM has and what they take.
type layout struct {
	types.VirtualMachineFileLayoutEx
	keys  map[string]int32 // of files, by name
	usage map[types.ManagedObjectReference]*types.VirtualMachineUsageOnDatastore
}

// add enters a file of this host under the name that vCenter has for it. Its size is what is allocated: as on VMFS, a thin
// disk's holes take nothing.
func (l *layout) add(kind types.VirtualMachineFileLayoutExFileType, place types.ManagedObjectReference, name, file string) int32 {
	if key, known := l.keys[name]; known {
		return key
	}
	bytes := storage.Allocated(file)
	key := int32(len(l.File))
	l.keys[name] = key
	l.File = append(l.File, types.VirtualMachineFileLayoutExFileInfo{
		Key: key, Name: name, Type: string(kind), Size: bytes, UniqueSize: bytes, Accessible: types.NewBool(true),
	})
	on := l.usage[place]
	if on == nil {
		on = &types.VirtualMachineUsageOnDatastore{Datastore: place}
		l.usage[place] = on
	}
	on.Committed += bytes
	on.Unshared += bytes
	return key
}

// disk adds the files of a disk up to a layer, the base first.
func (l *layout) disk(d *disk, upTo *storage.Layer) types.VirtualMachineFileLayoutExDiskLayout {
	of := types.VirtualMachineFileLayoutExDiskLayout{Key: d.key}
	for _, files := range d.Files(upTo) {
		of.Chain = append(of.Chain, types.VirtualMachineFileLayoutExDiskUnit{FileKey: []int32{
			l.add(types.VirtualMachineFileLayoutExFileTypeDiskDescriptor, d.place, d.spell(filepath.Base(files.Descriptor)), files.Descriptor),
			l.add(types.VirtualMachineFileLayoutExFileTypeDiskExtent, d.place, d.spell(filepath.Base(files.Extent)), files.Extent),
		}})
	}
	return of
}

// measureFiles makes layoutEx and what vCenter sums up from it agree with the files. The context may hold the VM's lock.
func (g *guest) measureFiles(ctx *simulator.Context) {
	g.mu.Lock()
	snapshots := append([]*snapshot(nil), g.snapshots...)
	g.mu.Unlock()
	now := time.Now()
	all := &layout{keys: map[string]int32{}, usage: map[types.ManagedObjectReference]*types.VirtualMachineUsageOnDatastore{}}
	all.Timestamp = now
	home := g.lab.datastores[g.vmx]
	spell := func(file string) string { return "[" + g.vmx + "] " + g.files + "/" + filepath.Base(file) }
	entries, _ := os.ReadDir(g.home())
	for _, entry := range entries {
		if kind := kinds[filepath.Ext(entry.Name())]; kind != "" {
			all.add(kind, home, spell(entry.Name()), filepath.Join(g.home(), entry.Name()))
		}
	}
	for _, d := range g.disks {
		all.Disk = append(all.Disk, all.disk(d, d.Top()))
		all.usage[d.place].Uncommitted += max(d.Size()-storage.Allocated(d.LiveExtent()), 0)
	}
	for _, one := range snapshots {
		of := types.VirtualMachineFileLayoutExSnapshotLayout{
			Key: one.ref, MemoryKey: -1,
			DataKey: all.add(types.VirtualMachineFileLayoutExFileTypeSnapshotData, home, spell(one.vmsn), one.vmsn),
		}
		for _, d := range g.dependent() {
			of.Disk = append(of.Disk, all.disk(d, one.frozen[d.key]))
		}
		all.Snapshot = append(all.Snapshot, of)
	}
	sum := &types.VirtualMachineStorageSummary{Timestamp: now}
	usage := &types.VirtualMachineStorageInfo{Timestamp: now}
	for _, name := range datastoreNames {
		if on := all.usage[g.lab.datastores[name]]; on != nil {
			usage.PerDatastoreUsage = append(usage.PerDatastoreUsage, *on)
			sum.Committed, sum.Uncommitted, sum.Unshared = sum.Committed+on.Committed, sum.Uncommitted+on.Uncommitted, sum.Unshared+on.Unshared
		}
	}
	ctx.WithLock(g.vm, func() {
		ctx.Update(g.vm, []types.PropertyChange{
			{Name: "layoutEx", Val: &all.VirtualMachineFileLayoutEx}, {Name: "storage", Val: usage}, {Name: "summary.storage", Val: sum},
		})
	})
}

// RefreshStorageInfo measures the VM's files anew; the simulator's own would count holes as data.
func (v *vmMethods) RefreshStorageInfo(ctx *simulator.Context, _ *types.RefreshStorageInfo) soap.HasFault {
	v.guest.measureFiles(ctx)
	return &methods.RefreshStorageInfoBody{Res: new(types.RefreshStorageInfoResponse)}
}
