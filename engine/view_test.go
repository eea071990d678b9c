package engine_test

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

var withViews = xentest.Spec{Pauses: 1, VCPUs: 2, AltP2M: xen.AltP2MExternal, PagingPool: 1 << 20}

// inView sets the view of an event.
func (w *world) inView(view uint16, fill func(put func(int, uint64))) func(func(int, uint64)) {
	return func(put func(int, uint64)) {
		fill(put)
		put(w.layout.VMEvent.OffAltP2MIdx, uint64(view))
	}
}

// writeTextIn is a store into kernel text by a module, in a view. It returns
// the whole answer.
func (w *world) writeTextIn(view uint16) []byte {
	l := &w.layout.VMEvent.MemAccess
	return w.ask(abi.VMEventReasonMemAccess, w.inView(view, func(put func(int, uint64)) {
		put(l.GFN, uint64((w.guest.PhysBase + 0x2000).GFN()))
		put(l.Offset, 0x10)
		put(l.Flags, abi.MemAccessR|abi.MemAccessW)
	}))
}

// TestViews guards a guest in a view of its own, on every release: the host's
// stays free, what is let through is stepped over there, and nothing of it is
// left.
func TestViews(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: rel.Major, Minor: rel.Minor}, AltP2M: true}, withViews)
			w.decl = declare(t, "observe")
			w.appear()
			w.boot()
			st := w.status()
			if st.State != engine.StateProtecting || st.Tier != engine.TierViews {
				t.Fatalf("%s, tier %s (%s), %+v", st.State, st.Tier, st.TierReason, st.Failure)
			}
			if r := w.dom.Restricted(); len(r) != 0 {
				t.Errorf("restricted for everybody: %v", r)
			}
			if v, r := w.dom.View(), w.dom.ViewRestricted(1); v != 1 || len(r) != guardedFrames {
				t.Errorf("vCPUs are in view %d, which restricts %v", v, r)
			}
			host := engine.ViewStatus{ID: 0}
			restricted := func(off, size x86.PhysAddr, by policy.GuardName) engine.RestrictedFrames {
				return engine.RestrictedFrames{First: (w.guest.PhysBase + off).GFN(), Count: uint64(size / x86.PageSize), Access: xen.AccessRX, Guard: by}
			}
			ours := engine.ViewStatus{ID: 1, Current: true, Restricted: []engine.RestrictedFrames{
				restricted(0, linuxtest.TextSize, policy.GuardKernelText),
				restricted(linuxtest.ROData, linuxtest.RODataEnd-linuxtest.ROData, policy.GuardKernelROData),
				restricted(linuxtest.IDT, x86.PageSize, policy.GuardInterruptTable),
			}}
			if want := []engine.ViewStatus{host, ours}; !reflect.DeepEqual(st.Views, want) {
				t.Errorf("views %+v, want %+v", st.Views, want)
			}
			a, l := w.writeTextIn(1), &w.layout.VMEvent
			flags := binary.LittleEndian.Uint32(a[l.OffFlags:])
			if in := binary.LittleEndian.Uint16(a[l.OffAltP2MIdx:]); in != 0 {
				t.Errorf("the step is made in view %d", in)
			}
			if w.layout.Has.FastSingleStep {
				if back := binary.LittleEndian.Uint16(a[l.FastSingleStep.P2MIdx:]); flags != abi.VMEventFlagVCPUPaused|abi.VMEventFlagAlternateP2M|abi.VMEventFlagFastSingleStep || back != 1 {
					t.Errorf("answered with flags %#x, back to view %d", flags, back)
				}
			} else {
				const toggle = abi.VMEventFlagVCPUPaused | abi.VMEventFlagAlternateP2M | abi.VMEventFlagToggleSingleStep
				if flags != toggle {
					t.Errorf("answered with flags %#x", flags)
				}
				a = w.ask(abi.VMEventReasonSingleStep, w.inView(0, func(func(int, uint64)) {}))
				if f, in := binary.LittleEndian.Uint32(a[l.OffFlags:]), binary.LittleEndian.Uint16(a[l.OffAltP2MIdx:]); f != toggle || in != 1 {
					t.Errorf("the step's end answered with flags %#x, view %d", f, in)
				}
			}
			<-w.events.got

			if err := w.engine.Apply(t.Context(), w.info, declare(t, "enforce")); err != nil {
				t.Fatal(err)
			}
			if v := w.dom.View(); v != 1 {
				t.Errorf("with another policy vCPUs are in view %d", v)
			}
			a = w.writeTextIn(1)
			if f := binary.LittleEndian.Uint32(a[l.OffFlags:]); f != abi.VMEventFlagVCPUPaused|abi.VMEventFlagEmulate|abi.VMEventFlagEmulateNoWrite {
				t.Errorf("an attack was answered with flags %#x", f)
			}
			<-w.events.got
			if st := w.status(); st.Stepped != 1 || st.Emulated != 0 || len(st.Views) != 2 {
				t.Errorf("%d accesses stepped over, %d emulated, views %+v", st.Stepped, st.Emulated, st.Views)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
			if st := w.status(); len(st.Views) != 0 {
				t.Errorf("detached with views %+v", st.Views)
			}
		})
	}
}

