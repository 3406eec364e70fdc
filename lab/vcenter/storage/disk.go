// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// Package storage keeps virtual disks as ESXi does: a flat base file, and on it one delta per snapshot.
// Nothing here knows of vSphere's API.
package storage

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
)

// granule is the unit of writes into a delta. Whole granules make a delta file complete in itself: where it has data it
// overrules its parent, so a delta found after a kill can be joined without the memory of what was written.
const granule = 4096

// Spec says what a disk is.
type Spec struct {
	Dir      string // folder on this host
	Name     string // file names start so: Name.vmdk, Name-flat.vmdk
	Capacity int64  // bytes, a multiple of 512
	Golden   string // content of a new disk; empty for none
	Mark     string // what a new disk begins with instead
	Adapter  string // ddb.adapterType
	UUID     string
}

// Layer is one file of a disk: the base, or a delta that holds what was written since the layer below froze.
type Layer struct {
	name    string // without .vmdk
	file    *os.File
	delta   bool
	written Ranges // of a delta: where it overrules the layer below
	cid     uint32
	writes  uint64 // of a frozen layer: the disk's count when it froze
	into    *Layer // of a frozen layer that was merged: the one that holds its bytes now
}

// Disk is the running disk of a VM. Its top layer takes the writes; all others are frozen.
type Disk struct {
	Spec
	mu     sync.RWMutex
	layers []*Layer // base first
	writes uint64   // how often the guest wrote since Open
}

// Files are the two files of one layer: their paths on this host.
type Files struct{ Descriptor, Extent string }

// Open makes the disk's files unless they exist, and joins deltas that a killed run left. A disk that has grown stays so.
func Open(spec Spec) (*Disk, error) {
	if spec.Capacity <= 0 || spec.Capacity%512 != 0 {
		return nil, fmt.Errorf("disk %s: %d bytes is not a whole number of sectors", spec.Name, spec.Capacity)
	}
	disk := &Disk{Spec: spec}
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, err
	}
	base := &Layer{name: spec.Name, cid: rand.Uint32N(noParent)}
	flat := disk.extent(base)
	if _, err := os.Stat(flat); errors.Is(err, os.ErrNotExist) {
		if err := disk.create(flat); err != nil {
			return nil, err
		}
	}
	var err error
	if base.file, err = os.OpenFile(flat, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	disk.layers = []*Layer{base}
	info, err := base.file.Stat()
	if err != nil || info.Size() < spec.Capacity {
		return nil, errors.Join(err, fmt.Errorf("%s is smaller than the %d bytes it should have", flat, spec.Capacity))
	}
	disk.Capacity = info.Size()
	if err := disk.recover(); err != nil {
		return nil, err
	}
	return disk, disk.describe()
}

func (d *Disk) create(flat string) error {
	fresh := flat + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if d.Golden != "" {
		if err := CopySparse(fresh, d.Golden, d.Capacity); err != nil {
			return err
		}
	} else {
		file, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(file.Truncate(d.Capacity), file.Close()); err != nil {
			return err
		}
	}
	if d.Mark != "" {
		file, err := os.OpenFile(fresh, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = file.WriteAt([]byte(d.Mark), 0)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return os.Rename(fresh, flat)
}

// Grow adds bytes to the end of the disk, which reads as zero there. As on ESXi, a disk with deltas does not grow.
func (d *Disk) Grow(bytes int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.layers) > 1 {
		return fmt.Errorf("disk %s stands on a snapshot and cannot grow", d.Name)
	}
	if bytes <= 0 || bytes%512 != 0 {
		return fmt.Errorf("disk %s cannot grow by %d bytes", d.Name, bytes)
	}
	if err := d.layers[0].file.Truncate(d.Capacity + bytes); err != nil {
		return err
	}
	d.Capacity += bytes
	d.writes++
	return d.describe()
}

// Size returns the disk's capacity, which may grow.
func (d *Disk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.Capacity
}

// Close lets go of the files. Deltas stay and are joined by the next Open.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for _, layer := range d.layers {
		err = errors.Join(err, layer.file.Close())
	}
	return err
}

func (d *Disk) descriptor(l *Layer) string { return filepath.Join(d.Dir, l.name+".vmdk") }

func (d *Disk) extent(l *Layer) string {
	if l.delta {
		return filepath.Join(d.Dir, l.name+"-delta.vmdk")
	}
	return filepath.Join(d.Dir, l.name+"-flat.vmdk")
}

// describe writes every layer's descriptor.
func (d *Disk) describe() error {
	text := descriptor{parentCID: noParent, sectors: d.Capacity / 512, adapter: d.Adapter, uuid: d.UUID}
	for _, layer := range d.layers {
		text.cid, text.extent = layer.cid, filepath.Base(d.extent(layer))
		if err := text.write(d.descriptor(layer)); err != nil {
			return err
		}
		text.parent, text.parentCID = layer.name+".vmdk", layer.cid
	}
	return nil
}

