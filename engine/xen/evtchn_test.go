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
	d, e := bindOn(t, hv, h)
	return d, h, e
}

// bindOn does so on a hypervisor.
func bindOn(t *testing.T, hv *xentest.Hypervisor, h *xen.Host) (*xentest.Domain, *xen.EventChannel) {
	t.Helper()
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
	return d, e
}

func event(h *xen.Host) []byte { return make([]byte, h.Layout().VMEvent.Size) }

// serve serves the channel in another goroutine. Each time that it is to work it says so
// on calls, and goes on with what answers says.
func serve(e *xen.EventChannel, interval time.Duration) (calls <-chan struct{}, answers chan<- bool, done <-chan error) {
	c, a, d := make(chan struct{}), make(chan bool), make(chan error, 1)
	go func() { d <- e.Serve(interval, func() (int, bool) { c <- struct{}{}; return 0, <-a }) }()
	return c, a, d
}

// quiet is how long a channel is watched of which nothing is expected.
const quiet = 30 * time.Millisecond

func none(t *testing.T, calls <-chan struct{}, why string) {
	t.Helper()
	select {
	case <-calls:
		t.Errorf("%s: called", why)
	case <-time.After(quiet):
	}
}

func TestEventChannel(t *testing.T) {
	d, h, e := bind(t)
	if e.Port() == 0 {
		t.Error("no port")
	}
	send := func() {
		t.Helper()
		if err := d.Send(event(h)); err != nil {
			t.Fatal(err)
		}
	}
	// A wake before it begins is not lost, and has nothing called twice.
	e.Wake()
	calls, answers, done := serve(e, time.Hour)
	<-calls
	answers <- true
	none(t, calls, "nothing happened")
	for range 3 {
		send()
		<-calls
		answers <- true
		none(t, calls, "fired once")
		e.Wake()
		<-calls
		answers <- true
		none(t, calls, "woken once")
	}
	// What comes while it works has it work again.
	send()
	<-calls
	send()
	answers <- true
	<-calls
	e.Wake()
	answers <- true
	<-calls
	if err := e.Notify(); err != nil {
		t.Error(err)
	}
	answers <- false
	if err := <-done; err != nil {
		t.Error(err)
	}
	// As it does from inside the wait, and at once.
	calls, answers, done = serve(e, time.Hour)
	<-calls
	answers <- true
	send()
	<-calls
	answers <- false
	if err := <-done; err != nil {
		t.Error(err)
	}
	calls, answers, done = serve(e, quiet)
	for range 3 {
		<-calls
		answers <- true
	}
	<-calls
	answers <- false
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestEventChannelLosesNothing sends events as fast as they are taken, so that they come
// at every moment of a wait.
func TestEventChannelLosesNothing(t *testing.T) {
	d, h, e := bind(t)
	const events = 2000
	taken, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- e.Serve(time.Hour, func() (int, bool) {
			select {
			case taken <- struct{}{}:
			default:
			}
			return 0, true
		})
	}()
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
	<-taken
	for i := range events {
		if err := d.Send(event(h)); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		select {
		case <-taken:
		case <-time.After(10 * time.Second):
			t.Fatalf("event %d is lost", i)
		}
		// As if it had been answered.
		*(*[4]byte)(r.Bytes()[l.SRing.RspProd:]) = [4]byte{byte(i + 1), byte((i + 1) >> 8)}
		if err := e.Notify(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, xen.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestEventChannelCloses(t *testing.T) {
	_, _, e := bind(t)
	calls, answers, done := serve(e, time.Hour)
	<-calls
	answers <- true
	none(t, calls, "nothing happened")
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	if err := <-done; !errors.Is(err, xen.ErrClosed) {
		t.Errorf("close: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	e.Wake()
	if err := e.Notify(); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("Notify after Close: %v", err)
	}
	if err := e.Serve(time.Hour, func() (int, bool) { t.Error("called after Close"); return 0, false }); !errors.Is(err, xen.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestEventChannelDoesNotAllocate(t *testing.T) {
	_, _, e := bind(t)
	calls, answers, done := serve(e, time.Hour)
	<-calls
	answers <- true
	if n := testing.AllocsPerRun(50, func() {
		e.Wake()
		<-calls
		answers <- true
	}); n != 0 {
		t.Errorf("Wake and what it has done make %v allocations", n)
	}
	e.Wake()
	<-calls
	answers <- false
	if err := <-done; err != nil {
		t.Error(err)
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
	if err := e.Serve(time.Hour, func() (int, bool) { return 0, false }); err != nil {
		t.Fatal(err)
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
