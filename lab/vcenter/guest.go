// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"crypto/rand"
	"fmt"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// guest is a VM with real disks.
type guest struct {
	vmSpec
	lab   *Lab
	path  string // inventory path
	uuid  string // instance uuid
	vm    *simulator.VirtualMachine
	disks []*disk
	gone  atomic.Bool // not in the inventory now

	// busy is held by a task that works on the disks' layers; vCenter allows one at a time.
	busy sync.Mutex

	mu        sync.Mutex
	snapshots []*snapshot // one line, oldest first
	numbers   int32       // of the last snapshot
	truths    map[int32]truthFile
}

// disk is a disk in the eyes of vSphere.
type disk struct {
	*storage.Disk
	diskSpec
	label string
	place types.ManagedObjectReference // its datastore

	vanished atomic.Bool  // nobody can read its files now
	written  atomic.Int64 // bytes that came over port 902
	growth   atomic.Int64 // bytes that it grows by at the next snapshot

	mu         sync.Mutex
	generation string // of change tracking; empty while it is off
	sequence   int
}

// home returns the folder of the .vmx on this host.
func (g *guest) home() string { return filepath.Join(g.lab.Datastores, g.vmx, g.files) }

// runtime returns a copy of the VM's state.
func (g *guest) runtime() types.VirtualMachineRuntimeInfo {
	var runtime types.VirtualMachineRuntimeInfo
	g.lab.fresh().WithLock(g.vm, func() { runtime = g.vm.Runtime })
	return runtime
}

// dependent returns the disks that take part in snapshots.
func (g *guest) dependent() []*disk {
	var found []*disk
	for _, d := range g.disks {
		if !d.independent {
			found = append(found, d)
		}
	}
	return found
}

func (g *guest) disk(key int32) *disk {
	for _, d := range g.disks {
		if d.key == key {
			return d
		}
	}
	return nil
}

// tracking says whether the VM's configuration wants change tracking. The context may hold the VM's lock.
func (g *guest) tracking(ctx *simulator.Context) bool {
	enabled := false
	ctx.WithLock(g.vm, func() {
		enabled = g.vm.Config.ChangeTrackingEnabled != nil && *g.vm.Config.ChangeTrackingEnabled
	})
	return enabled
}

// trackFromNow starts or ends change tracking on each disk, as a stun does.
func (g *guest) trackFromNow() {
	enabled := g.tracking(g.lab.fresh())
	for _, d := range g.disks {
		d.mu.Lock()
		switch {
		case !enabled || d.independent:
			d.generation = ""
		case d.generation == "":
			id := make([]byte, 16)
			_, _ = rand.Read(id)
			d.generation, d.sequence = fmt.Sprintf("% x-% x", id[:8], id[8:]), 1
		}
		d.mu.Unlock()
	}
}

// changeID returns the disk's present change id, empty without tracking.
func (d *disk) changeID() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.generation == "" {
		return ""
	}
	return fmt.Sprintf("%s/%d", d.generation, d.sequence)
}

// nextChangeID returns the id that a snapshot taken now records; what is written after it belongs to the next one.
func (d *disk) nextChangeID() string {
	id := d.changeID()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sequence++
	return id
}

// mode says how the disk takes part in snapshots.
func (d *disk) mode() types.VirtualDiskMode {
	if d.independent {
		return types.VirtualDiskModeIndependent_persistent
	}
	return types.VirtualDiskModePersistent
}

// spell returns a file beside the disk as vCenter names it.
func (d *disk) spell(file string) string {
	return fmt.Sprintf("[%s] %s/%s", d.datastore, path.Base(d.Dir), file)
}

// device returns the disk as a configuration that ends in the given layer shows it.
func (d *disk) device(layer *storage.Layer, changeID string) types.BaseVirtualDevice {
	return &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: d.key, ControllerKey: d.controller, UnitNumber: types.NewInt32(d.unit),
			DeviceInfo: &types.Description{Label: d.label, Summary: fmt.Sprintf("%d KB", d.Size()/1024)},
			Backing:    d.backing(d.Names(layer), changeID),
		},
		CapacityInKB:               d.Size() / 1024,
		CapacityInBytes:            d.Size(),
		StorageIOAllocation:        &types.StorageIOAllocationInfo{Limit: types.NewInt64(-1)},
		DiskObjectId:               fmt.Sprintf("%s-%d", path.Base(d.Dir), d.key),
		NativeUnmanagedLinkedClone: types.NewBool(false),
	}
}

// backing returns the chain of files, the top one first. A delta has the uuid of its base, as on ESXi.
func (d *disk) backing(names []string, changeID string) *types.VirtualDiskFlatVer2BackingInfo {
	datastore := d.place
	info := &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.spell(names[0]), Datastore: &datastore},
		DiskMode:                     string(d.mode()),
		Split:                        types.NewBool(false),
		WriteThrough:                 types.NewBool(false),
		ThinProvisioned:              types.NewBool(true),
		EagerlyScrub:                 types.NewBool(false),
		DigestEnabled:                types.NewBool(false),
		Uuid:                         d.UUID,
		ChangeId:                     changeID,
		Sharing:                      string(types.VirtualDiskSharingSharingNone),
	}
	if len(names) > 1 {
		info.DeltaDiskFormat = string(types.VirtualDiskDeltaDiskFormatRedoLogFormat)
		info.Parent = d.backing(names[1:], "")
	}
	return info
}
