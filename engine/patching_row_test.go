package engine

import "testing"

// TestPatchedInRow tells a kernel that patches all of its functions from one that
// switches a static key.
func TestPatchedInRow(t *testing.T) {
	for _, c := range []struct {
		name  string
		pages func(i int) int
		want  int // after how many pages, 0 for never
	}{
		{"page after page", func(i int) int { return 100 + i }, rowPages},
		{"from the beginning on", func(i int) int { return i }, rowPages},
		{"backwards", func(i int) int { return 500 - i }, rowPages},
		{"four of five", func(i int) int { return i + i/4 }, rowPages},
		{"every other one", func(i int) int { return 2 * i }, 0},
		{"here and there", func(i int) int { return i * 37 % 1000 }, 0},
		{"the same few", func(i int) int { return i % 10 }, 0},
	} {
		p := patching{run: map[int]struct{}{}}
		got := 0
		for i := range 120 {
			if p.patchedInRow(c.pages(i)); p.row {
				got = i + 1
				break
			}
		}
		if got != c.want {
			t.Errorf("%s: a row after %d pages, want %d", c.name, got, c.want)
		}
	}
}
