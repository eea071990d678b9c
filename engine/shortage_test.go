package engine_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
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
