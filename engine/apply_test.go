package engine_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestApply changes the policy of a guest that runs: what is blocked, what is
// only told, and what is not watched any more.
func TestApply(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	apply := func(mode string, guards ...string) engine.Status {
		t.Helper()
		var b policy.Builder
		at := policy.Origin{Source: "changed"}
		b.Mode(mode, at)
		for _, g := range guards {
			b.GuardAssignment(g, at)
		}
		spec, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.engine.Apply(t.Context(), w.info, engine.Declaration{Spec: spec, Source: "changed", From: "test"}); err != nil {
			t.Fatal(err)
		}
		if n := w.dom.Pauses(); n != 0 {
			t.Errorf("%d pauses after a change of policy", n)
		}
		return w.status()
	}
	blocked := func(want bool) {
		t.Helper()
		flags := w.writeText()
		if got := flags&abi.VMEventFlagEmulateNoWrite != 0; got != want {
			t.Errorf("write of kernel text answered with flags %#x, blocked should be %v", flags, want)
		}
		<-w.events.got
	}
	blocked(true)

	st := apply("observe")
	if st.State != engine.StateProtecting || st.PolicySource != "changed" || st.PolicyFrom != "test" {
		t.Errorf("%s, policy from %q (%s)", st.State, st.PolicySource, st.PolicyFrom)
	}
	blocked(false)

	st = apply("enforce", "syscall-entry=off")
	blocked(true)
	lstar := w.guest.Regs[0].LSTAR
	if f := w.writeMSR(x86.MSRLSTAR, lstar, lstar+8); f&abi.VMEventFlagDeny != 0 {
		t.Errorf("a guard that was turned off denies: flags %#x", f)
	}
	for _, g := range st.Guards {
		if g.Name == "syscall-entry" && g.State != engine.GuardOff || g.Name == "kernel-text" && g.State != engine.GuardArmed {
			t.Errorf("guard %s is %s", g.Name, g.State)
		}
	}

	// What the changed register was when the guards were armed first is what it
	// must be.
	hooked := w.guest.Regs[0]
	hooked.LSTAR += 8
	w.dom.SetRegisters(0, hooked)
	apply("enforce")
	if f := w.writeMSR(x86.MSRLSTAR, lstar, lstar+8); f&abi.VMEventFlagDeny == 0 {
		t.Errorf("the hooked value has become the right one: flags %#x", f)
	}
	<-w.events.got
	for _, g := range w.status().Guards {
		if g.Name == "kernel-text" && (g.Violations != 3 || g.Blocked != 2) {
			t.Errorf("over four policies kernel-text counts %d violations, %d blocked; want 3, 2", g.Violations, g.Blocked)
		}
	}

	if decl, ok := w.engine.Declared(w.info); !ok || decl.Spec.Mode != policy.ModeEnforce || decl.Source != "changed" {
		t.Errorf("in force: %+v, %v", decl, ok)
	}
	if st = apply("off"); st.State != engine.StateUnprotected {
		t.Errorf("with mode off: %s", st.State)
	}
	w.checkClean(0)
	if st = apply("enforce"); st.State != engine.StateProtecting {
		t.Errorf("switched on again: %s, %+v", st.State, st.Failure)
	}
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
	if err := w.engine.Apply(t.Context(), w.info, w.decl); !errors.Is(err, engine.ErrClosing) {
		t.Errorf("a new policy while closing: %v", err)
	}
	if n := w.engine.Stats(); n.Attaches != 2 || n.AttachFailures != 0 || n.AttachTime <= 0 {
		t.Errorf("%+v, want 2 attaches and the time they took", n)
	}
}

