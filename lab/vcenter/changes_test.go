// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// turn posts JSON to the control API.
func (w *world) turn(path, body string) {
	w.Helper()
	w.tell("POST", path, strings.NewReader(body), nil)
}

// refused returns what the control API says against a request.
func (w *world) refused(path, body string) string {
	w.Helper()
	response, err := http.Post(w.control.URL+path, "application/json", strings.NewReader(body))
	must(w.T, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(w.T, err)
	if response.StatusCode == http.StatusOK {
		w.Fatalf("%s %s was not refused", path, body)
	}
	return string(text)
}

func (w *world) try(vm *object.VirtualMachine, name string) error {
	w.Helper()
	task, err := vm.CreateSnapshot(context.Background(), name, "", false, false)
	must(w.T, err)
	_, err = w.wait(vm.Client(), task.Reference())
	return err
}

func TestTheOddOnesAreOdd(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	look := func(path string) mo.VirtualMachine {
		return w.look(w.find(client, path))
	}
	for path, odd := range map[string]func(mo.VirtualMachine) bool{
		"/DC0/vm/odd/template1":  func(vm mo.VirtualMachine) bool { return vm.Config.Template && vm.Runtime.PowerState == "poweredOff" },
		"/DC0/vm/odd/encrypted1": func(vm mo.VirtualMachine) bool { return vm.Config.KeyId.KeyId != "" },
		"/DC0/vm/odd/nocbt1":     func(vm mo.VirtualMachine) bool { return !*vm.Config.ChangeTrackingEnabled },
		"/DC0/vm/odd/ft1": func(vm mo.VirtualMachine) bool {
			return vm.Config.FtInfo != nil && vm.Runtime.FaultToleranceState == types.VirtualMachineFaultToleranceStateRunning
		},
		"/DC0/vm/odd/sharedbus1": func(vm mo.VirtualMachine) bool {
			return slices.ContainsFunc(vm.Config.Hardware.Device, func(device types.BaseVirtualDevice) bool {
				scsi, is := device.(*types.ParaVirtualSCSIController)
				return is && scsi.SharedBus == types.VirtualSCSISharingPhysicalSharing
			})
		},
	} {
		if vm := look(path); !odd(vm) {
			t.Errorf("%s is not odd: %+v", path, vm)
		}
	}
	found, err := find.NewFinder(client).VirtualMachineList(context.Background(), "/DC0/vm/*/twin")
	if err != nil || len(found) != 2 || look(found[0].InventoryPath).Config.InstanceUuid == look(found[1].InventoryPath).Config.InstanceUuid {
		t.Errorf("twins: %v %v", err, found)
	}
	for name, words := range map[string]string{"template1": "template", "sharedbus1": "bus", "ft1": "fault tolerant"} {
		if err := w.try(w.find(client, "/DC0/vm/odd/"+name), "x"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("a snapshot of %s: %v", name, err)
		}
	}
	if said := w.refused("/cbt", `{"vm": "twin", "enabled": false}`); !strings.Contains(said, "/DC0/vm/prod/twin, /DC0/vm/test/twin") {
		t.Error(said)
	}
	w.turn("/cbt", `{"vm": "/DC0/vm/test/twin", "enabled": false}`)
	if *look("/DC0/vm/test/twin").Config.ChangeTrackingEnabled || !*look("/DC0/vm/prod/twin").Config.ChangeTrackingEnabled {
		t.Error("the other twin was meant")
	}
}

func TestSmallVMsDifferOnlyInTheirFirstSector(t *testing.T) {
	w := newWorld(t)
	one, other := w.read("web01", 2000, 0, 1<<20), w.read("web10", 2000, 0, 1<<20)
	if !bytes.HasPrefix(one, []byte("SENDENSE-GUEST web01 disk 2000 ")) || bytes.Equal(one[:512], other[:512]) || !bytes.Equal(one[512:], other[512:]) {
		t.Errorf("%q %q", one[:64], other[:64])
	}
}

func TestAnOddNameIsReadable(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/odd/Büro%2fKasse 1")
	ref := w.snapshot(vm, "x")
	var truth Truth
	w.tell("GET", "/truth?"+url.Values{"vm": {"Büro/Kasse 1"}}.Encode(), nil, &truth)
	kept, err := os.ReadFile(filepath.Join(truth.Folder, truth.Disks[0].File))
	must(t, err)
	const name = "Büro_Kasse 1 (50%, #1 + 2)"
	if truth.Disks[0].Path != "[datastore1] "+name+"/"+name+".vmdk" {
		t.Errorf("path: %s", truth.Disks[0].Path)
	}
	status, read := w.get(client, "datastore1", url.PathEscape(name)+"/"+url.PathEscape(name+"-flat.vmdk"), "")
	if status != http.StatusOK || !bytes.Equal(read, kept) {
		t.Errorf("status %d, equal: %v", status, bytes.Equal(read, kept))
	}
	w.remove(vm, ref, false, nil)
}

func TestAnIndependentDiskTakesNoPart(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/odd/independent1")
	ref := w.snapshot(vm, "x")
	chains := files(w.look(vm).Config.Hardware.Device)
	if chains[2001] != "[datastore1] independent1/independent1_1.vmdk" || !strings.Contains(chains[2000], "-000001.vmdk < ") {
		t.Errorf("%v", chains)
	}
	if status, _ := w.get(client, "datastore1", "independent1/independent1_1-flat.vmdk", "0-9"); status != http.StatusInternalServerError {
		t.Errorf("the file in use gave %d", status)
	}
	_, err := methods.QueryChangedDiskAreas(context.Background(), client.Client, &types.QueryChangedDiskAreas{
		This: vm.Reference(), Snapshot: &ref, DeviceKey: 2001, ChangeId: "*",
	})
	if err == nil {
		t.Error("its areas were answered")
	}
	w.remove(vm, ref, false, nil)
	if now := w.look(vm); now.Runtime.ConsolidationNeeded || now.Snapshot != nil {
		t.Errorf("%+v", now.Runtime)
	}
}

// allocated returns, per disk, what layoutEx says that its chain of files takes.
func (w *world) allocated(vm *object.VirtualMachine) (map[int32]int64, mo.VirtualMachine) {
	w.Helper()
	var seen mo.VirtualMachine
	must(w.T, vm.Properties(context.Background(), vm.Reference(), []string{"layoutEx", "summary.storage", "storage"}, &seen))
	sizes, sums := map[int32]int64{}, map[int32]int64{}
	for _, file := range seen.LayoutEx.File {
		sizes[file.Key] = file.Size
	}
	for _, disk := range seen.LayoutEx.Disk {
		for _, unit := range disk.Chain {
			for _, key := range unit.FileKey {
				sums[disk.Key] += sizes[key]
			}
		}
	}
	return sums, seen
}

func TestLayoutTellsWhatIsAllocated(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/pgtest1")
	before, seen := w.allocated(vm)
	if before[16000] < 10_000_000 || before[16000] > 30<<20 || len(before) != 3 {
		t.Errorf("3 GiB with some 10 MB in them: %v", before)
	}
	if seen.Summary.Storage.Committed < before[16000] || seen.Summary.Storage.Uncommitted < 2<<30 || len(seen.Storage.PerDatastoreUsage) != 2 {
		t.Errorf("%+v", seen.Summary.Storage)
	}
	ref := w.snapshot(vm, "x")
	w.write("pgtest1", 16000, 1<<30, strings.Repeat("x", 1<<20))
	_, err := methods.RefreshStorageInfo(context.Background(), vm.Client(), &types.RefreshStorageInfo{This: vm.Reference()})
	must(t, err)
	after, seen := w.allocated(vm)
	if grown := after[16000] - before[16000]; grown < 1<<20 || grown > 2<<20 {
		t.Errorf("a delta with 1 MiB made it %d larger", grown)
	}
	if len(seen.LayoutEx.Snapshot) != 1 || seen.LayoutEx.Snapshot[0].Key != ref || len(seen.LayoutEx.Snapshot[0].Disk[0].Chain) != 1 {
		t.Errorf("%+v", seen.LayoutEx.Snapshot)
	}
	w.remove(vm, ref, false, nil)
	if _, seen = w.allocated(vm); len(seen.LayoutEx.Snapshot) != 0 || len(seen.LayoutEx.Disk[0].Chain) != 1 {
		t.Errorf("%+v", seen.LayoutEx)
	}
}

func TestReconfiguringTakesEffectAtTheNextStun(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/odd/nocbt1")
	task, err := vm.Reconfigure(context.Background(), types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)})
	must(t, err)
	_, err = w.wait(vm.Client(), task.Reference())
	must(t, err)
	changeID := func() string {
		for _, device := range w.look(vm).Config.Hardware.Device {
			if disk, is := device.(*types.VirtualDisk); is {
				return disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo).ChangeId
			}
		}
		return "no disk"
	}
	if sums, _ := w.allocated(vm); sums[2000] == 0 || sums[2000] > 1<<20 {
		t.Errorf("allocated: %v", sums)
	}
	if before := changeID(); before != "" || !*w.look(vm).Config.ChangeTrackingEnabled {
		t.Errorf("before the stun: %q", before)
	}
	w.remove(vm, w.snapshot(vm, "x"), false, nil)
	if changeID() == "" {
		t.Error("no change id after the stun")
	}
}

