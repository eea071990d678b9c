package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "views",
		Brief:    "Pages are restricted in a view alone: no hit is missed, what is let through is stepped over, nothing is left",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      guardedInView,
	})
	Register(Scenario{
		Name:     "views-none",
		Brief:    "The control: without altp2m pages are restricted for everybody, and Xen's emulator lets writes through",
		Emulator: Bochs,
		Timeout:  20 * time.Minute,
		Run:      guardedWithoutView,
	})
}

// checkViews checks, through Xen itself, that a guest's pages are restricted in
// the view it runs in and free in the host's.
func (g *Guest) checkViews(st control.DomainStatus) error {
	t := g.t
	t.Check(st.Tier == control.TierViews, "tier is views: %s %s", st.Tier, st.TierReason)
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Fact("frames_restricted", n)
	t.Check(len(st.Views) == 2 && len(st.Views[0].Restricted) == 0 && st.Views[1].Current, "it runs in a view of its own: %+v", st.Views)
	t.Check(n.inView > 0 && n.inView == n.frames, "Xen restricts every page of the kernel's code in that view: %d of %d", n.inView, n.frames)
	t.Check(n.inHost == 0, "and none in the host's: %d", n.inHost)
	return nil
}

// restricted is what Xen says of the frames of which hvid says that it restricts
// them.
type restricted struct {
	frames         uint64
	inView, inHost uint64 // of those, how many are restricted in the current view and in the host's
}

func (n restricted) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]uint64{"frames": n.frames, "in_view": n.inView, "in_host": n.inHost})
}

func (g *Guest) restrictedIn(st control.DomainStatus) (n restricted, err error) {
	h, err := xen.Open()
	if err != nil {
		return n, err
	}
	defer h.Close()
	for _, v := range st.Views {
		for _, r := range v.Restricted {
			n.frames += r.Count
			for gfn := r.First; gfn < r.First+x86.GFN(r.Count); gfn++ {
				// hvid's ring is connected, so Xen answers.
				host, err := h.MemAccess(xen.DomID(g.ID), gfn)
				if err != nil {
					return n, err
				}
				if host != xen.AccessRWX {
					n.inHost++
				}
				if v.ID == 0 {
					continue
				}
				ours, err := h.ViewAccess(xen.DomID(g.ID), v.ID, gfn)
				if err != nil {
					return n, err
				}
				if ours.String() == r.Access {
					n.inView++
				}
			}
		}
	}
	return n, nil
}

// checkLetThrough checks who carried out the accesses that a guard let through
// between two looks.
func (g *Guest) checkLetThrough(before, after control.DomainStatus, n uint64) {
	stepped, emulated := after.Counters.Stepped-before.Counters.Stepped, after.Counters.Emulated-before.Counters.Emulated
	g.t.Fact("let_through", map[string]uint64{"stepped": stepped, "emulated": emulated})
	if after.Tier == control.TierViews {
		g.t.Check(stepped == n && emulated == 0, "the processor carried each of them out in the host's view: %d steps, %d emulated", stepped, emulated)
	} else {
		g.t.Check(emulated == n && stepped == 0, "Xen's emulator carried each of them out: %d emulated, %d steps", emulated, stepped)
	}
}

// instructionsPerSecond is what Bochs is told (ips=, lab/machine/bochs.go).
const instructionsPerSecond = 200_000_000

// patches has the guest's kernel patch its own code often, and returns how long
// it took by the emulated clock, which counts instructions.
func (g *Guest) patches(times int) (time.Duration, error) {
	start := time.Now()
	out, err := g.Run(fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1)); done; cat /proc/sys/kernel/sched_schedstats", times))
	if err == nil && out != "0" {
		err = fmt.Errorf("sched_schedstats is %q after the kernel patched itself", out)
	}
	return time.Since(start), err
}

// patchRounds is how often the kernel switches its statistics on and off, at
// 554 writes each time in Debian's 6.1.
const patchRounds = 5

// measure has the guest patch itself under guard, checks that each write was
// seen, and returns how many there were and the time it took.
func (g *Guest) measure() (writes uint64, took time.Duration, err error) {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return 0, 0, err
	}
	if _, err := g.patches(1); err != nil {
		return 0, 0, err
	}
	one, err := g.Status()
	if err != nil {
		return 0, 0, err
	}
	if took, err = g.patches(patchRounds); err != nil {
		return 0, 0, err
	}
	after, err := g.Status()
	if err != nil {
		return 0, 0, err
	}
	passed := func(st control.DomainStatus) uint64 { return guardStatus(st, "kernel-text").Passed }
	perRound := passed(one) - passed(before)
	writes = passed(after) - passed(one)
	t.Fact("writes_per_round", perRound)
	t.Check(perRound > 0 && writes == patchRounds*perRound, "the kernel patches itself the same way each time, and no write is missed: %d rounds of %d writes are %d", patchRounds, perRound, writes)
	g.checkLetThrough(one, after, writes)
	return writes, took, nil
}

