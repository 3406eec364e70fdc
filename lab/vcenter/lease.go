// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

const (
	leasePrefix = "/nfc/"
	streamType  = "application/x-vnd.vmware-streamVmdk"
)

// poolMethods are the calls to a resource pool that we answer.
type poolMethods struct {
	Self types.ManagedObjectReference
	lab  *Lab
}

// Reference makes it an object that the simulator can dispatch to.
func (p *poolMethods) Reference() types.ManagedObjectReference { return p.Self }

// HttpNfcLease is a lease for the import of one VM: a VM that is not whole before the lease is complete.
// The simulator knows objects by the names of their types.
type HttpNfcLease struct {
	mo.HttpNfcLease
	lab   *Lab
	guest *guest

	mu      sync.Mutex
	sinks   map[string]*disk // by the last step of the URL
	seen    time.Time        // the client's last sign of life
	ended   bool
	bytes   int64 // that came in, of all disks
	busy    int   // uploads that run
	entered map[string]storage.Stream
}

// ImportVApp makes a VM with empty disks and a lease by which they are filled.
func (p *poolMethods) ImportVApp(ctx *simulator.Context, req *types.ImportVApp) soap.HasFault {
	spec, known := req.Spec.(*types.VirtualMachineImportSpec)
	if !known || req.Folder == nil {
		return &methods.ImportVAppBody{Fault_: simulator.Fault("", &types.InvalidArgument{InvalidProperty: "spec"})}
	}
	made := &HttpNfcLease{lab: p.lab, seen: time.Now(), sinks: map[string]*disk{}, entered: map[string]storage.Stream{}}
	made.State = types.HttpNfcLeaseStateInitializing
	own := p.lab.fresh()
	ref := own.Map.Put(made).Reference()
	p.lab.start(ctx, p.Self, spec.ConfigSpec.Name, "ImportVAppLRO", func(func(int32)) (types.AnyType, types.BaseMethodFault) {
		g, fault := p.lab.make(*req.Folder, spec.ConfigSpec, p.Self, req.Host)
		if fault != nil {
			made.fail(fault)
			return nil, fault
		}
		made.ready(g)
		go made.watch()
		return nil, nil
	})
	return &methods.ImportVAppBody{Res: &types.ImportVAppResponse{Returnval: ref}}
}

func (l *HttpNfcLease) update(changes ...types.PropertyChange) {
	ctx := l.lab.fresh()
	ctx.WithLock(l, func() { ctx.Update(l, changes) })
}

func (l *HttpNfcLease) fail(fault types.BaseMethodFault) {
	l.update(
		types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateError},
		types.PropertyChange{Name: "error", Val: &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: message(fault)}},
	)
}

func (l *HttpNfcLease) ready(g *guest) {
	l.guest = g
	info := &types.HttpNfcLeaseInfo{Lease: l.Self, Entity: g.vm.Self, LeaseTimeout: int32(l.lab.knobs.get().LeaseSeconds)}
	for i, d := range g.disks {
		name := fmt.Sprintf("disk-%d.vmdk", i)
		l.sinks[name] = d
		info.TotalDiskCapacityInKB += d.Size() / 1024
		place := busOf(g, d)
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key: "/" + g.vm.Self.Value + place, ImportKey: "/" + g.name + place, Disk: types.NewBool(true), TargetId: name,
			Url: "https://" + l.lab.Address + leasePrefix + l.Self.Value + "/" + name, SslThumbprint: l.lab.Thumbprint,
		})
	}
	l.update(types.PropertyChange{Name: "info", Val: info}, types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateReady})
}

// busOf returns a disk's place as leases spell it: /ParaVirtualSCSIController0:1.
func busOf(g *guest, d *disk) string {
	for _, device := range g.controllers() {
		if device.GetVirtualDevice().Key == d.controller {
			return place(device, d.unit)
		}
	}
	return fmt.Sprintf("/VirtualIDEController%d:%d", d.controller-200, d.unit)
}

func place(controller types.BaseVirtualDevice, unit int32) string {
	kind, bus := "VirtualIDEController", int32(0)
	if controller != nil {
		kind = reflect.TypeOf(controller).Elem().Name()
	}
	if known, isOne := controller.(types.BaseVirtualController); isOne {
		bus = known.GetVirtualController().BusNumber
	}
	return fmt.Sprintf("/%s%d:%d", kind, bus, unit)
}

// watch ends the lease when its client is silent for too long; the VM goes then, as it does at vCenter.
func (l *HttpNfcLease) watch() {
	for {
		time.Sleep(200 * time.Millisecond)
		l.mu.Lock()
		over := !l.ended && time.Since(l.seen) > time.Duration(l.lab.knobs.get().LeaseSeconds)*time.Second
		ended := l.ended
		l.mu.Unlock()
		if ended {
			return
		}
		if over {
			l.fail(new(types.Timedout))
			l.end(true)
			return
		}
	}
}

// end forgets the lease; it returns false when that was done before.
func (l *HttpNfcLease) end(destroy bool) bool {
	l.mu.Lock()
	before := l.ended
	l.ended = true
	l.mu.Unlock()
	if before {
		return false
	}
	if destroy && l.guest != nil {
		if fault := l.guest.destroy(); fault != nil {
			log.Printf("the VM of %s stays: %T", l.Self.Value, fault)
		}
	}
	return true
}

