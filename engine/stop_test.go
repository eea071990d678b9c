package engine_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

const blockedWrite = abi.VMEventFlagVCPUPaused | abi.VMEventFlagEmulate | abi.VMEventFlagEmulateNoWrite

// pausedGuest is a world whose guest has attacked, and was paused for it.
func pausedGuest(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.decl = declareGuards(t, "kernel-text=pause")
	w.appearRunning()
	if f := w.writeText(); f != blockedWrite {
		t.Errorf("answered with flags %#x", f)
	}
	r := <-w.events.got
	if r.Guard != "kernel-text" || r.Action != journal.Paused || !r.Prevented {
		t.Errorf("record: %s, %s, prevented %v", r.Guard, r.Action, r.Prevented)
	}
	if s := r.Summary(); !strings.Contains(s, "kernel-text blocked and paused the domain: write to ") || !strings.Contains(s, `by "insmod"`) {
		t.Errorf("summary %q", s)
	}
	w.settled(func() bool { return strings.Contains(w.status().Held, "event") })
	w.checkPaused(engine.StateProtecting)
	return w
}

// checkPaused checks that the guest is paused, once, and that the status says why.
func (w *world) checkPaused(want engine.State) {
	w.t.Helper()
	st := w.status()
	if st.State != want || !strings.HasPrefix(st.Held, "guard kernel-text paused it, event ") || !strings.HasSuffix(st.Held, "; hvictl resume lets it run on") {
		w.t.Errorf("%s, held %q", st.State, st.Held)
	}
	if n := w.dom.Pauses(); n != 1 {
		w.t.Errorf("%d pauses, want 1", n)
	}
}

// runsOn has the guest run on, and checks that.
func (w *world) runsOn() {
	w.t.Helper()
	if err := w.engine.Resume(w.t.Context(), 7); err != nil {
		w.t.Fatal(err)
	}
	if st := w.status(); st.Held != "" || w.dom.Pauses() != 0 {
		w.t.Errorf("held %q, %d pauses", st.Held, w.dom.Pauses())
	}
	if err := w.engine.Resume(w.t.Context(), 7); !errors.Is(err, engine.ErrNotPaused) {
		w.t.Errorf("again: %v", err)
	}
}

// TestPause has a guest paused for an attack, once for all attacks under way, run on,
// and be paused for the next.
func TestPause(t *testing.T) {
	w := pausedGuest(t)
	w.writeText() // another vCPU's, which was on its way
	w.settled(func() bool { return w.guardStatus(policy.GuardKernelText).Violations == 2 })
	w.checkPaused(engine.StateProtecting)
	w.runsOn()
	if st := w.status(); st.State != engine.StateProtecting {
		t.Errorf("%s", st.State)
	}
	w.writeText()
	w.settled(func() bool { return w.dom.Pauses() == 1 })
	w.runsOn()
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestPausedStaysSo: whatever becomes of the guest's protection, it stays paused until
// an admin has it run on, or it goes.
func TestPausedStaysSo(t *testing.T) {
	off := declare(t, "off")
	for name, c := range map[string]struct {
		do    func(*world) error
		state engine.State
	}{
		"detached":     {func(w *world) error { return w.engine.Detach(w.t.Context(), 7) }, engine.StateDetached},
		"switched off": {func(w *world) error { return w.engine.Apply(w.t.Context(), w.info, off) }, engine.StateUnprotected},
		"another policy": {func(w *world) error {
			return w.engine.Apply(w.t.Context(), w.info, declareGuards(w.t, "kernel-text=alert"))
		}, engine.StateProtecting},
		"attached again": {func(w *world) error {
			return errors.Join(w.engine.Detach(w.t.Context(), 7), w.engine.Attach(w.t.Context(), 7, w.decl))
		}, engine.StateProtecting},
		"attaching fails": {func(w *world) error {
			if err := w.engine.Detach(w.t.Context(), 7); err != nil {
				return err
			}
			w.xen.FailNext(enable, syscall.EBUSY)
			if err := w.engine.Attach(w.t.Context(), 7, w.decl); err == nil {
				return errors.New("it was attached to")
			}
			return nil
		}, engine.StateFailed},
	} {
		t.Run(name, func(t *testing.T) {
			w := pausedGuest(t)
			w.xen.Log()
			if err := c.do(w); err != nil {
				t.Fatal(err)
			}
			w.checkPaused(c.state)
			w.neverRan(1)
			if err := w.engine.Detach(t.Context(), 7); err != nil && !errors.Is(err, engine.ErrNotAttached) {
				t.Error(err)
			}
			w.runsOn()
			w.checkClean(0)
		})
	}
}

// TestPausedBeyondHvid has hvid end, and the next one come.
func TestPausedBeyondHvid(t *testing.T) {
	for name, next := range map[string]func(*world){
		"protected again": func(w *world) {
			w.engine.Appeared(w.info, "web")
			w.checkPaused(engine.StateProtecting)
		},
		"nothing is declared any more": func(w *world) {
			w.found = false
			w.engine.Appeared(w.info, "web")
			w.checkPaused(engine.StateUnprotected)
		},
		"what is declared is broken": func(w *world) {
			w.found, w.err = false, errors.New("web.cfg:3: unknown mode")
			w.engine.Appeared(w.info, "web")
			w.checkPaused(engine.StateFailed)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := pausedGuest(t)
			w.xen.Log()
			if err := w.engine.Close(); err != nil {
				t.Fatal(err)
			}
			if left := w.dom.Clean(); len(left) != 1 || w.dom.Pauses() != 1 {
				t.Errorf("left in Xen: %v", left)
			}
			done := w.recover(false)
			if len(done) != 1 || !done[0].Held || !strings.Contains(done[0].String(), "it stays held: guard kernel-text paused it, event ") {
				t.Errorf("recovered: %v", done)
			}
			w.engine = w.newEngine()
			w.engine.Gate(w.info, true)
			w.checkPaused(engine.StateGated)
			next(w)
			w.neverRan(1)
			w.runsOn()
			if err := w.engine.Close(); err != nil {
				t.Fatal(err)
			}
			w.checkClean(0)
		})
	}
	t.Run("recover lets it run", func(t *testing.T) {
		w := pausedGuest(t)
		if err := w.engine.Close(); err != nil {
			t.Fatal(err)
		}
		if done := w.recover(true); len(done) != 1 || done[0].Held || done[0].Undone != 1 {
			t.Errorf("recovered: %+v", done)
		}
		w.checkClean(0)
	})
}

