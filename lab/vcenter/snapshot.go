// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"

	"sendense.example/lab/vcenter/storage"
)

// snapshot is one snapshot of a guest: for each disk, which layer it froze.
type snapshot struct {
	ref               types.ManagedObjectReference
	object            *simulator.VirtualMachineSnapshot
	id                int32
	name, description string
	created           time.Time
	state             types.VirtualMachinePowerState
	quiesced          bool
	frozen            map[int32]*storage.Layer
	changeIDs         map[int32]string
	content           map[int32]storage.Ranges // allocated when it froze, on the grid of change tracking
	vmsn              string
	truth             string
}

// vmMethods are the calls to a VM that we answer in the simulator's place.
type vmMethods struct {
	Self  types.ManagedObjectReference
	guest *guest
}

// Reference makes it an object that the simulator can dispatch to.
func (v *vmMethods) Reference() types.ManagedObjectReference { return v.Self }

// snapshotMethods are the calls to a snapshot that we answer.
type snapshotMethods struct {
	Self  types.ManagedObjectReference
	guest *guest
}

// Reference makes it an object that the simulator can dispatch to.
func (s *snapshotMethods) Reference() types.ManagedObjectReference { return s.Self }

// CreateSnapshotTask is the old call, with quiescing as a mere flag.
func (v *vmMethods) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{
		Returnval: v.guest.takeSnapshot(ctx, req.Name, req.Description, req.Quiesce, req.Memory),
	}}
}

// CreateSnapshotExTask is the call with a specification of quiescing.
func (v *vmMethods) CreateSnapshotExTask(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	return &methods.CreateSnapshotEx_TaskBody{Res: &types.CreateSnapshotEx_TaskResponse{
		Returnval: v.guest.takeSnapshot(ctx, req.Name, req.Description, req.QuiesceSpec != nil, req.Memory),
	}}
}

// RemoveAllSnapshotsTask removes every snapshot.
func (v *vmMethods) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	g := v.guest
	all := func(*snapshot) bool { return true }
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{
		Returnval: g.start(ctx, "removeAllSnapshots", g.removal(all, req.Consolidate)),
	}}
}

// ConsolidateVMDisksTask joins deltas that no snapshot needs.
func (v *vmMethods) ConsolidateVMDisksTask(ctx *simulator.Context, _ *types.ConsolidateVMDisks_Task) soap.HasFault {
	g := v.guest
	none := func(*snapshot) bool { return false }
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{
		Returnval: g.start(ctx, "consolidateDisks", g.removal(none, nil)),
	}}
}

// RemoveSnapshotTask removes one snapshot, or it and all that stand on it.
func (s *snapshotMethods) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	g, below := s.guest, false
	chosen := func(one *snapshot) bool {
		below = below || one.ref == s.Self
		return one.ref == s.Self || below && req.RemoveChildren
	}
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{
		Returnval: g.start(ctx, "removeSnapshot", g.removal(chosen, req.Consolidate)),
	}}
}

// RevertToSnapshotTask is refused: the simulator's own would report success and change nothing.
func (s *snapshotMethods) RevertToSnapshotTask(*simulator.Context, *types.RevertToSnapshot_Task) soap.HasFault {
	return &methods.RevertToSnapshot_TaskBody{Fault_: simulator.Fault("The lab does not revert.", new(types.NotSupported))}
}

// RevertToCurrentSnapshotTask is refused likewise.
func (v *vmMethods) RevertToCurrentSnapshotTask(*simulator.Context, *types.RevertToCurrentSnapshot_Task) soap.HasFault {
	return &methods.RevertToCurrentSnapshot_TaskBody{Fault_: simulator.Fault("The lab does not revert.", new(types.NotSupported))}
}

func (g *guest) snapshot(ref types.ManagedObjectReference) *snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, one := range g.snapshots {
		if one.ref == ref {
			return one
		}
	}
	return nil
}

func (g *guest) takeSnapshot(ctx *simulator.Context, name, description string, quiesce, memory bool) types.ManagedObjectReference {
	return g.start(ctx, "createSnapshot", func(progress func(int32)) (types.AnyType, types.BaseMethodFault) {
		if !g.busy.TryLock() {
			return nil, new(types.TaskInProgress)
		}
		defer g.busy.Unlock()
		if g.refuses != "" {
			return nil, failure(errors.New(g.refuses))
		}
		knobs := g.lab.knobs.get()
		sleep(knobs.CreateSnapshotMS)
		if quiesce && knobs.Quiesce == "fail" {
			return nil, new(types.ApplicationQuiesceFault)
		}
		if err := g.grow(); err != nil {
			return nil, failure(err)
		}
		made, err := g.freeze(name, description, quiesce && knobs.Quiesce == "ok", memory, progress)
		if err != nil {
			return nil, failure(err)
		}
		if knobs.CreateSnapshotFault != "" {
			return nil, newFault(knobs.CreateSnapshotFault)
		}
		return made.ref, nil
	})
}