// HttpNfcLeaseProgress keeps the lease alive.
func (l *HttpNfcLease) HttpNfcLeaseProgress(_ *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	if l.State != types.HttpNfcLeaseStateReady {
		return &methods.HttpNfcLeaseProgressBody{Fault_: simulator.Fault("", new(types.InvalidState))}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = time.Now()
	l.TransferProgress = req.Percent
	return &methods.HttpNfcLeaseProgressBody{Res: new(types.HttpNfcLeaseProgressResponse)}
}

// HttpNfcLeaseComplete makes the VM whole. The lab is stricter than vCenter: every disk must have come.
func (l *HttpNfcLease) HttpNfcLeaseComplete(*simulator.Context, *types.HttpNfcLeaseComplete) soap.HasFault {
	l.mu.Lock()
	whole := len(l.entered) == len(l.sinks) && l.busy == 0 && l.State == types.HttpNfcLeaseStateReady
	l.mu.Unlock()
	if !whole || !l.end(false) {
		return &methods.HttpNfcLeaseCompleteBody{Fault_: simulator.Fault("Not every disk was uploaded.", new(types.InvalidState))}
	}
	go l.update(types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateDone})
	return &methods.HttpNfcLeaseCompleteBody{Res: new(types.HttpNfcLeaseCompleteResponse)}
}

// HttpNfcLeaseAbort removes the VM.
func (l *HttpNfcLease) HttpNfcLeaseAbort(_ *simulator.Context, req *types.HttpNfcLeaseAbort) soap.HasFault {
	go func() {
		fault := req.Fault
		if fault == nil {
			fault = &types.LocalizedMethodFault{Fault: new(types.RequestCanceled), LocalizedMessage: "The lease was aborted."}
		}
		l.end(true)
		l.update(
			types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateError},
			types.PropertyChange{Name: "error", Val: fault},
		)
	}()
	return &methods.HttpNfcLeaseAbortBody{Res: new(types.HttpNfcLeaseAbortResponse)}
}

// HttpNfcLeaseGetManifest tells what came in.
func (l *HttpNfcLease) HttpNfcLeaseGetManifest(*simulator.Context, *types.HttpNfcLeaseGetManifest) soap.HasFault {
	l.mu.Lock()
	defer l.mu.Unlock()
	body := &methods.HttpNfcLeaseGetManifestBody{Res: new(types.HttpNfcLeaseGetManifestResponse)}
	for name, stream := range l.entered {
		populated := stream.Populated
		body.Res.Returnval = append(body.Res.Returnval, types.HttpNfcLeaseManifestEntry{
			Key: name, Size: stream.Bytes, Disk: true, Capacity: l.sinks[name].Size(), PopulatedSize: populated,
		})
	}
	return body
}

// serveLease takes the upload of a disk. As at ESXi the URL is the secret; no session is asked for.
func (l *Lab) serveLease(w http.ResponseWriter, r *http.Request) {
	name, file, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, leasePrefix), "/")
	of, known := l.fresh().Map.Get(types.ManagedObjectReference{Type: "HttpNfcLease", Value: name}).(*HttpNfcLease)
	if !known || of.sinks[file] == nil || of.State != types.HttpNfcLeaseStateReady {
		http.NotFound(w, r)
		return
	}
	switch {
	case r.Method != http.MethodPost && r.Method != http.MethodPut:
		http.Error(w, "a disk is posted", http.StatusMethodNotAllowed)
	case r.Header.Get("Content-Type") != streamType:
		http.Error(w, "a disk is "+streamType, http.StatusUnsupportedMediaType)
	case r.ContentLength < 0:
		http.Error(w, "the length of a disk is told before it comes", http.StatusLengthRequired)
	default:
		if err := of.take(file, r.Body); err != nil {
			log.Printf("upload of %s: %v", r.URL.Path, err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// take decodes what comes into the disk.
func (l *HttpNfcLease) take(file string, from io.Reader) error {
	l.mu.Lock()
	l.busy++
	l.mu.Unlock()
	d := l.sinks[file]
	stream, err := storage.DecodeStream(&tap{from, l}, d.Size(), func(p []byte, off int64) error {
		_, err := d.WriteAt(p, off)
		return err
	})
	l.mu.Lock()
	l.busy--
	if err == nil {
		l.entered[file] = stream
	}
	l.mu.Unlock()
	if err != nil {
		var known *uploadFault
		if errors.As(err, &known) {
			l.fail(known.fault)
		} else {
			l.fail(failure(err))
		}
	}
	return err
}

// uploadFault is what a knob makes of an upload.
type uploadFault struct{ fault types.BaseMethodFault }

func (f *uploadFault) Error() string { return fmt.Sprintf("%T", f.fault) }

// tap is where knobs act on what comes in.
type tap struct {
	from  io.Reader
	lease *HttpNfcLease
}

func (t *tap) Read(p []byte) (int, error) {
	knobs := t.lease.lab.knobs.get()
	n, err := t.from.Read(p)
	t.lease.mu.Lock()
	t.lease.bytes += int64(n)
	all := t.lease.bytes
	t.lease.mu.Unlock()
	if fault := newFault(knobs.UploadFault); fault != nil && all > knobs.UploadFaultAfter {
		return 0, &uploadFault{fault}
	}
	t.lease.lab.knobs.pass(int64(n), time.Time{}, func(k Knobs) int64 { return k.UploadBytesPerSecond })
	return n, err
}
