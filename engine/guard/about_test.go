package guard_test

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
)

// TestAbilities: what is told of a guard is what it can do.
func TestAbilities(t *testing.T) {
	for _, g := range guard.All() {
		want := policy.AbilityFull
		p, _ := policy.LookupGuard(g.Name)
		// Who neither watches nor follows what moves learns of nothing in time.
		if finds := g.Watch == nil && g.Moving == nil && g.Calls == nil; finds != p.Finds || finds && g.Needs != 0 {
			t.Errorf("%s: Finds is %t, it needs %b", g.Name, p.Finds, g.Needs)
		}
		if memory := g.Needs&guard.NeedMemAccess != 0; memory != p.Memory {
			t.Errorf("%s: Memory is %t, it needs %b", g.Name, p.Memory, g.Needs)
		}
		if views := g.Needs&(guard.NeedCalls|guard.NeedViews) != 0; views != p.Views || g.Needs&guard.NeedCalls != 0 != (g.Calls != nil) {
			t.Errorf("%s: Views is %t, it needs %b", g.Name, p.Views, g.Needs)
		}
		switch {
		case p.Views:
			want = policy.AbilityNone
		case p.Finds:
			want = policy.AbilityFinds
		case g.Needs&guard.NeedMemAccess == 0:
		case g.Scan != nil:
			want = policy.AbilityFinds
		default:
			want = policy.AbilityNone
		}
		a, _ := policy.LookupAbout(g.Name)
		if a.Registers != want {
			t.Errorf("%s on tier registers: %q is told, %q is right", g.Name, a.Registers, want)
		}
	}
}
