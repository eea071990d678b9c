package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// bootedJustNow is a guest whose kernel's code nobody knows yet.
func bootedJustNow(t *testing.T, views bool) *world {
	t.Helper()
	spec := withViews
	if !views {
		spec.AltP2M = xen.AltP2MDisabled
	}
	return patchingWorldTaken(t, spec, views, time.Hour, "kernel-text=block")
}

// TestTextIsTakenLater has a kernel patch itself, and others call its way to do so, before
// anybody knows what its code was: what was there in the beginning counts.
func TestTextIsTakenLater(t *testing.T) {
	for name, views := range map[string]bool{"views": true, "access": false} {
		t.Run(name, func(t *testing.T) {
			w := bootedJustNow(t, views)
			w.poke(branch, branchOn)
			w.poke(0x2340, "\x90\x90")
			// What was put back by the same way, as a probe is.
			was := string(w.dom.Read(w.guest.PhysBase+0x3340, 1))
			w.poke(0x3340, "\xcc")
			w.poke(0x3340, was)
			// Across two pages.
			w.poke(0x3fff, "\x90\x90")
			w.follow(2 * time.Second)
			if g, p := w.guardStatus(policy.GuardKernelText), w.status().Patching; g.Violations != 0 || p.Compared != 0 {
				t.Fatalf("compared with what nobody knows: %+v, %+v", g, p)
			}
			if !w.engine.PatchingRestsForTest(7) {
				t.Error("it is seen to all the time")
			}
			w.engine.TakeTextForTest(7)
			w.follow(20 * time.Second)
			if g, p := w.guardStatus(policy.GuardKernelText), w.status().Patching; g.Violations != 3 || g.Found != 3 || p.Compared == 0 {
				t.Fatalf("%+v, %+v", g, p)
			}
			found := map[x86.VirtAddr]bool{}
			for range 3 {
				r := <-w.events.got
				if r.Action != journal.Found {
					t.Errorf("record %+v", r)
				}
				found[r.Target.Memory.Addr-w.guest.Base] = true
			}
			if !found[0x2340] || !found[0x3fc0] || !found[0x4000] {
				t.Errorf("found at %v", found)
			}
			// From now on as ever.
			w.poke(0x1640, "\x90")
			w.follow(40 * time.Second)
			if g := w.guardStatus(policy.GuardKernelText); g.Violations != 4 {
				t.Errorf("later: %+v", g)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestTextIsTakenAtOnce where the kernel patches page after page, so that they can be opened.
func TestTextIsTakenAtOnce(t *testing.T) {
	w := bootedJustNow(t, true)
	for until := time.Now().Add(10 * time.Second); w.status().Patching.Opened == 0; {
		if time.Now().After(until) {
			t.Fatal("no page is opened")
		}
		w.runs(time.Second)
		w.poke(branch, branchOn)
		w.at(time.Second)
	}
}

// TestExchangedBeforeKnown has pages lose their restriction before anybody knows what they
// were. One that the kernel has patched is compared; of another nothing can be said, and
// that is told, once.
func TestExchangedBeforeKnown(t *testing.T) {
	for name, views := range map[string]bool{"views": true, "access": false} {
		t.Run(name, func(t *testing.T) { exchangedBeforeKnown(bootedJustNow(t, views)) })
	}
}

func exchangedBeforeKnown(w *world) {
	t := w.t
	w.poke(branch, branchOn)
	lose := func() {
		t.Helper()
		for _, at := range []x86.PhysAddr{0x2340, branch} {
			w.loseRestriction(w.textFrame(at))
		}
		before := w.status().Restored
		w.engine.CheckView(7)
		if n := w.status().Restored - before; n != 2 {
			t.Fatalf("%d frames restored, want 2", n)
		}
	}
	lose()
	if g := w.guardStatus(policy.GuardKernelText); g.Violations != 1 || g.Found != 1 {
		t.Fatalf("%+v", g)
	}
	if r := <-w.events.got; r.Action != journal.Found || r.Target.Memory.Addr != w.guest.Base+0x2000 || !strings.Contains(string(r.Detail.Note), "before hvi knew") {
		t.Errorf("record %+v", r)
	}
	w.engine.TakeTextForTest(7)
	lose()
	w.code(branch+0x400, "\x0f\x0b")
	w.follow(4 * time.Second)
	if g := w.guardStatus(policy.GuardKernelText); g.Violations != 2 {
		t.Errorf("once it is known: %+v", g)
	}
}

// TestTextIsNotTaken ends a session that waits for its time, and exchanges its policy before.
func TestTextIsNotTaken(t *testing.T) {
	w := bootedJustNow(t, true)
	w.poke(0x2340, "\x90\x90")
	if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, "cr=alert")); err != nil {
		t.Fatal(err)
	}
	w.engine.TakeTextForTest(7)
	w.follow(2 * time.Second)
	if g := w.guardStatus(policy.GuardKernelText); g.Found != 1 {
		t.Errorf("what was patched before the policy changed: %+v", g)
	}
	w = bootedJustNow(t, true)
	for _, guards := range []string{"kernel-text=off", "kernel-text=block"} {
		if err := w.engine.Apply(t.Context(), w.info, declareGuards(t, guards)); err != nil {
			t.Fatal(err)
		}
	}
	w.dom.Shutdown(abi.ShutdownPoweroff)
	w.engine.ShutDown(w.info)
	w.checkClean(1)
}
