// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import (
	"math/rand/v2"
	"slices"
	"testing"
)

const width = 200

// bits paints ranges, the slow and obvious way.
func bits(rs Ranges) [width]bool {
	var painted [width]bool
	for _, r := range rs {
		for i := r.Start; i < r.End; i++ {
			painted[i] = true
		}
	}
	return painted
}

func someRanges(t *testing.T, random *rand.Rand) (Ranges, [width]bool) {
	t.Helper()
	var rs Ranges
	var painted [width]bool
	for range random.IntN(12) {
		start := random.Int64N(width)
		r := Range{start, start + random.Int64N(min(20, width-start)+1)}
		rs = rs.Add(r)
		for i := r.Start; i < r.End; i++ {
			painted[i] = true
		}
		checkTidy(t, rs)
	}
	return rs, painted
}

func checkTidy(t *testing.T, rs Ranges) {
	t.Helper()
	for i, r := range rs {
		if r.Len() <= 0 || i > 0 && rs[i-1].End >= r.Start {
			t.Fatalf("not sorted and apart: %v", rs)
		}
	}
}

func TestRangesBehaveLikePaint(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		a, paintedA := someRanges(t, random)
		b, paintedB := someRanges(t, random)
		if bits(a) != paintedA {
			t.Fatalf("Add made %v", a)
		}
		union := a.Union(b)
		checkTidy(t, union)
		for i, covered := range bits(union) {
			if covered != (paintedA[i] || paintedB[i]) {
				t.Fatalf("union of %v and %v is wrong at %d: %v", a, b, i, union)
			}
		}
		end := random.IntN(width + 1)
		before := a.Before(int64(end))
		checkTidy(t, before)
		for i, covered := range bits(before) {
			if covered != (paintedA[i] && i < end) {
				t.Fatalf("what of %v is before %d is wrong at %d: %v", a, end, i, before)
			}
		}
		start := random.Int64N(width)
		whole := Range{start, start + random.Int64N(width-start)}
		at := whole.Start
		err := a.Split(whole, func(piece Range, covered bool) error {
			if piece.Start != at || piece.Len() <= 0 {
				t.Fatalf("piece %v does not follow %d", piece, at)
			}
			for i := piece.Start; i < piece.End; i++ {
				if paintedA[i] != covered {
					t.Fatalf("%v says %v of %d", a, covered, i)
				}
			}
			at = piece.End
			return nil
		})
		if err != nil || at != whole.End {
			t.Fatalf("split of %v ended at %d", whole, at)
		}
	}
}

func TestWidenRoundsOutwardAndStaysInside(t *testing.T) {
	got := Ranges{{0, 1}, {15, 16}, {33, 34}}.Widen(16, 40)
	if want := (Ranges{{0, 16}, {32, 40}}); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
}
