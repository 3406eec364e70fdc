// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	user     = "administrator@vsphere.local"
	password = "a secret with spaces"
)

// world is a lab with both its doors open.
type world struct {
	*testing.T
	lab          *Lab
	config       Config
	api, control *httptest.Server
}

func golden(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	random := bytes.Repeat([]byte("golden"), 50_000)
	for name, size := range map[string]int64{"pgtest1-boot.raw": 1 << 20, "pgtest1-data.raw": 3 << 30, "pgtest1-odd.raw": 1<<20 + 1536, smallGolden: 1 << 20} {
		file, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		must(t, file.Truncate(size))
		for at := int64(0); at < size; at += max(size/100, 300<<10) {
			_, err = file.WriteAt(random[:min(100_000, size-at)], at)
			must(t, err)
		}
		_, err = file.WriteAt([]byte("end"), size-3)
		must(t, err)
		must(t, file.Close())
	}
	return dir
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{T: t, config: Config{
		User: user, Password: password, Address: "127.0.0.1:443", Guests: golden(t),
		Datastores: filepath.Join(dir, "ds"), Truth: filepath.Join(dir, "truth"),
	}}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.Helper()
	lab, err := NewLab(w.config)
	must(w.T, err)
	w.lab = lab
	w.api, w.control = httptest.NewTLSServer(lab.Handler()), httptest.NewServer(lab.Control())
}

func (w *world) stop() {
	w.api.Close()
	w.control.Close()
	must(w.T, w.lab.Close())
}

func (w *world) client(secret string) (*govmomi.Client, error) {
	w.Helper()
	address, err := url.Parse(w.api.URL + "/sdk")
	must(w.T, err)
	address.User = url.UserPassword(user, secret)
	return govmomi.NewClient(context.Background(), address, true)
}

func (w *world) login() *govmomi.Client {
	w.Helper()
	client, err := w.client(password)
	must(w.T, err)
	return client
}

func (w *world) find(client *vim25.Client, path string) *object.VirtualMachine {
	w.Helper()
	vm, err := find.NewFinder(client).VirtualMachine(context.Background(), path)
	must(w.T, err)
	return vm
}