func TestASnapshotThatTimesOutIsThere(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/web01")
	w.turn("/knob", `{"create_snapshot_fault": "Timedout"}`)
	if err := w.try(vm, "x"); err == nil || err.Error() != "Operation timed out." {
		t.Errorf("the task: %v", err)
	}
	if tree := w.look(vm).Snapshot; tree == nil || tree.RootSnapshotList[0].Name != "x" {
		t.Errorf("%+v", tree)
	}
	w.turn("/knob", `{"create_snapshot_fault": ""}`)
	must(t, w.try(vm, "y"))
}

func TestADiskGrowsAtTheSnapshot(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/web01")
	sizes := func(devices []types.BaseVirtualDevice) (found []int64) {
		for _, device := range devices {
			if disk, is := device.(*types.VirtualDisk); is {
				found = append(found, disk.CapacityInBytes)
			}
		}
		return found
	}
	w.turn("/disk", `{"vm": "web01", "key": 2000, "grow_at_snapshot": 65536}`)
	if got := sizes(w.look(vm).Config.Hardware.Device); got[0] != 1<<20 {
		t.Errorf("before: %v", got)
	}
	ref := w.snapshot(vm, "x")
	var of mo.VirtualMachineSnapshot
	must(t, vm.Properties(context.Background(), ref, []string{"config"}, &of))
	if live, frozen := sizes(w.look(vm).Config.Hardware.Device), sizes(of.Config.Hardware.Device); live[0] != 1<<20+65536 || frozen[0] != live[0] {
		t.Errorf("live %v, frozen %v", live, frozen)
	}
	w.remove(vm, ref, false, nil)
	w.remove(vm, w.snapshot(vm, "y"), false, nil)
	w.stop()
	w.start()
	if got := w.read("web01", 2000, 1<<20, 65536); !bytes.Equal(got, make([]byte, 65536)) {
		t.Error("what grew is not zero")
	}
	for _, body := range []string{
		`{"vm": "web01", "key": 2000, "grow_at_snapshot": 5}`, `{"vm": "web01", "key": 7}`, `{"vm": "none"}`, `{"vm": "web01", "grow": 512}`,
	} {
		w.refused("/disk", body)
	}
}

