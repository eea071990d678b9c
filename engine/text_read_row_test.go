package engine

import (
	"testing"
	"time"
)

// TestReadRun tells a kernel that goes through all of its code from one that reads here
// and there.
func TestReadRun(t *testing.T) {
	for _, c := range []struct {
		name string
		page func(i int) int
		wait time.Duration
		want int // after how many pages it is a row, 0 for never
	}{
		{"page after page", func(i int) int { return 100 + i }, time.Millisecond, rowPages},
		{"each page several times", func(i int) int { return 100 + i/3 }, time.Millisecond, 3*rowPages - 2},
		{"with gaps", func(i int) int { return 100 + readGap*i }, time.Millisecond, rowPages},
		{"backwards", func(i int) int { return 500 - i }, time.Millisecond, 0},
		{"far apart", func(i int) int { return 100 + (readGap+1)*i }, time.Millisecond, 0},
		{"there and back", func(i int) int { return 100 + i + i%10*20 }, time.Millisecond, 0},
		{"slowly", func(i int) int { return 100 + i }, openFor + 1, 0},
	} {
		var r readRun
		now, got := time.Now(), 0
		for i := range 100 {
			if r.came(c.page(i), now.Add(time.Duration(i)*c.wait)); r.pages >= rowPages {
				got = i + 1
				break
			}
		}
		if got != c.want {
			t.Errorf("%s: a row after %d pages, want %d", c.name, got, c.want)
		}
	}
}
