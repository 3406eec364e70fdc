// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const madeSize = 3<<16 + 1536

// wish is what a client asks for: two disks on two controllers, on both datastores.
func wish(name string) types.VirtualMachineConfigSpec {
	add := func(device types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
		spec := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: device}
		if _, isDisk := device.(*types.VirtualDisk); isDisk {
			spec.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
		}
		return spec
	}
	disk := func(controller, unit int32, datastore string) types.BaseVirtualDevice {
		return &types.VirtualDisk{
			VirtualDevice: types.VirtualDevice{
				Key: -7 - unit, ControllerKey: controller, UnitNumber: types.NewInt32(unit),
				Backing: &types.VirtualDiskFlatVer2BackingInfo{
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[" + datastore + "]"},
					DiskMode:                     "persistent", ThinProvisioned: types.NewBool(true),
				},
			},
			CapacityInBytes: madeSize,
		}
	}
	sas, nvme := &types.VirtualLsiLogicSASController{}, &types.VirtualNVMEController{}
	sas.Key, sas.BusNumber, nvme.Key = -1, 1, -2
	return types.VirtualMachineConfigSpec{
		Name: name, GuestId: "otherGuest64", Firmware: "efi", NumCPUs: 1, MemoryMB: 64,
		Files:        &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"},
		DeviceChange: []types.BaseVirtualDeviceConfigSpec{add(sas), add(nvme), add(disk(-1, 3, "datastore1")), add(disk(-2, 0, "data store 2"))},
	}
}

func (w *world) place(client *vim25.Client) (folder, pool types.ManagedObjectReference) {
	w.Helper()
	finder := find.NewFinder(client)
	inFolder, err := finder.Folder(context.Background(), "/DC0/vm/odd")
	must(w.T, err)
	inPool, err := finder.ResourcePool(context.Background(), "/DC0/host/DC0_C0/Resources")
	must(w.T, err)
	return inFolder.Reference(), inPool.Reference()
}

func TestAMadeVMHasRealDisksAndGoesWhole(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	folder, pool := w.place(client)
	create := func() (types.AnyType, error) {
		res, err := methods.CreateVM_Task(context.Background(), client, &types.CreateVM_Task{This: folder, Config: wish("made"), Pool: pool})
		must(t, err)
		return w.wait(client, res.Returnval)
	}
	_, err := create()
	must(t, err)
	if _, err := create(); err == nil {
		t.Error("a second VM of that name was made")
	}
	vm := w.find(client, "/DC0/vm/odd/made")
	var properties mo.VirtualMachine
	must(t, property.DefaultCollector(client).RetrieveOne(context.Background(), vm.Reference(), []string{"config", "datastore"}, &properties))
	chains := files(properties.Config.Hardware.Device)
	if chains[2019] != "[datastore1] made/made.vmdk" || chains[32000] != "[data store 2] made/made_1.vmdk" || len(chains) != 2 {
		t.Errorf("disks: %v", chains)
	}
	if len(properties.Datastore) != 2 {
		t.Errorf("datastores: %v", properties.Datastore)
	}
	w.write("made", 32000, 4096, "real")
	if got := w.read("made", 32000, 4096, 4); string(got) != "real" {
		t.Errorf("read %q", got)
	}
	w.tell("POST", "/knob", strings.NewReader(`{"read_only": ["data store 2"]}`), nil)
	res, err := methods.CreateVM_Task(context.Background(), client, &types.CreateVM_Task{This: folder, Config: wish("other"), Pool: pool})
	must(t, err)
	if _, err := w.wait(client, res.Returnval); err == nil {
		t.Error("a disk was made on a read-only datastore")
	}
	task, err := vm.Destroy(context.Background())
	must(t, err)
	_, err = w.wait(client, task.Reference())
	must(t, err)
	for _, name := range []string{"made", "other"} {
		left, _ := filepath.Glob(filepath.Join(w.config.Datastores, "*", name+"*"))
		if len(left) > 0 || slices.ContainsFunc(w.lab.known(), func(g *guest) bool { return g.name == name }) {
			t.Errorf("left of %s: %v", name, left)
		}
	}
}

