package engine_test

import (
	"strings"
	"syscall"
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

// textFrames are those of the kernel's code, unreadable those that have no data.
const (
	textFrames = linuxtest.TextSize / x86.PageSize
	unreadable = textFrames - 1
)

// readsWorld is a guest whose kernel's code may not be read, before it appears.
func readsWorld(t *testing.T, minor int, altp2m bool, guards ...string) *world {
	t.Helper()
	c := linuxtest.TextReadersConfig()
	c.Variables = []string{"__start___jump_table", "__stop___jump_table"}
	w := newWorldOf(t, c, xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: altp2m}, withViews)
	w.guest.SetTextReaders()
	w.copyMemory()
	w.decl = declareGuards(t, guards...)
	return w
}

// read is a load from the kernel's code by a function of it, in the view that the guest
// runs in.
func (w *world) read(function string) answer {
	w.t.Helper()
	l := &w.layout.VMEvent
	regs := w.guest.Regs[0]
	regs.RIP = uint64(w.guest.Addr(function))
	return w.parse(w.sendEvent(abi.VMEventReasonMemAccess, regs, func(put func(int, uint64)) {
		put(l.MemAccess.GFN, uint64((w.guest.PhysBase + 0x2000).GFN()))
		put(l.MemAccess.Offset, 0x10)
		put(l.MemAccess.Flags, abi.MemAccessR)
		put(l.OffAltP2MIdx, uint64(w.dom.View()))
	}))
}

// codeAccess counts the frames of the code that a view permits to execute alone, and
// those that it permits to read as well.
func (w *world) codeAccess(view uint16) (x, rx int) {
	for i := range x86.PhysAddr(textFrames) {
		switch w.dom.ViewAccess(view, (w.guest.PhysBase + i*x86.PageSize).GFN()) {
		case abi.AccessX:
			x++
		case abi.AccessRX:
			rx++
		}
	}
	return x, rx
}

func (w *world) stepBack(in, to uint16) answer {
	a := w.stepIn(in)
	if w.layout.Has.FastSingleStep {
		a.to = to
	}
	return a
}

