package scenario

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	for _, s := range []struct{ name, kernel, altp2m, brief string }{
		{"patching", "", "external", "The kernel patches all of its code at once, which stays quick; what others write meanwhile is found"},
		{"patching-access", "", "mixed", "The same where pages are restricted for everybody"},
		{"patching-next", "7.2-cloud", "external", "The same on the next Debian's kernel"},
	} {
		Register(Scenario{
			Name: s.name, Brief: s.brief, Emulator: Bochs, GuestKernel: s.kernel,
			Timeout: 60 * time.Minute,
			Run:     func(t *T) error { return patching(t, s.altp2m) },
		})
	}
	Register(Scenario{
		Name:     "patching-smp",
		Brief:    "A guest of 2 vCPUs patches its code on one and attacks it on the other: what lands is found and undone",
		Emulator: Bochs,
		Timeout:  60 * time.Minute,
		Run:      patchingSMP,
	})
}

// tracings is how often the tracer is switched on and off to be timed: what else hvi does in
// a while, as to look at other things, falls into some of them.
const tracings = 3

// patchingRounds is how often the tracer is switched on and off at most until an attack
// on another processor lands in a page that is open then.
const patchingRounds = 5

// maxPatching bounds how many times as long the kernel takes to switch its function
// tracer on or off under hvi.
const maxPatching = 3

// tracer switches the tracer of all functions.
func (g *Guest) tracer(kind string) (time.Duration, error) {
	start := time.Now()
	out, err := g.Run("echo " + kind + " >" + tracing + "current_tracer; cat " + tracing + "current_tracer")
	if err == nil && strings.TrimSpace(out) != kind {
		err = fmt.Errorf("the tracer is %q, not %s", out, kind)
	}
	return time.Since(start), err
}

// traceAll switches it on and off, and returns what each takes.
func (g *Guest) traceAll() (on, off time.Duration, err error) {
	if on, err = g.tracer("function"); err != nil {
		return 0, 0, err
	}
	off, err = g.tracer("nop")
	return on, off, err
}

// traceSome does so several times, and returns what each time takes on average.
func (g *Guest) traceSome() (on, off time.Duration, err error) {
	for range tracings {
		up, down, err := g.traceAll()
		if err != nil {
			return 0, 0, err
		}
		on, off = on+up/tracings, off+down/tracings
	}
	return on, off, nil
}

// patching has the kernel patch the beginning of each function, without and with
// protection, and attacks it meanwhile and afterwards.
func patching(t *T, altp2m string) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m = altp2m
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Fact("guest_kernel", st.GuestKernel)
	t.Fact("tier", string(st.Tier))
	// The tracer's buffer would fill up, and what is traced is not the point.
	if _, err := g.Run("mount -t tracefs none " + tracing + "; echo 0 >" + tracing + "tracing_on"); err != nil {
		return err
	}
	if err := t.HVICtl(nil, "detach", g.Name); err != nil {
		return err
	}
	freeOn, freeOff, err := g.traceSome()
	if err != nil {
		return err
	}
	if err := t.HVICtl(nil, "attach", g.Name); err != nil {
		return err
	}
	before, err := g.WaitState(protectLimit, control.StateProtecting)
	if err != nil {
		return err
	}
	// Before, to read what the code was would be counted in.
	if err := t.wait(codeKnown); err != nil {
		return err
	}
	on, off, err := g.traceSome()
	if err != nil {
		return err
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	was, is := guardStatus(before, "kernel-text"), guardStatus(after, "kernel-text")
	t.Check(is.Events == was.Events, "none of it is taken for an attack: %d", is.Events-was.Events)
	t.Check(after.Counters.Opened > before.Counters.Opened, "pages are opened: %d", after.Counters.Opened)
	t.Fact("writes_seen", is.Passed-was.Passed)
	t.Fact("pages", map[string]uint64{"opened": after.Counters.Opened, "compared": after.Counters.Compared})

	for _, x := range []struct {
		what      string
		with, out time.Duration
	}{{"on", on, freeOn}, {"off", off, freeOff}} {
		ratio := x.with.Seconds() / x.out.Seconds()
		t.Fact("tracer_"+x.what, map[string]any{
			"instructions":      int64(x.with.Seconds() * instructionsPerSecond),
			"instructions_free": int64(x.out.Seconds() * instructionsPerSecond),
			"ratio":             math.Round(ratio*100) / 100,
		})
		t.Check(ratio <= maxPatching, "to switch the tracer %s takes %.2f times as long as without hvi", x.what, ratio)
	}
	if _, err := g.attackedWhilePatched("", ""); err != nil {
		return err
	}
	if err := g.attackedByPatching(); err != nil {
		return err
	}
	return g.Shutdown()
}