// tell speaks to the control API and decodes the answer into out, unless that is nil.
func (w *world) tell(method, path string, body io.Reader, out any) {
	w.Helper()
	request, err := http.NewRequest(method, w.control.URL+path, body)
	must(w.T, err)
	response, err := http.DefaultClient.Do(request)
	must(w.T, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(w.T, err)
	if response.StatusCode != http.StatusOK {
		w.Fatalf("%s %s: %s", method, path, text)
	}
	if raw, wanted := out.(*[]byte); wanted {
		*raw = text
	} else if out != nil {
		must(w.T, json.Unmarshal(text, out))
	}
}

func (w *world) write(vm string, key int32, offset int64, data string) {
	w.Helper()
	w.tell("POST", fmt.Sprintf("/guest/write?vm=%s&key=%d&offset=%d", vm, key, offset), strings.NewReader(data), nil)
}

func (w *world) read(vm string, key int32, offset, length int64) []byte {
	w.Helper()
	var out []byte
	w.tell("GET", fmt.Sprintf("/guest/read?vm=%s&key=%d&offset=%d&length=%d", vm, key, offset, length), nil, &out)
	return out
}

// get asks /folder for a file of a datastore.
func (w *world) get(client *govmomi.Client, datastore, path, span string) (int, []byte) {
	w.Helper()
	query := url.Values{"dcPath": {"DC0"}, "dsName": {datastore}}
	request, err := http.NewRequest("GET", w.api.URL+"/folder/"+path+"?"+query.Encode(), nil)
	must(w.T, err)
	if span != "" {
		request.Header.Set("Range", "bytes="+span)
	}
	transport := w.api.Client()
	if client != nil {
		address, err := url.Parse(w.api.URL)
		must(w.T, err)
		for _, cookie := range client.Client.Client.Jar.Cookies(address) {
			request.AddCookie(cookie)
		}
	}
	response, err := transport.Do(request)
	must(w.T, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(w.T, err)
	return response.StatusCode, text
}

// wait polls a task: with -race, the simulator's WaitForUpdatesEx is caught reading tasks without their lock.
func (w *world) wait(client *vim25.Client, ref types.ManagedObjectReference) (types.AnyType, error) {
	w.Helper()
	for {
		var task mo.Task
		must(w.T, property.DefaultCollector(client).RetrieveOne(context.Background(), ref, []string{"info"}, &task))
		switch task.Info.State {
		case types.TaskInfoStateSuccess:
			return task.Info.Result, nil
		case types.TaskInfoStateError:
			return nil, errors.New(task.Info.Error.LocalizedMessage)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (w *world) snapshot(vm *object.VirtualMachine, name string) types.ManagedObjectReference {
	w.Helper()
	res, err := methods.CreateSnapshotEx_Task(context.Background(), vm.Client(), &types.CreateSnapshotEx_Task{
		This: vm.Reference(), Name: name, QuiesceSpec: &types.VirtualMachineGuestQuiesceSpec{},
	})
	must(w.T, err)
	result, err := w.wait(vm.Client(), res.Returnval)
	must(w.T, err)
	ref, _ := result.(types.ManagedObjectReference)
	return ref
}

func (w *world) remove(vm *object.VirtualMachine, ref types.ManagedObjectReference, children bool, consolidate *bool) {
	w.Helper()
	res, err := methods.RemoveSnapshot_Task(context.Background(), vm.Client(), &types.RemoveSnapshot_Task{
		This: ref, RemoveChildren: children, Consolidate: consolidate,
	})
	must(w.T, err)
	_, err = w.wait(vm.Client(), res.Returnval)
	must(w.T, err)
}

// files returns the chain of each disk of a configuration, by key.
func files(devices []types.BaseVirtualDevice) map[int32]string {
	chains := map[int32]string{}
	for _, device := range devices {
		if disk, isDisk := device.(*types.VirtualDisk); isDisk {
			var names []string
			for backing, _ := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); backing != nil; backing = backing.Parent {
				names = append(names, backing.FileName)
			}
			chains[disk.Key] = strings.Join(names, " < ")
		}
	}
	return chains
}

func (w *world) look(vm *object.VirtualMachine) mo.VirtualMachine {
	w.Helper()
	var out mo.VirtualMachine
	must(w.T, vm.Properties(context.Background(), vm.Reference(), []string{"config", "snapshot", "runtime", "datastore", "network"}, &out))
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsAnsweredWithoutALogin(t *testing.T) {
	w := newWorld(t)
	_, err := w.client("wrong")
	if err == nil || !strings.Contains(err.Error(), "incorrect user name or password") {
		t.Fatalf("a wrong password gave: %v", err)
	}
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/prod/pgtest1")
	address, err := url.Parse(w.api.URL + "/sdk")
	must(t, err)
	anonymous, err := vim25.NewClient(context.Background(), soap.NewClient(address, true))
	must(t, err)
	_, err = object.NewSearchIndex(anonymous).FindByUuid(context.Background(), nil, "x", true, nil)
	var properties mo.VirtualMachine
	for what, err := range map[string]error{
		"FindByUuid": err,
		"properties": object.NewVirtualMachine(anonymous, vm.Reference()).Properties(context.Background(), vm.Reference(), []string{"name"}, &properties),
	} {
		if !soap.IsSoapFault(err) {
			t.Fatalf("%s: %v", what, err)
		}
		if _, denied := soap.ToSoapFault(err).VimFault().(types.NotAuthenticated); !denied {
			t.Fatalf("%s: %v", what, err)
		}
	}
	w.tell("POST", "/sessions/kill", nil, nil)
	if err := vm.Properties(context.Background(), vm.Reference(), []string{"name"}, &properties); err == nil {
		t.Fatal("a killed session still reads")
	}
	var stats struct {
		Logins   int
		Failed   int `json:"failed_logins"`
		Sessions []any
		SOAP     map[string]int
	}
	w.tell("GET", "/stats", nil, &stats)
	if stats.Logins != 1 || stats.Failed != 1 || len(stats.Sessions) != 0 || stats.SOAP["Login"] != 2 {
		t.Fatalf("%+v", stats)
	}
}

func TestTheInventoryIsAsDescribed(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.look(w.find(client.Client, "/DC0/vm/prod/pgtest1"))
	keys := map[int32]int64{}
	uuids := map[string]bool{}
	for _, device := range vm.Config.Hardware.Device {
		if disk, isDisk := device.(*types.VirtualDisk); isDisk {
			keys[disk.Key] = disk.CapacityInBytes
			backing, _ := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			uuids[backing.Uuid] = true
			if backing.ChangeId == "" || backing.Datastore == nil {
				t.Errorf("disk %d: %+v", disk.Key, backing)
			}
		}
	}
	if len(keys) != 3 || keys[2000] != 1<<20 || keys[16000] != 3<<30 || keys[2001] != 1<<20+1536 || len(uuids) != 3 {
		t.Errorf("disks: %v, uuids: %v", keys, uuids)
	}
	if vm.Snapshot != nil || !*vm.Config.ChangeTrackingEnabled || vm.Runtime.PowerState != "poweredOn" || len(vm.Datastore) != 2 || len(vm.Network) != 1 {
		t.Errorf("%+v", vm)
	}
	found, err := object.NewSearchIndex(client.Client).FindByUuid(context.Background(), nil, vm.Config.InstanceUuid, true, types.NewBool(true))
	if err != nil || found.Reference() != vm.Self {
		t.Errorf("by uuid: %v %v", found, err)
	}
	must(t, client.Logout(context.Background()))

	identity := vm.Config.InstanceUuid + client.ServiceContent.About.InstanceUuid
	w.stop()
	w.start()
	client = w.login()
	vm = w.look(w.find(client.Client, "/DC0/vm/prod/pgtest1"))
	if vm.Config.InstanceUuid+client.ServiceContent.About.InstanceUuid != identity {
		t.Error("a restart made it another VM")
	}
}

func TestASnapshotFreezesAndItsRemovalJoins(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/prod/pgtest1")
	const odd = "pgtest1/pgtest1_2-flat.vmdk"
	if status, _ := w.get(client, "datastore1", odd, ""); status != http.StatusInternalServerError {
		t.Errorf("a file in use gave %d", status)
	}
	w.write("pgtest1", 2001, 5, "before")
	before := w.read("pgtest1", 2001, 0, 1<<20+1536)
	ref := w.snapshot(vm, "sendense/x")
	w.write("pgtest1", 2001, 0, "after the snapshot")
	w.write("pgtest1", 2001, 1<<20+1530, "-tail-")

	status, frozen := w.get(client, "datastore1", odd, "")
	if status != http.StatusOK || !bytes.Equal(frozen, before) {
		t.Fatalf("status %d, frozen bytes equal: %v", status, bytes.Equal(frozen, before))
	}
	if status, part := w.get(client, "datastore1", odd, "5-10"); status != http.StatusPartialContent || string(part) != "before" {
		t.Errorf("range: %d %q", status, part)
	}
	if status, _ := w.get(nil, "datastore1", odd, ""); status != http.StatusUnauthorized {
		t.Errorf("without a session: %d", status)
	}
	if status, _ := w.get(client, "datastore1", "pgtest1/none.vmdk", ""); status != http.StatusNotFound {
		t.Errorf("an absent file: %d", status)
	}
	if status, text := w.get(client, "data store 2", "pgtest1/pgtest1_1.vmdk", ""); status != http.StatusOK || !bytes.Contains(text, []byte(`RW 6291456 VMFS "pgtest1_1-flat.vmdk"`)) {
		t.Errorf("descriptor: %d %s", status, text)
	}
	var truth Truth
	w.tell("GET", "/truth?vm=pgtest1&sha256=1", nil, &truth)
	kept, err := os.ReadFile(filepath.Join(truth.Folder, "disk-2001.raw"))
	if err != nil || !bytes.Equal(kept, before) || filepath.Base(truth.Folder) != "sendense%2Fx" || len(truth.Disks) != 3 || truth.Disks[2].SHA256 == "" {
		t.Errorf("truth: %v %+v", err, truth)
	}

	now := w.look(vm)
	if got := files(now.Config.Hardware.Device)[2001]; got != "[datastore1] pgtest1/pgtest1_2-000001.vmdk < [datastore1] pgtest1/pgtest1_2.vmdk" {
		t.Errorf("the running VM: %s", got)
	}
	if now.Snapshot.CurrentSnapshot == nil || *now.Snapshot.CurrentSnapshot != ref || !now.Snapshot.RootSnapshotList[0].Quiesced {
		t.Errorf("snapshot: %+v", now.Snapshot)
	}
	var of mo.VirtualMachineSnapshot
	must(t, vm.Properties(context.Background(), ref, []string{"config", "vm"}, &of))
	if got := files(of.Config.Hardware.Device); got[2001] != "[datastore1] pgtest1/pgtest1_2.vmdk" || got[16000] != "[data store 2] pgtest1/pgtest1_1.vmdk" || of.Vm != vm.Reference() {
		t.Errorf("the snapshot: %v", got)
	}

	w.remove(vm, ref, false, nil)
	now = w.look(vm)
	if got := files(now.Config.Hardware.Device)[2001]; now.Snapshot != nil || got != "[datastore1] pgtest1/pgtest1_2.vmdk" || now.Runtime.ConsolidationNeeded {
		t.Errorf("afterwards: %+v %s", now.Snapshot, got)
	}
	after := w.read("pgtest1", 2001, 0, 1<<20+1536)
	if !bytes.HasPrefix(after, []byte("after the snapshot")) || !bytes.HasSuffix(after, []byte("-tail-")) {
		t.Error("the guest lost what it wrote")
	}
	left, err := filepath.Glob(filepath.Join(w.config.Datastores, "*", "*", "*0000*"))
	more, _ := filepath.Glob(filepath.Join(w.config.Datastores, "*", "*", "*.vmsn"))
	if err != nil || len(left)+len(more) > 0 {
		t.Errorf("left over: %v %v", left, more)
	}
}

func TestSnapshotsStandInALine(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	first := w.snapshot(vm, "one")
	w.write("pgtest1", 2001, 0, "1")
	second := w.snapshot(vm, "one")
	w.write("pgtest1", 2001, 0, "2")
	third := w.snapshot(vm, "three")
	chain := func(ref types.ManagedObjectReference) string {
		var of mo.VirtualMachineSnapshot
		must(t, vm.Properties(context.Background(), ref, []string{"config"}, &of))
		return strings.ReplaceAll(files(of.Config.Hardware.Device)[2001], "[datastore1] pgtest1/pgtest1_2", "")
	}
	if got := chain(third); got != "-000002.vmdk < -000001.vmdk < .vmdk" {
		t.Errorf("third: %s", got)
	}
	names, err := os.ReadDir(filepath.Join(w.config.Truth, "pgtest1"))
	must(t, err)
	var truths []string
	for _, entry := range names {
		truths = append(truths, entry.Name())
	}
	if !slices.Equal(truths, []string{"latest", "one", "one~2", "three"}) {
		t.Errorf("truths: %v", truths)
	}
	w.remove(vm, first, false, nil)
	if got := chain(second) + " | " + chain(third); got != ".vmdk | -000002.vmdk < .vmdk" {
		t.Errorf("without the first: %s", got)
	}
	tree := w.look(vm).Snapshot
	if *tree.CurrentSnapshot != third || tree.RootSnapshotList[0].Snapshot != second || tree.RootSnapshotList[0].ChildSnapshotList[0].Snapshot != third {
		t.Errorf("%+v", tree)
	}
	w.remove(vm, second, true, types.NewBool(false))
	now := w.look(vm)
	if now.Snapshot != nil || !now.Runtime.ConsolidationNeeded {
		t.Errorf("kept deltas: %+v %v", now.Snapshot, now.Runtime.ConsolidationNeeded)
	}
	joining, err := methods.ConsolidateVMDisks_Task(context.Background(), vm.Client(), &types.ConsolidateVMDisks_Task{This: vm.Reference()})
	must(t, err)
	_, err = w.wait(vm.Client(), joining.Returnval)
	must(t, err)
	now = w.look(vm)
	if got := files(now.Config.Hardware.Device)[2001]; now.Runtime.ConsolidationNeeded || got != "[datastore1] pgtest1/pgtest1_2.vmdk" {
		t.Errorf("consolidated: %s", got)
	}
	if got := w.read("pgtest1", 2001, 0, 1); string(got) != "2" {
		t.Errorf("the guest reads %q", got)
	}
	w.snapshot(vm, "four")
	w.snapshot(vm, "five")
	task, err := vm.RemoveAllSnapshot(context.Background(), nil)
	must(t, err)
	_, err = w.wait(vm.Client(), task.Reference())
	must(t, err)
	if now := w.look(vm); now.Snapshot != nil {
		t.Errorf("%+v", now.Snapshot)
	}
}

func TestATruthOfAQuietDiskIsALink(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	for _, name := range []string{"a", "b"} {
		w.remove(vm, w.snapshot(vm, name), false, nil)
		w.write("pgtest1", 2000, 0, "only this disk")
	}
	same := func(key int) bool {
		a, err := os.Stat(filepath.Join(w.config.Truth, "pgtest1", "a", fmt.Sprintf("disk-%d.raw", key)))
		must(t, err)
		b, err := os.Stat(filepath.Join(w.config.Truth, "pgtest1", "b", fmt.Sprintf("disk-%d.raw", key)))
		must(t, err)
		return os.SameFile(a, b)
	}
	if same(2000) || !same(2001) || !same(16000) {
		t.Errorf("same files: %v %v %v", same(2000), same(2001), same(16000))
	}
}

func TestAllocatedAreas(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/prod/pgtest1")
	ref := w.snapshot(vm, "x")
	query := func(key int32, offset int64, id string) (*types.DiskChangeInfo, error) {
		res, err := methods.QueryChangedDiskAreas(context.Background(), client.Client, &types.QueryChangedDiskAreas{
			This: vm.Reference(), Snapshot: &ref, DeviceKey: key, StartOffset: offset, ChangeId: id,
		})
		if err != nil {
			return nil, err
		}
		return &res.Returnval, nil
	}
	fault := func(err error) string {
		if err == nil || !soap.IsSoapFault(err) {
			return fmt.Sprint(err)
		}
		return fmt.Sprintf("%T", soap.ToSoapFault(err).VimFault())
	}
	// All that is not reported must be zero in the truth, and no window may be lost.
	truth, err := os.Open(filepath.Join(w.config.Truth, "pgtest1", "x", "disk-16000.raw"))
	must(t, err)
	defer truth.Close()
	w.tell("POST", "/knob", strings.NewReader(`{"cbt_bytes": 10485760}`), nil)
	windows, empty := 0, 0
	var reported int64
	for at := int64(0); at < 3<<30; {
		info, err := query(16000, at, "*")
		must(t, err)
		if info.StartOffset != at || info.Length <= 0 {
			t.Fatalf("%+v", info)
		}
		if len(info.ChangedArea) == 0 {
			empty++
		}
		for _, area := range info.ChangedArea {
			reported += area.Length
		}
		at += info.Length
		windows++
	}
	if windows < 300 || empty == 0 || reported < 10_000_000 || reported > 100*192<<10 {
		t.Errorf("%d windows, %d of them empty, with %d bytes", windows, empty, reported)
	}
	if info, err := query(2001, 0, "*"); err != nil || info.Length != 1<<20+1536 {
		t.Errorf("%+v %v", info, err)
	} else if last := info.ChangedArea[len(info.ChangedArea)-1]; last.Start+last.Length != 1<<20+1536 {
		t.Errorf("the last area ends at %d", last.Start+last.Length)
	}
	w.turn("/knob", `{"cbt_blind_from": 100000}`)
	if info, err := query(2001, 0, "*"); err != nil || len(info.ChangedArea) != 1 || info.ChangedArea[0].Length != 100000 || info.Length != 1<<20+1536 {
		t.Errorf("half blind: %+v %v", info, err)
	}
	w.turn("/knob", `{"cbt_blind_from": 0}`)
	for what, want := range map[string]string{
		"another change id": "types.NotSupported", "an unknown disk": "types.InvalidArgument", "a start beyond the end": "types.InvalidArgument",
	} {
		key, offset, id := int32(2000), int64(0), "*"
		switch what {
		case "another change id":
			id = "52 de/4"
		case "an unknown disk":
			key = 2007
		default:
			offset = 1 << 20
		}
		if _, err := query(key, offset, id); fault(err) != want {
			t.Errorf("%s: %v", what, fault(err))
		}
	}
	w.tell("POST", "/cbt", strings.NewReader(`{"vm": "pgtest1", "enabled": false}`), nil)
	if _, err := query(2000, 0, "*"); fault(err) != "types.FileFault" {
		t.Errorf("without tracking: %v", fault(err))
	}
	w.tell("POST", "/cbt", strings.NewReader(`{"vm": "pgtest1", "enabled": true}`), nil)
	w.remove(vm, ref, false, nil)
	if _, err := query(2000, 0, "*"); fault(err) != "types.ManagedObjectNotFound" {
		t.Errorf("of a removed snapshot: %v", fault(err))
	}
}

func TestKnobsWork(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	turn := func(text string) { w.tell("POST", "/knob", strings.NewReader(text), nil) }
	create := func() error {
		task, err := vm.CreateSnapshot(context.Background(), "x", "", false, true)
		if err != nil {
			return err
		}
		_, err = w.wait(vm.Client(), task.Reference())
		return err
	}
	turn(`{"faults": {"CreateSnapshot_Task": "NoPermission"}}`)
	if err := create(); !soap.IsSoapFault(errors.Unwrap(err)) && !soap.IsSoapFault(err) {
		t.Errorf("fault: %v", err)
	}
	turn(`{"faults": {}, "quiesce": "fail"}`)
	if err := create(); err == nil || !strings.Contains(err.Error(), "quiescing") {
		t.Errorf("quiesce: %v", err)
	}
	turn(`{"quiesce": "silent"}`)
	must(t, create())
	now := w.look(vm)
	if now.Snapshot.RootSnapshotList[0].Quiesced {
		t.Error("it claims to be quiesced")
	}
	turn(`{"remove_snapshot_ms": 700, "free": {"datastore1": 4096}}`)
	begin := time.Now()
	task, err := vm.RemoveAllSnapshot(context.Background(), nil)
	must(t, err)
	if w.look(vm); time.Since(begin) > 600*time.Millisecond {
		t.Errorf("a slow task keeps others from looking: %s", time.Since(begin))
	}
	if err := create(); err == nil || !strings.Contains(err.Error(), "already in progress") {
		t.Errorf("a second task at once: %v", err)
	}
	_, err = w.wait(vm.Client(), task.Reference())
	must(t, err)
	if took := time.Since(begin); took < 700*time.Millisecond {
		t.Errorf("the task took %s", took)
	}
	var ds mo.Datastore
	must(t, vm.Properties(context.Background(), w.lab.datastores["datastore1"], []string{"summary"}, &ds))
	if ds.Summary.FreeSpace != 4096 {
		t.Errorf("free: %d", ds.Summary.FreeSpace)
	}
}

func TestAKilledRunLosesNothing(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	w.snapshot(vm, "x")
	w.write("pgtest1", 16000, 2<<30+3, "written into a delta")
	w.snapshot(vm, "y")
	w.write("pgtest1", 16000, 2<<30, "and")
	w.stop()
	w.start()
	if got := w.read("pgtest1", 16000, 2<<30, 23); string(got) != "andwritten into a delta" {
		t.Errorf("the guest reads %q", got)
	}
	left, _ := filepath.Glob(filepath.Join(w.config.Datastores, "*", "*", "*0000*"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// Run with -race: clients look, guests write and snapshots come and go all at once.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	stop := make(chan struct{})
	var everybody sync.WaitGroup
	repeat := func(do func()) {
		everybody.Add(1)
		go func() {
			defer everybody.Done()
			for {
				select {
				case <-stop:
					return
				default:
					do()
				}
			}
		}()
	}
	pgtest1, thin1 := w.find(w.login().Client, "/DC0/vm/prod/pgtest1"), w.find(w.login().Client, "/DC0/vm/prod/thin1")
	looker := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	repeat(func() { w.look(looker) })
	repeat(func() { w.write("pgtest1", 2001, 100, "x") })
	repeat(func() {
		w.tell("GET", "/vms", nil, nil)
		w.tell("GET", "/snapshots", nil, nil)
		w.tell("GET", "/stats", nil, nil)
	})
	repeat(func() { w.remove(pgtest1, w.snapshot(pgtest1, "x"), false, nil) })
	repeat(func() { w.remove(thin1, w.snapshot(thin1, "x"), false, nil) })
	repeat(func() {
		for _, host := range []string{"DC0_C0_H1", "DC0_C0_H0"} {
			w.turn("/vm", fmt.Sprintf(`{"vm": "pgtest1", "host": %q}`, host))
			w.turn("/vm", `{"vm": "web01", "consolidation_needed": true}`)
			w.turn("/vm", `{"vm": "web01", "consolidation_needed": false}`)
			w.turn("/vm", `{"vm": "web02", "registered": false}`)
			w.turn("/vm", `{"vm": "web02", "registered": true}`)
		}
	})
	time.Sleep(3 * time.Second)
	close(stop)
	everybody.Wait()
}