// TestApplyBeforeArmed changes the policy while the guest boots.
func TestApplyBeforeArmed(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	if err := w.engine.Apply(t.Context(), w.info, declare(t, "observe")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	if st := w.status(); st.State != engine.StateProtecting || st.Policy.Mode != policy.ModeObserve {
		t.Fatalf("%s, mode %s", st.State, st.Policy.Mode)
	}
	if f := w.writeText(); f&abi.VMEventFlagEmulateNoWrite != 0 {
		t.Errorf("under observe a write was blocked: %#x", f)
	}
}

// TestApplyFails leaves nothing when the guards can't be exchanged.
func TestApplyFails(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.xen.FailNext("monitor_op(disable)", 1)
	if err := w.engine.Apply(t.Context(), w.info, declare(t, "observe")); err == nil {
		t.Fatal("no error")
	}
	if st := w.status(); st.State != engine.StateFailed || st.Failure == nil {
		t.Errorf("%s, %+v", st.State, st.Failure)
	}
	w.checkClean(0)
}

// TestSuspended holds a protected domain that was suspended, so that it is
// attached to before it runs on.
func TestSuspended(t *testing.T) {
	for _, reason := range []xen.ShutdownReason{abi.ShutdownSuspend, abi.ShutdownSoftReset} {
		t.Run(reason.String(), func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			w.appearRunning()
			w.info.Shutdown, w.info.ShutdownReason = true, reason
			w.engine.ShutDown(w.info)
			st := w.status()
			if st.State != engine.StateDetached || st.Held == "" || !w.engine.Waiting() {
				t.Fatalf("suspended: %s, held %q, waiting %v", st.State, st.Held, w.engine.Waiting())
			}
			if n := w.dom.Pauses(); n != 1 {
				t.Errorf("%d pauses while suspended, want ours", n)
			}
			w.found = false // that nothing is declared any more makes no difference
			w.engine.Resumed(w.info, "web")
			st = w.status()
			if st.State != engine.StateProtecting || st.Held != "" || w.dom.Pauses() != 0 {
				t.Errorf("resumed: %s, held %q, %d pauses", st.State, st.Held, w.dom.Pauses())
			}
			w.engine.ShutDown(w.info)
			w.dom.Kill()
			w.engine.Gone(w.info)
			if len(w.engine.Status()) != 0 {
				t.Errorf("the engine knows a domain that has gone")
			}
		})
	}
}

// TestSuspendedThenDetached lets a suspended domain go when the admin says so.
func TestSuspendedThenDetached(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.info.Shutdown, w.info.ShutdownReason = true, abi.ShutdownSuspend
	w.engine.ShutDown(w.info)
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
	w.engine.Resumed(w.info, "web")
	if st := w.status(); st.State != engine.StateDetached {
		t.Errorf("it was detached by hand and resumed: %s", st.State)
	}
}

// TestHandDetachedStays leaves a domain alone that was detached by hand before
// it was suspended and resumed.
func TestHandDetachedStays(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.info.Shutdown, w.info.ShutdownReason = true, abi.ShutdownSuspend
	w.engine.ShutDown(w.info)
	w.checkClean(0)
	w.engine.Resumed(w.info, "web")
	if st := w.status(); st.State != engine.StateDetached {
		t.Errorf("resumed: %s", st.State)
	}
}

// TestRequireAttach holds a domain whose policy wants certainty when hvi can't
// attach, until it can, or the admin lets the guest go.
func TestRequireAttach(t *testing.T) {
	for _, end := range []string{"attach", "attach with another policy", "detach", "destroy"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
			w.decl.Spec.RequireAttach = true
			w.xen.FailNext("vm_event_op(enable)", 16) // EBUSY: another listener
			w.appear()
			st, err := w.engine.Wait(t.Context(), 7)
			if err != nil || st.State != engine.StateFailed || st.Held == "" {
				t.Fatalf("%s, held %q, %v", st.State, st.Held, err)
			}
			if n := w.dom.Pauses(); n != 2 {
				t.Fatalf("%d pauses, want the toolstack's and ours", n)
			}
			switch end {
			case "attach":
				if err := w.engine.Attach(t.Context(), 7, w.decl); err != nil {
					t.Fatal(err)
				}
				if st := w.status(); st.State != engine.StateAttached || st.Held != "" {
					t.Errorf("%s, held %q", st.State, st.Held)
				}
				if err := w.engine.Detach(t.Context(), 7); err != nil {
					t.Fatal(err)
				}
			case "attach with another policy":
				w.xen.FailNext("vm_event_op(enable)", 16)
				if err := w.engine.Attach(t.Context(), 7, declare(t, "observe")); err == nil {
					t.Error("attached to a ring that is another's")
				}
				if st := w.status(); st.State != engine.StateFailed || st.Held == "" || w.dom.Pauses() != 2 {
					t.Errorf("%s, held %q, %d pauses: an attempt that fails must not let the guest go", st.State, st.Held, w.dom.Pauses())
				}
				fallthrough
			case "detach":
				if err := w.engine.Detach(t.Context(), 7); err != nil {
					t.Fatal(err)
				}
			case "destroy":
				w.dom.Kill()
				w.engine.Gone(w.info)
				return
			}
			w.checkClean(1)
		})
	}
}