// freeze makes the snapshot. When it fails, the VM is as before.
func (g *guest) freeze(name, description string, quiesced, memory bool, progress func(int32)) (*snapshot, error) {
	made := &snapshot{
		name: name, description: description, quiesced: quiesced, created: time.Now().UTC(),
		frozen: map[int32]*storage.Layer{}, changeIDs: map[int32]string{}, content: map[int32]storage.Ranges{},
		state: types.VirtualMachinePowerStatePoweredOff,
	}
	ctx := g.lab.fresh()
	ctx.WithLock(g.vm, func() {
		if memory {
			made.state = g.vm.Runtime.PowerState
		}
	})
	var disks []*storage.Disk
	for _, d := range g.dependent() {
		disks = append(disks, d.Disk)
	}
	// The stun: change tracking turned on or off since the last one begins or ends here.
	g.trackFromNow()
	layers, err := storage.Freeze(disks...)
	if err != nil {
		return nil, err
	}
	for i, d := range g.dependent() {
		made.frozen[d.key], made.changeIDs[d.key] = layers[i], d.nextChangeID()
	}
	progress(30)

	g.mu.Lock()
	g.numbers++
	made.id = g.numbers
	g.mu.Unlock()
	made.object = &simulator.VirtualMachineSnapshot{}
	made.object.Vm = g.vm.Self
	ctx.WithLock(g.vm, func() { made.object.Config = cloneConfig(g.vm.Config) })
	made.ref = ctx.Map.Put(made.object).Reference()
	err = errors.Join(g.measure(made), g.keepTruth(made))
	if err == nil {
		made.vmsn, err = g.writeVmsn(made)
	}
	if err != nil {
		ctx.Map.Remove(ctx, made.ref)
		_ = os.RemoveAll(made.truth)
		return nil, errors.Join(err, g.consolidate(g.snapshots))
	}
	progress(90)
	g.mu.Lock()
	g.snapshots = append(g.snapshots, made)
	g.mu.Unlock()
	g.lab.stats.change(&g.lab.stats.snapshots, 1)
	g.publish()
	return made, nil
}

// measure notes what is allocated. The bytes of a snapshot do not change, so this holds for its life,
// however the files beneath it are joined.
func (g *guest) measure(one *snapshot) error {
	for _, d := range g.dependent() {
		content, err := d.Content(one.frozen[d.key])
		if err != nil {
			return err
		}
		one.content[d.key] = content.Widen(cbtCell, d.Size())
	}
	return nil
}

// removal returns the work of removing the chosen snapshots.
func (g *guest) removal(chosen func(*snapshot) bool, consolidate *bool) work {
	return func(progress func(int32)) (types.AnyType, types.BaseMethodFault) {
		if !g.busy.TryLock() {
			return nil, new(types.TaskInProgress)
		}
		defer g.busy.Unlock()
		g.lab.stats.change(&g.lab.stats.removals, 1)
		defer g.lab.stats.change(&g.lab.stats.removals, -1)
		sleep(g.lab.knobs.get().RemoveSnapshotMS)
		g.mu.Lock()
		var kept, gone []*snapshot
		for _, one := range g.snapshots {
			if chosen(one) {
				gone = append(gone, one)
			} else {
				kept = append(kept, one)
			}
		}
		g.snapshots = kept
		g.mu.Unlock()
		progress(10)
		var err error
		if consolidate == nil || *consolidate {
			err = g.consolidate(kept)
		}
		ctx := g.lab.fresh()
		for _, one := range gone {
			err = errors.Join(err, os.Remove(one.vmsn))
		}
		g.publish()
		for _, one := range gone {
			ctx.Map.Remove(ctx, one.ref)
		}
		g.lab.stats.change(&g.lab.stats.snapshots, -len(gone))
		if err != nil {
			return nil, failure(err)
		}
		return nil, nil
	}
}

// consolidate joins every delta that none of the kept snapshots needs.
func (g *guest) consolidate(kept []*snapshot) error {
	var err error
	for _, d := range g.dependent() {
		needed := map[*storage.Layer]bool{}
		for _, one := range kept {
			needed[one.frozen[d.key]] = true
		}
		became, failed := d.Consolidate(needed)
		err = errors.Join(err, failed)
		g.mu.Lock()
		for _, one := range kept {
			// A layer may have sunk by more than one step.
			for next := became[one.frozen[d.key]]; next != nil; next = became[next] {
				one.frozen[d.key] = next
			}
		}
		g.mu.Unlock()
	}
	return err
}

