// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// cbtCell is the granularity of ESXi's change tracking.
const cbtCell = 64 << 10

// QueryChangedDiskAreas answers which areas of a snapshot's disk are allocated, one window at a time.
func (v *vmMethods) QueryChangedDiskAreas(ctx *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := &methods.QueryChangedDiskAreasBody{}
	info, fault := v.guest.changedAreas(ctx, req)
	if fault != nil {
		body.Fault_ = fault
	} else {
		body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *info}
	}
	return body
}

func (g *guest) changedAreas(ctx *simulator.Context, req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, *soap.Fault) {
	invalid := func(property string) *soap.Fault {
		return simulator.Fault("A specified parameter was not correct: "+property, &types.InvalidArgument{InvalidProperty: property})
	}
	d := g.disk(req.DeviceKey)
	if d == nil {
		return nil, invalid("deviceKey")
	}
	untracked := simulator.Fault("Error caused by file "+d.spell(d.Names(d.Top())[0]),
		&types.FileFault{File: d.spell(d.Names(d.Top())[0])})
	if req.Snapshot == nil {
		// vCenter answers without a snapshot for a VM that is off; ours never is.
		return nil, untracked
	}
	of := g.snapshot(*req.Snapshot)
	if of == nil {
		return nil, simulator.Fault("The object has already been deleted or has not been completely created",
			&types.ManagedObjectNotFound{Obj: *req.Snapshot})
	}
	switch {
	case req.StartOffset < 0 || req.StartOffset >= d.Size():
		return nil, invalid("startOffset")
	case of.changeIDs[d.key] == "" || !g.tracking(ctx):
		return nil, untracked
	case req.ChangeId != "*":
		return nil, simulator.Fault("The lab answers change id * only.", new(types.NotSupported))
	}
	knobs := g.lab.knobs.get()
	content := of.content[d.key]
	if knobs.CBTBlindFrom > 0 {
		content = content.Before(knobs.CBTBlindFrom)
	}
	window, areas := window(content, req.StartOffset, d.Size(), knobs.CBTAreas, knobs.CBTBytes)
	info := &types.DiskChangeInfo{StartOffset: window.Start, Length: window.Len()}
	for _, area := range areas {
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: area.Start, Length: area.Len()})
	}
	return info, nil
}

// window returns the part of the disk that one answer speaks of, and the content in it: at most that many areas and that many bytes.
func window(content storage.Ranges, start, capacity int64, areas int, bytes int64) (storage.Range, storage.Ranges) {
	whole := storage.Range{Start: start, End: min(start+bytes, capacity)}
	var inside storage.Ranges
	for _, r := range content {
		r.Start, r.End = max(r.Start, whole.Start), min(r.End, whole.End)
		if r.Len() <= 0 {
			continue
		}
		if len(inside) == areas {
			whole.End = r.Start // the next answer goes on where this one had no room
			break
		}
		inside = append(inside, r)
	}
	return whole, inside
}