func TestConsolidationIsNeededUntilDone(t *testing.T) {
	w := newWorld(t)
	vm := w.find(w.login().Client, "/DC0/vm/prod/web01")
	needed := func() bool { return w.look(vm).Runtime.ConsolidationNeeded }
	w.turn("/vm", `{"vm": "web01", "consolidation_needed": true}`)
	w.turn("/vm", `{"vm": "web01", "consolidation_needed": true}`)
	if chain := files(w.look(vm).Config.Hardware.Device)[2000]; !needed() || chain != "[datastore1] web01/web01-000001.vmdk < [datastore1] web01/web01.vmdk" {
		t.Errorf("needed %v, chain %s", needed(), chain)
	}
	w.turn("/vm", `{"vm": "web01", "consolidation_needed": false}`)
	if needed() {
		t.Error("still needed")
	}
	ref := w.snapshot(vm, "x")
	w.turn("/vm", `{"vm": "web01", "consolidation_needed": true}`)
	w.write("web01", 2000, 0, "into the stray delta")
	task, err := methods.ConsolidateVMDisks_Task(context.Background(), vm.Client(), &types.ConsolidateVMDisks_Task{This: vm.Reference()})
	must(t, err)
	_, err = w.wait(vm.Client(), task.Returnval)
	must(t, err)
	if tree := w.look(vm).Snapshot; needed() || tree == nil || *tree.CurrentSnapshot != ref || string(w.read("web01", 2000, 0, 8)) != "into the" {
		t.Errorf("%+v", tree)
	}
}

