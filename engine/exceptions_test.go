package engine_test

import (
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestExceptions: what is blocked passes once it is permitted, without the guest
// being paused for it, and is blocked again when it no longer is; the counts outlive
// an exchange of the guards.
func TestExceptions(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	blocked := func() bool { return w.writeText()&abi.VMEventFlagEmulateNoWrite != 0 }
	if !blocked() {
		t.Fatal("not blocked")
	}
	<-w.events.got
	host := []policy.Exception{
		{Guard: policy.GuardKernelText, Process: "insmod", Domain: w.info.UUID.String()},
		{Guard: policy.GuardKernelText, Process: "ins*", Domain: "00000000-0000-0000-0000-000000000000"},
	}
	w.permitted.Store(&host)
	if !blocked() {
		t.Error("permitted before it was put in force")
	}
	<-w.events.got
	w.engine.RefreshExceptions()
	if blocked() {
		t.Error("blocked though it is permitted")
	}
	check := func(uses uint64) {
		t.Helper()
		st := w.status()
		if len(st.Exceptions) != 1 || st.Exceptions[0].Uses != uses || st.Exceptions[0].ID != host[0].ID() {
			t.Errorf("exceptions %+v, want one used %d times", st.Exceptions, uses)
		}
		for _, g := range st.Guards {
			if g.Name == policy.GuardKernelText && (g.Allowed != uses || g.Violations != 2 || g.Blocked != 2) {
				t.Errorf("%+v, want %d allowed", g, uses)
			}
		}
	}
	check(1)

	// The same from the domain's policy.
	w.permitted.Store(nil)
	spec := w.decl.Spec
	spec.Preset, spec.Origins.Preset = "web", policy.Origin{Source: "test"}
	spec.Named = &policy.Named{Name: "web", Origin: policy.Origin{Source: "web.toml"}, Exceptions: host[:1]}
	if err := w.engine.Apply(t.Context(), w.info, engine.Declaration{Spec: spec, Source: "test"}); err != nil {
		t.Fatal(err)
	}
	if blocked() {
		t.Error("blocked though the policy permits it")
	}
	check(2)

	if err := w.engine.Apply(t.Context(), w.info, w.decl); err != nil {
		t.Fatal(err)
	}
	if !blocked() {
		t.Error("not blocked though nothing permits it any more")
	}
	<-w.events.got
	if n := w.dom.Pauses(); n != 0 {
		t.Errorf("%d pauses", n)
	}
}
