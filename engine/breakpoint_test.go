package engine_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// With the first breakpoint there are three views: the host's, the running one
// and the one that steps are made in.
const (
	hostView, runningView, steppingView = 0, 1, 2
	// where a breakpoint stands: in this function of the fake kernel.
	where = "func_5_init"
)

// withBreakpoint is a protected guest with a hidden breakpoint.
func withBreakpoint(t *testing.T, minor int) *world {
	t.Helper()
	w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: true}, withViews)
	w.decl = declare(t, "enforce")
	w.appear()
	w.boot()
	w.set(where)
	return w
}

func (w *world) set(symbol string) {
	w.t.Helper()
	if err := w.engine.SetBreakpoint(w.t.Context(), 7, symbol, true); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) clear(symbol string) {
	w.t.Helper()
	if err := w.engine.SetBreakpoint(w.t.Context(), 7, symbol, false); err != nil {
		w.t.Fatal(err)
	}
}

// place returns where a symbol is in physical memory.
func (w *world) place(symbol string) x86.PhysAddr {
	return w.guest.PhysBase + x86.PhysAddr(w.guest.Addr(symbol)-w.guest.Base)
}

// answer is what matters of one, beside that the vCPU goes on.
type answer struct {
	flags  uint32
	in, to uint16
}

// stop reports an INT3 at a place.
func (w *world) stop(at x86.PhysAddr, view uint16, rcx uint64) answer {
	w.t.Helper()
	l := &w.layout.VMEvent
	regs := w.guest.Regs[0]
	regs.RIP = uint64(w.guest.Base) + uint64(at-w.guest.PhysBase)
	return w.parse(w.sendEvent(abi.VMEventReasonSoftwareBreakpoint, regs, func(put func(int, uint64)) {
		put(l.Debug.GFN, uint64(at.GFN()))
		put(l.Debug.InsnLength, 1)
		put(l.Regs.RCX, rcx)
		put(l.OffAltP2MIdx, uint64(view))
	}))
}

// access reports an access to a frame.
func (w *world) access(gfn x86.GFN, view uint16, flags uint64) answer {
	w.t.Helper()
	l := &w.layout.VMEvent
	return w.parse(w.ask(abi.VMEventReasonMemAccess, func(put func(int, uint64)) {
		put(l.MemAccess.GFN, uint64(gfn))
		put(l.MemAccess.Flags, flags)
		put(l.OffAltP2MIdx, uint64(view))
	}))
}

func (w *world) parse(a []byte) answer {
	w.t.Helper()
	if a == nil {
		w.t.Fatal("not answered")
	}
	l := &w.layout.VMEvent
	out := answer{flags: binary.LittleEndian.Uint32(a[l.OffFlags:]) &^ abi.VMEventFlagVCPUPaused}
	if out.flags&abi.VMEventFlagAlternateP2M != 0 {
		out.in = binary.LittleEndian.Uint16(a[l.OffAltP2MIdx:])
	}
	if out.flags&abi.VMEventFlagFastSingleStep != 0 {
		out.to = binary.LittleEndian.Uint16(a[l.FastSingleStep.P2MIdx:])
	}
	return out
}

// stepIn is the answer that has a step made in a view.
func (w *world) stepIn(view uint16) answer {
	if w.layout.Has.FastSingleStep {
		return answer{flags: abi.VMEventFlagAlternateP2M | abi.VMEventFlagFastSingleStep, in: view, to: runningView}
	}
	return answer{flags: toggle, in: view}
}

const toggle = abi.VMEventFlagAlternateP2M | abi.VMEventFlagToggleSingleStep

// endStep reports the end of a step, where Xen does so.
func (w *world) endStep(view uint16) answer {
	w.t.Helper()
	return w.parse(w.ask(abi.VMEventReasonSingleStep, w.inView(view, func(func(int, uint64)) {})))
}