// attackRounds is how often a watched write is made that the guest counts, too.
const attackRounds = 5

// observed attacks with a guard that only watches. The guest makes a known number
// of writes in each attack: it also puts back what it changed.
func (g *Guest) observed(mode string, each uint64) error {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return err
	}
	for i := range attackRounds {
		v, err := g.Attack(Attack{Mode: mode, Symbol: victim})
		if err != nil {
			return err
		}
		t.Check(v.Written && v.After == v.Tried, "%s, round %d: what is watched happens: tried %#x, after %#x", mode, i+1, v.Tried, v.After)
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	hits := guardStatus(after, "kernel-text").Events - guardStatus(before, "kernel-text").Events
	t.Fact("hits."+mode, hits)
	t.Fact("misses."+mode, int64(attackRounds*each)-int64(hits))
	t.Check(hits == attackRounds*each, "%s: the guest made %d writes, %d were seen", mode, attackRounds*each, hits)
	g.checkLetThrough(before, after, hits)
	return nil
}

// tops has hvictl show what the guest does while its kernel patches itself.
func (g *Guest) tops() error {
	t := g.t
	if _, err := g.Run("(i=0; while [ $i -lt 200 ]; do echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1)); done) & echo $! >/tmp/patching"); err != nil {
		return err
	}
	var s struct {
		Domains []struct {
			Name         string
			Events, Busy float64
			RingPeak     int `json:"ring_peak"`
			Guards       []struct {
				Name   string
				Passed float64
			}
		}
	}
	if err := t.HVICtl(&s, "top", "-n", "1", "-d", "1s"); err != nil {
		return err
	}
	t.Fact("top", s)
	ok := len(s.Domains) == 1 && s.Domains[0].Name == g.Name && s.Domains[0].Events > 0 && s.Domains[0].Busy > 0 && s.Domains[0].Busy < 1 && s.Domains[0].RingPeak > 0 &&
		len(s.Domains[0].Guards) == 1 && s.Domains[0].Guards[0].Name == "kernel-text" && s.Domains[0].Guards[0].Passed > 0
	t.Check(ok, "hvictl top shows the guest and its guard: %+v", s)
	_, err := g.Run("kill $(cat /tmp/patching); cat /proc/sys/kernel/sched_schedstats >/dev/null; echo 0 >/proc/sys/kernel/sched_schedstats")
	return err
}

// restores changes a guarded frame in the host's view, whereupon Xen drops its
// restriction in the guest's, and waits until hvid has put it in force again.
func (g *Guest) restores(h *xen.Host, st control.DomainStatus) error {
	t, dom, v := g.t, xen.DomID(g.ID), st.Views[1]
	gfn := v.Restricted[0].First
	if err := t.touch(h, g.ID, gfn); err != nil {
		return err
	}
	access, err := h.ViewAccess(dom, v.ID, gfn)
	if err != nil {
		return err
	}
	t.Check(access == xen.AccessRWX, "a change in the host's view takes a restriction away in the guest's: %s", access)
	if err := t.Step("restore", func() error {
		return t.Eventually(restoreLimit, "hvid has restricted the page again", func() (bool, error) {
			st, err = g.Status()
			return st.Counters.Restored > 0, err
		})
	}); err != nil {
		return err
	}
	t.Fact("restored_frames", st.Counters.Restored)
	if access, err = h.ViewAccess(dom, v.ID, gfn); err != nil {
		return err
	}
	t.Check(st.Counters.Restored == 1 && access == xen.AccessRX, "hvid has noticed and put it back: %d frames, now %s", st.Counters.Restored, access)
	return nil
}

// restoreLimit is twice what hvid takes at most to look at a view, for the first time.
const restoreLimit = 40 * time.Second

// codeKnown is when hvid knows for certain what the kernel's code was, counted from the
// arming of its guards.
const codeKnown = 45 * time.Second

// exchanges has the guest put another page in the place of one of its kernel's code, which
// nobody can forbid: what is in it is found.
func (g *Guest) exchanges() error {
	t := g.t
	if err := t.wait(codeKnown); err != nil {
		return err
	}
	before, err := g.Status()
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "exchange", Symbol: victim})
	if err != nil {
		return err
	}
	t.Check(v.Written && v.After == v.Tried, "a page of the kernel's code is exchanged for another, which differs: tried %#x, after %#x", v.Tried, v.After)
	found := func(st control.DomainStatus) uint64 { return guardStatus(st, "kernel-text").Found }
	after := before
	if err := t.Step("exchanged", func() error {
		return t.Eventually(restoreLimit, "hvid has found what was exchanged", func() (bool, error) {
			after, err = g.Status()
			return found(after) > found(before), err
		})
	}); err != nil {
		return err
	}
	t.Check(found(after) == found(before)+1 && after.Counters.Restored > before.Counters.Restored, "that is found once, and the page is restricted again: %d, %d", found(after)-found(before), after.Counters.Restored-before.Counters.Restored)
	events, err := g.Events()
	if err != nil {
		return err
	}
	at := uint64(0)
	for _, r := range events {
		if r.Action == journal.Found && r.Target.Memory != nil {
			at = uint64(r.Target.Memory.Addr)
		}
	}
	t.Check(at != 0 && at <= v.Address && v.Address < at+64, "the record says where: %#x for %#x", at, v.Address)
	return nil
}

