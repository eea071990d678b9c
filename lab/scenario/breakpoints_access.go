package scenario

import (
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "breakpoints-access",
		Brief:    "Breakpoints without altp2m: their pages can't be executed, and nothing is written to the guest's memory",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      breakpointsAccess,
	})
}

const (
	// seldom is a function whose page little else comes to, and synced how often the guest
	// comes to it. It goes through hundreds of instructions of that page each time.
	seldom = "ksys_sync"
	synced = 20
	// storing is one that stores where it is told to, for the attack module's mode called.
	storing = "kstrtobool"
	// privileged is one with instructions that no emulator is asked for.
	privileged = "do_arch_prctl_64"
)

// breakpointsAccess sets breakpoints in a guest whose pages are restricted for everybody.
func breakpointsAccess(t *T) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	c := enforce
	c.Altp2m = "mixed" // whose views the guest could change itself
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierAccess, "tier is access: %s %s", st.Tier, st.TierReason)
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := g.observe("symbol=" + seldom); err != nil {
		return err
	}
	clean, err := g.sums()
	if err != nil {
		return err
	}

	start := time.Now()
	if err := g.syncs(); err != nil {
		return err
	}
	free := time.Since(start)

	if err := t.breakpoint("set", g, seldom); err != nil {
		return err
	}
	n, err := g.inexecutable(h)
	if err != nil {
		return err
	}
	t.Check(n == 1, "with a breakpoint one page of the kernel's code can't be executed: %d", n)
	before, err := g.Status()
	if err != nil {
		return err
	}
	sums, err := g.sums()
	if err != nil {
		return err
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	t.Check(sums == clean, "a module of the guest's that sums the code up finds nothing in it: %q, before %q", sums, clean)
	t.Check(after.Counters.RingEvents-before.Counters.RingEvents < 1000, "and no read of it is an event: %d events", after.Counters.RingEvents-before.Counters.RingEvents)

	// Hits, for as long as that page is not much executed.
	if before, err = g.Status(); err != nil {
		return err
	}
	var took time.Duration
	ours, theirs, err := g.bothCount(seldom, func() error {
		start := time.Now()
		defer func() { took = time.Since(start) }()
		return g.syncs()
	})
	if err != nil {
		return err
	}
	b, after, err := g.breakpoint(seldom)
	if err != nil {
		return err
	}
	emulated := after.Counters.Emulated - before.Counters.Emulated
	t.Fact("hits", ours)
	t.Fact("misses", int64(theirs)-int64(ours))
	t.Fact("emulated_each", float64(emulated)/float64(max(ours, 1)))
	t.Fact("instructions_each_emulated", int64((took-free).Seconds()*instructionsPerSecond/float64(max(emulated, 1))))
	t.Check(theirs == synced && ours == theirs && b.Rests == 0, "no hit is missed: the guest's own probe counted %d, hvid %d, with %d rests", theirs, ours, b.Rests)
	if t.Check(len(after.Views) == 1 && len(after.Views[0].Traps) == 1, "status shows the page: %+v", after.Views) {
		p := after.Views[0].Traps[0]
		t.Check(p.Breakpoints == 1 && p.Instructions >= emulated && p.Rests == 0, "and what was executed in it: %+v", p)
	}
	t.Check(emulated > 10*synced, "each instruction of the page is an event that Xen's emulator answers: %d", emulated)

	for _, part := range []func() error{
		func() error { return g.patchedBeside(seldom) },
		func() error { return g.storesThere() },
		func() error { return g.privileged() },
		func() error { return g.tooHot() },
	} {
		if err := part(); err != nil {
			return err
		}
	}

	// Cleared.
	if err := t.breakpoint("clear", g, seldom); err != nil {
		return err
	}
	if n, err = g.inexecutable(h); err != nil {
		return err
	}
	t.Check(n == 0, "cleared, each page can be executed: %d can't", n)
	if sums, err = g.sums(); err != nil {
		return err
	}
	t.Check(sums == clean, "the guest's code is the same: %q", sums)
	if st, err = g.Status(); err != nil {
		return err
	}
	r, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Check(r.inHost == r.frames && r.frames > 0, "and each page is restricted as before: %d of %d", r.inHost, r.frames)

	if err := g.killedWith(hvid, seldom); err != nil {
		return err
	}

	// Detached with one set.
	if err := t.breakpoint("set", g, seldom); err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && left.frames > 0, "detached, none of its pages is restricted: %d of %d", left.restricted, left.frames)
	if err := g.opens(2, 20); err != nil {
		return err
	}
	return g.Shutdown()
}

