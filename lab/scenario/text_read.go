package scenario

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	for _, s := range []struct{ name, on, kernel string }{
		{"text-read", "Debian 12's, 6.1", ""},
		{"text-read-old", "Debian 11's, 5.10", "5.10-cloud"},
		{"text-read-middle", "6.12", "6.12-cloud"},
		{"text-read-next", "the next Debian's, 7.2", "7.2-cloud"},
	} {
		Register(Scenario{
			Name:          s.name,
			Brief:         "Only the kernel reads its code; a module that does is reported or gets other bytes: " + s.on,
			Emulator:      Bochs,
			GuestKernel:   s.kernel,
			GuestPrograms: []string{"lab/cmd/chores"},
			Timeout:       60 * time.Minute,
			Run:           textRead,
		})
	}
}

// readGuard is the guard in question.
const readGuard = "kernel-text-read"

// readChores are those chores, and how often, in which a kernel reads its code.
var readChores = map[string]int{
	"modules": 3, "static-keys": 3, "ftrace": 3, "kprobes": 1, "events": 3, "livepatch": 2,
	"bpf-filter": 2, "bpf-trace": 2, "bpf-xdp": 2, "perf": 2, "watchpoint": 2,
}

// peeks are the ways in which the module reads the kernel's code, testdata/attack/peep.c.
var peeks = []string{"load", "alias", "rep", "copy", "pull"}

func textRead(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Memory, c.Programs = 256, true
	c.Lines = append(c.Lines, `introspection_guards = ["`+readGuard+`=block"]`)
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	g.guardsBlock(st, readGuard, "kernel-text")
	if err := g.readsItself(); err != nil {
		return err
	}

	blocked, err := g.peekAll("block", journal.Blocked)
	if err != nil {
		return err
	}
	// In a page that has a shadow, too.
	if err := t.breakpoint("set", g, victim); err != nil {
		return err
	}
	shadowed, err := g.peek("load", "block", journal.Blocked)
	if err != nil {
		return err
	}
	if err := g.guardReads("alert"); err != nil {
		return err
	}
	hidden, err := g.peek("load", "alert", journal.Alerted)
	if err != nil {
		return err
	}
	if err := t.breakpoint("clear", g, victim); err != nil {
		return err
	}
	reported, err := g.peekAll("alert", journal.Alerted)
	if err != nil {
		return err
	}
	if err := g.guardReads("off"); err != nil {
		return err
	}
	free, err := g.peekAll("off", "")
	if err != nil {
		return err
	}
	for _, way := range peeks {
		t.Check(free[way] == free["load"] && reported[way] == free["load"], "%s: unguarded it reads the code, and so it does where that is reported: %#x, %#x", way, free[way], reported[way])
		t.Check(blocked[way] != free["load"], "%s: blocked, it gets something else: %#x", way, blocked[way])
	}
	t.Check(shadowed != free["load"] && hidden == free["load"], "with a hidden breakpoint in the page it is the same, which is not seen: %#x and %#x", shadowed, hidden)
	return g.Shutdown()
}

// readsItself has the kernel do what makes it read its code.
func (g *Guest) readsItself() error {
	t := g.t
	if err := g.mountForChores(); err != nil {
		return err
	}
	before, err := g.Status()
	if err != nil {
		return err
	}
	facts := map[string]any{}
	for _, ch := range chores {
		times := readChores[ch.name]
		if times == 0 {
			continue
		}
		start := time.Now()
		was := guardStatus(before, readGuard)
		out, err := g.runWithin(choreLimit, fmt.Sprintf("set -- %d; %s", times, ch.command))
		if err != nil {
			return fmt.Errorf("%s: %w: %s", ch.name, err, lastLines(out, 4))
		}
		if before, err = g.noAlarm(ch.name, before, facts, time.Since(start)); err != nil {
			return err
		}
		facts[ch.name].(map[string]any)["reads"] = guardStatus(before, readGuard).Passed - was.Passed
	}
	t.Fact("chores", facts)

	// And what reads all of it.
	if _, err := g.Run("echo 0 >" + tracing + "tracing_on"); err != nil {
		return err
	}
	was := guardStatus(before, readGuard)
	on, off, err := g.traceAll()
	if err != nil {
		return err
	}
	if before, err = g.noAlarm("tracer", before, map[string]any{}, 0); err != nil {
		return err
	}
	t.Fact("tracer", map[string]any{
		"on_seconds": round(on), "off_seconds": round(off), "reads": guardStatus(before, readGuard).Passed - was.Passed,
		"opened": before.Counters.Opened,
	})
	return nil
}

// guardReads sets what the guard does.
func (g *Guest) guardReads(action string) error {
	if _, err := g.t.Exec("hvictl", "set", g.Name, "--live", "--guard", readGuard+"="+action); err != nil {
		return err
	}
	_, err := g.WaitState(protectLimit, control.StateProtecting)
	return err
}

// peekAll reads the kernel's code in each way.
func (g *Guest) peekAll(action string, want journal.Action) (map[string]uint64, error) {
	sums := map[string]uint64{}
	for _, way := range peeks {
		sum, err := g.peek(way, action, want)
		if err != nil {
			return nil, err
		}
		sums[way] = sum
	}
	g.t.Fact(action, sums)
	return sums, nil
}

var peeked = regexp.MustCompile(`hvi-peep: mode=(\S+) address=0x([0-9a-f]+) sum=0x([0-9a-f]+)`)

// peek has the module read the kernel's code, and returns the sum of what it got. It
// checks that this is recorded as it should be, "" being not at all.
func (g *Guest) peek(way, action string, want journal.Action) (uint64, error) {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return 0, err
	}
	at, err := g.addresses(victim, "copy_from_kernel_nofault", "text_poke")
	if err != nil {
		return 0, err
	}
	args := " address=" + at[victim] + " pull=" + at["copy_from_kernel_nofault"] + " feigned=" + at["text_poke"]
	out, err := g.Run("insmod /lib/peep.ko mode=" + way + args + "; dmesg | grep hvi-peep | tail -n 1; rmmod peep")
	if err != nil {
		return 0, err
	}
	m := peeked.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%w: %s", ErrNoVerdict, lastLines(out, 4))
	}
	sum, err := strconv.ParseUint(m[3], 16, 64)
	if err != nil {
		return 0, err
	}
	after, err := g.Events()
	if err != nil {
		return 0, err
	}
	made := after[len(before):]
	if want == "" {
		t.Check(len(made) == 0, "%s, %s: nothing is recorded: %d", action, way, len(made))
		return sum, nil
	}
	if !t.Check(len(made) > 0, "%s, %s: it is recorded", action, way) {
		return sum, nil
	}
	ofVictim := false // in whichever: some kernels' memcpy begins at the end
	for i, r := range made {
		who := string(r.RIP.Module)
		for _, l := range r.Calls {
			who += " " + string(l.Module)
		}
		mem := r.Target.Memory
		// Of the later ones some are written when the module has gone.
		t.Check(r.Guard == readGuard && r.Action == want && r.Detail.Access == "r" && mem != nil && (i > 0 || strings.Contains(who, "peep")),
			"%s, %s: as a read by the module: %s", action, way, r.Summary())
		ofVictim = ofVictim || mem != nil && mem.Symbol == victim
	}
	t.Check(ofVictim, "%s, %s: of what it read", action, way)
	return sum, nil
}
