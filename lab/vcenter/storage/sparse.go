// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// DataRanges returns where the file has blocks of its own, up to size bytes.
func DataRanges(file *os.File, size int64) (Ranges, error) {
	var found Ranges
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break // nothing but a hole up to the end
		}
		if err != nil {
			return nil, fmt.Errorf("%s: finding data: %w", file.Name(), err)
		}
		end, err := unix.Seek(int(file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("%s: finding holes: %w", file.Name(), err)
		}
		if start >= size {
			break
		}
		found = append(found, Range{start, min(end, size)})
		at = end
	}
	return found, nil
}

// CopySparse makes target a copy of size bytes of source that has holes where source has them.
// An existing target is never touched; a failure leaves nothing.
func CopySparse(target, source string, size int64) (err error) {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, to.Close())
		if err != nil {
			_ = os.Remove(target)
		}
	}()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	// A filesystem that can share blocks does the whole work at once.
	if info.Size() == size && unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	ranges, err := DataRanges(from, size)
	if err != nil {
		return err
	}
	return copyRanges(to, from, ranges)
}

// copyRanges copies the ranges to the same offsets, inside the kernel where it can.
func copyRanges(to, from *os.File, ranges Ranges) error {
	for _, r := range ranges {
		for r.Len() > 0 {
			in, out := r.Start, r.Start
			n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(r.Len()), 0)
			if err != nil || n == 0 {
				// Not every pair of filesystems can; a file that ends early must be an error, not a loop.
				if err := copyPlainly(to, from, r); err != nil {
					return err
				}
				break
			}
			r.Start += int64(n)
		}
	}
	return nil
}

func copyPlainly(to, from *os.File, r Range) error {
	n, err := io.Copy(io.NewOffsetWriter(to, r.Start), io.NewSectionReader(from, r.Start, r.Len()))
	if err == nil && n != r.Len() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("copying %s to %s: %w", from.Name(), to.Name(), err)
	}
	return nil
}

// Allocated returns the bytes that the files take on disk; one that is absent takes none.
func Allocated(paths ...string) int64 {
	var total int64
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			if sys, ok := info.Sys().(*syscall.Stat_t); ok {
				total += sys.Blocks * 512
			}
		}
	}
	return total
}