// TestAllowViews sets altp2m where the toolstack did not, as far as Xen permits
// it, and says what to do where it doesn't.
func TestAllowViews(t *testing.T) {
	for _, c := range []struct {
		rel    xen.Release
		mode   xen.AltP2MMode
		demand uint64
		tier   engine.Tier
		why    string
	}{
		{xen.Release{Major: 4, Minor: 11}, xen.AltP2MDisabled, 0, engine.TierViews, ""},
		{xen.Release{Major: 4, Minor: 18}, xen.AltP2MDisabled, 0, engine.TierViews, ""},
		{xen.Release{Major: 4, Minor: 18}, xen.AltP2MDisabled, 512, engine.TierAccess, "on demand"},
		{xen.Release{Major: 4, Minor: 18}, xen.AltP2MMixed, 0, engine.TierAccess, "external"},
		{xen.Release{Major: 4, Minor: 19}, xen.AltP2MDisabled, 0, engine.TierAccess, "external"},
		{xen.Release{Major: 4, Minor: 20}, xen.AltP2MExternal, 0, engine.TierViews, ""},
	} {
		t.Run(fmt.Sprintf("%d.%d %s %d", c.rel.Major, c.rel.Minor, c.mode, c.demand), func(t *testing.T) {
			spec := withViews
			spec.AltP2M, spec.OnDemand = c.mode, c.demand
			w := newWorld(t, xentest.Config{Release: c.rel, AltP2M: true}, spec)
			w.appear()
			w.boot()
			st := w.status()
			if st.State != engine.StateProtecting || st.Tier != c.tier || !strings.Contains(st.TierReason, c.why) || (c.why == "") != (st.TierReason == "") {
				t.Errorf("%s, tier %s (%s), %+v", st.State, st.Tier, st.TierReason, st.Failure)
			}
			if got := w.dom.View() == 1; got != (c.tier == engine.TierViews) {
				t.Errorf("in view %d", w.dom.View())
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestNoView falls back to the host's view where a view can't be had, says why,
// and leaves nothing of the attempt.
func TestNoView(t *testing.T) {
	for _, op := range []string{
		"domctl(get_paging_mempool_size)", "altp2m(set_domain_state)", "altp2m(create_p2m)",
		"altp2m(set_mem_access_multi)", "altp2m(switch_p2m)",
	} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, xentest.Config{AltP2M: true}, withViews)
			w.appear()
			w.xen.FailNext(op, 12) // ENOMEM
			w.boot()
			st := w.status()
			if st.State != engine.StateProtecting || st.Tier != engine.TierAccess || !strings.Contains(st.TierReason, op) {
				t.Errorf("%s, tier %s (%s), %+v", st.State, st.Tier, st.TierReason, st.Failure)
			}
			if r := w.dom.Restricted(); len(r) != guardedFrames || w.dom.AltP2MActive() || w.dom.View() != 0 {
				t.Errorf("%d frames restricted, views %v, in view %d", len(r), w.dom.AltP2MActive(), w.dom.View())
			}
			if f := w.writeText(); f != abi.VMEventFlagVCPUPaused|abi.VMEventFlagEmulate|abi.VMEventFlagEmulateNoWrite {
				t.Errorf("an attack was answered with flags %#x", f)
			}
			<-w.events.got
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestSmallPool raises a paging pool that a second view would exhaust, and
// gives the surplus back.
func TestSmallPool(t *testing.T) {
	spec := withViews
	spec.PagingPool = 64 << 10
	w := newWorld(t, xentest.Config{AltP2M: true}, spec)
	w.appear()
	w.boot()
	if st := w.status(); st.Tier != engine.TierViews {
		t.Fatalf("tier %s (%s)", st.Tier, st.TierReason)
	}
	// 8,192 frames take 16 pages of tables and 3 above them, in the host's p2m
	// and in each of two views.
	if got := w.dom.PagingPool(); got < 3*19*x86.PageSize || got > 1<<20 {
		t.Errorf("a pool of %d bytes", got)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestBuildingDomain protects a guest that was seen first when it had neither
// vCPUs nor memory, as toolstacks make them, and detaches with one of its vCPUs
// in the middle of a step: what was seen first says neither how many steps are
// to be ended nor how large a view is.
func TestBuildingDomain(t *testing.T) {
	spec := withViews
	spec.PagingPool = 64 << 10
	w := newWorld(t, xentest.Config{AltP2M: true}, spec)
	w.decl = declare(t, "observe")
	w.info.VCPUs, w.info.OnlineVCPUs, w.info.Pages, w.info.MaxPages = 0, 0, 0, 0
	w.appear()
	w.boot()
	st := w.status()
	if st.Tier != engine.TierViews || st.Info.VCPUs != 2 || st.Info.MaxPages == 0 {
		t.Fatalf("tier %s (%s), %+v", st.Tier, st.TierReason, st.Info)
	}
	if got := w.dom.PagingPool(); got < 2*4*x86.PageSize {
		t.Errorf("a pool of %d bytes", got)
	}
	w.writeTextIn(1)
	<-w.events.got
	if !w.dom.SingleStepping(0) {
		t.Fatal("vCPU 0 makes no step that could be left")
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestViewCheck restricts again what Xen has dropped, and says so where it can't.
func TestViewCheck(t *testing.T) {
	for _, minor := range []int{11, 17} {
		t.Run(fmt.Sprint("4.", minor), func(t *testing.T) {
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: true}, withViews)
			w.appear()
			w.boot()
			text, n := w.guest.PhysBase.GFN(), guardedFrames
			w.engine.CheckView(7)
			if st := w.status(); st.Restored != 0 || st.State != engine.StateProtecting {
				t.Errorf("%d frames restored, %s, with nothing lost", st.Restored, st.State)
			}
			w.dom.SetViewAccess(1, text+1, abi.AccessRWX)
			w.dom.SetViewAccess(1, text+2, abi.AccessRW)
			w.engine.CheckView(7)
			if r := w.dom.ViewRestricted(1); len(r) != n {
				t.Errorf("restricted: %v", r)
			}
			want := uint64(2)
			if minor < 12 {
				want = 0 // Xen does not tell
			}
			if st := w.status(); st.Restored != want || st.State != engine.StateProtecting {
				t.Errorf("%d frames restored, want %d, %s", st.Restored, want, st.State)
			}
			w.dom.SetAltP2MActive(false)
			w.engine.CheckView(7)
			if st := w.status(); st.State != engine.StateDegraded || st.Guards[0].State != engine.GuardDegraded || st.Guards[0].Reason == "" {
				t.Errorf("without the view: %s, %+v", st.State, st.Guards)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestAccessCheck restricts again what in the host's view was lost, where there is none of
// ours, and looks at nothing of what the guest has taken out of its memory.
func TestAccessCheck(t *testing.T) {
	for _, minor := range []int{11, 17} {
		t.Run(fmt.Sprint("4.", minor), func(t *testing.T) {
			spec := withViews
			spec.AltP2M = xen.AltP2MDisabled
			w := newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}}, spec)
			w.appear()
			w.boot()
			text := w.guest.PhysBase.GFN()
			before := w.dom.Restricted()
			w.engine.CheckView(7)
			if st := w.status(); st.Tier != engine.TierAccess || st.Restored != 0 || st.State != engine.StateProtecting {
				t.Errorf("%d frames restored, %s, %s, with nothing lost", st.Restored, st.Tier, st.State)
			}
			w.dom.SetAccess(text+1, abi.AccessRWX)
			w.dom.SetAccess(text+2, abi.AccessRW)
			w.dom.DropPage(text + 3)
			w.engine.CheckView(7)
			if now := w.dom.Restricted(); !slices.Equal(now, before) {
				t.Errorf("restricted: %v, before it %v", now, before)
			}
			if st := w.status(); st.Restored != 2 || st.State != engine.StateProtecting {
				t.Errorf("%d frames restored, want 2, %s", st.Restored, st.State)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestRecoverViews finds what a dead hvid left in a domain with views.
func TestRecoverViews(t *testing.T) {
	spec := withViews
	spec.Pauses = 0
	w := newWorld(t, xentest.Config{AltP2M: true}, spec)
	w.dieWithEvent(1)
	if w.dom.View() != 1 {
		t.Fatal("the vCPUs are in no view that could be left")
	}
	if _, err := engine.Recover(engine.OnXen(w.host), mutate.New(w.host), w.dir, false, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}
