package xen_test

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// answerer serves a channel whose ring's requests it answers in place.
type answerer struct {
	t  *testing.T
	hv *xentest.Hypervisor
	d  *xentest.Domain
	e  *xen.EventChannel

	layout *abi.Layout
	page   []byte
	cons   uint32

	calls atomic.Int64
	// pretend has it say that there was a request each time.
	pretend atomic.Bool
	done    chan error
}

func serveAnswers(t *testing.T) *answerer {
	t.Helper()
	hv, h := open(t, xentest.Config{})
	d, e := bindOn(t, hv, h)
	g, err := h.RingFrame(1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.MapPage(1, g)
	if err != nil {
		t.Fatal(err)
	}
	a := &answerer{
		t: t, hv: hv, d: d, e: e, layout: h.Layout(), page: r.Bytes(),
		done: make(chan error, 1),
	}
	e.SetClock(stopped())
	go func() { a.done <- e.Serve(time.Hour, a.work) }()
	t.Cleanup(func() {
		if err := errors.Join(e.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return a
}

// stopped is a clock by which events come as thick as can be.
func stopped() func() time.Time {
	now := time.Now()
	return func() time.Time { return now }
}

func (a *answerer) work() (did int, goOn bool) {
	a.calls.Add(1)
	if a.pretend.Load() {
		return 1, true
	}
	prod := binary.LittleEndian.Uint32(a.page[a.layout.SRing.ReqProd:])
	did, a.cons = int(prod-a.cons), prod
	if did > 0 {
		binary.LittleEndian.PutUint32(a.page[a.layout.SRing.RspProd:], prod)
		if err := a.e.Notify(); err != nil {
			a.t.Error(err)
		}
	}
	return did, true
}

// storm has n events come, each as soon as the one before it is answered.
func (a *answerer) storm(n int) {
	a.t.Helper()
	for i := range n {
		ev := make([]byte, a.layout.VMEvent.Size)
		ev[a.layout.VMEvent.OffFlags] = abi.VMEventFlagVCPUPaused
		if err := a.d.Send(ev); err != nil {
			a.t.Fatal(err)
		}
		select {
		case <-a.d.Answered():
		case <-time.After(10 * time.Second):
			a.t.Fatalf("event %d of %d is not answered", i, n)
		}
	}
}

func (a *answerer) until(what string, is func() bool) {
	a.t.Helper()
	for until := time.Now().Add(10 * time.Second); !is(); <-time.After(time.Millisecond) {
		if time.Now().After(until) {
			a.t.Fatalf("%s: not within ten seconds", what)
		}
	}
}

// lingers has events come thick until they are looked for without a wait.
func (a *answerer) lingers() {
	a.t.Helper()
	before := a.hv.Yields()
	// It may have found shortly before that it is not worth it.
	if a.storm(2048); a.hv.Yields() == before {
		a.t.Fatal("2,048 events, and nobody lingered")
	}
}

// TestLinger has events come thick, and then a rest, an event, a wake, and the end: each is
// heeded as it is without lingering.
func TestLinger(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	a := serveAnswers(t)
	for range 3 {
		a.lingers()
		<-time.After(quiet)
		looks := a.hv.Yields()
		<-time.After(quiet)
		if n := a.hv.Yields() - looks; n > 0 {
			t.Errorf("%d looks while nothing comes", n)
		}
		a.storm(1)
		calls := a.calls.Load()
		a.e.Wake()
		a.until("a wake is heeded", func() bool { return a.calls.Load() > calls })
	}
	a.lingers()
	calls := a.calls.Load()
	a.e.Wake() // at once
	a.until("a wake is heeded", func() bool { return a.calls.Load() > calls })
	a.lingers()
	if err := a.e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-a.done; !errors.Is(err, xen.ErrClosed) {
		t.Errorf("closed while it lingers: %v", err)
	}
}

// TestLingerEnds: however thick events come, the thread waits in the kernel now and then, so
// that others come to run.
func TestLingerEnds(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	a := serveAnswers(t)
	a.lingers()
	a.pretend.Store(true)
	calls := a.calls.Load()
	a.e.Wake()
	a.until("it is called", func() bool { return a.calls.Load() > calls })
	<-time.After(quiet)
	calls = a.calls.Load()
	<-time.After(quiet)
	// Nothing fires, so what makes it work is that it does not wait.
	if n := a.calls.Load() - calls; n > 0 {
		t.Errorf("called %d times, and nothing had fired", n)
	}
}

// TestLingerTurn bounds one turn, whether there is always something to do or nothing.
func TestLingerTurn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	_, _, e := bind(t)
	for range 2 {
		n, vain := 0, 0
		if !e.Linger(func() (int, bool) { n++; return 1, true }) || n != xen.LingerTurn {
			t.Errorf("%d events are answered in a turn, want %d", n, xen.LingerTurn)
		}
		first := 1
		if !e.Linger(func() (int, bool) { vain++; did := first; first = 0; return did, true }) || vain > xen.LingerLooks+1 {
			t.Errorf("%d looks in vain, want at most %d", vain-1, xen.LingerLooks)
		}
	}
	if e.Linger(func() (int, bool) { return 1, false }) {
		t.Error("goes on after the work has ended")
	}
}

// TestLingerLeavesRoom: where one thread alone may run Go, it does not work without a pause.
func TestLingerLeavesRoom(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	a := serveAnswers(t)
	a.storm(300)
	if n := a.hv.Yields(); n != 0 {
		t.Errorf("lingered, and gave the processor away %d times", n)
	}
}

// TestLingerGivesUp: where events come one by one, that is found out and not tried again soon.
func TestLingerGivesUp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	_, _, e := bind(t)
	e.SetClock(stopped())
	tries := 0
	for range 4096 {
		if e.Thick() {
			tries++
			first := 1
			e.Linger(func() (int, bool) { did := first; first = 0; return did, true })
		} else {
			e.Answered(1)
		}
	}
	// After 16, 32, ... 1,024 events, and then each 1,024.
	if tries < 5 || tries > 12 {
		t.Errorf("tried %d times in 4,096 events", tries)
	}
	for n := 0; !e.Thick(); n++ {
		if e.Answered(1); n == 4096 {
			t.Fatal("4,096 events, and it is not tried again")
		}
	}
	e.Linger(func() (int, bool) { return 1, true })
	if !e.Thick() {
		t.Error("events that came thick for a whole turn are not looked for any more")
	}
}

func TestLingerDoesNotAllocate(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	_, _, e := bind(t)
	n := 0
	work := func() (int, bool) { n++; return n & 1, true }
	if allocs := testing.AllocsPerRun(50, func() { e.Linger(work) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestLingerMustPay: where events are answered no quicker than by waiting, since others have
// the processor for long when it is given away, that is found out.
func TestLingerMustPay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	for _, tc := range []struct {
		name            string
		waited, without time.Duration // for an event
		events          int
		thick           bool
	}{
		{"quicker", 100 * time.Microsecond, 50 * time.Microsecond, xen.LingerTurn, true},
		{"slower", 100 * time.Microsecond, time.Millisecond, xen.LingerTurn, false},
		{"slower, and then none", 100 * time.Microsecond, time.Millisecond, xen.LingerTurn / 2, false},
		{"they don't come thick", 2 * time.Millisecond, time.Millisecond, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, e := bind(t)
			now := time.Now()
			e.SetClock(func() time.Time { return now })
			for range 64 {
				if now = now.Add(tc.waited); !e.Thick() {
					e.Answered(1)
				}
			}
			if e.Thick() != (tc.events > 0) {
				t.Fatalf("%v for an event, and thick is %v", tc.waited, e.Thick())
			}
			left := tc.events
			e.Linger(func() (int, bool) {
				if left == 0 {
					return 0, true
				}
				left--
				now = now.Add(tc.without)
				return 1, true
			})
			if e.Thick() != tc.thick {
				t.Errorf("%v for an event instead of %v, and it is tried again: %v", tc.without, tc.waited, e.Thick())
			}
		})
	}
}