// TestBreakpoint sets a hidden breakpoint on every release, hits it, has the guest
// read its code, and takes it away.
func TestBreakpoint(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := withBreakpoint(t, rel.Minor)
			at := w.place(where)
			shadow := w.dom.LeadsTo(runningView, at.GFN())
			if shadow < 1<<20 || w.dom.ViewAccess(runningView, at.GFN()) != abi.AccessX {
				t.Fatalf("the running view leads to %v with access %d", shadow, w.dom.ViewAccess(runningView, at.GFN()))
			}
			if to, a := w.dom.LeadsTo(steppingView, at.GFN()), w.dom.ViewAccess(steppingView, at.GFN()); to != at.GFN() || a != abi.AccessRX {
				t.Errorf("the stepping view leads to %v with access %d", to, a)
			}
			if host, running, stepping := w.dom.Access(shadow), w.dom.ViewAccess(runningView, shadow), w.dom.ViewAccess(steppingView, shadow); host != abi.AccessN || running != abi.AccessN || stepping != abi.AccessN {
				t.Errorf("the shadow page has access %d, in the views %d and %d", host, running, stepping)
			}
			copied, own := w.dom.Read(shadow.Addr(), x86.PageSize), w.dom.Read(at.GFN().Addr(), x86.PageSize)
			if copied[at.Offset()] != 0xcc || own[at.Offset()] == 0xcc {
				t.Errorf("%#x in the shadow, %#x in the guest's page", copied[at.Offset()], own[at.Offset()])
			}
			copied[at.Offset()] = own[at.Offset()]
			if string(copied) != string(own) {
				t.Error("the shadow differs from its page in more than the breakpoint")
			}

			const hits = 3
			for range hits {
				if got := w.stop(at, runningView, 0); got != w.stepIn(steppingView) {
					t.Fatalf("a hit was answered with %+v, want %+v", got, w.stepIn(steppingView))
				}
				if !w.layout.Has.FastSingleStep {
					if got := w.endStep(steppingView); got != (answer{flags: toggle, in: runningView}) {
						t.Fatalf("the step's end was answered with %+v", got)
					}
				}
			}
			if b := w.status().Breakpoints; len(b) != 1 || b[0].Hits != hits || b[0].Symbol != where || b[0].At != at {
				t.Errorf("breakpoints %+v", b)
			}
			if got := w.access(at.GFN(), runningView, abi.MemAccessR); got != w.stepIn(steppingView) {
				t.Errorf("a read of the page was answered with %+v", got)
			}
			if !w.layout.Has.FastSingleStep {
				w.endStep(steppingView)
			}
			if h := w.status().Hidden; h.Reads != 1 || w.status().Stray != 0 || w.status().Stepped != 0 {
				t.Errorf("counted as %+v, %+v", h, w.status())
			}

			w.clear(where)
			if to, a := w.dom.LeadsTo(runningView, at.GFN()), w.dom.ViewAccess(runningView, at.GFN()); to != at.GFN() || a != abi.AccessRX {
				t.Errorf("without the breakpoint the view leads to %v with access %d", to, a)
			}
			// A vCPU that was at it goes on.
			if got := w.stop(at, runningView, 0); got != (answer{}) {
				t.Errorf("a late hit was answered with %+v", got)
			}
			if e := w.dom.TakeInjected(0); e != nil {
				t.Errorf("the guest was given %+v", e)
			}
			w.set(where) // again, in the same shadow page
			if to := w.dom.LeadsTo(runningView, at.GFN()); to != shadow {
				t.Errorf("set again, it is in %v, was in %v", to, shadow)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestGuestsOwnBreakpoint gives the guest what is its own, also at the place of
// one of ours.
func TestGuestsOwnBreakpoint(t *testing.T) {
	w := withBreakpoint(t, 17)
	at := w.place(where)
	for name, pa := range map[string]x86.PhysAddr{"elsewhere": w.guest.PhysBase + linuxtest.Data, "at the same place": at} {
		w.dom.Write(pa, []byte{0xcc})
		if got := w.stop(pa, runningView, 0); got != (answer{}) {
			t.Errorf("%s: answered with %+v", name, got)
		}
		if e := w.dom.TakeInjected(0); e == nil || e.Vector != 3 || e.Type != abi.DMOpEventSWExc || e.InsnLen != 1 {
			t.Errorf("%s: injected %+v", name, e)
		}
	}
	// In a step over ours, which ends with the exception's delivery.
	if got := w.stop(at, steppingView, 0); got != (answer{}) || w.dom.TakeInjected(0) == nil {
		t.Errorf("in a step: answered with %+v", got)
	}
	if st := w.status(); st.Hidden.Returned != 3 || st.Breakpoints[0].Hits != 1 {
		t.Errorf("%+v, %+v", st.Hidden, st.Breakpoints)
	}
}

// TestRepeated counts a repeated string instruction once, however many turns it
// makes.
func TestRepeated(t *testing.T) {
	w := withBreakpoint(t, 17)
	at := w.place(where)
	w.dom.Write(at, []byte{0xf3, 0xa4})
	for _, turns := range []uint64{3, 1, 3} {
		for rcx := turns; rcx > 0; rcx-- {
			if got := w.stop(at, runningView, rcx); got != w.stepIn(steppingView) {
				t.Fatalf("answered with %+v", got)
			}
		}
	}
	if n := w.status().Breakpoints[0].Hits; n != 3 {
		t.Errorf("%d hits of 3 instructions of 7 turns", n)
	}
}

// TestShadowFollows has the guest's kernel patch a page that has a shadow.
func TestShadowFollows(t *testing.T) {
	for _, minor := range []int{11, 17} {
		w := withBreakpoint(t, minor)
		at := w.place(where)
		shadow := w.dom.LeadsTo(runningView, at.GFN())
		patch := func(off uint64, view uint16) answer {
			l := &w.layout.VMEvent
			regs := w.guest.Regs[0]
			regs.RIP, regs.CR3 = uint64(w.guest.Base+0x100), uint64(linuxtest.PokingPGD)
			a := w.parse(w.sendEvent(abi.VMEventReasonMemAccess, regs, func(put func(int, uint64)) {
				put(l.MemAccess.GFN, uint64(at.GFN()))
				put(l.MemAccess.Offset, off)
				put(l.MemAccess.GLA, uint64(linuxtest.Window)+off)
				put(l.MemAccess.Flags, abi.MemAccessR|abi.MemAccessW|abi.MemAccessGLAValid)
				put(l.OffAltP2MIdx, uint64(view))
			}))
			w.dom.Write(at.GFN().Addr()+x86.PhysAddr(off), []byte{0x99}) // the step
			return a
		}
		off := (at.Offset() + 0x40) % x86.PageSize
		if got := patch(off, runningView); got != (answer{flags: toggle, in: hostView}) {
			t.Fatalf("4.%d: the write was answered with %+v: its end must be told", minor, got)
		}
		if got := w.endStep(hostView); got != (answer{flags: toggle, in: runningView}) {
			t.Fatalf("4.%d: the step's end was answered with %+v", minor, got)
		}
		if b := w.dom.Read(shadow.Addr(), x86.PageSize); b[off] != 0x99 || b[at.Offset()] != 0xcc {
			t.Errorf("4.%d: %#x where the guest wrote 0x99, %#x at the breakpoint", minor, b[off], b[at.Offset()])
		}
		if n := w.status().Hidden.Writes; n != 1 {
			t.Errorf("4.%d: %d writes", minor, n)
		}
		// In a step over a breakpoint, that is not begun or ended by mistake.
		w.stop(at, runningView, 0)
		want := w.stepIn(hostView)
		if !w.layout.Has.FastSingleStep {
			want = answer{flags: abi.VMEventFlagAlternateP2M, in: hostView}
		}
		if got := patch(off+8, steppingView); got != want {
			t.Errorf("4.%d: the write in a step was answered with %+v, want %+v", minor, got, want)
		}
		if !w.layout.Has.FastSingleStep {
			w.endStep(hostView)
		} else {
			w.stop(at, runningView, 0) // the next that is heard of the vCPU
		}
		if b := w.dom.Read(shadow.Addr(), x86.PageSize); b[off+8] != 0x99 {
			t.Errorf("4.%d: %#x where the guest wrote 0x99 in a step", minor, b[off+8])
		}
		// An attacker's write is no less one.
		if got := w.access(at.GFN(), runningView, abi.MemAccessR|abi.MemAccessW); got.flags != abi.VMEventFlagEmulate|abi.VMEventFlagEmulateNoWrite {
			t.Errorf("4.%d: an attack was answered with %+v", minor, got)
		}
		<-w.events.got
	}
}

// TestShadowIsConcealed has the guest look where the shadow page lies.
func TestShadowIsConcealed(t *testing.T) {
	w := withBreakpoint(t, 17)
	shadow := w.dom.LeadsTo(runningView, w.place(where).GFN())
	l := &w.layout.VMEvent
	for view := uint16(hostView); view <= steppingView; view++ {
		a := w.ask(abi.VMEventReasonMemAccess, w.inView(view, func(put func(int, uint64)) {
			put(l.MemAccess.GFN, uint64(shadow))
			put(l.MemAccess.Flags, abi.MemAccessR)
		}))
		if f := binary.LittleEndian.Uint32(a[l.OffFlags:]); f != abi.VMEventFlagVCPUPaused|abi.VMEventFlagEmulate|abi.VMEventFlagSetEmulReadData {
			t.Errorf("view %d: a read was answered with flags %#x", view, f)
		}
		if n := int(binary.LittleEndian.Uint32(a[l.OffEmulReadSize:])); n < 64 || bytes.Count(a[l.OffEmulReadData:l.OffEmulReadData+n], []byte{0xff}) != n {
			t.Errorf("view %d: the guest reads %d bytes: % x", view, n, a[l.OffEmulReadData:])
		}
		if got := w.access(shadow, view, abi.MemAccessR|abi.MemAccessW); got.flags != abi.VMEventFlagEmulate|abi.VMEventFlagEmulateNoWrite {
			t.Errorf("view %d: a write was answered with %+v", view, got)
		}
	}
	if n := w.status().Hidden.Concealed; n != 6 {
		t.Errorf("%d accesses concealed", n)
	}
}

// TestBreakpointsOutlivePolicy exchanges the guards under breakpoints, and flushes
// the view behind hvi's back.
func TestBreakpointsOutlivePolicy(t *testing.T) {
	w := withBreakpoint(t, 17)
	at := w.place(where)
	w.stop(at, runningView, 0)
	if err := w.engine.Apply(t.Context(), w.info, declare(t, "observe")); err != nil {
		t.Fatal(err)
	}
	if got := w.stop(at, runningView, 0); got != w.stepIn(steppingView) {
		t.Errorf("with another policy a hit was answered with %+v", got)
	}
	st := w.status()
	if len(st.Breakpoints) != 1 || st.Breakpoints[0].Hits != 2 || len(st.Views) != 3 || len(st.Views[1].Shadows) != 1 {
		t.Errorf("breakpoints %+v, views %+v", st.Breakpoints, st.Views)
	}
	if a := w.dom.Access(st.Views[1].Shadows[0].Shadow); a != abi.AccessN {
		t.Errorf("the shadow page has access %d", a)
	}
	w.dom.FlushView(runningView)
	w.engine.CheckView(7)
	if to, a := w.dom.LeadsTo(runningView, at.GFN()), w.dom.ViewAccess(runningView, at.GFN()); to < 1<<20 || a != abi.AccessX {
		t.Errorf("after a flush the view leads to %v with access %d", to, a)
	}
	shadow := w.dom.LeadsTo(runningView, at.GFN())
	if a := w.dom.ViewAccess(runningView, shadow); a != abi.AccessN {
		t.Errorf("after a flush the shadow page has access %d", a)
	}
	if n := w.status().Restored; n != guardedFrames+1 {
		t.Errorf("%d frames restored", n)
	}
	// With no guard that restricts pages there is still the view.
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text=off")); err != nil {
		t.Fatal(err)
	}
	if got := w.stop(at, runningView, 0); got != w.stepIn(steppingView) {
		t.Errorf("without a guard of pages a hit was answered with %+v", got)
	}
	w.clear(where)
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.checkClean(1)
}

// TestBreakpointRefused says why one cannot be had.
func TestBreakpointRefused(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: 17}, AltP2M: true}, withViews)
	w.appear()
	refused := func(symbol, why string) {
		t.Helper()
		err := w.engine.SetBreakpoint(ctx, 7, symbol, true)
		var b *engine.BreakpointError
		if !errors.As(err, &b) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", symbol, err, why)
		}
	}
	refused(where, "not armed")
	w.boot()
	refused("no_such_function", "no symbol")
	refused(where+"+x", "no offset")
	refused("system_state", "not in the kernel's code")
	if err := w.engine.SetBreakpoint(ctx, 7, where, false); err == nil {
		t.Error("one that is not there was cleared")
	}
	if err := w.engine.SetBreakpoint(ctx, 8, where, true); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("%v", err)
	}
	if n := w.dom.Pauses(); n != 1 {
		t.Errorf("%d pauses", n)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)

	w = newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: 17}, AMD: true}, withViews)
	w.appear()
	w.boot()
	refused(where, "tier views or access")
}

