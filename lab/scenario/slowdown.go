package scenario

import (
	"fmt"
	"math"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	Register(Scenario{
		Name:     "slowdown",
		Brief:    "What protection costs a guest: boot, fork and exec, files, system calls, modules, its own patching",
		Emulator: Bochs,
		Timeout:  40 * time.Minute,
		Run:      slowdown,
	})
}

// workloads are what a guest is timed at. Each takes some emulated seconds at most.
var workloads = []struct{ name, command string }{
	{"fork-exec", "i=0; while [ $i -lt 60 ]; do /bin/busybox true; i=$((i+1)); done"},
	{"files", "i=0; while [ $i -lt 5 ]; do dd if=/dev/zero of=/f bs=4k count=500 2>/dev/null; cat /f >/dev/null; rm /f; i=$((i+1)); done"},
	{"syscalls", "dd if=/dev/zero of=/dev/null bs=1 count=20000 2>/dev/null"},
	{"modules", "i=0; while [ $i -lt 3 ]; do insmod /lib/fat.ko && rmmod fat; i=$((i+1)); done"},
	{"patching", "i=0; while [ $i -lt 3 ]; do echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1)); done"},
}

// timings is how often each is timed. The shortest counts: nothing makes a machine
// that counts instructions quicker, and what runs beside makes it slower.
const timings = 3

// slowdown times a guest without protection, and with each mode. The emulator's
// clock counts instructions, those of Xen and of hvid among them, since all share
// one processor.
func slowdown(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	base := map[string]time.Duration{}
	for _, mode := range []string{"off", "observe", "enforce"} {
		took, err := timed(t, mode)
		if err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
		facts := map[string]any{}
		for name, d := range took {
			if mode == "off" {
				base[name] = d
			}
			facts[name] = map[string]any{
				"instructions": int64(d.Seconds() * instructionsPerSecond),
				"percent":      math.Round(float64(d-base[name])/float64(base[name])*1000) / 10,
			}
		}
		t.Fact("took."+mode, facts)
	}
	return nil
}

func timed(t *T, mode string) (map[string]time.Duration, error) {
	c := enforce
	c.Name, c.Lines = mode, []string{fmt.Sprintf("introspection = %q", mode)}
	took := map[string]time.Duration{}
	start := time.Now()
	g, err := t.StartGuest(c)
	if err != nil {
		return nil, err
	}
	if _, err := g.WaitUp(); err != nil {
		return nil, err
	}
	took["boot"] = time.Since(start)
	want := control.StateProtecting
	if mode == "off" {
		want = control.StateUnprotected
	}
	before, err := g.WaitState(protectLimit, want)
	if err != nil {
		return nil, err
	}
	for range timings {
		for _, w := range workloads {
			start := time.Now()
			if _, err := g.Run(w.command); err != nil {
				return nil, err
			}
			if d := time.Since(start); took[w.name] == 0 || d < took[w.name] {
				took[w.name] = d
			}
		}
	}
	after, err := g.Status()
	if err != nil {
		return nil, err
	}
	for _, gs := range after.Guards {
		t.Check(gs.Events == 0, "%s takes nothing of it for an attack: %d", gs.Name, gs.Events)
	}
	t.Fact("events."+mode, after.Counters.RingEvents-before.Counters.RingEvents)
	return took, g.Shutdown()
}
