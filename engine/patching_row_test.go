package engine

import (
	"slices"
	"testing"
)

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

// TestAround opens what comes next when a kernel goes through its code, also a second time.
func TestAround(t *testing.T) {
	p := patching{run: map[int]struct{}{}}
	for _, c := range []struct {
		page     int
		min, max int // of what is to be opened
	}{
		{40, 40, 40 + openAhead},
		{38, 38, 38},             // the same places a second time
		{41, 38, 41 + openAhead}, // with those that may be in use
		{500, 500, 500 + openAhead},
		{2, 2, 2 + openAhead}, // from the beginning
		{3, 2, 3 + openAhead},
	} {
		p.patchedInRow(c.page)
		got := p.around([]int{c.page})
		if slices.Min(got) != c.min || slices.Max(got) != c.max {
			t.Errorf("after page %d from %d to %d, want %d to %d", c.page, slices.Min(got), slices.Max(got), c.min, c.max)
		}
	}
}
