package engine

import (
	"testing"
	"time"
)

const quiet = 5 * time.Millisecond

// TestLazy has a guest that is busy for a moment be looked at when that is due, and
// one that keeps quiet each tenth time.
func TestLazy(t *testing.T) {
	start := time.Now()
	a := newActivity(start)
	var l lazy
	var ran time.Duration
	var looked []int
	for second := range 400 {
		now := start.Add(time.Duration(second+1) * time.Second)
		ran += 4 * time.Millisecond
		if second == 111 {
			ran += 2 * time.Millisecond
		}
		a.sample(now, ran, quiet)
		if second%10 == 9 && l.due(a, now) {
			looked = append(looked, second)
		}
	}
	want := []int{9, 109, 119, 219, 319}
	if len(looked) != len(want) {
		t.Fatalf("looked at %d, want %d", looked, want)
	}
	for i := range want {
		if looked[i] != want[i] {
			t.Fatalf("looked at %d, want %d", looked, want)
		}
	}
}

// TestActivity samples guests in uneven steps: what counts is the part of the time.
func TestActivity(t *testing.T) {
	start := time.Now()
	for _, tt := range []struct {
		name       string
		after, ran time.Duration
		busy       bool
	}{
		{"nothing", time.Second, 0, false},
		{"quiet", time.Second, 5 * time.Millisecond, false},
		{"busy", time.Second, 5*time.Millisecond + 1, true},
		{"quiet for long", time.Minute, 300 * time.Millisecond, false},
		{"busy for an instant", time.Millisecond, 6 * time.Microsecond, true},
	} {
		a := newActivity(start)
		a.sample(start.Add(tt.after), tt.ran, quiet)
		if got := a.busySince(start); got != tt.busy {
			t.Errorf("%s: busy is %v", tt.name, got)
		}
		if all := newActivity(start); tt.ran == 0 {
			all.sample(start.Add(tt.after), 0, 0)
			if !all.busySince(start) {
				t.Errorf("%s: quiet, although no guest is", tt.name)
			}
		}
		if a.busySince(start.Add(tt.after)) {
			t.Errorf("%s: busy after the sample", tt.name)
		}
	}
}
