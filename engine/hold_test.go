package engine_test

import (
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// TestRequireAttachNeverRuns checks that a domain that is to stay held does not
// run a moment while hvi withdraws from a ring that it served already.
func TestRequireAttachNeverRuns(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{}) // its toolstack was quick: nobody else holds it
	w.decl.Spec.RequireAttach = true
	const registers = "domctl(gethvmcontext_partial)"
	w.xen.FailNext(registers, 0)
	w.xen.FailNext(registers, 5)
	w.xen.Log()
	w.engine.Gate(w.info, false)
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateFailed || st.AttachedAt.IsZero() || st.Held == "" {
		t.Fatalf("%s, attached at %v, held %q", st.State, st.AttachedAt, st.Held)
	}
	held := 0
	for _, call := range w.xen.Log() {
		switch call {
		case "domctl(pausedomain) 7":
			held++
		case "domctl(unpausedomain) 7":
			if held--; held == 0 {
				t.Error("the domain was let run")
			}
		}
	}
	if held != 1 || w.dom.Pauses() != 1 {
		t.Errorf("%d pauses of ours, %d in Xen, want 1", held, w.dom.Pauses())
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestGateWhileBuilt holds a domain that was being built when hvid was started:
// it has not run yet.
func TestGateWhileBuilt(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	building := w.info
	building.OnlineVCPUs = 0
	w.engine.Gate(building, true)
	if st := w.status(); st.State != engine.StateGated || w.dom.Pauses() != 2 {
		t.Errorf("%s, %d pauses, want the toolstack's and ours", st.State, w.dom.Pauses())
	}
	w.engine.Appeared(w.info, "web")
	if st := w.status(); st.State != engine.StateAttached || w.dom.Pauses() != 1 {
		t.Errorf("%s, %d pauses", st.State, w.dom.Pauses())
	}
}

// TestAppearedLate attaches to nothing once hvid stops, whatever was under way.
func TestAppearedLate(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.engine.Gate(w.info, false)
	if err := w.engine.Close(); err != nil {
		t.Fatal(err)
	}
	w.engine.Appeared(w.info, "web")
	w.engine.ShutDown(w.info)
	w.engine.Resumed(w.info, "web")
	w.checkClean(1)
}

// TestAttachAfterFailedDetach undoes what a session could not, and attaches.
func TestAttachAfterFailedDetach(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	w.info.Shutdown, w.info.ShutdownReason = true, abi.ShutdownSuspend
	w.xen.FailNext("vm_event_op(disable)", 1) // EPERM
	w.engine.ShutDown(w.info)
	if st := w.status(); st.State != engine.StateFailed || !w.dom.RingConnected() {
		t.Fatalf("%s, ring connected %v: the fake did not fail", st.State, w.dom.RingConnected())
	}
	w.engine.Resumed(w.info, "web")
	if st := w.status(); st.State != engine.StateProtecting || w.dom.Pauses() != 0 {
		t.Errorf("%s, %+v, %d pauses", st.State, st.Failure, w.dom.Pauses())
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestNeverBuilt has a toolstack die before it has built a domain: hvi holds what there is
// of it, knows that nothing is decided, and forgets it when it is gone.
func TestNeverBuilt(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	if w.engine.Undecided() {
		t.Error("undecided, without a domain")
	}
	w.engine.Gate(w.info, false)
	if st := w.status(); st.State != engine.StateGated || !w.engine.Undecided() {
		t.Errorf("%s, undecided %v", st.State, w.engine.Undecided())
	}
	w.dom.Kill()
	w.engine.Gone(w.info)
	if !w.dom.Reap() || w.engine.Undecided() || len(w.engine.Status()) != 0 || len(w.ledgers()) != 0 {
		t.Errorf("something is kept of it: undecided %v, %d domains, %d ledgers", w.engine.Undecided(), len(w.engine.Status()), len(w.ledgers()))
	}
}

// TestDecided has nothing be undecided of a domain whose start was let go on.
func TestDecided(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.appear()
	if w.engine.Undecided() {
		t.Errorf("undecided after it appeared: %s", w.status().State)
	}
	w.dom.Kill()
	w.engine.Gone(w.info)
}
