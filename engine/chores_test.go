package engine

import (
	"slices"
	"testing"
	"time"
)

// TestChores has things done for a guest that is quiet, but for a while, and counts how
// often each is: as often as was asked for while it is busy, and each tenth time else, or
// as rarely as was said.
func TestChores(t *testing.T) {
	start := time.Now()
	a := newActivity(start)
	var c chores
	wake := make(chan struct{}, 1)
	ten := c.add(start.Add(10*time.Second), 10*time.Second, 0, wake)
	odd := c.add(start.Add(3*time.Second), 20*time.Second, 5*time.Second, wake)
	rare := c.addRare(start.Add(10*time.Second), 10*time.Second, 15, wake)
	gone := c.add(start.Add(time.Second), time.Second, 0, wake)
	c.drop(gone)
	c.drop(nil)
	var at, rares []int
	var odds []time.Duration
	last := start
	for second := 1; second <= 400; second++ {
		now := start.Add(time.Duration(second) * time.Second)
		if second > 110 && second <= 200 {
			a.busy.Store(int64(now.Sub(start)))
		}
		c.tick(now, a)
		woken := false
		select {
		case <-wake:
			woken = true
		default:
		}
		tenDue, oddDue, rareDue := ten.taken(), odd.taken(), rare.taken()
		if woken != (tenDue || oddDue || rareDue) {
			t.Fatalf("second %d: woken is %v", second, woken)
		}
		if tenDue {
			at = append(at, second)
		}
		if rareDue {
			rares = append(rares, second)
		}
		if oddDue {
			odds = append(odds, now.Sub(last))
			last = now
		}
	}
	want := []int{10, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200, 300, 400}
	if !slices.Equal(at, want) {
		t.Fatalf("done at %v, want %v", at, want)
	}
	if want := []int{10, 120, 130, 140, 150, 160, 170, 180, 190, 200, 350}; !slices.Equal(rares, want) {
		t.Errorf("what is done more rarely is done at %v, want %v", rares, want)
	}
	// Twice at least while the guest was busy, and the first time.
	if len(odds) < 3 || odds[0] != 3*time.Second {
		t.Errorf("the other one is done after %v", odds)
	}
	if gone.taken() || (*chore)(nil).taken() {
		t.Error("something is done that was dropped")
	}
}

// TestChoresLate: who has not been asked for long is done once, not once for each time
// that was missed.
func TestChoresLate(t *testing.T) {
	start := time.Now()
	a := newActivity(start)
	var c chores
	wake := make(chan struct{}, 1)
	ch := c.add(start.Add(10*time.Second), 10*time.Second, 0, wake)
	n := 0
	for _, second := range []int{100, 101, 102, 109, 110, 119} {
		now := start.Add(time.Duration(second) * time.Second)
		a.busy.Store(int64(now.Sub(start)))
		c.tick(now, a)
		if ch.taken() {
			n++
		}
	}
	if n != 2 {
		t.Errorf("done %d times in twenty seconds, want twice", n)
	}
}

// TestEagerChore is done each second but while it rests, which ends when the guest does
// something, or by itself.
func TestEagerChore(t *testing.T) {
	start := time.Now()
	a := newActivity(start)
	var c chores
	wake := make(chan struct{}, 1)
	ch := c.addEager(time.Second, wake)
	var at []int
	for second := 1; second <= 20; second++ {
		now := start.Add(time.Duration(second) * time.Second)
		if second == 9 {
			a.busy.Store(int64(now.Sub(start)))
		}
		c.tick(now, a)
		if !ch.taken() {
			continue
		}
		at = append(at, second)
		switch second {
		case 3:
			ch.rest.Store(&rest{until: start.Add(time.Hour), since: now})
		case 10:
			ch.rest.Store(&rest{until: start.Add(15 * time.Second), since: now})
		case 16:
			ch.rest.Store(nil)
		}
	}
	want := []int{1, 2, 3, 9, 10, 15, 16, 17, 18, 19, 20}
	if !slices.Equal(at, want) {
		t.Errorf("done at %v, want %v", at, want)
	}
}