func TestADiskVanishesInMidAnswerAndComesBack(t *testing.T) {
	w := newWorld(t)
	client := w.login()
	vm := w.find(client.Client, "/DC0/vm/prod/pgtest1")
	ref := w.snapshot(vm, "x")
	const file = "pgtest1/pgtest1-flat.vmdk"
	reader, said := open(t, w.serveNFC(), map[string]string{
		"user": user, "password": password, "thumbprint": w.lab.Thumbprint, "vm": vm.Reference().Value, "snapshot": ref.Value,
	}, "open ro [datastore1] pgtest1/pgtest1.vmdk")
	if status, _ := reader.ask(nfcRead, 0, 512); said != "ok 1048576" || status != 0 {
		t.Fatalf("NFC: %s, %d", said, status)
	}
	w.turn("/knob", `{"folder_bytes_per_second": 131072}`)
	answer := make(chan int)
	go func() {
		request, _ := http.NewRequest("GET", w.api.URL+"/folder/"+file+"?dcPath=DC0&dsName=datastore1", nil)
		request.SetBasicAuth(user, password)
		response, err := w.api.Client().Do(request)
		if err != nil {
			answer <- -1
			return
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil {
			t.Errorf("all %d bytes came", len(text))
		}
		answer <- len(text)
	}()
	time.Sleep(500 * time.Millisecond)
	w.turn("/disk", `{"vm": "pgtest1", "key": 2000, "readable": false}`)
	if got := <-answer; got < 0 || got >= 1<<20 {
		t.Errorf("%d bytes came", got)
	}
	w.turn("/knob", `{"folder_bytes_per_second": 0}`)
	for path, want := range map[string]int{
		file: http.StatusNotFound, "pgtest1/pgtest1.vmdk": http.StatusNotFound, "pgtest1/pgtest1_2-flat.vmdk": http.StatusOK,
	} {
		if status, _ := w.get(client, "datastore1", path, ""); status != want {
			t.Errorf("%s gave %d", path, status)
		}
	}
	if status, _ := reader.ask(nfcRead, 0, 512); status != vixFileNotFound {
		t.Errorf("NFC gave %d", status)
	}
	w.turn("/disk", `{"vm": "pgtest1", "readable": true}`)
	if status, _ := reader.ask(nfcRead, 0, 512); status != 0 {
		t.Errorf("afterwards NFC gave %d", status)
	}
	if status, _ := w.get(client, "datastore1", file, ""); status != http.StatusOK {
		t.Errorf("afterwards %d", status)
	}
}

func TestAVMLeavesTheInventoryAndReturns(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	vm := w.find(client, "/DC0/vm/prod/web02")
	ref := w.snapshot(vm, "x")
	uuid := w.look(vm).Config.InstanceUuid
	ask := func(what types.ManagedObjectReference) error {
		var seen mo.VirtualMachine
		return vm.Properties(context.Background(), what, nil, &seen)
	}
	listed := func() (count int) {
		hosts, err := find.NewFinder(client).HostSystemList(context.Background(), "*")
		must(t, err)
		folder, err := find.NewFinder(client).Folder(context.Background(), "/DC0/vm/prod")
		must(t, err)
		var of mo.Folder
		must(t, folder.Properties(context.Background(), folder.Reference(), []string{"childEntity"}, &of))
		lists := [][]types.ManagedObjectReference{of.ChildEntity}
		for _, host := range hosts {
			var seen mo.HostSystem
			must(t, host.Properties(context.Background(), host.Reference(), []string{"vm"}, &seen))
			lists = append(lists, seen.Vm)
		}
		for _, list := range lists {
			if slices.Contains(list, vm.Reference()) {
				count++
			}
		}
		return count
	}
	byUUID := func() object.Reference {
		found, err := object.NewSearchIndex(client).FindByUuid(context.Background(), nil, uuid, true, types.NewBool(true))
		must(t, err)
		return found
	}
	w.turn("/vm", `{"vm": "web02", "registered": false}`)
	w.turn("/vm", `{"vm": "web02", "registered": false}`)
	if _, err := find.NewFinder(client).VirtualMachine(context.Background(), "/DC0/vm/prod/web02"); err == nil {
		t.Error("it is still found by its path")
	}
	if found := byUUID(); found != nil {
		t.Errorf("it is still found by its uuid: %v", found)
	}
	for _, gone := range []types.ManagedObjectReference{vm.Reference(), ref} {
		if err := ask(gone); err == nil || !strings.Contains(fmt.Sprint(err), "deleted") && !strings.Contains(fmt.Sprint(err), "NotFound") {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := vm.CreateSnapshot(context.Background(), "y", "", false, false); err == nil {
		t.Error("a snapshot of it was begun")
	}
	if listed() != 0 {
		t.Error("a host or a folder still has it")
	}
	w.turn("/vm", `{"vm": "web02", "registered": true}`)
	if found := byUUID(); found == nil || listed() != 2 {
		t.Errorf("it did not return: %v, in %d lists", found, listed())
	}
	if tree := w.look(w.find(client, "/DC0/vm/prod/web02")).Snapshot; tree == nil || *tree.CurrentSnapshot != ref {
		t.Errorf("%+v", tree)
	}
	w.remove(vm, ref, false, nil)
}

func TestAVMMovesToTheOtherHost(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	vm := w.find(client, "/DC0/vm/prod/web01")
	name := func() string {
		host, err := vm.HostSystem(context.Background())
		must(t, err)
		name, err := host.ObjectName(context.Background())
		must(t, err)
		return name
	}
	before, old := name(), *w.look(vm).Runtime.Host
	w.turn("/vm", `{"vm": "web01", "host": "DC0_C0_H1"}`)
	if before != "DC0_C0_H0" || name() != "DC0_C0_H1" || *w.look(vm).Runtime.Host == old {
		t.Errorf("from %s to %s", before, name())
	}
	if said := w.refused("/vm", `{"vm": "web01", "host": "elsewhere"}`); !strings.Contains(said, "DC0_C0_H0, DC0_C0_H1") {
		t.Error(said)
	}
	must(t, w.try(vm, "x"))
}

func TestStatsCountWhatBenchesAskFor(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	open := func() map[string]any {
		var stats map[string]any
		w.tell("GET", "/stats", nil, &stats)
		return stats
	}
	var refs []types.ManagedObjectReference
	vms := []*object.VirtualMachine{w.find(client, "/DC0/vm/prod/web01"), w.find(client, "/DC0/vm/prod/web02")}
	for _, vm := range vms {
		refs = append(refs, w.snapshot(vm, "x"))
	}
	w.remove(vms[0], refs[0], false, nil)
	stats := open()
	calls, _ := stats["soap"].(map[string]any)
	if stats["max_open_snapshots"] != 2.0 || stats["max_removals"] != 1.0 || calls["CreateSnapshotEx_Task"] != 2.0 || stats["task_polls"].(float64) < 3 {
		t.Errorf("%v", stats)
	}
	w.turn("/stats/reset", "")
	w.look(vms[0])
	if stats := open(); stats["max_open_snapshots"] != 1.0 || stats["max_removals"] != 0.0 || stats["task_polls"] != 0.0 || stats["logins"] != 0.0 ||
		fmt.Sprint(stats["soap"]) != "map[RetrievePropertiesEx:1]" {
		t.Errorf("after the reset: %v", stats)
	}
}
