package xen_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// bind connects a ring and binds its channel.
func bind(t *testing.T) (*xentest.Domain, *xen.Host, *xen.EventChannel) {
	t.Helper()
	hv, h := open(t, xentest.Config{})
	d := hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	port, err := d.Connect()
	if err != nil {
		t.Fatal(err)
	}
	e, err := h.BindInterdomain(1, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, h, e
}

func event(h *xen.Host) []byte { return make([]byte, h.Layout().VMEvent.Size) }

func TestEventChannel(t *testing.T) {
	d, h, e := bind(t)
	if e.Port() == 0 {
		t.Error("no port")
	}
	if fired, err := e.Wait(0); fired || err != nil {
		t.Errorf("nothing happened: %v, %v", fired, err)
	}
	if err := d.Send(event(h)); err != nil {
		t.Fatal(err)
	}
	if fired, err := e.Wait(-1); !fired || err != nil {
		t.Errorf("fired: %v, %v", fired, err)
	}
	if fired, err := e.Wait(0); fired || err != nil {
		t.Errorf("fired once: %v, %v", fired, err)
	}
	start := time.Now()
	if fired, err := e.Wait(20 * time.Millisecond); fired || err != nil || time.Since(start) < 20*time.Millisecond {
		t.Errorf("timeout: %v, %v after %v", fired, err, time.Since(start))
	}
	// A wake before the wait is not lost, and is used up by it.
	e.Wake()
	e.Wake()
	if fired, err := e.Wait(-1); fired || err != nil {
		t.Errorf("woken: %v, %v", fired, err)
	}
	if fired, err := e.Wait(0); fired || err != nil {
		t.Errorf("woken once: %v, %v", fired, err)
	}
	// Both at a time: the event first, then the wake.
	e.Wake()
	if err := d.Send(event(h)); err != nil {
		t.Fatal(err)
	}
	if fired, err := e.Wait(-1); !fired || err != nil {
		t.Errorf("both: %v, %v", fired, err)
	}
	if fired, err := e.Wait(-1); fired || err != nil {
		t.Errorf("then the wake: %v, %v", fired, err)
	}
	if err := e.Notify(); err != nil {
		t.Error(err)
	}
}

func TestEventChannelWakesWaiter(t *testing.T) {
	d, h, e := bind(t)
	type result struct {
		fired bool
		err   error
	}
	results := make(chan result)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			fired, err := e.Wait(-1)
			results <- result{fired, err}
			if err != nil {
				return
			}
		}
	}()
	if err := d.Send(event(h)); err != nil {
		t.Fatal(err)
	}
	if r := <-results; !r.fired || r.err != nil {
		t.Errorf("event: %+v", r)
	}
	e.Wake()
	if r := <-results; r.fired || r.err != nil {
		t.Errorf("wake: %+v", r)
	}
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	if r := <-results; !errors.Is(r.err, xen.ErrClosed) {
		t.Errorf("close: %+v", r)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	<-done
	e.Wake()
	if err := e.Notify(); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("Notify after Close: %v", err)
	}
	if _, err := e.Wait(0); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
}

func TestEventChannelDoesNotAllocate(t *testing.T) {
	_, _, e := bind(t)
	if n := testing.AllocsPerRun(50, func() {
		e.Wake()
		if _, err := e.Wait(time.Second); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Wake and Wait make %v allocations", n)
	}
}

func TestBindFails(t *testing.T) {
	hv, h := open(t, xentest.Config{})
	hv.AddDomain(xentest.Spec{ID: 1, Type: xen.PVH})
	if _, err := h.BindInterdomain(1, 99); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no such port: %v", err)
	}
	if _, err := h.BindInterdomain(9, 1); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
}

// TestAnswerReachesXen walks an event and its answer through the fake's ring.
func TestAnswerReachesXen(t *testing.T) {
	d, h, e := bind(t)
	l := h.Layout()
	g, err := h.RingFrame(1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.MapPage(1, g)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ev := event(h)
	ev[l.VMEvent.OffFlags] = abi.VMEventFlagVCPUPaused
	for range abi.VMEventRingSlots {
		if err := d.Send(ev); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Send(ev); !errors.Is(err, xentest.ErrRingFull) {
		t.Errorf("a ninth event: %v", err)
	}
	if n := d.EventPauses(0); n != abi.VMEventRingSlots {
		t.Errorf("paused %d times", n)
	}
	if fired, err := e.Wait(-1); !fired || err != nil {
		t.Fatalf("Wait: %v, %v", fired, err)
	}
	// A request answered in place is its own answer.
	r.Bytes()[l.SRing.RspProd] = 3
	if err := e.Notify(); err != nil {
		t.Fatal(err)
	}
	<-d.Answered()
	if n, rsp := d.EventPauses(0), d.Responses(); n != abi.VMEventRingSlots-3 || len(rsp) != 3 {
		t.Errorf("paused %d times, %d answers", n, len(rsp))
	}
	if err := d.Send(ev); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if left := d.Clean(); len(left) == 0 {
		t.Error("a domain that is listened to looks clean")
	}
}
