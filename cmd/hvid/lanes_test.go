package main

import (
	"slices"
	"sync"
	"testing"
	"time"
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
	if l.wait(time.Millisecond) {
		t.Error("a lane that stands still counts as empty")
	}
	close(blocked)
	if !l.wait(time.Minute) {
		t.Error("the lanes don't become empty")
	}
	if len(got) != 100 || !slices.IsSorted(got) {
		t.Errorf("out of order: %v", got)
	}
	if len(l.waiting) != 0 {
		t.Errorf("%d lanes are left", len(l.waiting))
	}
}
