package scenario

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/x86"
)

func init() {
	Register(Scenario{
		Name:     "first-instruction",
		Brief:    "Over 20 starts, hvid is attached while the guest still stands at its entry point",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      firstInstruction,
	})
	Register(Scenario{
		Name:     "hvid-stopped",
		Brief:    "SIGTERM leaves nothing in Xen and the guest running; started again, hvid protects it again",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      hvidStopped,
	})
}

func firstInstruction(t *T) error {
	const starts = 20
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	entry, err := kernelEntry(GuestKernel)
	if err != nil {
		return err
	}
	var pcs []x86.VirtAddr
	for i := range starts {
		c := enforce
		c.Name = fmt.Sprintf("start%d", i)
		g, err := t.StartGuest(c)
		if err != nil {
			return err
		}
		st, err := g.WaitState(hvidLimit, control.StateAttached, control.StateIdentifying, control.StateProtecting)
		if err != nil {
			return err
		}
		if st.AttachPC != nil {
			pcs = append(pcs, *st.AttachPC)
			t.Check(*st.AttachPC == entry, "start %d: attached at %s, the entry point is %s", i+1, *st.AttachPC, entry)
		}
		if err := g.Destroy(); err != nil {
			return err
		}
		if err := g.WaitGone(hvidLimit); err != nil {
			return err
		}
	}
	t.Fact("entry_point", entry)
	t.Fact("starts", len(pcs))
	t.Fact("attach_pcs", pcs)
	t.Check(len(pcs) == starts, "hvid attached at each of %d starts: %d", starts, len(pcs))
	return nil
}

func hvidStopped(t *T) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	g, _, err := t.protectedGuest(enforce, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.Load(true); err != nil {
		return err
	}
	if err := g.watchClock(); err != nil {
		return err
	}
	for round := range 2 {
		if err := t.Step(fmt.Sprintf("sigterm-%d", round+1), func() error { return hvid.Stop(hvidLimit) }); err != nil {
			return err
		}
		// The check needs a monitor ring of its own, so it also shows that
		// a new listener can be connected.
		left, err := t.leftovers(g.ID)
		if err != nil {
			return err
		}
		t.Check(left.restricted == 0, "no page of the guest is restricted: %d of %d are", left.restricted, left.frames)
		t.Check(left.frames > 0, "every page of the guest was looked at: %d", left.frames)
		t.Check(!left.paused, "the guest is not paused")
		t.Check(!left.views, "no view of its memory is left (altp2m active: %v)", left.views)
		t.Check(left.steps == 0, "and it runs freely, not step by step: %d steps", left.steps)
		t.Fact("frames_checked", left.frames)
		// Who asks meanwhile is told that protection is coming back.
		out1, err := t.Exec("hvictl", "status")
		var failed *ExecError
		t.Check(errors.As(err, &failed) && failed.Code == 3, "hvictl status without hvid ends with 3: %v", err)
		t.Check(strings.Contains(out1.String(), "restarting") && strings.Contains(out1.String(), g.Name), "and says that %s waits for hvid: %s", g.Name, out1)
		out, err := g.Run("echo on my own")
		t.Check(err == nil && out == "on my own", "the guest goes on without hvid: %q %v", out, err)
		v, err := g.Attack(Attack{Mode: "text", Symbol: victim})
		if err != nil {
			return err
		}
		t.Check(v.Written, "and nothing guards it: the attack succeeds")

		if hvid, err = t.StartHVID(); err != nil {
			return err
		}
		st, err := g.WaitState(protectLimit, control.StateProtecting)
		if err != nil {
			return err
		}
		t.Check(st.Mode == "enforce", "started again, hvid finds the policy of a guest that runs: %s from %s", st.Mode, st.PolicySource)
		for _, mode := range []string{"text", "lstar"} {
			if err := g.attackIsBlocked(mode); err != nil {
				return err
			}
		}
	}
	gap, err := g.longestGap()
	if err != nil {
		return err
	}
	t.Fact("longest_pause_ms", gap.Milliseconds())
	t.Check(gap > 0 && gap < maxPause, "over two restarts of hvid the guest stood still for %v at most", gap)
	// By hand, as an admin would.
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "lstar"})
	if err != nil {
		return err
	}
	t.Check(v.Written, "after hvictl detach the attack succeeds")
	if _, err := t.Exec("hvictl", "attach", g.Name, "--mode", "enforce"); err != nil {
		return err
	}
	if err := g.attackIsBlocked("lstar"); err != nil {
		return err
	}
	if err := g.Load(false); err != nil {
		return err
	}
	if err := g.Shutdown(); err != nil {
		return err
	}
	return g.nothingLeft()
}

// maxPause bounds how long a guest stands still while hvid detaches and attaches
// again. It is emulated time: a second of it is 200 million instructions, of
// which dom0's and the hypervisor's take their part.
const maxPause = 2 * time.Second

// watchClock starts a process in the guest that looks at the clock without a
// pause, and keeps the longest time between two looks.
func (g *Guest) watchClock() error {
	_, err := g.Run(`(m=0; l=0; while :; do read u r </proc/uptime; u=${u%.*}${u#*.}; d=$((u-l)); if [ $l -gt 0 ] && [ $d -gt $m ]; then m=$d; echo $m >/tmp/gap; fi; l=$u; done) & echo $! >/tmp/gap.pid`)
	return err
}

// longestGap ends that process and returns what it found, which is a hundredth
// of a second exact.
func (g *Guest) longestGap() (time.Duration, error) {
	out, err := g.Run("kill $(cat /tmp/gap.pid); cat /tmp/gap")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(out))
	return time.Duration(n) * 10 * time.Millisecond, err
}