// publish makes the VM's and the snapshots' properties agree with the disks and the list of snapshots.
func (g *guest) publish() {
	g.mu.Lock()
	snapshots := append([]*snapshot(nil), g.snapshots...)
	g.mu.Unlock()
	ctx := g.lab.fresh()
	for i, one := range snapshots {
		var children []types.ManagedObjectReference
		if i+1 < len(snapshots) {
			children = []types.ManagedObjectReference{snapshots[i+1].ref}
		}
		ctx.WithLock(one.object, func() {
			ctx.Update(one.object, []types.PropertyChange{
				{Name: "config.hardware.device", Val: g.devices(one.object.Config.Hardware.Device, one)},
				{Name: "childSnapshot", Val: children},
			})
		})
	}
	var info any
	var roots []types.ManagedObjectReference
	if len(snapshots) > 0 {
		roots = []types.ManagedObjectReference{snapshots[0].ref}
		current := snapshots[len(snapshots)-1].ref
		info = &types.VirtualMachineSnapshotInfo{CurrentSnapshot: &current, RootSnapshotList: g.tree(snapshots)}
	}
	ctx.WithLock(g.vm, func() {
		ctx.Update(g.vm, []types.PropertyChange{
			{Name: "config.hardware.device", Val: g.devices(g.vm.Config.Hardware.Device, nil)},
			{Name: "snapshot", Val: info},
			{Name: "rootSnapshot", Val: roots},
			{Name: "runtime.consolidationNeeded", Val: g.stray(snapshots)},
			{Name: "summary.runtime.consolidationNeeded", Val: g.stray(snapshots)},
		})
	})
	g.measureFiles(ctx)
	g.lab.refreshFree()
}

// stray says whether a disk has deltas that no snapshot accounts for.
func (g *guest) stray(snapshots []*snapshot) bool {
	for _, d := range g.dependent() {
		needed := map[*storage.Layer]bool{}
		for _, one := range snapshots {
			needed[one.frozen[d.key]] = true
		}
		if len(d.Names(d.Top())) > len(needed)+1 {
			return true
		}
	}
	return false
}

// devices returns a new list with the disks as a snapshot, or with nil the running VM, has them.
func (g *guest) devices(old []types.BaseVirtualDevice, of *snapshot) []types.BaseVirtualDevice {
	devices := make([]types.BaseVirtualDevice, 0, len(old))
	for _, device := range old {
		if _, isDisk := device.(*types.VirtualDisk); isDisk {
			if d := g.disk(device.GetVirtualDevice().Key); d != nil {
				layer, id := d.Top(), d.changeID()
				if of != nil && !d.independent {
					layer, id = of.frozen[d.key], of.changeIDs[d.key]
				}
				device = d.device(layer, id)
			}
		}
		devices = append(devices, device)
	}
	return devices
}

func (g *guest) tree(line []*snapshot) []types.VirtualMachineSnapshotTree {
	if len(line) == 0 {
		return nil
	}
	one := line[0]
	return []types.VirtualMachineSnapshotTree{{
		Snapshot: one.ref, Vm: g.vm.Self, Name: one.name, Description: one.description, Id: one.id,
		CreateTime: one.created, State: one.state, Quiesced: one.quiesced, ReplaySupported: types.NewBool(false),
		ChildSnapshotList: g.tree(line[1:]),
	}}
}

// writeVmsn makes the file that ESXi keeps for a snapshot beside the .vmx.
func (g *guest) writeVmsn(one *snapshot) (string, error) {
	file := filepath.Join(g.home(), fmt.Sprintf("%s-Snapshot%d.vmsn", g.files, one.id))
	return file, os.WriteFile(file, []byte(one.ref.Value+"\n"), 0o600)
}

// cloneConfig copies a configuration so that no part is shared.
func cloneConfig(config *types.VirtualMachineConfigInfo) types.VirtualMachineConfigInfo {
	var clone types.VirtualMachineConfigInfo
	text, err := xml.Marshal(config)
	if err == nil {
		decoder := xml.NewDecoder(bytes.NewReader(text))
		decoder.TypeFunc = types.TypeFunc()
		err = decoder.Decode(&clone)
	}
	if err != nil {
		log.Panicf("a configuration that cannot be copied: %v", err)
	}
	return clone
}

var _ mo.Reference = (*vmMethods)(nil)