// TestBreakpointFails has each call fail that a breakpoint takes: the guest goes
// on as it was, and nothing is left in the end.
func TestBreakpointFails(t *testing.T) {
	for _, call := range []string{
		"altp2m(create_p2m)", "altp2m(set_mem_access_multi)", "altp2m(change_gfn)", "domctl(max_mem)",
		"memory_op(populate_physmap)", "memory_op(maximum_gpfn)", "mem_access(set)", "map", "monitor_op(enable)",
	} {
		t.Run(call, func(t *testing.T) {
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: 17}, AltP2M: true}, withViews)
			w.appear()
			w.boot()
			w.xen.FailNext(call, syscall.EIO)
			if err := w.engine.SetBreakpoint(t.Context(), 7, where, true); err == nil {
				t.Fatal("it was set")
			}
			at := w.place(where)
			if to := w.dom.LeadsTo(runningView, at.GFN()); to != at.GFN() || w.dom.ViewAccess(runningView, at.GFN()) != abi.AccessRX {
				t.Errorf("the view leads to %v", to)
			}
			if st := w.status(); len(st.Breakpoints) != 0 || st.State != engine.StateProtecting {
				t.Errorf("%s, breakpoints %+v", st.State, st.Breakpoints)
			}
			w.set(where)
			if got := w.stop(at, runningView, 0); got != w.stepIn(steppingView) {
				t.Errorf("a hit was answered with %+v", got)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestBreakpointDeath recovers what a hvid leaves that dies with a breakpoint set:
// the views go before the breakpoints are not reported any more, and the page of
// ours goes after them.
func TestBreakpointDeath(t *testing.T) {
	w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: 17}, AltP2M: true}, withViews)
	const frame, page = x86.GFN(1 << 20), x86.GFN(3)
	dead, err := ledger.Open(w.dir, 7, xen.UUID{7}, mutate.New(w.host))
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := engine.ConnectForTest(engine.OnXen(w.host), dead)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mapped.Close(), dead.EnableSteps(2), dead.EnableViews()); err != nil {
		t.Fatal(err)
	}
	view, err := dead.CreateView()
	if err := errors.Join(err, dead.SwitchView(view), dead.Monitor(ledger.MonitorOp{Event: abi.MonitorEventSoftwareBreakpoint}),
		dead.RaiseMaxPages(w.dom.MaxPages(), w.dom.MaxPages()+4), dead.PopulateShadow(frame), dead.Restrict(xen.AccessN, frame, 1),
		dead.Remap(view, page, frame), dead.RestrictView(view, xen.AccessX, page, 1), dead.Leave()); err != nil {
		t.Fatal(err)
	}
	w.xen.Log()
	if done := w.recover(false); len(done) != 1 {
		t.Errorf("recovered %+v", done)
	}
	calls := strings.Join(w.xen.Log(), "\n")
	off, unheard, gone := strings.Index(calls, "set_domain_state"), strings.Index(calls, "monitor_op(disable)"), strings.Index(calls, "decrease_reservation")
	if off < 0 || unheard < off || gone < off {
		t.Errorf("views off at %d, breakpoints not reported from %d on, page taken away at %d:\n%s", off, unheard, gone, calls)
	}
	w.checkClean(1)
}

