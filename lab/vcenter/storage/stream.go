// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Stream-optimized VMDKs, as VMware's "Virtual Disk Format 5.0" describes them: a header, a descriptor, compressed grains each
// behind a marker that says where it belongs, and at the end tables, a directory and a footer. This reader is strict: whatever
// the format has twice must agree, and nothing may follow the end.

const (
	sector     = 512
	headerSize = 79 // bytes of a header that mean something
	grainsGT   = 512
	directory  = ^uint64(0) // where the directory is, in a header whose footer knows

	markerEnd    = 0
	markerTable  = 1
	markerGD     = 2
	markerFooter = 3
)

// Stream is what was decoded.
type Stream struct{ Bytes, Populated int64 }

type extentHeader struct {
	Magic, Version, Flags                                      uint32
	Capacity, GrainSize, DescriptorOffset, DescriptorSize      uint64
	GTEsPerGT                                                  uint32
	RGDOffset, GDOffset, OverHead                              uint64
	Unclean, SingleEndLine, NonEndLine, DoubleEnd1, DoubleEnd2 byte
	Compression                                                uint16
}

func (h extentHeader) check(capacity int64) error {
	switch {
	case h.Magic != 0x564d444b:
		return errors.New("it does not begin with KDMV")
	case h.Version != 3:
		return fmt.Errorf("version %d is not 3", h.Version)
	case h.Flags != 0x30001:
		return fmt.Errorf("flags %#x are not those of a stream", h.Flags)
	case h.Capacity != uint64(capacity/sector):
		return fmt.Errorf("%d sectors where the disk has %d", h.Capacity, capacity/sector)
	case h.GrainSize != 128 || h.GTEsPerGT != grainsGT:
		return fmt.Errorf("grains of %d sectors, %d to a table", h.GrainSize, h.GTEsPerGT)
	case h.RGDOffset != 0:
		return errors.New("a second directory has no place in a stream")
	case h.Compression != 1 || h.Unclean != 0:
		return errors.New("it is not compressed, or was not closed")
	case h.SingleEndLine != '\n' || h.NonEndLine != ' ' || h.DoubleEnd1 != '\r' || h.DoubleEnd2 != '\n':
		return errors.New("it was spoiled by a conversion of line ends")
	case h.DescriptorOffset != 1 || h.DescriptorOffset+h.DescriptorSize > h.OverHead || h.OverHead > 1<<20:
		return errors.New("the descriptor is not in front of the grains")
	}
	return nil
}

type streamReader struct {
	in       *bufio.Reader
	at       uint64 // sectors read
	head     extentHeader
	capacity int64
	write    func(p []byte, off int64) error
	room     []byte
	last     int64             // grain before, -1 for none
	grains   map[uint64]uint32 // sector of each grain's marker
	tables   map[uint64]uint32 // sector of each grain table
	gd       uint64            // sector of the directory
	done     Stream
}

// DecodeStream writes what a stream-optimized VMDK holds; what it does not hold is not written.
func DecodeStream(from io.Reader, capacity int64, write func(p []byte, off int64) error) (Stream, error) {
	r := &streamReader{
		in: bufio.NewReaderSize(from, 1<<20), capacity: capacity, write: write, last: -1, room: make([]byte, 65536),
		grains: map[uint64]uint32{}, tables: map[uint64]uint32{},
	}
	err := r.all()
	if err != nil {
		err = fmt.Errorf("the stream is refused at sector %d: %w", r.at, err)
	}
	r.done.Bytes = int64(r.at) * sector
	return r.done, err
}

func (r *streamReader) sectors(count uint64) ([]byte, error) {
	bytes := make([]byte, count*sector)
	if _, err := io.ReadFull(r.in, bytes); err != nil {
		return nil, err
	}
	r.at += count
	return bytes, nil
}

func (r *streamReader) all() error {
	first, err := r.sectors(1)
	if err != nil {
		return err
	}
	if r.head, err = header(first); err != nil {
		return err
	}
	if err := r.head.check(r.capacity); err != nil {
		return err
	}
	if r.head.GDOffset != directory {
		return errors.New("a stream's directory is at its end")
	}
	rest, err := r.sectors(r.head.OverHead - 1)
	if err != nil {
		return err
	}
	descriptor := rest[:r.head.DescriptorSize*sector]
	extent := fmt.Appendf(nil, " %d SPARSE ", r.head.Capacity) // RW as VMware writes, or RDONLY
	if !bytes.HasPrefix(descriptor, []byte("# Disk Descriptor")) || !bytes.Contains(descriptor, []byte(`createType="streamOptimized"`)) ||
		!bytes.Contains(descriptor, append([]byte("\nRW"), extent...)) && !bytes.Contains(descriptor, append([]byte("\nRDONLY"), extent...)) {
		return errors.New("the descriptor is of something else")
	}
	for {
		end, err := r.one()
		if err != nil {
			return err
		}
		if end {
			break
		}
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the end")
	}
	return nil
}

