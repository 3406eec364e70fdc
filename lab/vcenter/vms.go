// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"net/http"
)

// vmAnswer is a VM as the control API tells of it. Its JSON is interface: README.md.
type vmAnswer struct {
	Name         string       `json:"name"`
	Moref        string       `json:"moref"`
	InstanceUUID string       `json:"instance_uuid"`
	Path         string       `json:"path"`
	PowerState   string       `json:"power_state"`
	CBT          bool         `json:"cbt"`
	Odd          bool         `json:"odd"`
	Host         string       `json:"host"`
	Registered   bool         `json:"registered"`
	Disks        []diskAnswer `json:"disks"`
}

type diskAnswer struct {
	Key       int32  `json:"key"`
	Label     string `json:"label"`
	Capacity  int64  `json:"capacity"`
	Path      string `json:"path"`
	File      string `json:"file"`
	Allocated int64  `json:"allocated"`
	Datastore string `json:"datastore"`
	Mode      string `json:"mode"`
	Readable  bool   `json:"readable"`
}

func (g *guest) told() vmAnswer {
	runtime := g.runtime()
	vm := vmAnswer{
		Name: g.name, Moref: g.vm.Self.Value, InstanceUUID: g.uuid, Path: g.path, PowerState: string(runtime.PowerState),
		CBT: g.tracking(g.lab.fresh()), Odd: g.odd, Host: runtime.Host.Value, Registered: !g.gone.Load(),
	}
	for _, d := range g.disks {
		vm.Disks = append(vm.Disks, diskAnswer{
			Key: d.key, Label: d.label, Capacity: d.Size(), Path: d.spell(d.Names(d.Top())[0]), File: d.LiveExtent(),
			Allocated: d.Allocated(), Datastore: d.place.Value, Mode: string(d.mode()), Readable: d.missing() == nil,
		})
	}
	return vm
}

func (l *Lab) getVMs(w http.ResponseWriter, _ *http.Request) {
	var vms []vmAnswer
	for _, g := range l.known() {
		vms = append(vms, g.told())
	}
	answer(w, map[string]any{"vms": vms})
}

// change decodes a request that names a VM, lets it be done, and answers with the VM as it is then.
func (l *Lab) change(w http.ResponseWriter, r *http.Request, request any, vm *string, do func(*guest) error) {
	err := decode(r, request)
	var g *guest
	if err == nil {
		g, err = l.guest(*vm)
	}
	if err == nil {
		err = do(g)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, g.told())
}

// setTracking switches the configuration of change tracking; it takes effect at the next stun.
func (l *Lab) setTracking(w http.ResponseWriter, r *http.Request) {
	var request struct {
		VM      string
		Enabled *bool
	}
	l.change(w, r, &request, &request.VM, func(g *guest) error {
		if request.Enabled == nil {
			return errors.New("enabled is missing")
		}
		l.fresh().WithLock(g.vm, func() { g.vm.Config.ChangeTrackingEnabled = request.Enabled })
		return nil
	})
}

// setVM changes what a request names about a VM.
func (l *Lab) setVM(w http.ResponseWriter, r *http.Request) {
	var request struct {
		VM                  string
		Registered          *bool
		Host                string
		ConsolidationNeeded *bool `json:"consolidation_needed"`
	}
	l.change(w, r, &request, &request.VM, func(g *guest) error {
		if request.Host != "" {
			if err := g.setHost(request.Host); err != nil {
				return err
			}
		}
		if request.ConsolidationNeeded != nil {
			if err := g.setStray(*request.ConsolidationNeeded); err != nil {
				return err
			}
		}
		if request.Registered != nil {
			g.setRegistered(*request.Registered)
		}
		return nil
	})
}

// setDisk changes what a request names about a disk, or about all disks of a VM.
func (l *Lab) setDisk(w http.ResponseWriter, r *http.Request) {
	var request struct {
		VM             string
		Key            *int32
		Readable       *bool
		GrowAtSnapshot int64 `json:"grow_at_snapshot"`
	}
	l.change(w, r, &request, &request.VM, func(g *guest) error {
		if request.GrowAtSnapshot < 0 || request.GrowAtSnapshot%512 != 0 {
			return fmt.Errorf("grow_at_snapshot: %d is not a number of bytes in whole sectors", request.GrowAtSnapshot)
		}
		disks := g.disks
		if request.Key != nil {
			d := g.disk(*request.Key)
			if d == nil {
				return fmt.Errorf("%s has no disk with key %d", g.name, *request.Key)
			}
			disks = []*disk{d}
		}
		for _, d := range disks {
			if request.Readable != nil {
				d.vanished.Store(!*request.Readable)
			}
			if request.GrowAtSnapshot > 0 {
				d.growth.Store(request.GrowAtSnapshot)
			}
		}
		return nil
	})
}
