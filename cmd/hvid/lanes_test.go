package main

import (
	"slices"
	"sync"
	"testing"
)

// TestLanes keeps the order within a lane, and lets one lane pass another that
// stands still.
func TestLanes(t *testing.T) {
	l := newLanes[int]()
	blocked := make(chan struct{})
	var mu sync.Mutex
	var got []int
	l.do(1, func() { <-blocked })
	for i := range 100 {
		l.do(1, func() { mu.Lock(); got = append(got, i); mu.Unlock() })
	}
	passed := make(chan struct{})
	l.do(2, func() { close(passed) })
	<-passed
	if len(got) != 0 {
		t.Errorf("%d ran before their turn", len(got))
	}
	close(blocked)
	l.wait()
	if len(got) != 100 || !slices.IsSorted(got) {
		t.Errorf("out of order: %v", got)
	}
	if len(l.waiting) != 0 {
		t.Errorf("%d lanes are left", len(l.waiting))
	}
}
