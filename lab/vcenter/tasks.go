// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"fmt"
	"log"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// work is what a task does. It returns the task's result or its fault, and reports percent by progress.
type work func(progress func(percent int32)) (types.AnyType, types.BaseMethodFault)

// start runs the work as a task of the VM. The simulator's own tasks hold the VM's lock all the while,
// and then nobody could look at a VM whose snapshot takes a minute to go: ours do not.
func (g *guest) start(ctx *simulator.Context, name string, do work) types.ManagedObjectReference {
	return g.lab.start(ctx, g.vm, g.name, name, do)
}

// start runs the work as a task of that object, which has a name.
func (l *Lab) start(ctx *simulator.Context, of mo.Reference, named, name string, do work) types.ManagedObjectReference {
	task := simulator.CreateTask(of, name, nil)
	task.Info.EntityName = named
	task.Info.Cancelable = false
	if ctx.Session != nil {
		task.Info.Reason = &types.TaskReasonUser{UserName: ctx.Session.UserName}
	}
	ctx.Map.Put(task)
	own := l.fresh()
	change := func(changes ...types.PropertyChange) { own.Map.AtomicUpdate(own, task, changes) }
	change(
		types.PropertyChange{Name: "info.key", Val: task.Self.Value},
		types.PropertyChange{Name: "info.task", Val: task.Self},
		types.PropertyChange{Name: "info.startTime", Val: time.Now()},
		types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateRunning},
	)
	go func() {
		result, fault := do(func(percent int32) { change(types.PropertyChange{Name: "info.progress", Val: percent}) })
		done := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}}
		if fault != nil {
			log.Printf("%s of %s: %T", name, named, fault)
			done = append(done,
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError},
				types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message(fault)}})
		} else {
			done = append(done,
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess},
				types.PropertyChange{Name: "info.result", Val: result})
		}
		change(done...)
	}()
	return task.Self
}

// failure turns an error of the storage into a fault that carries its words.
func failure(err error) types.BaseMethodFault {
	return &types.GenericVmConfigFault{Reason: err.Error()}
}

func message(fault types.BaseMethodFault) string {
	switch f := fault.(type) {
	case *types.GenericVmConfigFault:
		return f.Reason
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.ApplicationQuiesceFault:
		return "An error occurred while quiescing the virtual machine. See the virtual machine's event log for details."
	case *types.Timedout:
		return "Operation timed out."
	}
	return fmt.Sprintf("%T", fault)
}
