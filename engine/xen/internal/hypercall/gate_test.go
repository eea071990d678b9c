package hypercall

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestGate(t *testing.T) {
	g := NewGate()
	for range 2 {
		if !g.Enter() || g.IsShut() {
			t.Fatal("an open gate")
		}
	}
	if !g.Shut() || g.Shut() || !g.IsShut() || g.Enter() {
		t.Error("a shut gate")
	}
	waited := make(chan struct{})
	go func() { g.Wait(); close(waited) }()
	g.Leave()
	select {
	case <-waited:
		t.Error("did not wait for the second")
	default:
	}
	g.Leave()
	<-waited

	g = NewGate()
	g.Shut()
	g.Wait() // nobody was inside
}

func TestGateConcurrent(t *testing.T) {
	g := NewGate()
	var inside, open atomic.Int32
	open.Store(1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for g.Enter() {
				inside.Add(1)
				if open.Load() == 0 {
					t.Error("inside after Wait")
				}
				inside.Add(-1)
				g.Leave()
			}
		}()
	}
	for inside.Load() == 0 {
		// Until the others are at it.
	}
	g.Shut()
	g.Wait()
	open.Store(0)
	if n := inside.Load(); n != 0 {
		t.Errorf("%d inside after Wait", n)
	}
	wg.Wait()
}
