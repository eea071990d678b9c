package vmevent_test

import (
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/vmevent/vmeventtest"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// judge answers by a function and keeps what it saw.
type judge func(*vmevent.Event) vmevent.Verdict

func (j judge) HandleEvent(ev *vmevent.Event) vmevent.Verdict { return j(ev) }

func newRing(t testing.TB, minor int) (*vmeventtest.Xen, *vmevent.Ring) {
	t.Helper()
	l, err := abi.For(4, minor)
	if err != nil {
		t.Fatal(err)
	}
	x := vmeventtest.New(l)
	r, err := vmevent.NewRing(x.Page, l)
	if err != nil {
		t.Fatal(err)
	}
	return x, r
}

func serve(t *testing.T, x *vmeventtest.Xen, r *vmevent.Ring, j judge) *vmevent.Server {
	t.Helper()
	s := vmevent.NewServer(r, x, x, j, new(atomic.Uint64))
	go s.Run()
	return s
}

// TestEveryRelease sends one event of each kind that carries a payload through
// the wire format of every release and checks what the handler sees and what
// Xen gets back.
func TestEveryRelease(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			x, r := newRing(t, rel.Minor)
			if got := r.Slots(); got != abi.VMEventRingSlots {
				t.Fatalf("ring has %d slots, want %d", got, abi.VMEventRingSlots)
			}
			var seen []vmevent.Event
			s := serve(t, x, r, func(ev *vmevent.Event) vmevent.Verdict {
				seen = append(seen, *ev)
				switch ev.Reason {
				case vmevent.ReasonMemAccess:
					return vmevent.Discard
				case vmevent.ReasonMovToMSR:
					return vmevent.Deny
				}
				return vmevent.Continue
			})
			requests := []vmeventtest.Request{
				{VCPU: 1, Paused: true, Reason: abi.VMEventReasonMemAccess, GFN: 0x1234, Offset: 0xff8, GLA: 0xffffffff81000ff8,
					AccessFlags: abi.MemAccessR | abi.MemAccessW | abi.MemAccessGLAValid, RIP: 0xffffffffc0001234, CR3: 0x6000, GSBase: 0xffff888000000000},
				{VCPU: 0, Paused: true, Reason: abi.VMEventReasonMovToMSR, Index: x86.MSRLSTAR, New: 0xffffffffdeadbeef, Old: 0xffffffff81800000},
				{VCPU: 3, Reason: abi.VMEventReasonWriteCtrlReg, Index: abi.VMEventX86CR3, New: 0x7000, Old: 0x6000},
			}
			wantFlags := []uint32{
				abi.VMEventFlagVCPUPaused | abi.VMEventFlagEmulate | abi.VMEventFlagEmulateNoWrite,
				abi.VMEventFlagVCPUPaused | abi.VMEventFlagDeny,
				0, // paused nothing, so its answer must not resume anything
			}
			for i, q := range requests {
				if !x.Put(q) {
					t.Fatalf("request %d: ring full", i)
				}
				got := <-x.Answers()
				if want := (vmeventtest.Response{VCPU: q.VCPU, Flags: wantFlags[i], Reason: q.Reason}); got != want {
					t.Errorf("answer %d = %+v, want %+v", i, got, want)
				}
			}
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if len(seen) != len(requests) {
				t.Fatalf("handler saw %d events, want %d", len(seen), len(requests))
			}
			m := seen[0]
			if m.Mem.GFN != 0x1234 || m.Mem.Phys() != 0x1234ff8 || m.Mem.GLA != 0xffffffff81000ff8 || m.Mem.Flags&vmevent.AccessWrite == 0 {
				t.Errorf("memory access decoded as %+v", m.Mem)
			}
			if m.VCPU != 1 || !m.Paused || m.Regs.RIP != 0xffffffffc0001234 || m.Regs.CR3 != 0x6000 || m.Regs.GSBase != 0xffff888000000000 {
				t.Errorf("header or registers decoded as %+v", m)
			}
			if w := seen[1].MSR; w != (vmevent.MSRWrite{MSR: x86.MSRLSTAR, New: 0xffffffffdeadbeef, Old: 0xffffffff81800000}) {
				t.Errorf("MSR write decoded as %+v", w)
			}
			if w := seen[2].CR; w != (vmevent.CtrlRegWrite{Reg: vmevent.CR3, New: 0x7000, Old: 0x6000}) {
				t.Errorf("control register write decoded as %+v", w)
			}
			if st := s.Stats(); st.Total != 3 || st.Events[vmevent.ReasonMovToMSR] != 1 {
				t.Errorf("stats = %+v", st)
			}
		})
	}
}

