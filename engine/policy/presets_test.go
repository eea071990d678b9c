package policy_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/policy"
)

// TestEveryGuardIsTold: a guard that is added gets its row in about.go, and a row
// that stands there says something.
func TestEveryGuardIsTold(t *testing.T) {
	technique := regexp.MustCompile(`^T[0-9]{4}(\.[0-9]{3})?$`)
	guards := policy.Guards()
	if n := len(policy.Abouts()); n != len(guards) {
		t.Errorf("%d rows in about.go for %d guards", n, len(guards))
	}
	for i, g := range guards {
		a, ok := policy.LookupAbout(g.Name)
		if !ok {
			t.Errorf("guard %s has no row in engine/policy/about.go", g.Name)
			continue
		}
		if i < len(policy.Abouts()) && policy.Abouts()[i].Guard != g.Name {
			t.Errorf("%s: the rows are not in the order of the guards", g.Name)
		}
		if a.ServerWhy == "" || a.StrictWhy == "" || strings.HasSuffix(a.ServerWhy+a.StrictWhy, ".") {
			t.Errorf("%s: reasons %q, %q", g.Name, a.ServerWhy, a.StrictWhy)
		}
		if a.Server > a.Strict {
			t.Errorf("%s: linux-server does more (%s) than linux-strict (%s)", g.Name, a.Server, a.Strict)
		}
		switch a.Registers {
		case policy.AbilityFull, policy.AbilityFinds, policy.AbilityNone:
		default:
			t.Errorf("%s: ability %q", g.Name, a.Registers)
		}
		if !strings.Contains(" low medium high critical ", " "+a.Severity+" ") {
			t.Errorf("%s: severity %q", g.Name, a.Severity)
		}
		if len(a.Techniques) == 0 {
			t.Errorf("%s: no technique of ATT&CK", g.Name)
		}
		for _, x := range a.Techniques {
			if !technique.MatchString(x.ID) || x.Name == "" {
				t.Errorf("%s: technique %+v", g.Name, x)
			}
		}
	}
}

// TestPresets: what each comes to under each mode, and that none blocks where it
// must not.
func TestPresets(t *testing.T) {
	at := policy.Origin{Source: "x"}
	effective := func(mode, preset string) policy.Effective {
		t.Helper()
		var b policy.Builder
		b.Mode(mode, at)
		b.Preset(preset, at)
		s, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
		return s.Effective()
	}
	for _, p := range policy.Presets() {
		for _, g := range effective("off", p.Name).Guards {
			if g.Action != policy.ActionOff {
				t.Errorf("%s, off: %s is %s", p.Name, g.Name, g.Action)
			}
		}
		for _, g := range effective("observe", p.Name).Guards {
			if g.Action > policy.ActionAlert {
				t.Errorf("%s, observe: %s is %s", p.Name, g.Name, g.Action)
			}
		}
		lines := p.Lines()
		for _, l := range lines {
			if g, ok := policy.LookupGuard(l.Guard); !ok || g.Permits(l.Action) != nil {
				t.Errorf("%s: %s can't %s", p.Name, l.Guard, l.Action)
			}
		}
		for i, g := range effective("enforce", p.Name).Guards {
			if lines != nil && (lines[i].Action != g.Action || lines[i].Guard != g.Name || g.From != "policy "+p.Name || lines[i].Why == "") {
				t.Errorf("%s, enforce: %+v, its line is %+v", p.Name, g, lines[i])
			}
			if p.Name == policy.PresetLinuxObserve && g.Action > policy.ActionAlert {
				t.Errorf("%s, enforce: %s is %s", p.Name, g.Name, g.Action)
			}
		}
	}
	for preset, want := range map[string]policy.Action{"default": policy.ActionBlock, "linux-observe": policy.ActionAlert, "linux-server": policy.ActionAlert, "linux-strict": policy.ActionBlock} {
		if got := effective("enforce", preset).Action(policy.GuardControlRegisters); got != want {
			t.Errorf("cr of %s: %s, want %s", preset, got, want)
		}
	}
	if got, want := effective("observe", "linux-strict").Guards[0].From, "policy linux-strict, where it is block; mode observe never blocks"; got != want {
		t.Errorf("from %q, want %q", got, want)
	}

	// What the domain says itself goes before.
	var b policy.Builder
	b.Mode("enforce", at)
	b.Preset("linux-observe", at)
	b.Guard("cr", "block", at)
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if e := s.Effective(); e.Action(policy.GuardControlRegisters) != policy.ActionBlock || e.Action(policy.GuardKernelText) != policy.ActionAlert {
		t.Errorf("%+v", e.Guards)
	}
}