// syncs has the guest come to the seldom function, and leave it for a while each time.
func (g *Guest) syncs() error {
	out, err := g.Run(fmt.Sprintf("i=0; while [ $i -lt %d ]; do sync; sleep 0.4; i=$((i+1)); done; echo $i", synced))
	if want := fmt.Sprint(synced); err == nil && out != want {
		err = fmt.Errorf("the guest says %q of its work, want %q", out, want)
	}
	return err
}

// inexecutable returns how many frames of the kernel's code can't be executed, by Xen's
// word.
func (g *Guest) inexecutable(h *xen.Host) (n int, err error) {
	st, err := g.Status()
	if err != nil {
		return 0, err
	}
	for _, r := range st.Views[0].Restricted {
		if r.Access != xen.AccessRX.String() {
			continue
		}
		now := make([]xen.Access, r.Count)
		if err := h.MemAccesses(xen.DomID(g.ID), r.First, now); err != nil {
			return 0, err
		}
		for _, a := range now {
			if a == xen.AccessR {
				n++
			}
		}
	}
	return n, nil
}

// patchedBeside has the kernel patch the page of a breakpoint, and somebody else.
func (g *Guest) patchedBeside(symbol string) error {
	t := g.t
	events, err := g.Events()
	if err != nil {
		return err
	}
	if _, err := g.Run("rmmod observe; echo off"); err != nil {
		return err
	}
	if err := g.observe("symbol=" + symbol); err != nil {
		return err
	}
	ours, theirs, err := g.bothCount(symbol, g.syncs)
	if err != nil {
		return err
	}
	now, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(theirs == synced && ours == theirs && len(now) == len(events), "after the kernel has patched that very page: the guest's probe counted %d, hvid %d, %d alarms", theirs, ours, len(now)-len(events))
	v, err := g.Attack(Attack{Mode: "text", Symbol: symbol})
	if err != nil {
		return err
	}
	t.Check(!v.Written && v.After == v.Before, "an attack on the very page of the breakpoint is blocked: tried %#x, after %#x", v.Tried, v.After)
	return nil
}

// storesThere sets a breakpoint in a function that stores where its caller says, and has
// that be the kernel's code: the emulator, which carries the function out, would store
// there unseen.
func (g *Guest) storesThere() error {
	t := g.t
	if err := t.breakpoint("set", g, storing); err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "called"})
	if err != nil {
		return err
	}
	b, _, err := g.breakpoint(storing)
	if err != nil {
		return err
	}
	t.Check(!v.Written && v.After == v.Before && b.Hits > 0, "an attack by an instruction in the page of a breakpoint is blocked: tried %#x, after %#x, %d hits, %d rests", v.Tried, v.After, b.Hits, b.Rests)
	return t.breakpoint("clear", g, storing)
}

// privileged sets a breakpoint where there are instructions that are left to the
// processor.
func (g *Guest) privileged() error {
	t := g.t
	if err := t.breakpoint("set", g, privileged); err != nil {
		return err
	}
	const times = 20
	if err := g.opens(times, 0); err != nil {
		return err
	}
	b, _, err := g.breakpoint(privileged)
	if err != nil {
		return err
	}
	t.Check(b.Rests > 0, "where the emulator may not know an instruction, the page rests: %d hits, %d rests", b.Hits, b.Rests)
	return t.breakpoint("clear", g, privileged)
}

// tooHot sets a breakpoint where the guest is nearly all the time.
func (g *Guest) tooHot() error {
	t := g.t
	if _, err := g.Run("rmmod observe; echo off"); err != nil {
		return err
	}
	if err := g.observe("symbol=" + hot); err != nil {
		return err
	}
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	start := time.Now()
	ours, theirs, err := g.bothCount(hot, func() error { return g.opens(20, 200) })
	if err != nil {
		return err
	}
	b, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	t.Fact("hot", map[string]any{"hits": ours, "of": theirs, "rests": b.Rests, "seconds": time.Since(start).Seconds()})
	t.Check(b.Rests > 0 && ours > 0 && ours <= theirs, "a page that takes half of the guest's time rests, which is told: %d hits of %d, %d rests", ours, theirs, b.Rests)
	if err := t.breakpoint("clear", g, hot); err != nil {
		return err
	}
	if _, err := g.Run("rmmod observe; echo off"); err != nil {
		return err
	}
	return g.observe("symbol=" + seldom)
}