// TestDenialWaits checks that a register write is denied only once its vCPU has
// come to rest: before that Xen would lose the denial. Other answers do not wait.
func TestDenialWaits(t *testing.T) {
	x, r := newRing(t, 17)
	verdict := vmevent.Deny
	s := serve(t, x, r, func(*vmevent.Event) vmevent.Verdict { return verdict })
	for _, c := range []struct {
		verdict vmevent.Verdict
		left    int32
	}{{vmevent.Deny, -1}, {vmevent.Continue, 50}} {
		verdict = c.verdict
		x.Leaving.Store(50)
		if !x.Put(vmeventtest.Request{Paused: true, Reason: abi.VMEventReasonMovToMSR}) {
			t.Fatal("ring full")
		}
		<-x.Answers()
		if got := x.Leaving.Load(); got != c.left {
			t.Errorf("verdict %#x: answered with the vCPU still to be seen running %d times, want %d", c.verdict, got, c.left)
		}
	}
	x.Leaving.Store(1 << 30)
	verdict = vmevent.Deny
	if !x.Put(vmeventtest.Request{Paused: true, Reason: abi.VMEventReasonMovToMSR}) {
		t.Fatal("ring full")
	}
	if got := <-x.Answers(); got.Flags&abi.VMEventFlagDeny == 0 {
		t.Errorf("a vCPU that does not come to rest was answered with flags %#x", got.Flags)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Unsettled != 1 {
		t.Errorf("%d denials counted as unsettled, want 1", st.Unsettled)
	}
}

// TestHold checks that a held vCPU stays unanswered while others are served,
// is answered by Release with the verdict given then, and at the latest when
// the server stops.
func TestHold(t *testing.T) {
	x, r := newRing(t, 17)
	s := serve(t, x, r, func(ev *vmevent.Event) vmevent.Verdict {
		if ev.VCPU < 2 {
			return vmevent.Hold
		}
		return vmevent.Continue
	})
	for vcpu := range uint32(3) {
		x.Put(vmeventtest.Request{VCPU: vcpu, Paused: true, Reason: abi.VMEventReasonMovToMSR})
	}
	if got := <-x.Answers(); got.VCPU != 2 {
		t.Fatalf("vCPU %d was answered, want 2: the others are held", got.VCPU)
	}
	if st := s.Stats(); st.Held != 2 {
		t.Fatalf("%d held, want 2", st.Held)
	}
	s.Release(1, vmevent.Deny)
	if got, want := <-x.Answers(), (vmeventtest.Response{VCPU: 1, Flags: abi.VMEventFlagVCPUPaused | abi.VMEventFlagDeny, Reason: abi.VMEventReasonMovToMSR}); got != want {
		t.Fatalf("released with %+v, want %+v", got, want)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := <-x.Answers(); got.VCPU != 0 || got.Flags != abi.VMEventFlagVCPUPaused {
		t.Fatalf("stop answered %+v, want vCPU 0 resumed", got)
	}
}

// TestReleaseInStorm checks that a held vCPU is released while the ring is never empty.
func TestReleaseInStorm(t *testing.T) {
	l, err := abi.For(4, 17)
	if err != nil {
		t.Fatal(err)
	}
	storm := vmeventtest.NewStorm(l, vmeventtest.Request{VCPU: 3, Paused: true, Reason: abi.VMEventReasonMemAccess})
	r, err := vmevent.NewRing(storm.Bytes(), l)
	if err != nil {
		t.Fatal(err)
	}
	first := true
	s := vmevent.NewServer(r, storm, nil, judge(func(*vmevent.Event) vmevent.Verdict {
		if first {
			first = false
			return vmevent.Hold
		}
		return vmevent.Emulate
	}), new(atomic.Uint64))
	go s.Run()
	storm.Begin()
	for s.Stats().Held == 0 || s.Total() < 2*vmevent.EventsPerTurn {
		runtime.Gosched()
	}
	s.Release(3, vmevent.Continue)
	for s.Stats().Held != 0 { // it hangs if that has to wait for the storm's end
		runtime.Gosched()
	}
	storm.End()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if s.Total() != storm.Answered() {
		t.Errorf("%d requests, %d answers", s.Total(), storm.Answered())
	}
}

// TestHoldNeedsPause checks that Hold cannot swallow the answer of a request
// that stopped nothing: its slot in the ring would be lost for ever.
func TestHoldNeedsPause(t *testing.T) {
	x, r := newRing(t, 17)
	s := serve(t, x, r, func(*vmevent.Event) vmevent.Verdict { return vmevent.Hold })
	for i := range 3 * abi.VMEventRingSlots {
		if !x.Put(vmeventtest.Request{VCPU: uint32(i), Reason: abi.VMEventReasonWriteCtrlReg}) {
			t.Fatalf("ring full at request %d", i)
		}
		if got := <-x.Answers(); got.Flags != 0 {
			t.Fatalf("answer %+v, want no flags", got)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestOneNotifyPerBatch fills the ring before the server starts: eight answers
// go out with one notification.
func TestOneNotifyPerBatch(t *testing.T) {
	x, r := newRing(t, 17)
	for i := range abi.VMEventRingSlots {
		if !x.Put(vmeventtest.Request{VCPU: uint32(i), Paused: true, Reason: abi.VMEventReasonMovToMSR}) {
			t.Fatalf("ring full at request %d", i)
		}
	}
	if x.Put(vmeventtest.Request{}) {
		t.Fatal("a ninth request fitted")
	}
	s := serve(t, x, r, func(*vmevent.Event) vmevent.Verdict { return vmevent.Continue })
	for i := range abi.VMEventRingSlots {
		if got := <-x.Answers(); got.VCPU != uint32(i) {
			t.Fatalf("answer %d is for vCPU %d", i, got.VCPU)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := x.Notifications(); n != 1 {
		t.Errorf("%d notifications, want 1", n)
	}
}

// waker counts how often the ring goroutine was woken.
type waker struct {
	*vmeventtest.Xen
	woken atomic.Int32
}

func (w *waker) Wake() {
	w.woken.Add(1)
	w.Xen.Wake()
}

// TestRecheck has a request be missed whose wake-up is lost, and found by who looks twice.
// Who looks at a ring that has nothing, or that is gone, wakes nobody.
func TestRecheck(t *testing.T) {
	x, r := newRing(t, 17)
	w := &waker{Xen: x}
	s := vmevent.NewServer(r, w, x, judge(func(*vmevent.Event) vmevent.Verdict { return vmevent.Continue }), new(atomic.Uint64))
	go s.Run()
	q := vmeventtest.Request{VCPU: 2, Paused: true, Reason: abi.VMEventReasonMovToMSR}
	for i := range 3 {
		x.Put(q)
		<-x.Answers()
		for range 3 {
			s.Recheck()
		}
		if n := w.woken.Load(); n != int32(i) {
			t.Fatalf("woken %d times with nothing in the ring, want %d", n, i)
		}
		x.PutUnheard(q)
		s.Recheck()
		if n := w.woken.Load(); n != int32(i) {
			t.Fatalf("woken %d times for a request that may be on its way, want %d", n, i)
		}
		s.Recheck()
		if got := <-x.Answers(); got.VCPU != 2 {
			t.Errorf("answer %+v", got)
		}
		if n := w.woken.Load(); n != int32(i+1) {
			t.Fatalf("woken %d times, want %d", n, i+1)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	woken := w.woken.Load()
	x.PutUnheard(q)
	s.Recheck()
	s.Recheck()
	if n := w.woken.Load(); n != woken {
		t.Errorf("a server that has stopped was woken")
	}
}

// TestForeignVersion checks that a request of another interface version is
// answered, so that its vCPU goes on, but not believed.
func TestForeignVersion(t *testing.T) {
	x, r := newRing(t, 17)
	var reason vmevent.Reason = 99
	s := serve(t, x, r, func(ev *vmevent.Event) vmevent.Verdict { reason = ev.Reason; return vmevent.Continue })
	x.Put(vmeventtest.Request{VCPU: 5, Paused: true, Reason: abi.VMEventReasonMemAccess, Version: 3})
	if got := <-x.Answers(); got.VCPU != 5 || got.Flags != abi.VMEventFlagVCPUPaused {
		t.Errorf("answer %+v", got)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if reason != vmevent.ReasonUnknown || s.Stats().Malformed != 1 {
		t.Errorf("reason %v, malformed %d; want unknown, 1", reason, s.Stats().Malformed)
	}
}

// TestRespondBlind checks the answer that resumes a vCPU whose request died
// with another process.
func TestRespondBlind(t *testing.T) {
	x, r := newRing(t, 17)
	r.RespondBlind(7)
	if !r.Publish() {
		t.Fatal("nothing to publish")
	}
	if err := x.Notify(); err != nil {
		t.Fatal(err)
	}
	if got, want := <-x.Answers(), (vmeventtest.Response{VCPU: 7, Flags: abi.VMEventFlagVCPUPaused}); got != want {
		t.Errorf("answer %+v, want %+v", got, want)
	}
}

// TestForgetSteps: after steps were stopped the next of each vCPU is of the kind that
// Xen takes it for, and only that one.
func TestForgetSteps(t *testing.T) {
	const toggle, fast = abi.VMEventFlagToggleSingleStep, abi.VMEventFlagFastSingleStep
	x, r := newRing(t, 17)
	step := func(vcpu uint32, v vmevent.Verdict) uint32 {
		t.Helper()
		x.Put(vmeventtest.Request{VCPU: vcpu, Paused: true, Reason: abi.VMEventReasonMemAccess})
		x.Wait()
		var ev vmevent.Event
		if !r.Next(&ev) {
			t.Fatal("no request")
		}
		r.Respond(&ev, v)
		r.Publish()
		if err := x.Notify(); err != nil {
			t.Fatal(err)
		}
		return (<-x.Answers()).Flags &^ (abi.VMEventFlagVCPUPaused | abi.VMEventFlagAlternateP2M)
	}
	const reported = vmevent.Step | vmevent.Report
	if got := step(1, vmevent.Step); got != fast {
		t.Errorf("a step was begun with flags %#x", got)
	}
	if got := step(2, reported); got != toggle {
		t.Errorf("a reported step was begun with flags %#x", got)
	}
	r.ForgetSteps()
	for _, c := range []struct {
		vcpu uint32
		want uint32
	}{{1, fast}, {1, toggle}, {2, toggle}} {
		if got := step(c.vcpu, reported); got != c.want {
			t.Errorf("the next step of vCPU %d was begun with flags %#x, want %#x", c.vcpu, got, c.want)
		}
	}
	if got := step(3, vmevent.Return); got != 0 {
		t.Errorf("a vCPU that is only to be in another view got flags %#x", got)
	}
}

// TestNewRingRefuses checks that a page that cannot be a ring is refused.
func TestNewRingRefuses(t *testing.T) {
	l, err := abi.For(4, 17)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vmevent.NewRing(make([]byte, 100), l); err == nil {
		t.Error("a page of 100 bytes was taken")
	}
}

// TestRingPathDoesNotAllocate is the promise of the event path: reading,
// decoding, judging and answering leave the heap alone.
func TestRingPathDoesNotAllocate(t *testing.T) {
	x, r := newRing(t, 17)
	var ev vmevent.Event
	if n := testing.AllocsPerRun(1000, func() {
		x.Put(vmeventtest.Request{VCPU: 1, Paused: true, Reason: abi.VMEventReasonMemAccess})
		x.Wait()
		if !r.Next(&ev) {
			t.Fatal("no request")
		}
		r.Respond(&ev, vmevent.Emulate)
		r.Publish()
		x.Notify()
		<-x.Answers()
	}); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
}

// FuzzDecode feeds the decoder arbitrary slots: it must neither panic nor let
// a frame offset past the page.
func FuzzDecode(f *testing.F) {
	f.Add(17, make([]byte, 400))
	f.Fuzz(func(t *testing.T, minor int, data []byte) {
		l, err := abi.For(4, 11+int(uint(minor)%12))
		if err != nil {
			t.Fatal(err)
		}
		x := vmeventtest.New(l)
		r, err := vmevent.NewRing(x.Page, l)
		if err != nil {
			t.Fatal(err)
		}
		x.Put(vmeventtest.Request{})
		copy(x.Page[l.SRing.Ring:], data)
		var ev vmevent.Event
		if !r.Next(&ev) {
			t.Fatal("no request")
		}
		if ev.Mem.Offset >= x86.PageSize || ev.Mem.Phys().GFN() != ev.Mem.GFN&(1<<52-1) {
			t.Fatalf("memory access %+v", ev.Mem)
		}
		r.Respond(&ev, vmevent.Continue)
	})
}

func BenchmarkEvent(b *testing.B) {
	x, r := newRing(b, 17)
	var ev vmevent.Event
	b.ReportAllocs()
	for b.Loop() {
		x.Put(vmeventtest.Request{VCPU: 1, Paused: true, Reason: abi.VMEventReasonMemAccess})
		x.Wait()
		r.Next(&ev)
		r.Respond(&ev, vmevent.Emulate)
		r.Publish()
		x.Notify()
		<-x.Answers()
	}
}