// stream writes a stream-optimized VMDK with these grains, as a client would; spoil may change the bytes.
func stream(capacity int64, grains map[int][]byte) []byte {
	var out bytes.Buffer
	pad := func() { out.Write(make([]byte, (512-out.Len()%512)%512)) }
	u32 := func(values ...uint32) { _ = binary.Write(&out, binary.LittleEndian, values) }
	u64 := func(values ...uint64) { _ = binary.Write(&out, binary.LittleEndian, values) }
	head := func(gd uint64) {
		u32(0x564d444b, 3, 0x30001)
		u64(uint64(capacity/512), 128, 1, 2)
		u32(512)
		u64(0, gd, 128)
		out.Write([]byte{0, '\n', ' ', '\r', '\n', 1, 0})
		pad()
	}
	head(^uint64(0))
	fmt.Fprintf(&out, "# Disk DescriptorFile\ncreateType=\"streamOptimized\"\nRW %d SPARSE \"x.vmdk\"\n", capacity/512)
	out.Write(make([]byte, 128*512-out.Len()))
	table := make([]uint32, 512)
	for _, number := range slices.Sorted(func(yield func(int) bool) {
		for number := range grains {
			if !yield(number) {
				return
			}
		}
	}) {
		var packed bytes.Buffer
		writer := zlib.NewWriter(&packed)
		_, _ = writer.Write(append(grains[number], make([]byte, 65536-len(grains[number]))...))
		_ = writer.Close()
		table[number] = uint32(out.Len() / 512)
		u64(uint64(number) * 128)
		u32(uint32(packed.Len()))
		out.Write(packed.Bytes())
		pad()
	}
	marker := func(sectors uint64, kind uint32) {
		u64(sectors)
		u32(0, kind)
		pad()
	}
	marker(4, 1)
	at := uint32(out.Len() / 512)
	u32(table...)
	marker(1, 2)
	gd := uint64(out.Len() / 512)
	u32(at)
	pad()
	marker(1, 3)
	head(gd)
	marker(0, 0)
	return out.Bytes()
}

