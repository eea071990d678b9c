package scenario

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "slowdown",
		Brief:    "What each preset and each guard costs a guest: boot, fork and exec, files, system calls, modules, patching",
		Emulator: Bochs,
		Timeout:  150 * time.Minute,
		Run:      slowdown,
	})
}

// workload is something that a guest is timed at, which takes an emulated second at most.
type workload struct{ name, command string }

// steady are what a guest does that does not change its kernel. Together with its boot
// the bounds are for them.
var steady = []workload{
	{"fork-exec", "i=0; while [ $i -lt 60 ]; do /bin/busybox true; i=$((i+1)); done"},
	{"files", "i=0; while [ $i -lt 5 ]; do dd if=/dev/zero of=/f bs=4k count=500 2>/dev/null; cat /f >/dev/null; rm /f; i=$((i+1)); done"},
	{"syscalls", "dd if=/dev/zero of=/dev/null bs=1 count=20000 2>/dev/null"},
}

// changing are what does. They come last, since hvid compares afterwards what was changed.
var changing = []workload{
	{"modules", "i=0; while [ $i -lt 3 ]; do insmod /lib/fat.ko && rmmod fat; i=$((i+1)); done"},
	{"patching", "i=0; while [ $i -lt 3 ]; do echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1)); done"},
}

// timings is how often each is timed. The shortest counts: nothing makes a machine
// that counts instructions quicker, and what runs beside makes it slower.
const timings = 3

// protection is what a guest is timed under.
type protection struct {
	name  string
	lines []string
	// most is how much longer it may take, in percent; 0 for any.
	most float64
}

// protections are nobody's, and each preset.
var protections = []protection{
	{"off", []string{`introspection = "off"`}, 0},
	{"linux-observe", []string{`introspection = "observe"`, `introspection_policy = "linux-observe"`}, 0},
	{"linux-server", []string{`introspection = "enforce"`, `introspection_policy = "linux-server"`}, 2},
	{"linux-strict", []string{`introspection = "enforce"`, `introspection_policy = "linux-strict"`}, 5},
}

// settled is how long after its boot, or after a new policy, a guest is left alone: hvid
// reads its kernel's code then, compares what the boot has patched, and looks for the first
// time.
const settled = 45 * time.Second

// slowdown times a guest without protection, with each preset, and with each guard
// alone. The emulator's clock counts instructions, those of Xen and of hvid among
// them, since all share one processor.
func slowdown(t *T) error {
	if _, err := firstBoots(t); err != nil {
		return err
	}
	base := map[string]time.Duration{}
	for _, p := range protections {
		g, took, err := timed(t, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if p.name == "off" {
			base = took
		}
		facts := map[string]any{}
		for name, d := range took {
			more := percent(d, base[name])
			facts[name] = map[string]any{"instructions": int64(d.Seconds() * instructionsPerSecond), "percent": more}
			// A boot of a quarter of a second is no user's: slowdown-debian judges one that is.
			t.Check(p.most == 0 || isChanging(name) || name == "boot" || more <= p.most, "%s: %s takes %.1f %% longer", p.name, name, more)
		}
		t.Fact("took."+p.name, facts)
		if p.name == "linux-strict" {
			if err := eachGuard(g, base); err != nil {
				return err
			}
		}
		if err := g.Shutdown(); err != nil {
			return err
		}
	}
	return nil
}

func isChanging(name string) bool {
	return slices.ContainsFunc(changing, func(w workload) bool { return w.name == name })
}

// percent is how much longer d is than base.
func percent(d, base time.Duration) float64 {
	return math.Round(float64(d-base)/float64(base)*1000) / 10
}

// booted starts a guest and takes the time of its boot.
func booted(t *T, p protection, c GuestConfig) (*Guest, time.Duration, error) {
	c.Name, c.Altp2m, c.Lines = p.name, enforce.Altp2m, p.lines
	start := time.Now()
	g, err := t.StartGuest(c)
	if err != nil {
		return nil, 0, err
	}
	_, err = g.WaitUp()
	return g, time.Since(start), err
}

// waitProtected waits until hvid protects a guest, where anybody does.
func (g *Guest) waitProtected(p protection) (control.DomainStatus, error) {
	want := control.StateProtecting
	if p.name == "off" {
		want = control.StateUnprotected
	}
	return g.WaitState(protectLimit, want)
}

// eventless checks that no guard took anything for an attack.
func (g *Guest) eventless(st control.DomainStatus) {
	for _, gs := range st.Guards {
		g.t.Check(gs.Events == 0, "%s takes nothing of it for an attack: %d", gs.Name, gs.Events)
	}
}

// timed starts a guest and times it.
func timed(t *T, p protection) (*Guest, map[string]time.Duration, error) {
	g, boot, err := booted(t, p, GuestConfig{})
	if err != nil {
		return nil, nil, err
	}
	before, err := g.waitProtected(p)
	if err != nil {
		return nil, nil, err
	}
	took, err := g.workloads()
	if err != nil {
		return nil, nil, err
	}
	took["boot"] = boot
	after, err := g.Status()
	if err != nil {
		return nil, nil, err
	}
	g.eventless(after)
	t.Fact("events."+p.name, after.Counters.RingEvents-before.Counters.RingEvents)
	return g, took, nil
}

// workloads times each.
func (g *Guest) workloads() (map[string]time.Duration, error) {
	if err := g.t.wait(settled); err != nil {
		return nil, err
	}
	took := map[string]time.Duration{}
	for _, some := range [][]workload{steady, changing} {
		for range timings {
			for _, w := range some {
				start := time.Now()
				if _, err := g.Run(w.command); err != nil {
					return nil, err
				}
				if d := time.Since(start); took[w.name] == 0 || d < took[w.name] {
					took[w.name] = d
				}
			}
		}
	}
	return took, nil
}

// eachGuard times a guest with each guard alone.
func eachGuard(g *Guest, base map[string]time.Duration) error {
	st, err := g.Status()
	if err != nil {
		return err
	}
	for _, one := range st.Guards {
		args := []string{"set", g.Name, "--guard", one.Name + "=default"}
		for _, other := range st.Guards {
			if other.Name != one.Name {
				args = append(args, "--guard", other.Name+"=off")
			}
		}
		if err := g.t.HVICtl(nil, args...); err != nil {
			return err
		}
		took, err := g.workloads()
		if err != nil {
			return fmt.Errorf("guard %s: %w", one.Name, err)
		}
		facts := map[string]float64{}
		for name, d := range took {
			facts[name] = percent(d, base[name])
		}
		g.t.Fact("percent.guard."+one.Name, facts)
	}
	return nil
}
