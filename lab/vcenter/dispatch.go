// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// dispatch sees every SOAP call before the simulator does. It returns the object that shall answer,
// nil for the simulator's own.
func (l *Lab) dispatch(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	l.stats.count(method)
	knobs := l.knobs.get()
	sleep(knobs.LatencyMS)
	if ctx.Session == nil && !anonymous(method) {
		return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &method.This, PrivilegeId: "System.View"}}
	}
	if name := knobs.Faults[method.Name]; name != "" {
		return nil, newFault(name)
	}

	var ours mo.Reference
	switch method.This.Type {
	case "SessionManager":
		if method.Name == "Login" {
			return &sessionManager{ctx.Map.SessionManager()}, nil
		}
	case "VirtualMachine":
		if g := l.guestByRef(method.This); g != nil {
			ours = &vmMethods{Self: method.This, guest: g}
		}
	case "VirtualMachineSnapshot":
		if object, known := ctx.Map.Get(method.This).(*simulator.VirtualMachineSnapshot); known {
			if g := l.guestByRef(object.Vm); g != nil {
				ours = &snapshotMethods{Self: method.This, guest: g}
			}
		}
	case "PropertyCollector":
		if method.Name == "Fetch" {
			f := &fetcher{Self: method.This, collector: ctx.Map.Get(method.This)}
			if ctx.Session == nil {
				return f, nil
			}
			f.registry, f.collector = ctx.Session.Registry, ctx.Session.Get(method.This)
			ours = f
		}
	case "Datastore":
		ours = &datastoreMethods{Self: method.This, lab: l}
	case "ServiceInstance":
		ours = &clock{Self: method.This, skew: time.Duration(knobs.ClockSkewSeconds) * time.Second}
	case "AuthorizationManager":
		ours = &privileges{Self: method.This, lacks: knobs.Lacks}
	case "Folder":
		ours = &folderMethods{Self: method.This, lab: l}
	case "ResourcePool":
		ours = &poolMethods{Self: method.This, lab: l}
	case "OvfManager":
		if object, known := ctx.Map.Get(method.This).(*simulator.OvfManager); known {
			ours = &ovfManager{object}
		}
	}
	if ours == nil || !answers(ours, method.Name) {
		return nil, nil
	}
	// The simulator prefers what the session's own registry holds to what we return. This Session is a copy made for this one
	// request, so giving it a registry with our object in it is seen by nobody else.
	ctx.Session.Registry = simulator.NewRegistry()
	ctx.Session.Registry.Put(ours)
	return ours, nil
}

// anonymous says whether vCenter answers the call without a login. The simulator by itself would let anybody read properties
// and log in with a made-up token.
func anonymous(method *simulator.Method) bool {
	switch method.Body.(type) {
	case *types.Login, *types.RetrieveServiceContent:
		return true
	}
	objects, traversal := asked(method)
	for _, object := range objects {
		// A traversal would lead from a public object to all others.
		if traversal || !public(object) {
			return false
		}
	}
	return len(objects) > 0
}

// asked returns the objects whose properties a call wants, and whether it also wants what they lead to.
func asked(method *simulator.Method) (objects []types.ManagedObjectReference, traversal bool) {
	var specs []types.PropertyFilterSpec
	switch request := method.Body.(type) {
	case *types.RetrieveProperties:
		specs = request.SpecSet
	case *types.RetrievePropertiesEx:
		specs = request.SpecSet
	default:
		if method.Name == "Fetch" {
			objects = append(objects, fetched(request))
		}
	}
	for _, spec := range specs {
		for _, object := range spec.ObjectSet {
			objects = append(objects, object.Obj)
			traversal = traversal || len(object.SelectSet) > 0
		}
	}
	return objects, traversal
}

func public(ref types.ManagedObjectReference) bool {
	return ref.Type == "SessionManager" || ref.Type == "ServiceInstance"
}

// answers says whether the object has the method; the simulator drops the underscore of "X_Task".
func answers(object mo.Reference, method string) bool {
	name := method
	if task, isTask := strings.CutSuffix(method, "_Task"); isTask {
		name = task + "Task"
	}
	return reflect.ValueOf(object).MethodByName(name).IsValid()
}

// clock is vCenter's, as far off as the knob says.
type clock struct {
	Self types.ManagedObjectReference
	skew time.Duration
}

func (c *clock) Reference() types.ManagedObjectReference { return c.Self }

func (c *clock) CurrentTime(*types.CurrentTime) soap.HasFault {
	return &methods.CurrentTimeBody{Res: &types.CurrentTimeResponse{Returnval: time.Now().Add(c.skew)}}
}

// privileges are all that there are, but for those of the knob. Only who asks is told; what needs them goes on.
type privileges struct {
	Self  types.ManagedObjectReference
	lacks []string
}

func (p *privileges) Reference() types.ManagedObjectReference { return p.Self }

func (p *privileges) HasUserPrivilegeOnEntities(req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	var found []types.EntityPrivilege
	for _, entity := range req.Entities {
		one := types.EntityPrivilege{Entity: entity}
		for _, id := range req.PrivId {
			granted := !slices.Contains(p.lacks, id)
			one.PrivAvailability = append(one.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: granted})
		}
		found = append(found, one)
	}
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: &types.HasUserPrivilegeOnEntitiesResponse{Returnval: found}}
}

// sessionManager logs in with vCenter's own words on failure.
type sessionManager struct{ *simulator.SessionManager }

func (m *sessionManager) Login(ctx *simulator.Context, req *types.Login) soap.HasFault {
	answer := m.SessionManager.Login(ctx, req)
	if answer.Fault() != nil {
		return &methods.LoginBody{Fault_: simulator.Fault(
			"Cannot complete login due to an incorrect user name or password.", new(types.InvalidLogin))}
	}
	return answer
}

func (l *Lab) validLogin(req *types.Login) bool {
	valid := req.UserName == l.User && req.Password == l.Password
	l.stats.Lock()
	defer l.stats.Unlock()
	if valid {
		l.stats.logins++
	} else {
		l.stats.failed++
	}
	return valid
}

// authorized says whether an HTTP request brings a session's cookie or the account's name and password.
func (l *Lab) authorized(r *http.Request) bool {
	if user, password, given := r.BasicAuth(); given {
		return user == l.User && password == l.Password
	}
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return false
	}
	for _, session := range l.sessions() {
		if session.Key == cookie.Value {
			return true
		}
	}
	return false
}

func (l *Lab) sessions() []types.UserSession {
	// A session's view of the manager has the list; the plain one does not.
	ctx := l.fresh()
	manager, _ := ctx.Session.Get(ctx.Map.SessionManager().Self).(*simulator.SessionManager)
	return manager.SessionList
}

// killSessions ends the session with that key, or all without one, and returns how many.
func (l *Lab) killSessions(key string) int {
	killed := 0
	for _, session := range l.sessions() {
		if key == "" || session.Key == key {
			ctx := l.fresh()
			answer := ctx.Map.SessionManager().TerminateSession(ctx, &types.TerminateSession{SessionId: []string{session.Key}})
			if answer.Fault() == nil {
				killed++
			}
		}
	}
	return killed
}
