package engine_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestOverBudget gives guards a nanosecond for a decision. The first whose decisions are
// timed three times in a row is degraded, and in force: the guest is answered, and
// attacks are blocked. When the guards are exchanged it begins anew.
func TestOverBudget(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.budget = time.Nanosecond
	w.engine = w.newEngine()
	w.appearRunning()
	entry := func() engine.GuardStatus {
		for _, g := range w.status().Guards {
			if g.Name == policy.GuardSyscallEntry {
				return g
			}
		}
		return engine.GuardStatus{}
	}
	lstar := w.guest.Regs[0].LSTAR
	for range 18 {
		if f := w.writeMSR(x86.MSRLSTAR, 0, lstar); f != abi.VMEventFlagVCPUPaused {
			t.Fatalf("answered with flags %#x", f)
		}
	}
	for w.status().State != engine.StateDegraded {
		runtime.Gosched() // the session is told of it
	}
	if g := entry(); g.State != engine.GuardDegraded || !strings.Contains(g.Reason, "in force") || !strings.Contains(g.Reason, "1ns") || g.OverBudget != 3 || g.Decisions != 18 {
		t.Errorf("%+v", g)
	}
	for _, g := range w.status().Guards {
		if g.Name != policy.GuardSyscallEntry && g.State != engine.GuardArmed && !optional(g) {
			t.Errorf("%+v", g)
		}
	}
	if f := w.writeMSR(x86.MSRLSTAR, lstar, 0xffffffffc0000000); f != abi.VMEventFlagVCPUPaused|abi.VMEventFlagDeny {
		t.Errorf("the attack was answered with flags %#x", f)
	}
	if err := w.engine.Apply(t.Context(), w.info, declare(t, "observe")); err != nil {
		t.Fatal(err)
	}
	if g := entry(); g.State != engine.GuardArmed || g.OverBudget != 4 {
		t.Errorf("armed anew: %+v", g)
	}
}

// optional reports whether a guard is not armed unless a policy says more than a mode.
func optional(g engine.GuardStatus) bool {
	return g.State == engine.GuardOff || g.State == engine.GuardInactive
}