// TestPausedDestroyed has the toolstack destroy a guest that is paused.
func TestPausedDestroyed(t *testing.T) {
	for name, before := range map[string]func(*world) error{
		"attached": func(*world) error { return nil },
		"detached": func(w *world) error { return w.engine.Detach(w.t.Context(), 7) },
	} {
		t.Run(name, func(t *testing.T) {
			w := pausedGuest(t)
			if err := before(w); err != nil {
				t.Fatal(err)
			}
			w.dom.Kill()
			w.engine.Gone(w.info)
			if !w.dom.Reap() {
				t.Error("a zombie is left")
			}
			if all, err := ledger.Load(w.dir, nil); err != nil || len(all) != 0 {
				t.Errorf("ledgers left: %v, %v", all, err)
			}
		})
	}
}

// TestPauseFails: a guest that can't be paused is told of as such. What was attacked
// is blocked all the same.
func TestPauseFails(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.decl = declareGuards(t, "kernel-text=pause")
	w.appearRunning()
	w.xen.FailNext("domctl(pausedomain)", syscall.EOVERFLOW)
	if f := w.writeText(); f != blockedWrite {
		t.Errorf("answered with flags %#x", f)
	}
	if r := <-w.events.got; r.Action != journal.Blocked || !strings.Contains(string(r.Detail.Note), "could not be stopped: ") {
		t.Errorf("record: %s, note %q", r.Action, r.Detail.Note)
	}
	if st := w.status(); st.Held != "" {
		t.Errorf("held %q", st.Held)
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// TestShutdownAction has a guest shut down for an attack, and none of it told as a
// panic. It stays paused as long as its toolstack keeps it.
func TestShutdownAction(t *testing.T) {
	for name, reason := range map[string]uint8{"crash": abi.ShutdownCrash, "another was announced": abi.ShutdownSuspend} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			w.decl = declareGuards(t, "kernel-text=shutdown")
			w.appearRunning()
			if reason != abi.ShutdownCrash {
				w.dom.Announce(reason)
			}
			w.xen.Log()
			if f := w.writeText(); f != blockedWrite {
				t.Errorf("answered with flags %#x", f)
			}
			r := <-w.events.got
			if r.Action != journal.ShutDown || !r.Prevented || !strings.Contains(r.Summary(), "kernel-text blocked and shut the domain down: write to ") {
				t.Errorf("record: %s, %q", r.Action, r.Summary())
			}
			if why, down := w.dom.IsShutDown(); !down || why != reason {
				t.Errorf("shut down %v, for %d", down, why)
			}
			var calls []string
			for _, c := range w.xen.Log() {
				if strings.HasPrefix(c, "domctl(pausedomain)") || strings.HasPrefix(c, "dm_op") {
					calls = append(calls, c)
				}
			}
			if got := strings.Join(calls, ", "); got != "domctl(pausedomain) 7, dm_op(remote_shutdown) 7" {
				t.Errorf("calls: %s", got)
			}
			info, err := w.host.Domain(7)
			if err != nil {
				t.Fatal(err)
			}
			w.engine.ShutDown(info)
			if st := w.status(); !strings.HasPrefix(st.Held, "guard kernel-text shut it down, event ") || w.dom.Pauses() == 0 {
				t.Errorf("held %q, %d pauses", st.Held, w.dom.Pauses())
			}
			if n := len(w.events.got); n != 0 {
				t.Errorf("%d more records, the first %+v", n, <-w.events.got)
			}
			w.dom.Kill()
			w.engine.Gone(w.info)
			if !w.dom.Reap() {
				t.Error("a zombie is left")
			}
			if all, err := ledger.Load(w.dir, nil); err != nil || len(all) != 0 {
				t.Errorf("ledgers left: %v, %v", all, err)
			}
		})
	}
}

