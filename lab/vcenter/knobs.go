// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// Knobs are what a test may turn while the lab runs. Their names are interface: README.md explains each.
type Knobs struct {
	LatencyMS            int64             `json:"latency_ms"`
	FolderLatencyMS      int64             `json:"folder_latency_ms"`
	FolderBytesPerSecond int64             `json:"folder_bytes_per_second"`
	NFCBytesPerSecond    int64             `json:"nfc_bytes_per_second"`
	NFCDisks             int               `json:"nfc_disks"`
	CreateSnapshotMS     int64             `json:"create_snapshot_ms"`
	RemoveSnapshotMS     int64             `json:"remove_snapshot_ms"`
	CreateSnapshotFault  string            `json:"create_snapshot_fault"`
	Quiesce              string            `json:"quiesce"`
	CBTAreas             int               `json:"cbt_areas"`
	CBTBytes             int64             `json:"cbt_bytes"`
	CBTBlindFrom         int64             `json:"cbt_blind_from"`
	Faults               map[string]string `json:"faults"`
	Free                 map[string]int64  `json:"free"`
	ClockSkewSeconds     int64             `json:"clock_skew_seconds"`
	Lacks                []string          `json:"lacks"`
	ReadOnly             []string          `json:"read_only"`
	UploadBytesPerSecond int64             `json:"upload_bytes_per_second"`
	UploadFault          string            `json:"upload_fault"`
	UploadFaultAfter     int64             `json:"upload_fault_after"`
	LeaseSeconds         int64             `json:"lease_seconds"`
}

func defaultKnobs() Knobs {
	return Knobs{
		Quiesce: "ok", CBTAreas: 64, CBTBytes: 8 << 30, Faults: map[string]string{}, Free: map[string]int64{}, Lacks: []string{},
		ReadOnly: []string{}, LeaseSeconds: 300,
	}
}

type knobs struct {
	sync.Mutex
	values Knobs
}

func (k *knobs) get() Knobs {
	k.Lock()
	defer k.Unlock()
	values := k.values
	values.Faults, values.Free = maps.Clone(values.Faults), maps.Clone(values.Free)
	values.ReadOnly = slices.Clone(values.ReadOnly)
	return values
}

// pass waits while so many bytes, the first of them not before a time, pass at a rate, and returns when they have. The rate
// is looked at again and again: what waits at a slow one need not wait for long once it is turned up.
func (k *knobs) pass(bytes int64, from time.Time, rate func(Knobs) int64) time.Time {
	if now := time.Now(); from.Before(now) {
		from = now
	}
	for left := float64(bytes); left > 0; {
		each := float64(rate(k.get()))
		if each <= 0 {
			break
		}
		step := min(left/each, 0.1)
		left -= step * each
		from = from.Add(time.Duration(step * float64(time.Second)))
		time.Sleep(time.Until(from))
	}
	return from
}

// set changes what the JSON object names; an unknown name or a senseless value changes nothing.
func (k *knobs) set(from io.Reader) error {
	k.Lock()
	defer k.Unlock()
	next := k.values
	// Maps are replaced as a whole: decoding into the old one would only ever add.
	next.Faults, next.Free, next.Lacks, next.ReadOnly = nil, nil, nil, nil
	decoder := json.NewDecoder(from)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&next); err != nil {
		return err
	}
	if next.Faults == nil {
		next.Faults = k.values.Faults
	}
	if next.Free == nil {
		next.Free = k.values.Free
	}
	if next.Lacks == nil {
		next.Lacks = k.values.Lacks
	}
	if next.ReadOnly == nil {
		next.ReadOnly = k.values.ReadOnly
	}
	for method, name := range next.Faults {
		if newFault(name) == nil {
			return fmt.Errorf("faults: %s: %q is not a fault that vSphere knows", method, name)
		}
	}
	switch {
	case next.CreateSnapshotFault != "" && newFault(next.CreateSnapshotFault) == nil:
		return fmt.Errorf("create_snapshot_fault: %q is not a fault that vSphere knows", next.CreateSnapshotFault)
	case next.UploadFault != "" && newFault(next.UploadFault) == nil:
		return fmt.Errorf("upload_fault: %q is not a fault that vSphere knows", next.UploadFault)
	case next.LeaseSeconds < 1:
		return errors.New("lease_seconds is at least 1")
	case next.Quiesce != "ok" && next.Quiesce != "fail" && next.Quiesce != "silent":
		return fmt.Errorf("quiesce is ok, fail or silent, not %q", next.Quiesce)
	case next.CBTAreas < 1 || next.CBTBytes < cbtCell:
		return fmt.Errorf("cbt_areas is at least 1 and cbt_bytes at least %d", int64(cbtCell))
	}
	k.values = next
	return nil
}

// newFault returns a fault of that type, nil when there is none.
func newFault(name string) types.BaseMethodFault {
	kind, known := types.TypeFunc()(name)
	if !known || kind.Kind() != reflect.Struct {
		return nil
	}
	fault, _ := reflect.New(kind).Interface().(types.BaseMethodFault)
	return fault
}

func sleep(ms int64) { time.Sleep(time.Duration(ms) * time.Millisecond) }
