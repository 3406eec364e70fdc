// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ovfManager has the simulator read an OVF descriptor, and names its disks as the lease is going to, which the simulator does not.
type ovfManager struct{ *simulator.OvfManager }

// CreateImportSpec says what is to be imported, and which file is for which disk.
func (m *ovfManager) CreateImportSpec(ctx *simulator.Context, req *types.CreateImportSpec) soap.HasFault {
	answer := m.OvfManager.CreateImportSpec(ctx, req)
	body, _ := answer.(*methods.CreateImportSpecBody)
	if body == nil || body.Res == nil {
		return answer
	}
	spec, isOne := body.Res.Returnval.ImportSpec.(*types.VirtualMachineImportSpec)
	if !isOne {
		return answer
	}
	controllers := map[int32]types.BaseVirtualDevice{}
	var places []string
	for _, change := range spec.ConfigSpec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec().Device
		if disk, isDisk := device.(*types.VirtualDisk); isDisk && disk.UnitNumber != nil {
			places = append(places, place(controllers[disk.ControllerKey], *disk.UnitNumber))
		}
		controllers[device.GetVirtualDevice().Key] = device
	}
	for i := range body.Res.Returnval.FileItem {
		if item := &body.Res.Returnval.FileItem[i]; item.CimType == cimDisk && len(places) > 0 {
			item.DeviceId, places = "/"+spec.ConfigSpec.Name+places[0], places[1:]
		}
	}
	return answer
}

const cimDisk = 17 // in OVF
