package engine_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// Where the kernel of these tests patches itself: one branch of a static key.
const (
	branch, branchTo = 0x1100, 0x1180
	branchOn         = "\xe9\x7b\x00\x00\x00"
	branchOff        = "\x0f\x1f\x44\x00\x00"
)

// patchingWorld is a protected guest whose kernel's own patches can be told.
func patchingWorld(t *testing.T, altp2m bool, guards ...string) *world {
	t.Helper()
	spec := withViews
	if !altp2m {
		spec.AltP2M = xen.AltP2MDisabled
	}
	return patchingWorldTaken(t, spec, altp2m, 0, guards...)
}

// patchingWorldTaken is patchingWorld of which the kernel's code is known after a while.
func patchingWorldTaken(t *testing.T, spec xentest.Spec, altp2m bool, takeCode time.Duration, guards ...string) *world {
	t.Helper()
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"__start___jump_table", "__stop___jump_table"}}, xentest.Config{AltP2M: altp2m}, spec)
	if takeCode != 0 {
		w.takeCode = takeCode
		w.engine = w.newEngine()
	}
	table := w.guest.Addr("__start___jump_table")
	for i, to := range []x86.VirtAddr{w.guest.Base + branch, w.guest.Base + branchTo} {
		at := table + x86.VirtAddr(i)*4
		w.guest.Write(at, binary.LittleEndian.AppendUint32(nil, uint32(to-at)))
	}
	w.guest.Write(w.guest.Base+branch, []byte(branchOff))
	w.copyMemory()
	w.decl = declareGuards(t, guards...)
	w.appear()
	w.boot()
	if st := w.status(); st.Patching.Unknown != "" || w.guardStatus(policy.GuardKernelText).State != engine.GuardArmed {
		t.Fatalf("%+v, %+v", st.Patching, st.Guards)
	}
	w.at(0) // the clock stands
	return w
}

// code writes into the guest's code, as somebody there does.
func (w *world) code(off x86.VirtAddr, b string) {
	w.dom.Write(w.guest.PhysBase+x86.PhysAddr(off), []byte(b))
}

// textFrame is the frame of a place in the guest's code.
func (w *world) textFrame(off x86.PhysAddr) x86.GFN { return (w.guest.PhysBase + off).GFN() }

// poke is a store of the kernel's own way to patch its code, which is let happen.
func (w *world) poke(off x86.PhysAddr, b string) {
	w.t.Helper()
	l := &w.layout.VMEvent
	regs := w.guest.Regs[0]
	regs.RIP, regs.CR3 = uint64(w.guest.Base), uint64(linuxtest.PokingPGD)
	a := w.parse(w.sendEvent(abi.VMEventReasonMemAccess, regs, func(put func(int, uint64)) {
		put(l.MemAccess.GFN, uint64(w.textFrame(off)))
		put(l.MemAccess.Offset, uint64(off&x86.PageMask))
		put(l.MemAccess.GLA, uint64(linuxtest.Window)+uint64(off&x86.PageMask))
		put(l.MemAccess.Flags, abi.MemAccessR|abi.MemAccessW|abi.MemAccessGLAValid)
		put(l.OffAltP2MIdx, uint64(w.dom.View()))
	}))
	if a.flags&abi.VMEventFlagEmulateNoWrite != 0 {
		w.t.Fatalf("the kernel's patch of %#x is discarded: %+v", off, a)
	}
	w.code(x86.VirtAddr(off), b)
}

// begun is when the time of these tests begins.
var begun = time.Now()

// at has the session see to what was patched when some time has passed. Nothing else
// passes time.
func (w *world) at(later time.Duration) { w.engine.FollowPatchingForTest(7, begun.Add(later), false) }

// runs does so when the kernel has patched page after page.
func (w *world) runs(later time.Duration) { w.engine.FollowPatchingForTest(7, begun.Add(later), true) }

// follow does so as often as a change must be seen, and once more.
func (w *world) follow(from time.Duration) {
	for i := range time.Duration(4) {
		w.at(from + i*2*time.Second)
	}
}