// patchingSMP attacks from a processor that is free while the other patches, so that a
// write comes to the pages which are open at the moment.
func patchingSMP(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.VCPUs = smpProcessors
	c.KernelArgs = liveArgs
	g, _, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	if _, err := g.Run("mount -t tracefs none " + tracing + "; echo 0 >" + tracing + "tracing_on"); err != nil {
		return err
	}
	landed, rounds := false, 0
	for ; !landed && rounds < patchingRounds; rounds++ {
		if landed, err = g.attackedWhilePatched("taskset 1 ", "taskset 2 "); err != nil {
			return err
		}
	}
	t.Fact("rounds", rounds)
	t.Check(landed, "within %d rounds a write lands in a page that is open, and is found and undone", rounds)
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return g.Shutdown()
}

// pwn loads the attack module, and returns what it said last.
func (g *Guest) pwn(arguments string) (Verdict, error) {
	out, err := g.Run("insmod /lib/pwn.ko " + arguments + "; dmesg | grep hvi-pwn | tail -n 1; rmmod pwn")
	if err != nil {
		return Verdict{}, err
	}
	return parseVerdict(out)
}

// textAlarms are the records of a guard about the kernel's code, the latest last.
func (g *Guest) textAlarms(action journal.Action) ([]journal.Record, error) {
	all, err := g.Events()
	var out []journal.Record
	for _, r := range all {
		if r.Guard == "kernel-text" && r.Action == action {
			out = append(out, r)
		}
	}
	return out, err
}

// beyondTracing is an address in a function behind what the kernel patches to trace it: it
// would patch an attacker's byte over there.
func (g *Guest) beyondTracing(name string) (string, error) {
	at, err := g.addresses(name)
	if err != nil {
		return "", err
	}
	va, err := strconv.ParseUint(at[name], 0, 64)
	return fmt.Sprintf("%#x", va+16), err
}

// attackedWhilePatched attacks while the kernel is patching itself, each behind a command
// that says on which processor. What lands in a page that is open is to be found and
// undone.
func (g *Guest) attackedWhilePatched(patcher, attacker string) (landed bool, err error) {
	t := g.t
	target, err := g.beyondTracing(unwanted)
	if err != nil {
		return false, err
	}
	was, err := g.textAlarms(journal.Found)
	if err != nil {
		return false, err
	}
	text, err := g.Run("dmesg -c >/dev/null; (" + attacker + "insmod /lib/pwn.ko mode=keep times=600 address=" + target + ") & " +
		patcher + "sh -c 'echo function >" + tracing + "current_tracer; echo nop >" + tracing + "current_tracer'; wait; dmesg | grep -c BLOCKED; dmesg | grep hvi-pwn | tail -n 1; rmmod pwn")
	if err != nil {
		return false, err
	}
	v, err := parseVerdict(text)
	if err != nil {
		return false, err
	}
	blocked, err := g.textAlarms(journal.Blocked)
	if err != nil {
		return false, err
	}
	t.Check(len(blocked) > 0, "what is written to a closed page is blocked: %d records", len(blocked))
	// On one processor the attacker gets no time before the tracer is switched, and the
	// pages are closed soon after.
	t.Fact("landed_in_open_page", v.Written)
	if v.Written {
		var found []journal.Record
		err = t.Eventually(foundLimit, "the change is found", func() (bool, error) {
			found, err = g.textAlarms(journal.Found)
			return len(found) > len(was), err
		})
		if err != nil {
			return false, err
		}
		r := found[len(found)-1]
		note := string(r.Detail.Note)
		t.Check(r.Target.Memory != nil && uint64(r.Target.Memory.Addr)&^63 == v.Address&^63, "where it was made: %s", r.Target)
		t.Check(strings.Contains(note, "it was undone"), "and undone: %s", note)
	}
	again, err := g.pwn("mode=text address=" + target)
	if err != nil {
		return false, err
	}
	t.Check(again.Before == v.Before, "the code is what it was: %#x, and was %#x", again.Before, v.Before)
	t.Check(!again.Written, "and guarded: %+v", again)
	return v.Written, nil
}

// attackedByPatching has the kernel's own way to patch write what does not belong there.
func (g *Guest) attackedByPatching() error {
	t := g.t
	before, err := g.textAlarms(journal.Found)
	if err != nil {
		return err
	}
	at, err := g.addresses(unwanted, "text_poke")
	if err != nil {
		return err
	}
	v, err := g.pwn("mode=poke poke=" + at["text_poke"] + " address=" + at[unwanted])
	if err != nil {
		return err
	}
	t.Check(v.Written, "the kernel lets a module patch its code: %+v", v)
	var found []journal.Record
	err = t.Eventually(foundLimit, "what was patched is found", func() (bool, error) {
		found, err = g.textAlarms(journal.Found)
		return len(found) > len(before), err
	})
	if err != nil {
		return err
	}
	r := found[len(found)-1]
	t.Check(r.Target.Memory != nil && uint64(r.Target.Memory.Addr)&^63 == v.Address&^63, "where it was made: %s", r.Target)
	return nil
}
