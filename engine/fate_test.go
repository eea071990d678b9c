package engine_test

import (
	"errors"
	"os"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// fates are what a guest, its kernel or its toolstack can do to a domain at any moment.
var fates = []struct {
	name      string
	destroyed bool
	reason    uint8
	resumed   bool // by the toolstack, as after a checkpoint or a save that failed
}{
	{name: "destroyed", destroyed: true},
	{name: "powered off", reason: abi.ShutdownPoweroff},
	{name: "rebooted", reason: abi.ShutdownReboot},
	{name: "crashed", reason: abi.ShutdownCrash},
	{name: "saved", reason: abi.ShutdownSuspend},
	{name: "resumed", reason: abi.ShutdownSuspend, resumed: true},
}

// TestEndedAnywhere has a guest be destroyed, shut down, reboot, crash and be saved
// before each call that is made of Xen while hvi attaches to it, guards it and lets go.
// When hvid has heard of it, nothing of the domain is kept: no page of it stays mapped,
// which would keep it a zombie, no ledger, no session. One that runs on after all is
// protected, and can be let go of with nothing left.
//
// Of the calls it is each third, and each ninth in most lives, beginning elsewhere for
// each fate: they are many, and each takes a guest and a hvid of its own.
func TestEndedAnywhere(t *testing.T) {
	tried := lives
	if testing.Short() { // below the race detector
		tried = tried[1:2]
	}
	for _, c := range tried {
		step := 9
		if c.name == "views" || c.name == "a new guest" {
			step = 3
		}
		for i, f := range fates {
			t.Run(c.name+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				w := newKilledWorld(t, c.cfg, c.spec, c.views...)
				n := 1 + i
				for ; ; n += step {
					happened := w.meets(c.life, xentest.Fate{Domain: 7, Call: n, Destroyed: f.destroyed, Reason: f.reason})
					if happened {
						w.hears(f.destroyed, f.resumed, c.pauses)
					}
					w.startOver()
					if t.Failed() {
						t.Fatalf("at call %d", n)
					}
					if !happened {
						break
					}
				}
				if n < 30 {
					t.Errorf("only %d calls", n)
				}
			})
		}
	}
}

// meets runs a life that something comes between, and reports whether it did.
func (w *world) meets(what life, f xentest.Fate) (happened bool) {
	done := make(chan struct{})
	l := &living{world: w, died: w.xen.Ordain(f)}
	go func() {
		defer close(done)
		what(l)
	}()
	<-done
	select {
	case <-l.died:
		return true
	default:
		return false
	}
}

// startOver puts another domain in the place of the one that was, which runs already,
// and another hvid.
func (w *world) startOver() {
	w.t.Helper()
	if err := errors.Join(w.engine.Close(), w.host.Close()); err != nil {
		w.t.Error(err)
	}
	w.engine = nil
	if left := w.xen.LiveBuffers(); left != 0 {
		w.t.Errorf("%d hypercall buffers are left", left)
	}
	w.dom.Kill()
	w.dom.Reap()
	w.setState(linuxtest.Running)
	w.build()
	w.dom.SetRegisters(0, w.guest.Regs[0])
	w.engine = w.newEngine()
}

// hears tells hvid of what has happened to the domain, as xlplugin does, and of its end
// then, or that it runs on.
func (w *world) hears(destroyed, resumed bool, pauses int) {
	w.t.Helper()
	if !destroyed {
		info, err := w.host.Domain(7)
		if err != nil {
			w.t.Fatal(err)
		}
		w.engine.ShutDown(info)
	}
	if resumed {
		w.dom.Resume()
		w.engine.Resumed(w.info, "web")
		if st := w.status(); st.Failure != nil || st.Held != "" {
			w.t.Errorf("%s once it runs on: %+v, held %q", st.State, st.Failure, st.Held)
		}
		if n := w.dom.Pauses(); n != pauses {
			w.t.Errorf("%d pauses once it runs on, want %d", n, pauses)
		}
		if err := w.engine.Detach(w.t.Context(), 7); err != nil && !errors.Is(err, engine.ErrNotAttached) {
			w.t.Error(err)
		}
		w.free("it ran on", pauses)
		return
	}
	w.dom.Kill()
	w.engine.Gone(w.info)
	if n := w.dom.MappedPages(); n != 0 {
		w.t.Errorf("%d pages are still mapped", n)
	}
	if !w.dom.Reap() {
		w.t.Error("the domain stays a zombie")
	}
	if st := w.engine.Status(); len(st) != 0 {
		w.t.Errorf("the engine knows a domain that has gone: %s", st[0].State)
	}
	if files, err := os.ReadDir(w.dir); err != nil || len(files) != 0 {
		w.t.Errorf("ledgers left: %v %v", files, err)
	}
}
