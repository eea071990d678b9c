package engine_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

const enable = "vm_event_op(enable)"

// failHeld has a domain whose policy requires it appear and not be attached to.
func (w *world) failHeld() {
	w.t.Helper()
	w.decl.Spec.RequireAttach = true
	w.xen.FailNext(enable, syscall.EBUSY)
	w.engine.Gate(w.info, false)
	w.engine.Appeared(w.info, "web")
	w.checkHeld()
}

func (w *world) checkHeld() {
	w.t.Helper()
	if st := w.status(); st.State != engine.StateFailed || st.Held == "" || st.Failure == nil || !st.Policy.RequireAttach {
		w.t.Errorf("%s, held %q, failure %+v, required %v", st.State, st.Held, st.Failure, st.Policy.RequireAttach)
	}
	if n := w.dom.Pauses(); n != 1 {
		w.t.Errorf("%d pauses, want one", n)
	}
}

func (w *world) recover(release bool) []engine.Recovered {
	w.t.Helper()
	done, err := engine.Recover(engine.OnXen(w.host), mutate.New(w.host), w.dir, release, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	return done
}

// neverRan checks that there was always a pause of ours.
func (w *world) neverRan(held int) {
	w.t.Helper()
	for _, call := range w.xen.Log() {
		switch call {
		case "domctl(pausedomain) 7":
			held++
		case "domctl(unpausedomain) 7":
			if held--; held == 0 {
				w.t.Error("the domain was let run")
			}
		}
	}
}

// TestHeldBeyondHvid keeps a domain held that must not run unprotected while hvid
// is stopped, or dead, and has the next one take it over.
func TestHeldBeyondHvid(t *testing.T) {
	for name, end := range map[string]func(*world) error{
		"stopped": func(w *world) error { return w.engine.Close() },
		"killed":  func(*world) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			w.failHeld()
			w.xen.Log()
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				// The next hvid can't attach either.
				if done := w.recover(false); len(done) != 1 || !done[0].Held || !strings.Contains(done[0].String(), "stays held") {
					t.Errorf("recovered: %v", done)
				}
				w.engine = w.newEngine()
				w.engine.Gate(w.info, true)
				if st := w.status(); st.State != engine.StateGated || st.Held == "" {
					t.Errorf("%s, held %q", st.State, st.Held)
				}
				w.xen.FailNext(enable, syscall.EBUSY)
				w.engine.Appeared(w.info, "web")
				w.checkHeld()
				w.neverRan(1)
				if err := end(w); err != nil {
					t.Fatal(err)
				}
			}
			w.recover(false)
			w.engine = w.newEngine()
			w.engine.Gate(w.info, true)
			w.engine.Appeared(w.info, "web")
			if st := w.status(); st.State != engine.StateAttached || st.Held != "" || w.dom.Pauses() != 0 {
				t.Errorf("%s, held %q, %d pauses", st.State, st.Held, w.dom.Pauses())
			}
			if err := w.engine.Detach(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
			w.checkClean(0)
		})
	}
}

// TestHeldLetGo lets a domain go that is held beyond hvid: as nothing requires it
// any more, as an admin says so, or as it is destroyed.
func TestHeldLetGo(t *testing.T) {
	for name, c := range map[string]struct {
		before func(*world)
		after  func(*world) error
	}{
		"recover": {func(w *world) { w.recover(true) }, nil},
		"destroyed": {func(w *world) {
			w.dom.Kill()
			w.dom.Reap()
			w.recover(false)
		}, nil},
		"nothing is declared": {nil, func(w *world) error {
			w.found = false
			w.engine.Appeared(w.info, "web")
			return nil
		}},
		"it is not required": {nil, func(w *world) error {
			w.decl.Spec.RequireAttach = false
			w.xen.FailNext(enable, syscall.EBUSY)
			w.engine.Appeared(w.info, "web")
			return nil
		}},
		"detach": {nil, func(w *world) error { return w.engine.Detach(w.t.Context(), 7) }},
		"destroyed under the next": {nil, func(w *world) error {
			w.dom.Kill()
			w.engine.Gone(w.info)
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			w.failHeld()
			if err := w.engine.Close(); err != nil {
				t.Fatal(err)
			}
			if c.before != nil {
				c.before(w)
			}
			if c.after != nil {
				w.recover(false)
				w.engine = w.newEngine()
				w.engine.Gate(w.info, true)
				if err := c.after(w); err != nil {
					t.Fatal(err)
				}
			}
			if files, err := os.ReadDir(w.dir); err != nil || len(files) != 0 {
				t.Errorf("ledgers left: %v %v", files, err)
			}
			if w.xen.Domain(7) != nil && w.dom.Pauses() != 0 && name[:4] != "dest" {
				t.Errorf("%d pauses left", w.dom.Pauses())
			}
		})
	}
}