// Top returns the layer that takes the writes.
func (d *Disk) Top() *Layer {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.layers[len(d.layers)-1]
}

// Names returns the descriptors' file names from the given layer down to the base.
func (d *Disk) Names(from *Layer) []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var names []string
	for i := d.index(from); i >= 0; i-- {
		names = append(names, d.layers[i].name+".vmdk")
	}
	return names
}

// LiveExtent returns the path of the file that takes the writes.
func (d *Disk) LiveExtent() string { return d.extent(d.Top()) }

// Writes returns how often the guest had written to the disk when the layer froze:
// equal counts mean equal content.
func (l *Layer) Writes() uint64 { return l.writes }

// CID returns the layer's content id.
func (l *Layer) CID() string { return fmt.Sprintf("%08x", l.cid) }

// Files returns what the layers up to the given one consist of, base first.
func (d *Disk) Files(upTo *Layer) []Files {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var files []Files
	for _, layer := range d.layers[:d.index(upTo)+1] {
		files = append(files, Files{d.descriptor(layer), d.extent(layer)})
	}
	return files
}

// Allocated returns the bytes that all the disk's files take.
func (d *Disk) Allocated() int64 {
	var total int64
	for _, each := range d.Files(d.Top()) {
		total += Allocated(each.Extent)
	}
	return total
}

func (d *Disk) index(layer *Layer) int {
	for layer.into != nil {
		layer = layer.into
	}
	for i, l := range d.layers {
		if l == layer {
			return i
		}
	}
	return -1
}

func (d *Disk) check(off, length int64) error {
	size := d.Size()
	if off < 0 || length < 0 || off > size-length {
		return fmt.Errorf("%d bytes at %d reach beyond the disk's %d", length, off, size)
	}
	return nil
}

// ReadAt reads the disk as the guest sees it now.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.read(len(d.layers)-1, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadLayer reads the disk as it is up to a frozen layer.
func (d *Disk) ReadLayer(frozen *Layer, p []byte, off int64) error {
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	i := d.index(frozen)
	if i < 0 {
		return fmt.Errorf("%s: the frozen file is gone", d.Name)
	}
	return d.read(i, p, off)
}

// read fills p from the layer with index i and those below it.
func (d *Disk) read(i int, p []byte, off int64) error {
	layer := d.layers[i]
	if !layer.delta {
		_, err := layer.file.ReadAt(p, off)
		return err
	}
	return layer.written.Split(Range{off, off + int64(len(p))}, func(piece Range, covered bool) error {
		part := p[piece.Start-off : piece.End-off]
		if covered {
			_, err := layer.file.ReadAt(part, piece.Start)
			return err
		}
		return d.read(i-1, part, piece.Start)
	})
}

// WriteAt writes as the guest does: into the top layer only.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.write(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *Disk) write(p []byte, off int64) error {
	d.writes++ // even when it fails: it may have written in part
	top := d.layers[len(d.layers)-1]
	if !top.delta {
		_, err := top.file.WriteAt(p, off)
		return err
	}
	if len(p) == 0 {
		return nil
	}
	whole := Range{off, off + int64(len(p))}
	whole.Start = whole.Start / granule * granule
	whole.End = min((whole.End+granule-1)/granule*granule, d.Capacity)
	if whole.Start != off || whole.Len() != int64(len(p)) {
		mixed := make([]byte, whole.Len())
		if err := d.read(len(d.layers)-1, mixed, whole.Start); err != nil {
			return err
		}
		copy(mixed[off-whole.Start:], p)
		p = mixed
	}
	if _, err := top.file.WriteAt(p, whole.Start); err != nil {
		return err
	}
	top.written = top.written.Add(whole)
	return nil
}

// Freeze ends writing to the top layers of all the disks at one moment, and puts a new delta on each.
// It returns the frozen layers in the order of the disks. A failure leaves every disk as it was.
func Freeze(disks ...*Disk) ([]*Layer, error) {
	for _, disk := range disks {
		disk.mu.Lock()
		defer disk.mu.Unlock()
	}
	var frozen []*Layer
	for i, disk := range disks {
		top := disk.layers[len(disk.layers)-1]
		if err := disk.push(); err != nil {
			for _, undo := range disks[:i] {
				_ = undo.pop()
			}
			return nil, err
		}
		top.writes = disk.writes
		frozen = append(frozen, top)
	}
	return frozen, nil
}

