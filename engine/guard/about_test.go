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
		switch {
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