// TestFindingPauses has a guard that looks pause the guest for what it finds, once.
func TestFindingPauses(t *testing.T) {
	w := newWorldOf(t, linuxtest.Config{Variables: []string{"modprobe_path"}}, xentest.Config{}, xentest.Spec{})
	w.decl = declareGuards(t, "usermode-helper=pause")
	w.guest.Write(w.guest.Addr("modprobe_path"), []byte("/tmp/x\x00"))
	w.appearRunning()
	look := func() { w.engine.LookForTest(7, policy.GuardUsermodeHelper) }
	look()
	r := <-w.events.got
	if r.Action != journal.Paused || r.Prevented || !strings.Contains(r.Summary(), "usermode-helper found and paused the domain: modprobe_path: ") {
		t.Errorf("record: %s, %q", r.Action, r.Summary())
	}
	if st := w.status(); !strings.HasPrefix(st.Held, "guard usermode-helper paused it, event ") || w.dom.Pauses() != 1 {
		t.Errorf("held %q, %d pauses", st.Held, w.dom.Pauses())
	}
	look()
	w.runsOn()
	look()
	if w.dom.Pauses() != 0 || len(w.events.got) != 0 {
		t.Errorf("%d pauses, %d records for what was told", w.dom.Pauses(), len(w.events.got))
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// attacking has hvi attach to a guest that runs, and pause it for an attack.
func attacking(l *living) {
	e := l.engine // hvid may die while nobody waits for it
	e.Gate(l.info, true)
	e.Appeared(l.info, "web")
	l.event(abi.VMEventReasonMovToMSR, 0xffffffffc0000000)
	if err := e.Close(); err != nil {
		l.t.Error(err)
	}
}

// TestKilledPaused has hvid die with each call while a guest is attacked and paused.
// Once it is paused it stays so, with whoever recovers and with the next hvid.
func TestKilledPaused(t *testing.T) {
	w := newKilledWorld(t, xentest.Config{AMD: true}, xentest.Spec{VCPUs: 2})
	w.decl = declareGuards(t, "syscall-entry=pause", "kernel-text=off", "kernel-rodata=off", "ex-table=off", "syscall-table=off", "idt=off", "vdso=off", "cr=off")
	paused := 0
	for _, after := range []bool{false, true} {
		for call := 1; w.live(attacking, xentest.Death{Call: call, After: after}); call++ {
			w.late()
			must := w.ledgerHas(ledger.OpGuardPause)
			for at := 1; w.comeBack(false, xentest.Death{Call: at, After: after}); at++ {
				if must && !w.ledgerHas(ledger.OpGuardPause) {
					t.Fatalf("call %d, %d: recovery forgot that a guard has paused the guest", call, at)
				}
			}
			if !must {
				w.free("hvid died before the attack", 0)
				continue
			}
			paused++
			if n := w.dom.Pauses(); n != 1 {
				t.Fatalf("hvid died with call %d: %d pauses, want 1", call, n)
			}
			w.resumeInNext()
		}
		// It has ended in order.
		if n := w.dom.Pauses(); n != 1 {
			t.Fatalf("hvid has ended: %d pauses, want 1", n)
		}
		w.resumeInNext()
	}
	if paused < 4 {
		t.Errorf("hvid died %d times while the guest was paused", paused)
	}
}

// resumeInNext has the next hvid attach to a guest that is paused, which stays so, and
// an admin let it run.
func (w *world) resumeInNext() {
	w.t.Helper()
	if w.live(func(l *living) {
		l.engine.Gate(l.info, true)
		l.engine.Appeared(l.info, "web")
		if st := l.status(); st.State == engine.StateFailed || !strings.HasPrefix(st.Held, "guard syscall-entry paused it") || l.dom.Pauses() != 1 {
			l.t.Errorf("%s, held %q, %d pauses", st.State, st.Held, l.dom.Pauses())
		}
		l.runsOn()
	}, never) {
		w.t.Fatal("it died")
	}
	w.free("an admin has let it run", 0)
}
