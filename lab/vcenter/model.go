// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// build makes the inventory: the simulator's own model for all but datastores and VMs, which need real files.
func (l *Lab) build() error {
	model := simulator.VPX()
	model.Host, model.ClusterHost, model.Datastore, model.Machine = 0, hosts, 0, 0
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
	for _, entity := range ctx.Map.All("HostSystem") {
		host, _ := entity.(*simulator.HostSystem)
		l.hosts = append(l.hosts, host)
	}
	slices.SortFunc(l.hosts, func(a, b *simulator.HostSystem) int { return strings.Compare(a.Name, b.Name) })
	if err := errors.Join(l.forgetMade(), l.addDatastores(ctx, client)); err != nil {
		return err
	}
	dc, _ := ctx.Map.Any("Datacenter").(*simulator.Datacenter)
	l.datacenter = "/" + dc.Name
	folders := map[string]*object.Folder{}
	for _, spec := range vmSpecs() {
		if folders[spec.folder] == nil {
			made, err := object.NewFolder(client, dc.VmFolder).CreateFolder(ctx, spec.folder)
			if err != nil {
				return err
			}
			folders[spec.folder] = made
		}
		g := &guest{lab: l, vmSpec: spec}
		l.guests = append(l.guests, g)
		if err := errors.Join(g.openDisks(), g.register(ctx, client, folders[spec.folder])); err != nil {
			return fmt.Errorf("VM %s: %w", spec.name, err)
		}
	}
	l.refreshFree()
	return nil
}

// forgetMade removes the files of VMs that clients of an earlier run had made: they are in no inventory any more.
func (l *Lab) forgetMade() error {
	marks, err := filepath.Glob(filepath.Join(l.Datastores, "*", "*", madeMark))
	for _, mark := range marks {
		err = errors.Join(err, os.RemoveAll(filepath.Dir(mark)))
	}
	return err
}

// addDatastores makes folders of this host datastores that every ESXi host has mounted.
func (l *Lab) addDatastores(ctx *simulator.Context, client *vim25.Client) error {
	l.datastores = map[string]types.ManagedObjectReference{}
	for _, name := range datastoreNames {
		folder := filepath.Join(l.Datastores, name)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		for _, host := range l.hosts {
			system, err := object.NewHostSystem(client, host.Self).ConfigManager().DatastoreSystem(ctx)
			if err != nil {
				return err
			}
			made, err := system.CreateLocalDatastore(ctx, name, folder)
			if err != nil {
				return err
			}
			if made.Reference().Value != "" { // the others' is the first one's
				l.datastores[name] = made.Reference()
			}
		}
		ds, _ := ctx.Map.Get(l.datastores[name]).(*simulator.Datastore)
		ds.Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVMFS)
		ds.Summary.MultipleHostAccess = types.NewBool(true)
		ds.Info = &types.VmfsDatastoreInfo{DatastoreInfo: *ds.Info.GetDatastoreInfo()}
	}
	return nil
}

// refreshFree makes what the datastores claim agree with the files in them, or with the knob.
func (l *Lab) refreshFree() {
	knobs := l.knobs.get()
	claimed := knobs.Free
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
		access := types.HostMountModeReadWrite
		if slices.Contains(knobs.ReadOnly, name) {
			access = types.HostMountModeReadOnly
		}
		ctx.WithLock(ds, func() {
			mounts := slices.Clone(ds.Host)
			for i := range mounts {
				mounts[i].MountInfo.AccessMode = string(access)
			}
			info := *ds.Info.GetDatastoreInfo()
			info.FreeSpace = free
			ctx.Update(ds, []types.PropertyChange{
				{Name: "summary.capacity", Val: int64(datastoreSize)},
				{Name: "summary.freeSpace", Val: free},
				{Name: "host", Val: mounts},
				{Name: "info", Val: &types.VmfsDatastoreInfo{DatastoreInfo: info}},
			})
		})
	}
}

// uuidOf returns an identifier that is the same at each start of this lab.
func (l *Lab) uuidOf(parts ...string) string {
	return uuid.NewSHA1(l.instance, []byte(strings.Join(parts, "\x00"))).String()
}