// TestShadowLost has the guest take the frame of a shadow out of its memory: its
// breakpoints go, and the page is guarded as before. What Xen drops in views again
// and again does not make the ledger grow.
func TestShadowLost(t *testing.T) {
	w := withBreakpoint(t, 17)
	at := w.place(where)
	shadow := w.dom.LeadsTo(runningView, at.GFN())
	size := func() int64 {
		files, err := os.ReadDir(w.dir)
		if err != nil || len(files) != 1 {
			t.Fatalf("ledgers %v, %v", files, err)
		}
		info, err := files[0].Info()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	for range 3 {
		w.dom.FlushView(runningView)
		w.engine.CheckView(7)
	}
	if now := size(); now != before || w.dom.LeadsTo(runningView, at.GFN()) != shadow {
		t.Errorf("the ledger has grown from %d to %d bytes, and the view leads to %v", before, now, w.dom.LeadsTo(runningView, at.GFN()))
	}
	w.dom.DropPage(shadow)
	w.dom.FlushView(runningView)
	w.engine.CheckView(7)
	st := w.status()
	if len(st.Breakpoints) != 0 || st.State != engine.StateProtecting {
		t.Errorf("%s, breakpoints %+v", st.State, st.Breakpoints)
	}
	if to, a := w.dom.LeadsTo(runningView, at.GFN()), w.dom.ViewAccess(runningView, at.GFN()); to != at.GFN() || a != abi.AccessRX {
		t.Errorf("the view leads to %v with access %d", to, a)
	}
	w.set(where) // in another
	if to := w.dom.LeadsTo(runningView, at.GFN()); to == shadow || to < 1<<20 {
		t.Errorf("set again, it is in %v", to)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}