// TestTextRead guards a guest's code from being read, on every release: the kernel reads
// it in the view for steps, others get other bytes, and nothing of it is left.
func TestTextRead(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := readsWorld(t, rel.Minor, true, "kernel-text-read=block")
			w.appear()
			w.boot()
			if g := w.guardState(policy.GuardKernelTextRead); g.State != engine.GuardArmed {
				t.Fatalf("%s: %s", g.State, g.Reason)
			}
			if x, _ := w.codeAccess(runningView); x != unreadable {
				t.Errorf("%d frames can be executed alone where the guest runs", x)
			}
			if _, rx := w.codeAccess(steppingView); rx != textFrames || len(w.dom.ViewRestricted(steppingView)) != guardedFrames {
				t.Errorf("%d frames can be read where steps are made, in which %d are restricted", rx, len(w.dom.ViewRestricted(steppingView)))
			}
			if got, want := w.read(linuxtest.TextChecker), w.stepIn(steppingView); got != want {
				t.Errorf("a checker is answered %+v, want %+v", got, want)
			}
			if !w.layout.Has.FastSingleStep {
				if got := w.endStep(steppingView); got.in != runningView {
					t.Errorf("the step ends with %+v", got)
				}
			}
			if got := w.textWrite(runningView); got != blocked {
				t.Errorf("a write is answered %+v", got)
			}
			if r := <-w.events.got; r.Guard != "kernel-text" {
				t.Errorf("recorded %+v", r)
			}
			w.guest.Write(w.guest.Addr(linuxtest.TextOther), []byte("\x48\x8b\x07"))
			w.copyMemory()
			if got := w.read(linuxtest.TextOther); got != (answer{flags: abi.VMEventFlagEmulate | abi.VMEventFlagSetEmulReadData}) {
				t.Errorf("another reader is answered %+v", got)
			}
			r := <-w.events.got
			if r.Guard != "kernel-text-read" || r.Action != journal.Blocked || r.Detail.Access != "r" || !strings.Contains(r.Summary(), "read of") || strings.Contains(r.Summary(), "->") {
				t.Errorf("recorded %+v: %s", r, r.Summary())
			}
			// What Xen has dropped is in force again, in both views.
			gfn := (w.guest.PhysBase + 0x2000).GFN()
			for view, access := range map[uint16]uint8{runningView: abi.AccessX, steppingView: abi.AccessRX} {
				w.dom.SetViewAccess(view, gfn, abi.AccessRWX)
				w.engine.CheckView(7)
				if a := w.dom.ViewAccess(view, gfn); a != access {
					t.Errorf("view %d permits %d", view, a)
				}
			}
			// A breakpoint comes and goes.
			w.set(linuxtest.TextChecker)
			at := w.place(linuxtest.TextChecker)
			if w.dom.LeadsTo(runningView, at.GFN()) == at.GFN() || w.dom.ViewAccess(steppingView, at.GFN()) != abi.AccessRX {
				t.Error("no breakpoint")
			}
			w.clear(linuxtest.TextChecker)
			if x, _ := w.codeAccess(runningView); x != unreadable {
				t.Errorf("after a breakpoint %d frames can be executed alone", x)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestTextReadSweep tells once of who reads page after page.
func TestTextReadSweep(t *testing.T) {
	w := readsWorld(t, 17, true, "kernel-text-read=alert")
	w.appear()
	w.boot()
	l := &w.layout.VMEvent
	for i := range uint64(200) {
		w.ask(abi.VMEventReasonMemAccess, w.inView(runningView, func(put func(int, uint64)) {
			put(l.MemAccess.GFN, uint64((w.guest.PhysBase + 0x2000).GFN()))
			put(l.MemAccess.Offset, 8*i)
			put(l.MemAccess.Flags, abi.MemAccessR)
		}))
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	told, records := uint64(0), 0
	for more := true; more; {
		select {
		case r := <-w.events.got:
			records++
			told = max(told, r.Detail.Repeats)
		default:
			more = false
		}
	}
	// Two for each second that this takes: the first of it, and how many more.
	if records < 1 || records > 20 || told == 0 {
		t.Errorf("%d records, of at most %d more", records, told)
	}
}

// TestTextReadPolicy exchanges the guards, and has the guest run in another view.
func TestTextReadPolicy(t *testing.T) {
	w := readsWorld(t, 17, true, "kernel-text-read=alert")
	w.appear()
	w.boot()
	if got, want := w.read(linuxtest.TextOther), w.stepIn(steppingView); got != want {
		t.Errorf("who is reported is answered %+v, want %+v", got, want)
	}
	if r := <-w.events.got; r.Action != journal.Alerted || r.Guard != "kernel-text-read" {
		t.Errorf("recorded %+v", r)
	}
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t)); err != nil {
		t.Fatal(err)
	}
	if _, rx := w.codeAccess(w.dom.View()); rx != textFrames {
		t.Errorf("without the guard %d frames can be read", rx)
	}
	decl := declareViews(t, policy.View{Name: "strict", Guards: policy.MemoryGuards(), Initial: true}, policy.View{Name: "open", Guards: []policy.GuardName{policy.GuardKernelText}})
	decl.Spec.Guards = declareGuards(t, "kernel-text-read=block").Spec.Guards
	if err := w.engine.Apply(t.Context(), w.info, decl); err != nil {
		t.Fatal(err)
	}
	strict := w.dom.View()
	stepping := strict + 2
	if x, _ := w.codeAccess(strict); x != unreadable {
		t.Errorf("in the first view %d frames can be executed alone", x)
	}
	w.switchView("open")
	if g := w.guardState(policy.GuardKernelTextRead); g.State != engine.GuardInactive {
		t.Errorf("in the other view the guard is %s", g.State)
	}
	if _, rx := w.codeAccess(w.dom.View()); rx != textFrames || len(w.dom.ViewRestricted(stepping)) != textFrames {
		t.Errorf("in the other view %d frames can be read, and %d are restricted for steps", rx, len(w.dom.ViewRestricted(stepping)))
	}
	w.switchView("strict")
	if n := len(w.dom.ViewRestricted(stepping)); n != guardedFrames {
		t.Errorf("back in the first one %d frames are restricted for steps", n)
	}
	if got := w.read(linuxtest.TextChecker); got != w.stepBack(stepping, strict) {
		t.Errorf("a checker is answered %+v", got)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestTextReadPatching closes the pages that the kernel patches as they were: not to be
// read.
func TestTextReadPatching(t *testing.T) {
	w := readsWorld(t, 17, true, "kernel-text-read=alert")
	w.appear()
	w.boot()
	w.at(0) // the clock stands
	w.runs(time.Second)
	w.poke(0x2000, "\x90")
	w.at(time.Second)
	x, _ := w.codeAccess(runningView)
	if opened := w.status().Patching.Opened; opened == 0 || x != unreadable-int(opened) {
		t.Errorf("%d frames can be executed alone, and %d are open", x, opened)
	}
	w.at(3 * time.Second)
	if x, _ = w.codeAccess(runningView); x != unreadable {
		t.Errorf("when the kernel has patched, %d frames can be executed alone", x)
	}
}

// TestTextReadInRow opens the pages that the kernel reads one after the other, for reads
// alone, and closes them.
func TestTextReadInRow(t *testing.T) {
	w := readsWorld(t, 17, true, "kernel-text-read=block")
	w.appear()
	w.boot()
	follow := func(later time.Duration, run bool) { w.engine.FollowCheckingForTest(7, begun.Add(later), run) }
	follow(0, false)
	w.read(linuxtest.TextChecker)
	follow(0, false)
	if x, _ := w.codeAccess(runningView); x != unreadable {
		t.Errorf("after one read %d frames can be executed alone", x)
	}
	follow(time.Second, true)
	w.read(linuxtest.TextChecker)
	follow(time.Second, false)
	// From the page that was read to the end of the code, and the one with data.
	if x, rx := w.codeAccess(runningView); rx != textFrames-1 || x != 1 {
		t.Fatalf("%d frames can be read, %d can't", rx, x)
	}
	w.engine.CheckView(7)
	if n := w.status().Restored; n != 0 {
		t.Errorf("%d open pages are taken for lost", n)
	}
	w.set(linuxtest.TextChecker)
	w.clear(linuxtest.TextChecker)
	follow(time.Second+100*time.Millisecond, false)
	if _, rx := w.codeAccess(runningView); rx == 0 {
		t.Error("they are closed already")
	}
	follow(3*time.Second, false)
	if x, _ := w.codeAccess(runningView); x != unreadable {
		t.Errorf("when it is over %d frames can be executed alone", x)
	}
	// What is patched as well is closed as a whole.
	follow(4*time.Second, true)
	w.runs(4 * time.Second)
	w.read(linuxtest.TextChecker)
	w.poke(0x2000, "\x90")
	follow(4*time.Second, false)
	w.at(4 * time.Second)
	follow(4*time.Second+300*time.Millisecond, false)
	w.at(6 * time.Second)
	follow(6*time.Second, false)
	if x, _ := w.codeAccess(runningView); x != unreadable {
		t.Errorf("when both are over %d frames can be executed alone", x)
	}
	// Nothing is open under another policy.
	follow(8*time.Second, true)
	w.read(linuxtest.TextChecker)
	follow(8*time.Second, false)
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "kernel-text-read=alert")); err != nil {
		t.Fatal(err)
	}
	if x, _ := w.codeAccess(w.dom.View()); x != unreadable {
		t.Errorf("under another policy %d frames can be executed alone", x)
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}

// TestTextReadUnavailable says why the guard can't be had, and leaves the code readable.
func TestTextReadUnavailable(t *testing.T) {
	w := readsWorld(t, 20, false, "kernel-text-read=block")
	w.appear()
	w.boot()
	g := w.guardState(policy.GuardKernelTextRead)
	if g.State != engine.GuardUnavailable || !strings.Contains(g.Reason, "tier views") {
		t.Errorf("%s: %s", g.State, g.Reason)
	}
	for i := range x86.PhysAddr(textFrames) {
		if a := w.dom.Access((w.guest.PhysBase + i*x86.PageSize).GFN()); a != abi.AccessRX {
			t.Fatalf("frame %d permits %d", i, a)
		}
	}

	// A kernel without the tables to tell who reads by.
	w = newWorld(t, xentest.Config{Release: xen.Release{Major: 4, Minor: 17}, AltP2M: true}, withViews)
	w.decl = declareGuards(t, "kernel-text-read=block")
	w.appear()
	w.boot()
	if g := w.guardState(policy.GuardKernelTextRead); g.State != engine.GuardDegraded || !strings.Contains(g.Reason, "reads its code") {
		t.Errorf("%s: %s", g.State, g.Reason)
	}
	if _, rx := w.codeAccess(runningView); rx != textFrames {
		t.Errorf("%d frames can be read", rx)
	}
}

// TestTextReadWithoutSteps goes on in the host's view where there can be none for steps,
// and says so.
func TestTextReadWithoutSteps(t *testing.T) {
	w := readsWorld(t, 17, true)
	w.decl = declareViews(t, twoViews[1], policy.View{Name: "strict", Guards: policy.MemoryGuards()})
	w.decl.Spec.Guards = declareGuards(t, "kernel-text-read=block").Spec.Guards
	w.appear()
	w.boot()
	w.xen.FailNext("altp2m(set_mem_access_multi)", syscall.EIO)
	w.switchView("strict")
	if g := w.guardState(policy.GuardKernelTextRead); g.State != engine.GuardDegraded || !strings.Contains(g.Reason, "no view for reads") {
		t.Errorf("%s: %s", g.State, g.Reason)
	}
	if got := w.read(linuxtest.TextChecker); got != w.stepBack(hostView, w.dom.View()) {
		t.Errorf("a checker is answered %+v", got)
	}
}
