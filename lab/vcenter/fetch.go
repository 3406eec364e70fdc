// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// fetcher answers Fetch, by which pyvmomi reads an attribute like vm.snapshot. For a property without a value the simulator
// answers with another method's response, and pyvmomi raises an AttributeError that tells nobody anything.
type fetcher struct {
	Self      types.ManagedObjectReference
	collector mo.Reference
	registry  *simulator.Registry // of the session
}

// Reference makes it an object that the simulator can dispatch to.
func (f *fetcher) Reference() types.ManagedObjectReference { return f.Self }

// FetchResponse is the answer for a property without a value. Its name becomes the element's.
type FetchResponse struct{}

type fetchBody struct{ Res *FetchResponse }

func (*fetchBody) Fault() *soap.Fault { return nil }

// Fetch takes the request as any because its type is internal to the simulator.
func (f *fetcher) Fetch(ctx *simulator.Context, request any) soap.HasFault {
	if ctx.Session != nil {
		ctx.Session.Registry = f.registry
	} else if fetched(request).Type == "SessionManager" {
		// Clients ask for the current session to learn whether they are logged in: no value is the answer, not a fault.
		return &fetchBody{Res: &FetchResponse{}}
	}
	result := reflect.ValueOf(f.collector).MethodByName("Fetch").
		Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)})
	answer, _ := result[0].Interface().(soap.HasFault)
	if _, unset := answer.(*methods.RetrievePropertiesExBody); unset && answer.Fault() == nil {
		return &fetchBody{Res: &FetchResponse{}}
	}
	return answer
}

// fetched returns the object whose property a Fetch wants; the method's own object is by then the property collector.
func fetched(request any) types.ManagedObjectReference {
	field := reflect.ValueOf(request).Elem().FieldByName("This")
	ref, _ := field.Interface().(types.ManagedObjectReference)
	return ref
}
