// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// setRegistered takes the VM out of the inventory, or brings it back. Its files stay as they are, deltas and all, and it comes
// back with the morefs that it had.
func (g *guest) setRegistered(registered bool) {
	if g.gone.Swap(!registered) == !registered {
		return
	}
	ctx := g.lab.fresh()
	change := ctx.Map.RemoveReference
	if registered {
		change = ctx.Map.AddReference
		ctx.Map.Put(g.vm)
	}
	list := func(holder types.ManagedObjectReference) {
		switch object := ctx.Map.Get(holder).(type) {
		case *simulator.HostSystem:
			change(ctx, object, &object.Vm, g.vm.Self)
		case *simulator.ResourcePool:
			change(ctx, object, &object.Vm, g.vm.Self)
		case *simulator.Datastore:
			change(ctx, object, &object.Vm, g.vm.Self)
		case *simulator.Folder:
			change(ctx, object, &object.ChildEntity, g.vm.Self)
		}
	}
	list(*g.runtime().Host)
	list(*g.vm.Parent)
	if g.vm.ResourcePool != nil {
		list(*g.vm.ResourcePool)
	}
	for _, datastore := range g.vm.Datastore {
		list(datastore)
	}
	g.mu.Lock()
	snapshots := append([]*snapshot(nil), g.snapshots...)
	g.mu.Unlock()
	for _, one := range snapshots {
		if registered {
			ctx.Map.Put(one.object)
		} else {
			ctx.Map.Remove(ctx, one.ref)
		}
	}
	if !registered {
		ctx.Map.Remove(ctx, g.vm.Self)
		return
	}
	g.publish()
}

// setHost moves the running VM to the host with that name or moref, as vMotion does.
func (g *guest) setHost(wish string) error {
	var names []string
	for _, host := range g.lab.hosts {
		if wish != host.Name && wish != host.Self.Value {
			names = append(names, host.Name)
			continue
		}
		ctx := g.lab.fresh()
		old, _ := ctx.Map.Get(*g.runtime().Host).(*simulator.HostSystem)
		ctx.Map.RemoveReference(ctx, old, &old.Vm, g.vm.Self)
		ctx.Map.AddReference(ctx, host, &host.Vm, g.vm.Self)
		ctx.WithLock(g.vm, func() {
			ctx.Update(g.vm, []types.PropertyChange{
				{Name: "runtime.host", Val: &host.Self}, {Name: "summary.runtime.host", Val: &host.Self},
			})
		})
		return nil
	}
	return fmt.Errorf("no host is named %q; there are: %s", wish, strings.Join(names, ", "))
}

// setStray makes the VM need consolidation, by deltas that belong to no snapshot, or consolidates it.
func (g *guest) setStray(needed bool) error {
	g.busy.Lock()
	defer g.busy.Unlock()
	g.mu.Lock()
	snapshots := append([]*snapshot(nil), g.snapshots...)
	g.mu.Unlock()
	var err error
	switch {
	case !needed:
		err = g.consolidate(snapshots)
	case !g.stray(snapshots):
		var disks []*storage.Disk
		for _, d := range g.dependent() {
			disks = append(disks, d.Disk)
		}
		// One delta more than the snapshots account for; without any snapshot that takes just one.
		_, err = storage.Freeze(disks...)
	}
	g.publish()
	return err
}

// grow lets the disks grow that were told to at the next snapshot.
func (g *guest) grow() error {
	for _, d := range g.disks {
		if bytes := d.growth.Swap(0); bytes > 0 {
			if err := d.Grow(bytes); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing says that the disk's files cannot be read now, nil when they can. Whatever serves them asks for each piece.
func (d *disk) missing() error {
	if d.vanished.Load() {
		return fmt.Errorf("%s was not found", d.spell(d.Names(d.Top())[0]))
	}
	return nil
}