func (d *Disk) push() error {
	layer := &Layer{delta: true, cid: rand.Uint32N(noParent)}
	for n := 1; ; n++ {
		layer.name = fmt.Sprintf("%s-%06d", d.Name, n)
		if _, err := os.Lstat(d.descriptor(layer)); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	var err error
	layer.file, err = os.OpenFile(d.extent(layer), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	d.layers = append(d.layers, layer)
	if err := errors.Join(layer.file.Truncate(d.Capacity), d.describe()); err != nil {
		return errors.Join(err, d.pop())
	}
	return nil
}

// pop forgets the top layer, which nothing was written to.
func (d *Disk) pop() error {
	layer := d.layers[len(d.layers)-1]
	d.layers = d.layers[:len(d.layers)-1]
	return errors.Join(layer.file.Close(), remove(d.descriptor(layer)), remove(d.extent(layer)))
}

// Consolidate joins each delta into the layer below it, unless that layer must stay frozen.
// A layer in frozen may thereby be merged into the one below: the result says which became which.
func (d *Disk) Consolidate(frozen map[*Layer]bool) (map[*Layer]*Layer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	became := map[*Layer]*Layer{}
	for i := 0; i < len(d.layers)-1; {
		below, above := d.layers[i], d.layers[i+1]
		if frozen[below] {
			i++
			continue
		}
		if err := d.join(i); err != nil {
			return became, err
		}
		if frozen[above] {
			became[above], above.into = below, below
			frozen[below] = true
		}
	}
	return became, nil
}

// join writes layer i+1 into layer i and deletes it. Cut off anywhere, it can be done again.
func (d *Disk) join(i int) error {
	below, above := d.layers[i], d.layers[i+1]
	if err := copyRanges(below.file, above.file, above.written); err != nil {
		return err
	}
	if below.delta {
		below.written = below.written.Union(above.written)
	}
	below.cid = rand.Uint32N(noParent)
	d.layers = append(d.layers[:i+1], d.layers[i+2:]...)
	// The child is told its new parent before the old one goes, or a kill between would orphan it.
	if err := d.describe(); err != nil {
		return err
	}
	return errors.Join(above.file.Close(), remove(d.descriptor(above)), remove(d.extent(above)))
}

// recover finds deltas of an earlier run by their descriptors and joins them into the base.
func (d *Disk) recover() error {
	found, err := filepath.Glob(filepath.Join(quoteGlob(d.Dir), quoteGlob(d.Name)+"-[0-9][0-9][0-9][0-9][0-9][0-9].vmdk"))
	if err != nil {
		return err
	}
	child := map[string]string{}
	for _, path := range found {
		parent, err := parentOf(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		child[parent] = name[:len(name)-len(".vmdk")]
	}
	for name := child[d.Name+".vmdk"]; name != ""; name = child[name+".vmdk"] {
		layer := &Layer{name: name, delta: true}
		if layer.file, err = os.OpenFile(d.extent(layer), os.O_RDWR, 0); err != nil {
			return err
		}
		if layer.written, err = DataRanges(layer.file, d.Capacity); err != nil {
			return err
		}
		d.layers = append(d.layers, layer)
	}
	if _, err := d.Consolidate(map[*Layer]bool{}); err != nil {
		return err
	}
	// What is left belongs to no chain: cut off between making the extent and its descriptor, or in a join's last step.
	orphans, err := filepath.Glob(filepath.Join(quoteGlob(d.Dir), quoteGlob(d.Name)+"-[0-9][0-9][0-9][0-9][0-9][0-9]*.vmdk"))
	for _, path := range orphans {
		err = errors.Join(err, remove(path))
	}
	return err
}

// Content returns where the disk, as it is up to the given layer, has blocks; all else reads as zero.
func (d *Disk) Content(upTo *Layer) (Ranges, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all, err := DataRanges(d.layers[0].file, d.Capacity)
	for _, layer := range d.layers[1 : d.index(upTo)+1] {
		all = all.Union(layer.written)
	}
	return all, err
}

// Export writes the disk as it is up to a frozen layer into a new sparse file.
func (d *Disk) Export(frozen *Layer, target string) error {
	d.mu.RLock()
	layers := d.layers[:d.index(frozen)+1]
	d.mu.RUnlock()
	// No lock while copying: frozen layers change only when a snapshot goes, and the caller is making one.
	if err := CopySparse(target, d.extent(layers[0]), d.Capacity); err != nil {
		return err
	}
	if len(layers) == 1 {
		return nil
	}
	to, err := os.OpenFile(target, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, layer := range layers[1:] {
		if err = copyRanges(to, layer.file, layer.written); err != nil {
			break
		}
	}
	return errors.Join(err, to.Close())
}

// Zero writes length zero bytes, allocated like any other data.
func (d *Disk) Zero(off, length int64) error {
	if err := d.check(off, length); err != nil {
		return err
	}
	zeros := make([]byte, min(length, 1<<20))
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:n], off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// quoteGlob makes a name literal in a glob pattern.
func quoteGlob(name string) string {
	var out []byte
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, name[i])
	}
	return string(out)
}

var _ interface {
	io.ReaderAt
	io.WriterAt
} = (*Disk)(nil)
