package guard_test

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
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
