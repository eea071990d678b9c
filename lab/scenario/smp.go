package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/xen"
)

func init() {
	Register(Scenario{
		Name:     "smp-intel",
		Brief:    "A guest of 2 vCPUs on Intel: guarded on each, a breakpoint hit on both at once and set under them",
		Emulator: Bochs,
		Timeout:  30 * time.Minute,
		Run:      smpIntel,
	})
}

// smpProcessors are the guest's. They share the machine's one processor.
const smpProcessors = 2

func smpIntel(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	h, err := xen.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	c := enforce
	c.VCPUs = smpProcessors
	c.KernelArgs = liveArgs
	c.Lines = append(c.Lines, preserve)
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	n, err := g.Run("nproc")
	if err != nil {
		return err
	}
	t.Check(n == fmt.Sprint(smpProcessors), "the guest has %d processors: %s", smpProcessors, n)
	if err := g.checkViews(st); err != nil {
		return err
	}
	bits, err := g.controlAttacks()
	if err != nil {
		return err
	}
	for cpu := range smpProcessors {
		if err := g.guardedOn(cpu, slices.Concat(textAttacks, []string{"lstar", "star"}, bits)); err != nil {
			return err
		}
	}
	if err := g.Load(true); err != nil {
		return err
	}
	if err := g.selfPatching(); err != nil {
		return err
	}
	if err := g.Load(false); err != nil {
		return err
	}
	if err := g.breakpointOnBoth(h); err != nil {
		return err
	}
	if err := g.comesUpAgain(smpProcessors-1, bits); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return t.Step("shutdown", func() error { _, err := g.letGo(); return err })
}

// opensOnBoth has the guest open files on each of its processors at once.
func (g *Guest) opensOnBoth(times int) error {
	var b strings.Builder
	for cpu := range smpProcessors {
		fmt.Fprintf(&b, "taskset %#x sh -c 'j=0; while [ $j -lt %d ]; do : </proc/uptime; j=$((j+1)); done; echo $j >/tmp/opens%d' & ", 1<<cpu, times, cpu)
	}
	out, err := g.Run(b.String() + "wait; cat /tmp/opens*")
	if want := strings.TrimSpace(strings.Repeat(fmt.Sprintln(times), smpProcessors)); err == nil && out != want {
		err = fmt.Errorf("the guest says %q of its work, want %q", out, want)
	}
	return err
}

// breakpointOnBoth sets a breakpoint to which both processors come, compares its hits
// with the guest's own count, and sets it and takes it away while they do.
func (g *Guest) breakpointOnBoth(h *xen.Host) error {
	const opens, changes = 400, 10
	t := g.t
	if err := g.observe("symbol=" + hot); err != nil {
		return err
	}
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	if _, err := g.checkHidden(h); err != nil {
		return err
	}
	ours, theirs, err := g.bothCount(hot, func() error { return g.opensOnBoth(opens) })
	if err != nil {
		return err
	}
	t.Fact("hits", ours)
	t.Fact("misses", int64(theirs)-int64(ours))
	t.Check(theirs > smpProcessors*opens && ours == theirs, "no hit is missed on either: the guest's own probe counted %d, hvid %d", theirs, ours)

	if _, err := g.Run("for c in 1 2; do (while [ ! -e /tmp/enough ]; do taskset $c sh -c 'j=0; while [ $j -lt 50 ]; do : </proc/uptime; j=$((j+1)); done'; done) & done"); err != nil {
		return err
	}
	for range changes {
		if err := t.breakpoint("clear", g, hot); err != nil {
			return err
		}
		if err := t.breakpoint("set", g, hot); err != nil {
			return err
		}
	}
	if _, err := g.Run("touch /tmp/enough; sleep 1"); err != nil {
		return err
	}
	if ours, theirs, err = g.bothCount(hot, func() error { return g.opensOnBoth(opens / 4) }); err != nil {
		return err
	}
	t.Check(ours == theirs, "set and taken away %d times under both, it counts as before: %d, %d", changes, ours, theirs)
	if err := t.breakpoint("clear", g, hot); err != nil {
		return err
	}
	out, err := g.Run("rmmod observe; dmesg | grep -E 'Oops|BUG:|int3:|stall|lockup' || echo quiet")
	t.Check(out == "quiet", "and the guest's kernel has nothing to complain of: %q", out)
	return err
}