// TestHeldWhileClosing holds a domain on that requires protection and came when
// hvid was stopping already.
func TestHeldWhileClosing(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.decl.Spec.RequireAttach = true
	w.engine.Gate(w.info, false)
	closed := make(chan error, 1)
	w.resolving = func() {
		go func() { closed <- w.engine.Close() }()
		// An engine that closes takes no new domain.
		other := w.info
		for other.ID = 100; ; other.ID++ {
			w.engine.Gate(other, true)
			all := w.engine.Status()
			if all[len(all)-1].Info.ID != other.ID {
				return
			}
		}
	}
	w.engine.Appeared(w.info, "web")
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	w.checkHeld()
	if done := w.recover(true); len(done) != 1 || done[0].Held || done[0].Undone != 1 {
		t.Errorf("recovered: %v", done)
	}
	w.checkClean(0)
}

// TestHeldUnread holds a domain whose policy is broken, where as much of it can be
// understood as that it requires protection.
func TestHeldUnread(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	good := w.decl
	w.decl, w.err = engine.Declaration{Source: "test", Spec: policy.Spec{RequireAttach: true}}, errors.New("broken")
	w.appear()
	if st := w.status(); st.State != engine.StateFailed || st.Held == "" || w.dom.Pauses() != 2 {
		t.Fatalf("%s, held %q, %d pauses", st.State, st.Held, w.dom.Pauses())
	}
	if err := w.engine.Attach(t.Context(), 7, good); err != nil {
		t.Fatal(err)
	}
	if st := w.status(); st.State != engine.StateAttached || st.Held != "" || w.dom.Pauses() != 1 {
		t.Errorf("%s, held %q, %d pauses", st.State, st.Held, w.dom.Pauses())
	}
}

// TestUnreadRuns lets a domain run whose policy is broken and does not say that it
// requires anything.
func TestUnreadRuns(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.decl, w.err = engine.Declaration{Source: "test"}, errors.New("broken")
	w.appear()
	if st := w.status(); st.State != engine.StateFailed || st.Held != "" {
		t.Errorf("%s, held %q", st.State, st.Held)
	}
	w.checkClean(1)
}

// TestBusy does not wait longer than it may for what else is done to a domain.
func TestBusy(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.engine.Gate(w.info, false)
	begun, done := make(chan struct{}), make(chan struct{})
	release := make(chan struct{})
	w.resolving = func() { close(begun); <-release }
	go func() {
		defer close(done)
		w.engine.Appeared(w.info, "web")
	}()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"attach": w.engine.Attach(ctx, 7, w.decl), "detach": w.engine.Detach(ctx, 7), "apply": w.engine.Apply(ctx, w.info, w.decl),
	} {
		if !errors.Is(err, engine.ErrBusy) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	close(release)
	<-done
	if err := w.engine.Detach(ctx, 7); err != nil {
		t.Errorf("nothing is waited for: %v", err)
	}
}

// TestEndedWhenReplaced tells what a session has counted before it is dropped.
func TestEndedWhenReplaced(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.appearRunning()
	if w.writeText(); w.status().Events == 0 {
		t.Fatal("no event was counted")
	}
	for i, change := range []func() error{
		func() error { return w.engine.Apply(t.Context(), w.info, declare(t, "off")) },
		func() error { return w.engine.Apply(t.Context(), w.info, w.decl) },
		func() error { return w.engine.Detach(t.Context(), 7) },
		func() error { return w.engine.Attach(t.Context(), 7, w.decl) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 1, 2}[i]; len(w.ended) != want {
			t.Errorf("change %d: told of %d sessions, want %d", i, len(w.ended), want)
		}
	}
	if w.ended[0].Events == 0 || w.ended[0].AttachedAt.Equal(w.ended[1].AttachedAt) {
		t.Errorf("told of %d events at %v, and %v", w.ended[0].Events, w.ended[0].AttachedAt, w.ended[1].AttachedAt)
	}
}
