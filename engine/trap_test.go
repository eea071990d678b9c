package engine_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// withTrap is a protected guest without views that has a breakpoint.
func withTrap(t *testing.T, minor int) *world {
	t.Helper()
	spec := withViews
	spec.AltP2M = xen.AltP2MDisabled
	w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}}, spec)
	w.decl = declare(t, "enforce")
	w.appear()
	w.boot()
	w.dom.Write(w.place(where), bytes.Repeat([]byte{nop}, 16))
	w.set(where)
	return w
}

// Instructions of one byte.
const nop, pushRBP = 0x90, 0x55

// execute reports that an instruction is fetched from a page that can't be executed.
func (w *world) execute(at x86.PhysAddr) answer {
	w.t.Helper()
	return w.executeWith(at, w.guest.Regs[0])
}

func (w *world) executeWith(at x86.PhysAddr, regs x86.Registers) answer {
	w.t.Helper()
	l := &w.layout.VMEvent
	regs.RIP = uint64(w.guest.Base) + uint64(at-w.guest.PhysBase)
	return w.parse(w.sendEvent(abi.VMEventReasonMemAccess, regs, func(put func(int, uint64)) {
		put(l.MemAccess.GFN, uint64(at.GFN()))
		put(l.MemAccess.Offset, at.Offset())
		put(l.MemAccess.Flags, abi.MemAccessX)
		put(l.Regs.RSP, regs.RSP)
		if l.Regs.CS >= 0 {
			put(l.Regs.CS, 1<<29)
		} else {
			put(l.Regs.CSArBytes, 1<<9)
		}
	}))
}

var emulated = answer{flags: abi.VMEventFlagEmulate}

// TestTrap sets a breakpoint where there are no views, on old and new releases: the page
// can't be executed, nothing is written to it, and all is as before when it is gone.
func TestTrap(t *testing.T) {
	for _, minor := range []int{11, 17, 22} {
		w := withTrap(t, minor)
		at := w.place(where)
		own := w.dom.Read(at.GFN().Addr(), x86.PageSize)
		before := w.dom.Restricted()
		if a := w.dom.Access(at.GFN()); a != abi.AccessR {
			t.Fatalf("4.%d: the page has access %d", minor, a)
		}
		const hits = 3
		for range hits {
			if got := w.execute(at); got != emulated {
				t.Fatalf("4.%d: a hit was answered with %+v", minor, got)
			}
			if got := w.execute(at + 2); got != emulated {
				t.Fatalf("4.%d: what follows was answered with %+v", minor, got)
			}
		}
		if b := w.status().Breakpoints; len(b) != 1 || b[0].Hits != hits || b[0].Rests != 0 || b[0].Symbol != where {
			t.Errorf("4.%d: %+v", minor, b)
		}
		if now := w.dom.Read(at.GFN().Addr(), x86.PageSize); string(now) != string(own) {
			t.Errorf("4.%d: the guest's page has changed", minor)
		}
		if st := w.status(); st.Stray != 0 || st.Restored != 0 {
			t.Errorf("4.%d: %d stray events", minor, st.Stray)
		}
		// A write is still the guard's to judge.
		if got := w.access(at.GFN(), 0, abi.MemAccessW); got.flags&abi.VMEventFlagEmulate == 0 || w.status().Guards[0].Blocked != 1 {
			t.Errorf("4.%d: an attack was answered with %+v, %+v", minor, got, w.status().Guards[0])
		}
		w.clear(where)
		if a := w.dom.Access(at.GFN()); a != abi.AccessRX {
			t.Errorf("4.%d: without the breakpoint the page has access %d", minor, a)
		}
		if now := w.dom.Restricted(); !slices.Equal(now, before) {
			t.Errorf("4.%d: restricted %v, before %v", minor, now, before)
		}
		w.dom.Shutdown(abi.ShutdownPoweroff)
		w.engine.ShutDown(w.info)
		w.checkClean(1)
	}
}

// TestTrapRests has the page executed freely for a moment where no instruction is known
// to begin.
func TestTrapRests(t *testing.T) {
	w := withTrap(t, 17)
	at := w.place(where)
	w.dom.Write(at+1, []byte{0x0f, 0x30}) // wrmsr
	for i := range uint64(3) {
		if got := w.execute(at + 1); got != (answer{}) {
			t.Fatalf("answered with %+v", got)
		}
		w.settled(func() bool { return w.dom.Access(at.GFN()) == abi.AccessR })
		if b := w.status().Breakpoints[0]; b.Rests != i+1 || b.Hits != 0 {
			t.Errorf("%+v", b)
		}
	}
}

// TestTrapStores has the emulator asked for no write that a guard is to judge.
func TestTrapStores(t *testing.T) {
	w := withTrap(t, 17)
	at := w.place(where)
	w.dom.Write(at, []byte{pushRBP})
	if got := w.execute(at); got != (answer{}) {
		t.Fatalf("other code than is known: answered with %+v", got)
	}
	w.settled(func() bool { return w.dom.Access(at.GFN()) == abi.AccessR })
	regs := w.guest.Regs[0]
	regs.RSP = uint64(w.guest.Base + linuxtest.Data + 8)
	if got := w.executeWith(at, regs); got != emulated {
		t.Fatalf("a push to data was answered with %+v", got)
	}
	regs.RSP = uint64(w.guest.Base) + 0x1008 // of the kernel's code
	if got := w.executeWith(at, regs); got != (answer{}) {
		t.Errorf("a push to guarded code was answered with %+v", got)
	}
}

// TestTrapChecked has the guest exchange the page of a breakpoint, and its policy
// exchanged, which both outlive.
func TestTrapChecked(t *testing.T) {
	w := withTrap(t, 17)
	at := w.place(where)
	w.engine.CheckView(7)
	if st := w.status(); st.Restored != 0 {
		t.Errorf("%d frames restored, with nothing lost", st.Restored)
	}
	w.dom.SetAccess(at.GFN(), abi.AccessRWX)
	w.engine.CheckView(7)
	if st := w.status(); st.Restored != 1 || w.dom.Access(at.GFN()) != abi.AccessR {
		t.Errorf("%d frames restored, access %d", st.Restored, w.dom.Access(at.GFN()))
	}
	w.execute(at)
	w.dom.Write(at+1, []byte{0x0f, 0x30}) // wrmsr
	w.execute(at + 1)                     // a rest
	w.settled(func() bool { return w.dom.Access(at.GFN()) == abi.AccessR })
	for i, decl := range []engine.Declaration{declareGuards(t, "kernel-text=off"), declare(t, "enforce")} {
		if err := w.engine.Apply(t.Context(), w.info, decl); err != nil {
			t.Fatal(err)
		}
		if want := []uint8{abi.AccessRW, abi.AccessR}[i]; w.dom.Access(at.GFN()) != want {
			t.Errorf("%d: access %d, want %d", i, w.dom.Access(at.GFN()), want)
		}
		if got := w.execute(at); got != emulated {
			t.Errorf("%d: answered with %+v", i, got)
		}
		if b := w.status().Breakpoints; len(b) != 1 || b[0].Hits != uint64(i+2) || b[0].Rests != 1 {
			t.Errorf("%d: %+v", i, b)
		}
	}
}