// cost measures what one write costs that is let through, against a guest
// without protection, and leaves the guest detached.
func (g *Guest) cost() error {
	t := g.t
	writes, guarded, err := g.measure()
	if err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	free, err := g.patches(patchRounds)
	if err != nil {
		return err
	}
	per := (guarded - free).Seconds() * instructionsPerSecond / float64(writes)
	t.Fact("instructions_per_event", int(per))
	t.Check(per > 0, "a write that is let through costs %.0f instructions, of Xen, the control domain and hvid together", per)
	return nil
}

func guardedInView(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	// To observe; and a paging pool that is too small for two views.
	c.Lines = []string{`introspection = 1`, `shadow_memory = 1`}
	const pool = 1 << 20
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := g.checkViews(st); err != nil {
		return err
	}
	grown, err := h.PagingPool(xen.DomID(g.ID))
	if err != nil {
		return err
	}
	t.Check(grown > pool, "its paging pool was raised to hold the views: %d bytes", grown)
	out, err := t.Exec("hvictl", "views", g.Name)
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out.Stdout, "kernel-text") && strings.Contains(out.Stdout, "r-x"), "hvictl views shows them:\n%s", out.Stdout)
	if err := g.observed("text", 2); err != nil {
		return err
	}
	if err := g.restores(h, st); err != nil {
		return err
	}
	if err := g.tops(); err != nil {
		return err
	}
	// Each turn of a repeated instruction is a write, and a step, of its own.
	if err := g.observed("rep", 8); err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "set", g.Name, "--mode", "enforce"); err != nil {
		return err
	}
	if st, err = g.WaitState(hvidLimit, control.StateProtecting); err != nil {
		return err
	}
	if err := g.checkViews(st); err != nil {
		return err
	}
	for _, mode := range textAttacks {
		if err := g.attackIsBlocked(mode); err != nil {
			return err
		}
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	if err := g.exchanges(); err != nil {
		return err
	}
	if err := g.cost(); err != nil {
		return err
	}
	// A guest that does nothing makes no step either.
	if err := g.Load(true); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Fact("restored_pages", left.frames-left.restricted)
	t.Check(left.restricted == 0 && left.frames > 0, "detached, none of its pages is restricted: %d of %d", left.restricted, left.frames)
	t.Check(!left.views && left.steps == 0 && !left.paused, "no view is left, no step, no pause: %v, %d, %v", left.views, left.steps, left.paused)
	t.Check(left.pool == pool, "and its paging pool is what it was: %d bytes", left.pool)
	seen, err := t.stepsIfLeft(h, g.ID)
	if err != nil {
		return err
	}
	t.Check(seen > 0, "a vCPU left stepping would have been seen: %d steps", seen)
	if err := g.Load(false); err != nil {
		return err
	}
	if err := t.Step("declared", func() error { return g.declaredViews(pool) }); err != nil {
		return err
	}
	if err := g.Shutdown(); err != nil {
		return err
	}

	return t.withoutAltp2m(h)
}

func guardedWithoutView(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m = "mixed" // whose views the guest could change itself
	c.Lines = []string{`introspection = 1`}
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierAccess && strings.Contains(st.TierReason, "external"), "tier is access, and says why: %s %q", st.Tier, st.TierReason)
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Fact("frames_restricted", n)
	t.Check(len(st.Views) == 1 && st.Views[0].ID == 0 && st.Views[0].Current, "there is the host's view alone: %+v", st.Views)
	t.Check(n.frames > 0 && n.inHost == n.frames && n.inView == 0, "in which every page of the kernel's code is restricted, for everybody: %d of %d", n.inHost, n.frames)
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.ViewAccess(xen.DomID(g.ID), 1, st.Views[0].Restricted[0].First)
	t.Check(errors.Is(err, xen.ErrNotSupported), "Xen knows no other view: %v", err)
	if err := g.observed("text", 2); err != nil {
		return err
	}
	if err := g.exchanges(); err != nil {
		return err
	}
	if err := g.cost(); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && left.frames > 0, "detached, none of its pages is restricted: %d of %d", left.restricted, left.frames)
	return g.Shutdown()
}
