// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import "sort"

// Range is the bytes from Start up to, but without, End.
type Range struct{ Start, End int64 }

// Len returns how many bytes the range holds.
func (r Range) Len() int64 { return r.End - r.Start }

// Ranges is a sorted list of ranges that neither touch nor overlap.
type Ranges []Range

// Add returns the ranges with r united into them.
func (rs Ranges) Add(r Range) Ranges {
	if r.Len() <= 0 {
		return rs
	}
	// All ranges in [first, last) touch or overlap r and become one with it.
	first := sort.Search(len(rs), func(i int) bool { return rs[i].End >= r.Start })
	last := first
	for ; last < len(rs) && rs[last].Start <= r.End; last++ {
		r.Start = min(r.Start, rs[last].Start)
		r.End = max(r.End, rs[last].End)
	}
	if first < last {
		rs[first] = r
		return append(rs[:first+1], rs[last:]...)
	}
	rs = append(rs, Range{})
	copy(rs[first+1:], rs[first:])
	rs[first] = r
	return rs
}

// Union returns both lists as one.
func (rs Ranges) Union(others Ranges) Ranges {
	all := append(append(Ranges(nil), rs...), others...)
	sort.Slice(all, func(i, j int) bool { return all[i].Start < all[j].Start })
	var out Ranges
	for _, r := range all {
		if n := len(out); n > 0 && r.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Widen returns the ranges rounded outward to a grid of cell bytes, none of them beyond limit.
func (rs Ranges) Widen(cell, limit int64) Ranges {
	wide := make(Ranges, 0, len(rs))
	for _, r := range rs {
		end := min((r.End+cell-1)/cell*cell, limit)
		wide = append(wide, Range{r.Start / cell * cell, end})
	}
	return wide.Union(nil)
}

// Before returns what of the ranges lies before an offset.
func (rs Ranges) Before(end int64) Ranges {
	var before Ranges
	for _, r := range rs {
		if r.Start < end {
			before = append(before, Range{r.Start, min(r.End, end)})
		}
	}
	return before
}

// Split calls visit for the pieces of r in order, saying of each whether the list covers it.
func (rs Ranges) Split(r Range, visit func(piece Range, covered bool) error) error {
	at := r.Start
	first := sort.Search(len(rs), func(i int) bool { return rs[i].End > r.Start })
	for i := first; at < r.End && i < len(rs) && rs[i].Start < r.End; i++ {
		if at < rs[i].Start {
			if err := visit(Range{at, rs[i].Start}, false); err != nil {
				return err
			}
			at = rs[i].Start
		}
		end := min(rs[i].End, r.End)
		if err := visit(Range{at, end}, true); err != nil {
			return err
		}
		at = end
	}
	if at < r.End {
		return visit(Range{at, r.End}, false)
	}
	return nil
}
