package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	Register(Scenario{
		Name:     "tiers-amd",
		Brief:    "A guest of 4 vCPUs on AMD: registers guarded on each, one brought back online too, kernel text compared",
		Emulator: QEMU,
		Timeout:  40 * time.Minute,
		Run:      tiersAMD,
	})
}

const (
	// tierProcessors are the guest's.
	tierProcessors = 4
	// unwanted is what is overwritten for good: a function that nobody calls, and
	// whose guest can still be shut down.
	unwanted = "kernel_restart"
	// scanPeriod is within what time hvid says that it finds a change, and
	// foundLimit that with the looks that confirm it and an emulator's speed.
	scanPeriod = 30 * time.Second
	foundLimit = scanPeriod + 15*time.Second
)

func tiersAMD(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m, c.VCPUs, c.Memory = "", tierProcessors, 256
	c.KernelArgs = liveArgs
	g, err := t.StartGuest(c)
	if err != nil {
		return err
	}
	if _, err := g.waitUp(liveBootLimit); err != nil {
		return err
	}
	st, err := g.WaitState(protectLimit, control.StateDegraded)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierRegisters, "tier is registers: %s", st.Tier)
	n, err := g.Run("nproc")
	if err != nil {
		return err
	}
	t.Check(n == fmt.Sprint(tierProcessors), "the guest has %d processors: %s", tierProcessors, n)
	bits, err := g.controlAttacks()
	if err != nil {
		return err
	}
	for cpu := range tierProcessors {
		if err := g.guardedOn(cpu, slices.Concat([]string{"star", "lstar"}, bits)); err != nil {
			return err
		}
	}
	if err := g.comesUpAgain(tierProcessors-1, bits); err != nil {
		return err
	}
	if err := g.denialHolds(); err != nil {
		return err
	}
	if err := g.patchedInPeace(); err != nil {
		return err
	}
	if err := g.foundLater(); err != nil {
		return err
	}
	if err := g.doctor(control.TierRegisters, 7); err != nil {
		return err
	}
	return t.Step("shutdown", g.Shutdown)
}

// guardedOn attacks on one of the guest's processors: the module does so where
// insmod runs.
func (g *Guest) guardedOn(cpu int, modes []string) error {
	for _, mode := range modes {
		out, err := g.Run(fmt.Sprintf("taskset %#x attack %s", 1<<cpu, mode))
		if err != nil {
			return err
		}
		v, err := parseVerdict(out)
		if err != nil {
			return err
		}
		g.t.Check(!v.Written, "attack %s on processor %d is blocked: before %#x, after %#x", mode, cpu, v.Before, v.After)
	}
	return nil
}

// comesUpAgain takes a processor of the guest's offline and back. On its way up it
// clears what it is guarded for then, which is no attack.
func (g *Guest) comesUpAgain(cpu int, modes []string) error {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return err
	}
	online := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu)
	for _, value := range []string{"0", "1"} {
		err := t.Step("online-"+value, func() error {
			out, err := g.Run("echo " + value + " > " + online + " && cat " + online)
			t.Check(lastWord(out) == value, "processor %d is online, %s: %q", cpu, value, out)
			return err
		})
		if err != nil {
			return err
		}
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	was, is := guardStatus(before, "cr"), guardStatus(after, "cr")
	t.Fact("cr_writes_of_hotplug", is.Passed-was.Passed)
	t.Check(is.Events == was.Events && is.Passed > was.Passed, "the guard saw it come up and took it for no attack: %d violations, %d writes passed", is.Events-was.Events, is.Passed-was.Passed)
	return g.guardedOn(cpu, modes)
}