func TestALeaseTakesStreams(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	folder, pool := w.place(client)
	lease := func(name string) (mo.HttpNfcLease, types.ManagedObjectReference) {
		t.Helper()
		res, err := methods.ImportVApp(context.Background(), client, &types.ImportVApp{
			This: pool, Folder: &folder, Spec: &types.VirtualMachineImportSpec{ConfigSpec: wish(name)},
		})
		must(t, err)
		for {
			var properties mo.HttpNfcLease
			must(t, property.DefaultCollector(client).RetrieveOne(context.Background(), res.Returnval, []string{"state", "info", "error"}, &properties))
			if properties.State != types.HttpNfcLeaseStateInitializing {
				return properties, res.Returnval
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	post := func(url string, body []byte) int {
		t.Helper()
		_, path, _ := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
		request, err := http.NewRequest("POST", w.api.URL+"/"+path, bytes.NewReader(body))
		must(t, err)
		request.Header.Set("Content-Type", streamType)
		response, err := w.api.Client().Do(request)
		must(t, err)
		return response.StatusCode
	}
	complete := func(ref types.ManagedObjectReference) error {
		_, err := methods.HttpNfcLeaseComplete(context.Background(), client, &types.HttpNfcLeaseComplete{This: ref})
		return err
	}
	grains := map[int][]byte{1: []byte("second grain"), 3: []byte("the last, short one")}
	good := stream(madeSize, grains)

	made, ref := lease("imported")
	if len(made.Info.DeviceUrl) != 2 || !strings.HasSuffix(made.Info.DeviceUrl[0].Key, "/VirtualLsiLogicSASController1:3") {
		t.Fatalf("%+v", made.Info)
	}
	if complete(ref) == nil {
		t.Error("a lease without uploads was complete")
	}
	for _, each := range made.Info.DeviceUrl {
		if status := post(each.Url, good); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	must(t, complete(ref))
	if got := w.read("imported", 2019, 65536, 12); string(got) != "second grain" {
		t.Errorf("read %q", got)
	}
	if got := w.read("imported", 32000, 3<<16, 19); string(got) != "the last, short one" {
		t.Errorf("read %q", got)
	}

	for what, spoil := range map[string]func([]byte) []byte{
		"a byte of a grain":    func(b []byte) []byte { b[128*512+30] ^= 1; return b },
		"a grain table":        func(b []byte) []byte { b[131*512+4] ^= 1; return b },
		"cut short":            func(b []byte) []byte { return b[:len(b)-512] },
		"something at the end": func(b []byte) []byte { return append(b, 0) },
		"another capacity":     func([]byte) []byte { return stream(madeSize-512, grains) },
	} {
		made, ref := lease("spoilt")
		if status := post(made.Info.DeviceUrl[0].Url, spoil(bytes.Clone(good))); status != http.StatusInternalServerError {
			t.Errorf("%s: %d", what, status)
		}
		_, err := methods.HttpNfcLeaseAbort(context.Background(), client, &types.HttpNfcLeaseAbort{This: ref})
		must(t, err)
		w.gone("spoilt")
	}

	w.tell("POST", "/knob", strings.NewReader(`{"lease_seconds": 1}`), nil)
	lease("silent")
	w.gone("silent")
	if _, err := os.Stat(filepath.Join(w.config.Datastores, "datastore1", "imported")); err != nil {
		t.Error(err)
	}
}

func TestAnOVFNamesItsDisksAsTheLeaseDoes(t *testing.T) {
	w := newWorld(t)
	client := w.login().Client
	folder, pool := w.place(client)
	descriptor := `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
  <References><File ovf:href="a.vmdk" ovf:id="a" ovf:size="1"/><File ovf:href="b.vmdk" ovf:id="b" ovf:size="1"/></References>
  <DiskSection><Info/><Disk ovf:capacity="65536" ovf:diskId="da" ovf:fileRef="a"/><Disk ovf:capacity="65536" ovf:diskId="db" ovf:fileRef="b"/></DiskSection>
  <VirtualSystem ovf:id="x"><Info/><VirtualHardwareSection><Info/><System/>
    <Item><rasd:ElementName>c</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>
      <rasd:ResourceType>6</rasd:ResourceType></Item>
    <Item><rasd:ElementName>a</rasd:ElementName><rasd:HostResource>ovf:/disk/da</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
      <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
    <Item><rasd:ElementName>b</rasd:ElementName><rasd:HostResource>ovf:/disk/db</rasd:HostResource><rasd:InstanceID>5</rasd:InstanceID>
      <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
  </VirtualHardwareSection></VirtualSystem>
</Envelope>`
	ctx := context.Background()
	spec, err := methods.CreateImportSpec(ctx, client, &types.CreateImportSpec{
		This: *client.ServiceContent.OvfManager, OvfDescriptor: descriptor, ResourcePool: pool, Datastore: w.lab.datastores["datastore1"],
		Cisp: &types.OvfCreateImportSpecParams{EntityName: "appliance"},
	})
	must(t, err)
	res, err := methods.ImportVApp(ctx, client, &types.ImportVApp{This: pool, Folder: &folder, Spec: spec.Returnval.ImportSpec})
	must(t, err)
	var lease mo.HttpNfcLease
	for lease.Info == nil {
		must(t, property.DefaultCollector(client).RetrieveOne(ctx, res.Returnval, []string{"state", "info"}, &lease))
		if lease.State == types.HttpNfcLeaseStateError {
			t.Fatal("the import failed")
		}
	}
	for i, item := range spec.Returnval.FileItem {
		if want := lease.Info.DeviceUrl[i].ImportKey; item.DeviceId != want {
			t.Errorf("%s is for %s, the lease says %s", item.Path, item.DeviceId, want)
		}
	}
	if len(spec.Returnval.FileItem) != 2 {
		t.Error(spec.Returnval.FileItem)
	}
}

// gone waits until a VM and its files are no more.
func (w *world) gone(name string) {
	w.Helper()
	for range 500 {
		left, _ := filepath.Glob(filepath.Join(w.config.Datastores, "*", name+"*"))
		if len(left) == 0 && !slices.ContainsFunc(w.lab.known(), func(g *guest) bool { return g.name == name }) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.Errorf("%s is still there", name)
}

func TestADiskIsWrittenOverPort902(t *testing.T) {
	w := newWorld(t)
	w.lab.Thumbprint = "AA:BB"
	address := w.serveNFC()
	vm := w.find(w.login().Client, "/DC0/vm/odd/template1")
	login := map[string]string{"user": user, "password": password, "thumbprint": "AA:BB", "vm": vm.Reference().Value, "snapshot": ""}
	disk, said := open(t, address, login, "open rw [datastore1] template1/template1.vmdk")
	if !strings.HasPrefix(said, "ok") {
		t.Fatal(said)
	}
	write := func(offset uint64, data string) uint32 {
		must(t, binary.Write(disk.Conn, binary.BigEndian, struct {
			What           uint32
			Offset, Length uint64
		}{nfcWrite, offset, uint64(len(data))}))
		_, err := disk.Write([]byte(data))
		must(t, err)
		var head struct {
			Status uint32
			Length uint64
		}
		must(t, binary.Read(disk.in, binary.BigEndian, &head))
		_, err = disk.in.Discard(int(head.Length))
		must(t, err)
		return head.Status
	}
	if status := write(8192, "written from afar"); status != 0 {
		t.Fatal(status)
	}
	if status, _ := disk.ask(nfcFlush, 0, 0); status != 0 {
		t.Error(status)
	}
	if got := w.read("template1", 2000, 8192, 17); string(got) != "written from afar" {
		t.Errorf("read %q", got)
	}
	w.tell("POST", "/knob", strings.NewReader(`{"upload_fault": "NoDiskSpace"}`), nil)
	if status := write(0, "x"); status != vixNoSpace {
		t.Errorf("on a full datastore: %d", status)
	}
}
