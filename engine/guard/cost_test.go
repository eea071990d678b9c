package guard_test

import (
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestDecisions counts what each guard decides, whatever it decides, and times a part
// of it. A stray event is nobody's.
func TestDecisions(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	const n = 64
	own, attack, stray := poke(f.write(0x1000, f.guest.Base)), f.write(0x1000, module), msr(f, x86.MSREFER, 1)
	for i := range n {
		if i%2 == 0 {
			f.set.HandleEvent(own)
		} else {
			f.set.HandleEvent(attack)
		}
		f.set.HandleEvent(stray)
	}
	for _, a := range f.set.Armed() {
		decisions, took := a.Decisions()
		switch a.Guard.Name {
		case policy.GuardKernelText:
			if decisions != n || took <= 0 || a.Passed.Load()+a.Violations.Load() != n {
				t.Errorf("%s: %d decisions in %v, want %d in more than nothing", a.Guard.Name, decisions, took, n)
			}
		default:
			if decisions != 0 || took != 0 {
				t.Errorf("%s: %d decisions in %v, want none", a.Guard.Name, decisions, took)
			}
		}
	}
}

// TestSlowGuard has a guard's decisions take too long: it is slow after three of them in
// a row that are timed, and quick after as many as it takes that are not. What it decides
// stays right all the while, and other guards are as they were.
func TestSlowGuard(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	var clock time.Time
	takes := 10 * time.Millisecond
	f.set.UseClock(func() time.Time { return clock })
	f.set.UseBudget(50 * time.Millisecond)
	f.set.Hamper(policy.GuardKernelText, func() { clock = clock.Add(takes) })
	own, attack, msr := poke(f.write(0x1000, f.guest.Base)), f.write(0x1000, module), msr(f, x86.MSRLSTAR, f.guest.Regs[0].LSTAR)
	decide := func(n int) {
		t.Helper()
		for range n {
			if v := f.set.HandleEvent(own); v != vmevent.Emulate {
				t.Errorf("the kernel's own store was answered with %#x", v)
			}
			f.set.HandleEvent(msr)
		}
	}
	var text, entry *guard.Armed
	for _, a := range f.set.Armed() {
		if a.Guard.Name == policy.GuardKernelText {
			text = a
		} else {
			entry = a
		}
	}
	told := func() bool {
		select {
		case <-f.set.Paces():
			return true
		default:
			return false
		}
	}

	decide(64)
	if slow, _ := text.Slow(); slow || told() || text.OverBudget() != 0 {
		t.Error("slow, though each decision took a fifth of what it may")
	}
	takes = 60 * time.Millisecond
	decide(17) // the sixteenth is timed, and then each one
	takes = 10 * time.Millisecond
	decide(1)
	if slow, _ := text.Slow(); slow || text.OverBudget() != 2 {
		t.Errorf("%d decisions took too long, want two, after which it is not slow yet", text.OverBudget())
	}
	takes = 60 * time.Millisecond
	decide(18)
	if slow, longest := text.Slow(); !slow || longest != takes || !told() {
		t.Errorf("slow: %v, the longest decision %v, want %v", slow, longest, takes)
	}
	if v := f.set.HandleEvent(attack); v != vmevent.Discard {
		t.Errorf("a slow guard answered an attack with %#x", v)
	}
	takes = 10 * time.Millisecond
	decide(16 * 65)
	if slow, _ := text.Slow(); slow || !told() {
		t.Error("still slow after 65 quick decisions that were timed")
	}
	if slow, _ := entry.Slow(); slow || entry.OverBudget() != 0 {
		t.Error("the other guard is slow, too")
	}
	if n := testing.AllocsPerRun(100, func() { f.set.HandleEvent(own) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
