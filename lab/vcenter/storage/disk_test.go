// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const oddSize = 300*1024 + 1536

func open(t *testing.T, spec Spec) *Disk {
	t.Helper()
	disk, err := Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func noise(random *rand.Rand, n int64) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(random.Uint32())
	}
	return out
}

func content(t *testing.T, disk *Disk) []byte {
	t.Helper()
	out := make([]byte, disk.Capacity)
	_, err := disk.ReadAt(out, 0)
	must(t, err)
	return out
}

// exported checks that the disk up to the frozen layer is as expected, and that what it calls content covers all data.
func exported(t *testing.T, disk *Disk, frozen *Layer, want []byte) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "copy")
	must(t, disk.Export(frozen, target))
	got, err := os.ReadFile(target)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Fatal("a frozen disk has changed")
	}
	ranges, err := disk.Content(frozen)
	must(t, err)
	must(t, ranges.Split(Range{0, disk.Capacity}, func(piece Range, covered bool) error {
		if !covered && len(bytes.Trim(want[piece.Start:piece.End], "\x00")) > 0 {
			t.Fatalf("data at %v is not among the content", piece)
		}
		return nil
	}))
}

func TestDiskFollowsAModel(t *testing.T) {
	for seed := range uint64(12) {
		random := rand.New(rand.NewPCG(seed, 7))
		dir := t.TempDir()
		golden := filepath.Join(dir, "golden [*]")
		live := noise(random, oddSize)
		must(t, os.WriteFile(golden, live, 0o600))
		spec := Spec{Dir: filepath.Join(dir, "a [b] *"), Name: "vm_1", Capacity: oddSize, Golden: golden}
		disk := open(t, spec)
		type kept struct {
			layer *Layer
			bytes []byte
		}
		var snapshots []kept
		consolidate := func() {
			needed := map[*Layer]bool{}
			for _, one := range snapshots {
				needed[one.layer] = true
			}
			became, err := disk.Consolidate(needed)
			must(t, err)
			for i := range snapshots {
				for next := became[snapshots[i].layer]; next != nil; next = became[next] {
					snapshots[i].layer = next
				}
			}
			if files := len(disk.Names(disk.Top())); files != len(snapshots)+1 {
				t.Fatalf("%d files for %d snapshots", files, len(snapshots))
			}
		}
		for range 60 {
			switch random.IntN(8) {
			default:
				off := random.Int64N(oddSize)
				data := noise(random, random.Int64N(min(20000, oddSize-off)+1))
				_, err := disk.WriteAt(data, off)
				must(t, err)
				copy(live[off:], data)
			case 1:
				off := random.Int64N(oddSize)
				length := random.Int64N(min(20000, oddSize-off) + 1)
				must(t, disk.Zero(off, length))
				clear(live[off : off+length])
			case 2:
				if len(snapshots) < 4 {
					layers, err := Freeze(disk)
					must(t, err)
					snapshots = append(snapshots, kept{layers[0], bytes.Clone(live)})
				}
			case 3:
				if len(snapshots) > 0 {
					gone := random.IntN(len(snapshots))
					snapshots = append(snapshots[:gone], snapshots[gone+1:]...)
					consolidate()
				}
			case 4:
				if random.IntN(5) == 0 { // a kill: the next run knows of no snapshot
					must(t, disk.Close())
					disk, snapshots = open(t, spec), nil
				}
			}
			if !bytes.Equal(content(t, disk), live) {
				t.Fatal("the guest reads other bytes than it wrote")
			}
			for _, one := range snapshots {
				exported(t, disk, one.layer, one.bytes)
			}
		}
		snapshots = nil
		consolidate()
		files, err := filepath.Glob(filepath.Join(quoteGlob(spec.Dir), "*"))
		must(t, err)
		if len(files) != 2 {
			t.Fatalf("left over: %v", files)
		}
		must(t, disk.Close())
	}
}

func TestFreezeIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	first := open(t, Spec{Dir: filepath.Join(dir, "first"), Name: "a", Capacity: 4096})
	second := open(t, Spec{Dir: filepath.Join(dir, "second"), Name: "b", Capacity: 4096})
	must(t, os.RemoveAll(second.Dir))
	if _, err := Freeze(first, second); err == nil {
		t.Fatal("freezing a disk without a folder succeeded")
	}
	if names := first.Names(first.Top()); len(names) != 1 {
		t.Fatalf("the first disk kept its delta: %v", names)
	}
	if exists, _ := filepath.Glob(filepath.Join(first.Dir, "*delta*")); len(exists) > 0 {
		t.Fatalf("left over: %v", exists)
	}
}

func TestAnEmptyHugeDiskCostsNothing(t *testing.T) {
	begin := time.Now()
	disk := open(t, Spec{Dir: t.TempDir(), Name: "thin", Capacity: 100 << 30})
	layers, err := Freeze(disk)
	must(t, err)
	target := filepath.Join(t.TempDir(), "copy")
	must(t, disk.Export(layers[0], target))
	if used := disk.Allocated() + Allocated(target); used > 64<<10 {
		t.Fatalf("it takes %d bytes", used)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Fatalf("it took %s", took)
	}
	info, err := os.Stat(target)
	must(t, err)
	if info.Size() != disk.Capacity {
		t.Fatalf("the copy has %d bytes", info.Size())
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "x-flat.vmdk"), make([]byte, 1024), 0o600))
	for name, spec := range map[string]Spec{
		"a size that is no sectors":      {Dir: dir, Name: "y", Capacity: 1000},
		"a file of another size":         {Dir: dir, Name: "x", Capacity: 2048},
		"golden content that is missing": {Dir: dir, Name: "z", Capacity: 512, Golden: filepath.Join(dir, "none")},
	} {
		if _, err := Open(spec); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*.new"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestAccessBeyondTheEndIsRefused(t *testing.T) {
	disk := open(t, Spec{Dir: t.TempDir(), Name: "x", Capacity: 1024})
	for _, off := range []int64{-1, 1020, 1 << 62} {
		if _, err := disk.WriteAt(make([]byte, 8), off); err == nil {
			t.Errorf("a write at %d succeeded", off)
		}
		if _, err := disk.ReadAt(make([]byte, 8), off); err == nil {
			t.Errorf("a read at %d succeeded", off)
		}
	}
}

func TestDescriptorsFormAChain(t *testing.T) {
	disk := open(t, Spec{Dir: t.TempDir(), Name: "vm", Capacity: 1 << 20, Adapter: "lsilogic", UUID: "6000c29a-0102-0304-0506-0708090a0b0c"})
	_, err := Freeze(disk)
	must(t, err)
	text := func(name string) string {
		out, err := os.ReadFile(filepath.Join(disk.Dir, name))
		must(t, err)
		return string(out)
	}
	for name, lines := range map[string][]string{
		"vm.vmdk": {
			`createType="vmfs"`, `RW 2048 VMFS "vm-flat.vmdk"`, "parentCID=ffffffff", `ddb.adapterType = "lsilogic"`,
			`ddb.uuid = "60 00 c2 9a 01 02 03 04-05 06 07 08 09 0a 0b 0c"`,
		},
		"vm-000001.vmdk": {
			`createType="vmfsSparse"`, `RW 2048 VMFSSPARSE "vm-000001-delta.vmdk"`, `parentFileNameHint="vm.vmdk"`,
			"parentCID=" + disk.layers[0].CID(),
		},
	} {
		for _, line := range lines {
			if !strings.Contains(text(name), line+"\n") {
				t.Errorf("%s lacks %s:\n%s", name, line, text(name))
			}
		}
	}
}
