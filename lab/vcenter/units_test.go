// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

func TestWindowsCoverTheDiskOnce(t *testing.T) {
	const capacity = 1000
	content := storage.Ranges{{Start: 0, End: 10}, {Start: 20, End: 30}, {Start: 400, End: 620}, {Start: 990, End: 1000}}
	for name, limits := range map[string]struct {
		areas   int
		bytes   int64
		windows int
	}{
		"everything in one":             {10, 5000, 1},
		"one area each":                 {1, 5000, 4},
		"two areas each":                {2, 5000, 2},
		"short ones, some empty":        {10, 100, 10},
		"short ones with few areas":     {1, 100, 11},
		"an area cut by a window's end": {10, 500, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var all storage.Ranges
			windows, at := 0, int64(0)
			for at < capacity {
				whole, areas := window(content, at, capacity, limits.areas, limits.bytes)
				if whole.Start != at || whole.Len() <= 0 || whole.Len() > limits.bytes || len(areas) > limits.areas {
					t.Fatalf("window %v with %d areas after %d", whole, len(areas), at)
				}
				for _, area := range areas {
					if area.Start < whole.Start || area.End > whole.End {
						t.Fatalf("%v is outside of %v", area, whole)
					}
				}
				all = all.Union(areas)
				at = whole.End
				windows++
			}
			if !slices.Equal(all, content) || windows != limits.windows {
				t.Fatalf("%d windows gave %v", windows, all)
			}
		})
	}
}

func TestFolderURLs(t *testing.T) {
	lab := &Lab{
		Config:     Config{Datastores: "/ds"},
		datacenter: "/DC0",
		datastores: map[string]types.ManagedObjectReference{"datastore1": {}, "data store 2": {}},
	}
	for address, want := range map[string]string{
		"/folder/vm/vm.vmdk?dcPath=DC0&dsName=datastore1":                        "datastore1/vm/vm.vmdk",
		"/folder/vm/vm.vmdk?dcPath=%2FDC0&dsName=datastore1":                     "datastore1/vm/vm.vmdk",
		"/folder/vm/vm.vmdk?dcPath=DC0&dsName=data%20store%202":                  "data store 2/vm/vm.vmdk",
		"/folder/vm/vm.vmdk?dcPath=DC0&dsName=data+store+2":                      "data store 2/vm/vm.vmdk",
		"/folder/vm/vm.vmdk?dcPath=DC0&dsName=data%2520store%25202":              "data store 2/vm/vm.vmdk",
		"/folder/%C3%9Cbung%20%5B1%5D/a%252fb.vmdk?dcPath=DC0&dsName=datastore1": "datastore1/Übung [1]/a%2fb.vmdk",
		"/folder/vm/vm.vmdk?dcPath=DC1&dsName=datastore1":                        "",
		"/folder/vm/vm.vmdk?dcPath=DC0&dsName=data":                              "",
		"/folder/vm/vm.vmdk?dsName=datastore1":                                   "",
		"/folder/../x?dcPath=DC0&dsName=datastore1":                              "",
		"/folder/%2e%2e/x?dcPath=DC0&dsName=datastore1":                          "",
		"/folder//etc/passwd?dcPath=DC0&dsName=datastore1":                       "",
		"/folder/?dcPath=DC0&dsName=datastore1":                                  "",
	} {
		parsed, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		got, err := lab.resolve(parsed)
		if want == "" {
			if err == nil {
				t.Errorf("%s is %s, it should be nothing", address, got)
			}
			continue
		}
		if err != nil || got != filepath.Join("/ds", want) {
			t.Errorf("%s is %s (%v), not %s", address, got, err, want)
		}
	}
}

func TestKnobsTakeOnlySense(t *testing.T) {
	k := &knobs{values: defaultKnobs()}
	for _, text := range []string{
		`{"latency": 1}`, `{"quiesce": "perhaps"}`, `{"cbt_areas": 0}`, `{"faults": {"Login": "NoSuchFault"}}`,
		`{"faults": {"Login": "VirtualDisk"}}`, `[]`,
	} {
		if err := k.set(strings.NewReader(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
	if got := k.get(); got.Quiesce != "ok" || len(got.Faults) != 0 {
		t.Errorf("a refused request left %+v", got)
	}
	for _, text := range []string{`{"faults": {"Login": "NoPermission"}, "latency_ms": 5}`, `{"cbt_areas": 3}`} {
		if err := k.set(strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.get(); got.LatencyMS != 5 || got.CBTAreas != 3 || got.Faults["Login"] != "NoPermission" {
		t.Errorf("the knobs are %+v", got)
	}
	if err := k.set(strings.NewReader(`{"faults": {}}`)); err != nil || len(k.get().Faults) != 0 {
		t.Errorf("faults stay: %v %+v", err, k.get())
	}
}

func TestARateHoldsAndIsLookedAtAgain(t *testing.T) {
	k := &knobs{values: defaultKnobs()}
	rate := func(k Knobs) int64 { return k.NFCBytesPerSecond }
	turn := func(to string) {
		if err := k.set(strings.NewReader(to)); err != nil {
			t.Error(err)
		}
	}
	turn(`{"nfc_bytes_per_second": 1000000}`)
	began := time.Now()
	until := k.pass(150_000, k.pass(150_000, time.Time{}, rate), rate)
	if took := time.Since(began); took < 300*time.Millisecond || time.Until(until) > 0 {
		t.Errorf("300,000 bytes at 1 MB/s took %s", took)
	}
	turn(`{"nfc_bytes_per_second": 1}`)
	time.AfterFunc(200*time.Millisecond, func() { turn(`{"nfc_bytes_per_second": 0}`) })
	began = time.Now()
	k.pass(1<<20, time.Time{}, rate)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("what waited at 1 byte/s waited for %s more", took)
	}
}