// ownPatches are ways in which the kernel patches its own code that a guest of the
// lab can be made to take.
var ownPatches = []struct{ what, command string }{
	{"static keys", "echo 1 > /proc/sys/kernel/sched_schedstats; cat /proc/sys/kernel/sched_schedstats"},
	{"tracefs", "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; test -e /sys/kernel/tracing/kprobe_events && echo 1"},
	{"a kprobe", "echo 'p:hvi vfs_read' > /sys/kernel/tracing/kprobe_events && echo 1 > /sys/kernel/tracing/events/kprobes/hvi/enable && echo 1"},
	{"static calls of tracepoints", "echo 1 > /sys/kernel/tracing/events/sched/sched_switch/enable && echo 1"},
	{"a traced function", "cd /sys/kernel/tracing && echo vfs_write > set_ftrace_filter && echo function > current_tracer && echo 1"},
}

// patchedInPeace has the kernel patch its code in each way it has, lets it be
// compared as a whole, and wants no alarm.
func (g *Guest) patchedInPeace() error {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return err
	}
	for _, p := range ownPatches {
		out, err := g.Run(p.command)
		if err != nil {
			return err
		}
		t.Check(lastWord(out) == "1", "the kernel patches itself for %s: %q", p.what, out)
	}
	err = t.Stays(foundLimit, "no patch of the kernel's own is taken for an attack", func() (bool, error) {
		now, err := g.Status()
		return guardStatus(now, "kernel-text").Events == guardStatus(before, "kernel-text").Events, err
	})
	t.Check(err == nil, "no patch of the kernel's own is taken for an attack: %v", err)
	// Switched off again, which are other patches.
	_, err = g.Run("cd /sys/kernel/tracing; echo nop > current_tracer; echo 0 > events/enable; echo > kprobe_events; echo 0 > /proc/sys/kernel/sched_schedstats; echo 1")
	return err
}

func lastWord(s string) string {
	f := strings.Fields(s)
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1]
}

// foundLater overwrites kernel text, which can't be prevented here, and wants it
// found within the stated time, once, as found and not as blocked.
func (g *Guest) foundLater() error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	tried := map[string]Verdict{}
	for _, a := range foundAttacks {
		v, err := g.Attack(Attack{Mode: "keep", Symbol: a.symbol})
		if err != nil {
			return err
		}
		if !t.Check(v.Written, "without page access the write to %s lands", a.symbol) {
			return nil
		}
		tried[a.guard] = v
	}
	start := time.Now()
	var events []journal.Record
	err = t.Eventually(foundLimit, "the changes are found", func() (bool, error) {
		all, err := g.Events()
		if err != nil {
			return false, err
		}
		events = slices.DeleteFunc(slices.Clone(all[len(before):]), func(r journal.Record) bool { return r.Target.Memory == nil })
		return len(events) >= len(foundAttacks), nil
	})
	if err != nil {
		return err
	}
	t.Fact("scan.seconds", round(time.Since(start)))
	t.Check(len(events) == len(foundAttacks), "each is told once: %d", len(events))
	for _, r := range events {
		t.Fact("event.found."+r.Guard, r)
		v, expected := tried[r.Guard]
		t.Check(r.Action == journal.Found && expected, "as found, by %s: %s", r.Guard, r.Action)
		if m := r.Target.Memory; t.Check(m != nil, "with its place: %+v", r.Target) {
			off := v.Address - uint64(m.Addr)
			t.Check(off < 64 && off < uint64(len(r.Attempted.Bytes)) && r.Attempted.Bytes[off] == byte(v.Tried),
				"which is that of the attack (%#x), with the byte written there (%#x): %s, %s", v.Address, v.Tried, r.Target, r.Attempted)
		}
	}
	st, err := g.Status()
	if err != nil {
		return err
	}
	for _, a := range foundAttacks {
		gs := guardStatus(st, a.guard)
		t.Check(gs.Found == 1 && gs.Blocked == 0, "status says found, and not blocked: %+v", gs)
	}
	return nil
}

// foundAttacks are on memory that can be compared where it can't be guarded.
var foundAttacks = []dataAttack{{unwanted, "kernel-text"}, {"linux_proc_banner", "kernel-rodata"}, {"raw_data", "vdso"}}
