package engine_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// call is the n-th call of its name, counted from zero.
type call struct {
	op string
	n  int
}

// callsOf counts what a log has.
func callsOf(log []string) []call {
	var out []call
	times := map[string]int{}
	for _, l := range log {
		op := l
		if i := strings.LastIndexByte(l, ' '); i > 0 && strings.HasSuffix(l[:i], ")") || strings.HasPrefix(l, "map ") {
			op = l[:i]
		}
		out = append(out, call{op, times[op]})
		times[op]++
	}
	return out
}

// TestNoMemory has dom0 run out of memory at each call of attaching to a guest that
// runs, one after the other: each mapping, each hypercall, each event channel. Either
// the attempt fails and nothing is left of it, or the guest is attached to without what
// could not be had, which its status says, and can be let go of. It never stays paused.
func TestNoMemory(t *testing.T) {
	attach := func(t *testing.T, views bool) *world {
		cfg, spec := xentest.Config{AltP2M: views}, xentest.Spec{PagingPool: 64 << 20}
		w := newWorld(t, cfg, spec)
		w.setState(linuxtest.Running)
		w.copyMemory()
		w.dom.SetRegisters(0, w.guest.Regs[0])
		w.xen.Log()
		return w
	}
	for _, views := range []bool{false, true} {
		if views && testing.Short() {
			continue
		}
		w := attach(t, views)
		w.engine.Gate(w.info, true)
		w.engine.Appeared(w.info, "web")
		if st := w.status(); st.State != engine.StateProtecting {
			t.Fatalf("%s, %+v", st.State, st.Failure)
		}
		all := callsOf(w.xen.Log())
		if len(all) < 30 {
			t.Fatalf("only %d calls", len(all))
		}
		for _, c := range all {
			t.Run(fmt.Sprintf("views=%v/%s-%d", views, c.op, c.n), func(t *testing.T) {
				w := attach(t, views)
				for range c.n {
					w.xen.FailNext(c.op, 0)
				}
				w.xen.FailNext(c.op, syscall.ENOMEM)
				w.engine.Gate(w.info, true)
				w.engine.Appeared(w.info, "web")
				st := w.status()
				switch st.State {
				case engine.StateFailed:
					if st.Failure == nil || st.Failure.Stage == "" || st.Failure.Err == nil {
						t.Errorf("failed without a word: %+v", st.Failure)
					}
				case engine.StateProtecting, engine.StateDegraded, engine.StateAttached:
					if n := w.dom.Pauses(); n != 0 {
						t.Errorf("%s, and %d pauses", st.State, n)
					}
					if st.State == engine.StateAttached && st.Failure == nil {
						t.Error("attached only, and doesn't say why")
					}
					if err := w.engine.Detach(t.Context(), 7); err != nil {
						t.Errorf("detach: %v", err)
					}
				default:
					t.Errorf("state %s", st.State)
				}
				w.checkClean(0)
			})
		}
	}
}

// mayMount reports whether this process has CAP_SYS_ADMIN.
func mayMount(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	const sysAdmin = 21
	return mask>>sysAdmin&1 != 0
}