// TestPatchedIsCompared lets the kernel patch itself, and finds what doesn't belong
// there: code of others that calls the kernel's own way to patch.
func TestPatchedIsCompared(t *testing.T) {
	for name, views := range map[string]bool{"views": true, "access": false} {
		t.Run(name, func(t *testing.T) {
			w := patchingWorld(t, views)
			w.poke(branch, branchOn)
			w.follow(2 * time.Second)
			if g, p := w.guardStatus(policy.GuardKernelText), w.status().Patching; g.Violations != 0 || g.Passed != 1 || p.Compared != 1 || p.Opened != 0 {
				t.Fatalf("the kernel's own patch: %+v, %+v", g, p)
			}
			w.poke(0x2340, "\x90\x90")
			w.follow(20 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 || g.Found != 1 || g.Blocked != 0 {
				t.Fatalf("what does not belong there: %+v", g)
			}
			r := <-w.events.got
			if r.Guard != "kernel-text" || r.Action != journal.Found || r.Target.Memory.Addr != w.guest.Base+0x2340 || strings.Contains(string(r.Detail.Note), "undone") {
				t.Errorf("record %+v", r)
			}
			w.poke(0x2341, "\x90")
			w.follow(40 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 {
				t.Errorf("told again: %+v", g)
			}
			// Half a patch is none of the kernel's that lasts.
			w.poke(branch, "\xcc")
			w.at(60 * time.Second)
			w.poke(branch, branchOff)
			w.follow(62 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 {
				t.Errorf("half a patch, which then ended: %+v", g)
			}
		})
	}
}

// TestPatchingRests: what was patched just before its guard is switched off keeps nobody
// busy once it is compared.
func TestPatchingRests(t *testing.T) {
	w := patchingWorld(t, true)
	w.poke(branch, branchOn)
	w.at(100 * time.Millisecond)
	if w.engine.PatchingRestsForTest(7) {
		t.Fatal("there is nothing to be compared")
	}
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text=off")); err != nil {
		t.Fatal(err)
	}
	w.follow(2 * time.Second)
	if !w.engine.PatchingRestsForTest(7) {
		t.Error("it goes on for ever")
	}
}

// textAccess returns what a frame of the code permits where the guest runs.
func (w *world) textAccess(gfn x86.GFN) uint8 {
	if v := w.dom.View(); v != 0 {
		return w.dom.ViewAccess(v, gfn)
	}
	return w.dom.Access(gfn)
}

// TestPatchingIsLetThrough opens the pages that the kernel is patching, closes them, and
// undoes what others have written meanwhile.
func TestPatchingIsLetThrough(t *testing.T) {
	for name, views := range map[string]bool{"views": true, "access": false} {
		t.Run(name, func(t *testing.T) {
			w := patchingWorld(t, views, "kernel-text=block")
			open := func() (n int) {
				for page := range x86.PhysAddr(linuxtest.TextSize / x86.PageSize) {
					if w.textAccess(w.textFrame(page<<x86.PageShift)) == abi.AccessRWX {
						n++
					}
				}
				return n
			}
			w.poke(branch, branchOn)
			w.at(0)
			if n := open(); n != 0 {
				t.Fatalf("%d pages are open after one patch", n)
			}
			w.runs(time.Second)
			w.poke(branch, branchOff)
			w.at(time.Second)
			// From the page that was patched to the end of the code.
			if n, want := open(), linuxtest.TextSize/x86.PageSize-1; n != want {
				t.Fatalf("%d pages are open, want %d", n, want)
			}
			w.engine.CheckView(7)
			if n := open(); n == 0 || w.status().Restored != 0 {
				t.Errorf("open pages are taken for lost: %d, %d restored", n, w.status().Restored)
			}
			// The kernel patches on without an event, and somebody else writes, too.
			before := w.dom.Read(w.guest.PhysBase+0x2340, 8)
			w.code(branch, branchOn)
			w.code(0x2340, "\x0f\x0b")
			w.at(time.Second + 100*time.Millisecond)
			if n := open(); n == 0 {
				t.Error("the pages are closed already")
			}
			w.at(2 * time.Second)
			if n := open(); n != 0 {
				t.Fatalf("%d pages are open when it is over", n)
			}
			w.follow(4 * time.Second)
			g, p := w.guardStatus(policy.GuardKernelText), w.status().Patching
			if g.Violations != 1 || g.Found != 1 || p.Undone != 1 || p.Opened != uint64(linuxtest.TextSize/x86.PageSize-1) {
				t.Fatalf("%+v, %+v", g, p)
			}
			r := <-w.events.got
			if r.Action != journal.Found || r.Target.Memory.Addr != w.guest.Base+0x2340 || !strings.Contains(string(r.Detail.Note), "it was undone") {
				t.Errorf("record %+v", r)
			}
			if now := w.dom.Read(w.guest.PhysBase+0x2340, 8); !bytes.Equal(now, before) {
				t.Errorf("the code is % x, and was % x", now, before)
			}
			if now := w.dom.Read(w.guest.PhysBase+branch, 5); string(now) != branchOn {
				t.Errorf("the kernel's own patch is % x", now)
			}
			// It is found again if it is made again.
			w.poke(0x2340, "\x0f\x0b")
			w.follow(20 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 2 {
				t.Errorf("made again: %+v", g)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestRestoredIsCompared has a page of the code lose its restriction, as when the guest
// puts another one in its place, and be written meanwhile: it is restricted again, and what
// was written is found.
func TestRestoredIsCompared(t *testing.T) {
	for _, c := range []struct {
		name       string
		views      bool
		breakpoint bool // in the page that is changed
		access     uint8
	}{
		{"views", true, false, abi.AccessRX},
		{"views, with a breakpoint", true, true, abi.AccessX},
		{"access", false, false, abi.AccessRX},
		{"access, with a breakpoint", false, true, abi.AccessR},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := patchingWorld(t, c.views, "kernel-text=block")
			if c.breakpoint {
				w.set(where)
			}
			for _, at := range []x86.PhysAddr{0x2340, branch} {
				w.loseRestriction(w.textFrame(at))
			}
			w.code(0x2340, "\x0f\x0b")
			w.engine.CheckView(7)
			if n := w.status().Restored; n != 2 {
				t.Fatalf("%d frames restored, want 2", n)
			}
			for at, want := range map[x86.PhysAddr]uint8{0x2340: c.access, branch: abi.AccessRX} {
				if a := w.textAccess(w.textFrame(at)); a != want {
					t.Errorf("the page permits %d, want %d", a, want)
				}
			}
			w.follow(4 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 || g.Found != 1 {
				t.Fatalf("%+v", g)
			}
			if r := <-w.events.got; r.Action != journal.Found || r.Target.Memory.Addr != w.guest.Base+0x2340 {
				t.Errorf("record %+v", r)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// loseRestriction has everything be permitted of a frame where the domain runs, as when the
// guest puts another page there.
func (w *world) loseRestriction(gfn x86.GFN) {
	if v := w.dom.View(); v != 0 {
		w.dom.SetViewAccess(v, gfn, abi.AccessRWX)
	} else {
		w.dom.SetAccess(gfn, abi.AccessRWX)
	}
}

// TestOpenPagesAndOthers has pages open while the guards are exchanged, a breakpoint is
// set and the domain is let go of.
func TestOpenPagesAndOthers(t *testing.T) {
	w := patchingWorld(t, true)
	at := w.place(where)
	w.runs(time.Second)
	w.poke(at-w.guest.PhysBase, string(w.dom.Read(at, 1)))
	w.at(time.Second)
	if a := w.textAccess(at.GFN()); a != abi.AccessRWX {
		t.Fatalf("the page is not open: %d", a)
	}
	w.set(where)
	if a := w.textAccess(at.GFN()); a != abi.AccessX {
		t.Errorf("with a breakpoint the page permits %d", a)
	}
	w.runs(2 * time.Second)
	w.poke(at-w.guest.PhysBase, string(w.dom.Read(at, 1)))
	w.at(2 * time.Second)
	if a := w.textAccess(at.GFN()); a != abi.AccessX {
		t.Errorf("a page with a breakpoint is opened: %d", a)
	}
	w.clear(where)
	if a := w.textAccess(at.GFN()); a != abi.AccessRX {
		t.Errorf("without the breakpoint the page permits %d", a)
	}
	w.runs(4 * time.Second)
	w.poke(at-w.guest.PhysBase, string(w.dom.Read(at, 1)))
	w.at(4 * time.Second)
	if a := w.textAccess(at.GFN()); a != abi.AccessRWX {
		t.Fatalf("the page is not open: %d", a)
	}
	w.code(0x2340, "\x0f\x0b")
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "cr=alert")); err != nil {
		t.Fatal(err)
	}
	if n := len(w.dom.ViewRestricted(w.dom.View())); n != guardedFrames {
		t.Errorf("%d frames are restricted under the new policy, want %d", n, guardedFrames)
	}
	w.follow(6 * time.Second)
	if g := w.guardStatus(policy.GuardKernelText); g.Found != 1 {
		t.Errorf("what was written to an open page before the policy changed: %+v", g)
	}
	w.runs(20 * time.Second)
	w.poke(at-w.guest.PhysBase, string(w.dom.Read(at, 1)))
	w.at(20 * time.Second)
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestPatchingCantBeOpened goes on with an event for each store where Xen refuses.
func TestPatchingCantBeOpened(t *testing.T) {
	w := patchingWorld(t, true)
	w.xen.FailNext("altp2m(set_mem_access_multi)", 12)
	w.runs(time.Second)
	w.poke(branch, branchOn)
	w.at(time.Second)
	w.at(2 * time.Second)
	for page := range x86.PhysAddr(linuxtest.TextSize / x86.PageSize) {
		if a := w.textAccess(w.textFrame(page << x86.PageShift)); a != abi.AccessRX {
			t.Errorf("page %d permits %d", page, a)
		}
	}
	w.runs(3 * time.Second)
	w.poke(branch, branchOff)
	w.at(3 * time.Second)
	if st := w.status(); st.State != engine.StateProtecting || st.Patching.Opened != 0 {
		t.Errorf("%s, %+v", st.State, st.Patching)
	}
	if a := w.textAccess(w.textFrame(branch)); a != abi.AccessRX {
		t.Errorf("a page is opened after all: %d", a)
	}
	// A page that can't be closed again is a guard that holds no more.
	w = patchingWorld(t, true)
	w.runs(time.Second)
	w.poke(branch, branchOn)
	w.at(time.Second)
	w.xen.FailNext("altp2m(set_mem_access_multi)", 12)
	w.at(2 * time.Second)
	st := w.status()
	i := slices.IndexFunc(st.Guards, func(g engine.GuardStatus) bool { return g.Name == policy.GuardKernelText })
	if st.State != engine.StateDegraded || st.Guards[i].State != engine.GuardDegraded {
		t.Errorf("%s, %+v", st.State, st.Guards[i])
	}
}

// TestPatchedAllTheTime has the kernel patch one place again and again, so that whoever
// looks meets half a patch each time. It is no violation, and hides none.
func TestPatchedAllTheTime(t *testing.T) {
	w := patchingWorld(t, true)
	storm := func(from time.Duration) {
		for i := range time.Duration(100) {
			w.poke(branch, "\xcc")
			w.at(from + i*time.Second/2)
		}
	}
	storm(time.Second)
	if g, p := w.guardStatus(policy.GuardKernelText), w.status().Patching; g.Violations != 0 || p.Compared < 4 || p.Compared > 20 {
		t.Fatalf("%+v, %+v", g, p)
	}
	w.poke(branch+0x10, "\x90\x90")
	storm(time.Minute)
	if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 {
		t.Errorf("another change of the same page: %+v", g)
	}
	// It is one when it stays for long.
	for i := range time.Duration(24) {
		w.at(2*time.Minute + i*2*time.Second)
	}
	if g := w.guardStatus(policy.GuardKernelText); g.Violations != 2 {
		t.Errorf("half a patch that nobody ends: %+v", g)
	}
}

// TestChangesElsewhere has another change at each look, as of a kernel at work: none of
// them is there long enough.
func TestChangesElsewhere(t *testing.T) {
	w := patchingWorld(t, true)
	for i := range 12 {
		off := x86.PhysAddr(0x2100 + 0x100*(i%4)) // places that the kernel does not patch
		was := w.dom.Read(w.guest.PhysBase+off, 1)
		w.poke(off, "\xcc")
		w.at(time.Duration(10+2*i) * time.Second)
		w.poke(off, string(was))
	}
	w.follow(time.Minute)
	if g := w.guardStatus(policy.GuardKernelText); g.Violations != 0 {
		t.Errorf("%+v", g)
	}
}

// TestPatchedModule compares what was patched in a module's code, as long as there is
// that module.
func TestPatchedModule(t *testing.T) {
	for name, views := range map[string]bool{"views": true, "access": false} {
		t.Run(name, func(t *testing.T) {
			w := patchingWorld(t, views)
			w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode, 3*x86.PageSize, x86.PageSize, 0)
			w.loadModule(true)
			w.engine.FollowMovingForTest(7)
			<-w.events.got // it is loaded
			modules := func() engine.GuardStatus { return w.guardStatus(policy.GuardModules) }
			at := moduleCode + 0x1234
			was := string(w.dom.Read(w.guest.PhysBase+at, 1))
			w.poke(at, "\xcc")
			w.at(time.Second)
			w.poke(at, was)
			w.follow(2 * time.Second)
			if g := modules(); g.Violations != 0 || g.Passed != 2 || w.status().Patching.Compared == 0 {
				t.Fatalf("a patch and its end: %+v, %+v", g, w.status().Patching)
			}
			w.poke(at, "\xc3")
			w.follow(20 * time.Second)
			if g := modules(); g.Violations != 1 || g.Found != 1 {
				t.Fatalf("what does not belong there: %+v", g)
			}
			r := <-w.events.got
			if m := r.Target.Memory; r.Guard != "modules" || r.Action != journal.Found || m == nil || m.Addr != moduleBase+0x1200 || m.Module != "victim" || m.Phys != (w.guest.PhysBase+at)&^63 {
				t.Errorf("record %+v, %+v", r, r.Target.Memory)
			}
			w.poke(at, was)
			w.follow(30 * time.Second)
			// Its page tables lead elsewhere while the page is written, and back again.
			frame, view := (w.guest.PhysBase + at).GFN(), w.dom.View()
			w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode+8*x86.PageSize, 3*x86.PageSize, x86.PageSize, 0)
			w.copyMemory()
			w.access(frame, view, abi.MemAccessR|abi.MemAccessW)
			w.settled(func() bool { return w.textAccess(frame) == abi.AccessRWX })
			w.guest.Map(moduleBase, w.guest.PhysBase+moduleCode, 3*x86.PageSize, x86.PageSize, 0)
			w.copyMemory()
			old, orig := string(w.dom.Read(w.guest.PhysBase+at+0x80, 2)), string(w.dom.Read(w.guest.PhysBase+at+0x100, 2))
			w.code(x86.VirtAddr(at)+0x80, "\x0f\x0b")
			w.engine.FollowMovingForTest(7)
			w.follow(40 * time.Second)
			if g := modules(); g.Violations != 2 || g.Found != 2 || w.textAccess(frame) != abi.AccessRX {
				t.Fatalf("a page that was let go of: %+v", g)
			}
			<-w.events.got
			w.code(x86.VirtAddr(at)+0x80, old)
			// The guest puts another page there.
			w.loseRestriction(frame)
			w.code(x86.VirtAddr(at)+0x100, "\x0f\x0b")
			w.engine.CheckView(7)
			w.follow(50 * time.Second)
			if g := modules(); g.Violations != 3 || g.Found != 3 || w.textAccess(frame) != abi.AccessRX {
				t.Fatalf("a page that was exchanged: %+v", g)
			}
			<-w.events.got
			w.code(x86.VirtAddr(at)+0x100, orig)
			// Unloaded, its memory is soon somebody else's.
			w.poke(at, "\x90")
			w.loadModule(false)
			w.follow(70 * time.Second)
			if g := modules(); g.Violations != 3 {
				t.Errorf("after it was unloaded: %+v", g)
			}
			w.engine.FollowMovingForTest(7)
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}