func header(from []byte) (extentHeader, error) {
	var head extentHeader
	err := binary.Read(bytes.NewReader(from), binary.LittleEndian, &head)
	if err == nil && len(bytes.Trim(from[headerSize:], "\x00")) > 0 {
		err = errors.New("there is more in the header than belongs there")
	}
	return head, err
}

// one reads a marker and what belongs to it; it returns whether that was the end.
func (r *streamReader) one() (bool, error) {
	here := r.at
	marker, err := r.sectors(1)
	if err != nil {
		return false, err
	}
	value, size := binary.LittleEndian.Uint64(marker), binary.LittleEndian.Uint32(marker[8:])
	if size > 0 {
		return false, r.grain(here, marker, value, size)
	}
	kind := binary.LittleEndian.Uint32(marker[12:])
	if len(bytes.Trim(marker[16:], "\x00")) > 0 {
		return false, errors.New("a marker has more than it should")
	}
	if kind == markerEnd {
		if value != 0 || r.gd == 0 {
			return false, errors.New("it ends before its footer")
		}
		return true, nil
	}
	if value > 1<<20 {
		return false, fmt.Errorf("%d sectors of metadata", value)
	}
	body, err := r.sectors(value)
	if err != nil {
		return false, err
	}
	switch kind {
	case markerTable:
		return false, r.table(here+1, body)
	case markerGD:
		return false, r.directory(here+1, body)
	case markerFooter:
		return false, r.footer(body)
	}
	return false, fmt.Errorf("marker of kind %d", kind)
}

func (r *streamReader) grain(here uint64, first []byte, lba uint64, size uint32) error {
	if r.gd != 0 {
		return errors.New("a grain follows the directory")
	}
	number := int64(lba / r.head.GrainSize)
	if lba%r.head.GrainSize != 0 || lba >= r.head.Capacity || number <= r.last || size > 2*65536 {
		return fmt.Errorf("grain at %d of %d bytes", lba, size)
	}
	r.last = number
	whole := (uint64(size) + 12 + sector - 1) / sector
	rest, err := r.sectors(whole - 1)
	if err != nil {
		return err
	}
	packed := append(first[12:], rest...)
	if len(bytes.Trim(packed[size:], "\x00")) > 0 {
		return errors.New("a grain is not padded with zeroes")
	}
	source := bytes.NewReader(packed[:size])
	unpacked, err := zlib.NewReader(source)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(unpacked, r.room); err != nil {
		return fmt.Errorf("grain at %d: %w", lba, err)
	}
	if n, err := unpacked.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) || source.Len() > 0 {
		return fmt.Errorf("grain at %d is longer than a grain, or damaged: %v", lba, err)
	}
	offset := number * int64(len(r.room))
	data := r.room[:min(int64(len(r.room)), r.capacity-offset)]
	if len(bytes.Trim(r.room[len(data):], "\x00")) > 0 {
		return errors.New("there is data beyond the end of the disk")
	}
	r.grains[uint64(number)] = uint32(here)
	r.done.Populated += int64(len(data))
	return r.write(data, offset)
}

// table holds a grain table against the grains that came before it.
func (r *streamReader) table(here uint64, body []byte) error {
	if len(body) != grainsGT*4 || r.last < 0 || r.gd != 0 {
		return errors.New("a grain table of another size, or at the wrong place")
	}
	number := uint64(r.last) / grainsGT
	if r.tables[number] != 0 {
		return fmt.Errorf("grain table %d comes twice", number)
	}
	for i := range uint64(grainsGT) {
		if entry := binary.LittleEndian.Uint32(body[4*i:]); entry != r.grains[number*grainsGT+i] {
			return fmt.Errorf("grain table %d says that grain %d is at sector %d, it was at %d", number, i, entry, r.grains[number*grainsGT+i])
		}
	}
	r.tables[number] = uint32(here)
	return nil
}

func (r *streamReader) directory(here uint64, body []byte) error {
	grains := (r.head.Capacity + r.head.GrainSize - 1) / r.head.GrainSize
	count := (grains + grainsGT - 1) / grainsGT
	if r.gd != 0 || uint64(len(body)) != (count*4+sector-1)/sector*sector {
		return errors.New("a directory of another size, or a second one")
	}
	for i := range count {
		if entry := binary.LittleEndian.Uint32(body[4*i:]); entry != r.tables[i] {
			return fmt.Errorf("the directory says that table %d is at sector %d, it was at %d", i, entry, r.tables[i])
		}
	}
	for grain := range r.grains {
		if r.tables[grain/grainsGT] == 0 {
			return fmt.Errorf("grain %d is in no table", grain)
		}
	}
	r.gd = here
	return nil
}

func (r *streamReader) footer(body []byte) error {
	if len(body) != sector || r.gd == 0 {
		return errors.New("a footer of another size, or without a directory")
	}
	foot, err := header(body)
	if err != nil {
		return err
	}
	if foot.GDOffset != r.gd {
		return fmt.Errorf("the footer says that the directory is at sector %d, it was at %d", foot.GDOffset, r.gd)
	}
	foot.GDOffset = directory
	if foot != r.head {
		return errors.New("footer and header differ")
	}
	return nil
}