// fullDisk mounts a small disk of the kind that /run is, and returns what fills it.
func fullDisk(t *testing.T) (dir string, fill func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		if errors.Is(err, syscall.EPERM) && !mayMount(t) {
			t.Skip("without CAP_SYS_ADMIN no small disk can be mounted")
		}
		t.Fatal("mount a small disk: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir, func() {
		f, err := os.Create(filepath.Join(dir, "ballast"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, x86.PageSize))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLedgerDiskFull has the disk of the ledgers be full: before a guest is attached to,
// which is refused then and leaves nothing; or after, when it can still be let go of, and
// what a hvid that dies has left can be undone.
func TestLedgerDiskFull(t *testing.T) {
	for _, when := range []string{"before", "after", "dead"} {
		t.Run(when, func(t *testing.T) {
			dir, fill := fullDisk(t)
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			w.dir = filepath.Join(dir, "ledger")
			w.engine = w.newEngine()
			if when != "before" {
				w.appearRunning()
				fill()
			}
			switch when {
			case "before":
				w.setState(linuxtest.Running)
				w.copyMemory()
				w.dom.SetRegisters(0, w.guest.Regs[0])
				if err := os.Mkdir(w.dir, 0o700); err != nil {
					t.Fatal(err)
				}
				fill()
				w.engine.Gate(w.info, true)
				w.engine.Appeared(w.info, "web")
				if st := w.status(); st.State != engine.StateFailed || !errors.Is(st.Failure.Err, syscall.ENOSPC) {
					t.Errorf("%s, %+v", st.State, st.Failure)
				}
			case "after":
				if f := w.writeText(); f&abi.VMEventFlagEmulateNoWrite == 0 {
					t.Errorf("an attack was answered with flags %#x", f)
				}
				if err := w.engine.Detach(t.Context(), 7); err != nil {
					t.Error(err)
				}
			case "dead":
				if _, err := engine.Recover(engine.OnXen(w.host), mutate.New(w.host), w.dir, false, slog.New(slog.DiscardHandler)); err != nil {
					t.Error(err)
				}
				if left := w.dom.Clean(); len(left) != 1 || !strings.Contains(left[0], "mapped") { // by the engine, which lives
					t.Errorf("left: %v", left)
				}
				// The engine is not dead, and has an error about a ledger that is gone.
				_ = w.engine.Close()
				w.engine = nil
				if err := w.host.Close(); err != nil {
					t.Error(err)
				}
			}
			w.checkClean(0)
		})
	}
}

// TestJournalDiskFull has the disk of the event log be full: a violation is blocked all
// the same, and counted among those that could not be written.
func TestJournalDiskFull(t *testing.T) {
	dir, fill := fullDisk(t)
	j, err := journal.Open(journal.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, xentest.Config{}, xentest.Spec{})
	w.recorder = j
	w.engine = w.newEngine()
	w.appearRunning()
	fill()
	if f := w.writeText(); f&abi.VMEventFlagEmulateNoWrite == 0 {
		t.Errorf("answered with flags %#x", f)
	}
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Error(err)
	}
	w.checkClean(0)
	if st := j.Stats(); st.Appended != 1 || st.WriteFailures != 1 || !errors.Is(st.LastFailure, syscall.ENOSPC) {
		t.Errorf("%+v", st)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// TestChannelLost loses the event channel of a guest's ring while the guest waits for an
// answer, or while it does not. It goes on at once, with nothing of ours left, or stands
// still if its policy says so, and can be attached to again.
func TestChannelLost(t *testing.T) {
	hangUp := func(w *world) {
		if err := w.dom.LoseChannel(); err != nil {
			w.t.Fatal(err)
		}
	}
	unbound := func(w *world) {
		w.xen.FailNext("evtchn(notify)", syscall.EBADF)
		w.dispatch()
	}
	for _, tt := range []struct {
		name  string
		lose  func(*world)
		pause bool
	}{
		{"hung up", hangUp, false},
		{"unbound", unbound, false},
		{"hung up, fail closed", hangUp, true},
		{"unbound, fail closed", unbound, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, xentest.Config{}, xentest.Spec{})
			pauses := 0
			if tt.pause {
				w.decl.Spec.OnEngineFailure, pauses = policy.Pause, 1
			}
			w.appearRunning()
			tt.lose(w)
			// Until the session has ended. On its way it connects the ring once more, so
			// that the guest gets its answers.
			for ended := false; !ended; runtime.Gosched() {
				st := w.status()
				ended = st.State == engine.StateFailed && !w.dom.RingConnected() && w.dom.MappedPages() == 0 && w.dom.Pauses() == pauses && w.dom.EventPauses(0) == 0
				if tt.pause {
					ended = ended && st.Held != ""
				} else {
					ended = ended && len(w.ledgers()) == 0
				}
			}
			if st := w.status(); st.Failure.Stage != "serve the monitor ring" || st.Failure.Err == nil || st.Failure.Fix == "" {
				t.Errorf("%+v", st.Failure)
			}
			if !tt.pause {
				w.checkClean(0)
			}
			for {
				err := w.engine.Apply(t.Context(), w.info, w.decl)
				if err == nil {
					break
				}
				if !errors.Is(err, engine.ErrEnded) {
					t.Fatal(err)
				}
				runtime.Gosched() // its goroutine is about to return
			}
			if st := w.status(); st.State != engine.StateProtecting || w.dom.Pauses() != 0 {
				t.Errorf("attached again: %s, %d pauses", st.State, w.dom.Pauses())
			}
		})
	}
}