// TestRequireAttachRunning does not stop a guest that runs already.
func TestRequireAttachRunning(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.decl.Spec.RequireAttach = true
	w.xen.FailNext("vm_event_op(enable)", 16)
	w.engine.Gate(w.info, true)
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateFailed || st.Held != "" {
		t.Errorf("%s, held %q", st.State, st.Held)
	}
	w.checkClean(0)
}

// TestWait is what a gate asks: for a domain the engine does not know yet, and
// for one that never comes.
func TestWait(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	got := make(chan engine.Status, 1)
	go func() {
		st, err := w.engine.Wait(t.Context(), 7)
		if err != nil {
			t.Error(err)
		}
		got <- st
	}()
	w.appear()
	if st := <-got; st.State != engine.StateAttached || !st.Decided {
		t.Errorf("%s, decided %v", st.State, st.Decided)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.engine.Wait(ctx, 8); !errors.Is(err, xen.ErrNoDomain) {
		t.Errorf("a domain that never comes: %v", err)
	}
}

// TestRename shows a domain under its new name.
func TestRename(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.engine.Rename(7, "db")
	if st := w.status(); st.Name != "db" {
		t.Errorf("name %q", st.Name)
	}
	w.writeText()
	if r := <-w.events.got; r.Domain.Name != "db" {
		t.Errorf("the record's domain is %q", r.Domain.Name)
	}
}

// TestApplySuspended changes the policy of a domain while it is suspended, which
// counts when it runs on: protected or not before, and protected or not then.
func TestApplySuspended(t *testing.T) {
	for _, before := range []bool{false, true} {
		for _, after := range []string{"off", "observe"} {
			t.Run(fmt.Sprintf("%v to %s", before, after), func(t *testing.T) {
				w := newWorld(t, xentest.Config{}, xentest.Spec{})
				if before {
					w.appearRunning()
				} else {
					w.found, w.decl.Spec = false, policy.Spec{}
					w.setState(linuxtest.Running)
					w.copyMemory()
					w.dom.SetRegisters(0, w.guest.Regs[0])
					w.engine.Gate(w.info, true)
					w.engine.Appeared(w.info, "web")
				}
				w.info.Shutdown, w.info.ShutdownReason = true, abi.ShutdownSuspend
				w.engine.ShutDown(w.info)
				if err := w.engine.Apply(t.Context(), w.info, declare(t, after)); err != nil {
					t.Fatal(err)
				}
				if d, ok := w.engine.Declared(w.info); !ok || d.Spec.Mode.String() != after {
					t.Errorf("while suspended %v is in force, %v", d.Spec.Mode, ok)
				}
				w.engine.Resumed(w.info, "web")
				st, want := w.status(), engine.StateProtecting
				if after == "off" {
					want = engine.StateUnprotected
					w.checkClean(0)
				}
				if st.State != want || st.Policy.Mode.String() != after || w.dom.Pauses() != 0 {
					t.Errorf("resumed: %s, mode %s, %d pauses", st.State, st.Policy.Mode, w.dom.Pauses())
				}
			})
		}
	}
}

// TestTooEarly keeps a domain held that is still being built, whatever is asked
// for meanwhile.
func TestTooEarly(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.engine.Gate(w.info, false)
	for what, err := range map[string]error{
		"attach": w.engine.Attach(t.Context(), 7, w.decl), "apply": w.engine.Apply(t.Context(), w.info, w.decl), "apply off": w.engine.Apply(t.Context(), w.info, declare(t, "off")),
	} {
		if !errors.Is(err, engine.ErrTooEarly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := w.dom.Pauses(); n != 2 {
		t.Errorf("%d pauses, want the toolstack's and ours", n)
	}
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateAttached {
		t.Errorf("%s, %+v", st.State, st.Failure)
	}
}
