package scenario

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	for _, s := range []struct{ name, on, kernel string }{
		{"process", "Debian 12's, 6.1", ""},
		{"process-old", "Debian 11's, 5.10", "5.10-cloud"},
		{"process-middle", "6.12", "6.12-cloud"},
		{"process-next", "the next Debian's, 7.2", "7.2-cloud"},
	} {
		Register(Scenario{
			Name:          s.name,
			Brief:         "Exploits that execute, and hands on protected processes: off, alert, block, kill: " + s.on,
			Emulator:      Bochs,
			GuestKernel:   s.kernel,
			GuestPrograms: []string{"lab/cmd/chores"},
			Timeout:       40 * time.Minute,
			Run:           processes,
		})
	}
}

// processPolicy is the policy of the guest that they are shown in.
const processPolicy = `protected_processes = ["victim*"]
childless_processes = ["front"]
sealed_processes = ["sealed", "victim*", "chores", "busybox"]
reported_processes = ["reporter"]
`

// deed is what a process of files/exploit.c does, which is a violation of a guard's.
type deed struct {
	name, guard, what string
	// args are the program's; of hands on a process the number of that follows.
	args string
	hand bool
	// comm is what the process is called.
	comm string
}

// deeds are two ways at least for each guard.
var deeds = []deed{
	{name: "exec from code injected into new memory", guard: "dpi", what: "code that is in no file", args: "code /bin/busybox echo ran"},
	{name: "exec with the stack moved to the heap", guard: "dpi", what: "the heap", args: "stack /bin/busybox echo ran"},
	{name: "exec with the stack moved to a program's data", guard: "dpi", what: "a file's memory", args: "data /bin/busybox echo ran"},
	{name: "program started by a process that may start none", guard: "process", what: "may start none", args: "child front /bin/busybox echo ran", comm: "front"},
	{name: "ptrace", guard: "process", what: "trace a process", args: "ptrace", hand: true},
	{name: "process_vm_writev", guard: "process", what: "writes into", args: "vm", hand: true},
	{name: "/proc/PID/mem", guard: "process", what: "opens the memory", args: "mem", hand: true},
}

// rightful is what healthy processes do that looks like it.
var rightful = []struct{ name, args, want string }{
	{"exec as everybody does", "plain /bin/busybox echo ran", "ran"},
	{"exec on a stack of mmap's", "mapped /bin/busybox echo ran", "ran"},
	{"exec on a stack for signals in the heap", "signal /bin/busybox echo ran", "ran"},
	{"a program started by a child of another name", "child back /bin/busybox echo ran", "ran"},
	{"reading a process by process_vm_readv", "read $v", "done"},
	{"reading a process through /proc/PID/mem", "open $v", "done"},
}

// deedOutcome is a row of what the scenario shows.
type deedOutcome struct {
	Deed     string         `json:"deed"`
	Guard    string         `json:"guard"`
	Action   string         `json:"action"`
	Landed   bool           `json:"landed"`
	Reported journal.Action `json:"reported,omitempty"`
	What     string         `json:"what,omitempty"`
}

func processes(t *T) error {
	const policies = "/etc/hvi/policies"
	if err := os.MkdirAll(policies, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(policies+"/processes.toml", []byte(processPolicy), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(policies + "/processes.toml") }()
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Programs, c.Memory = true, 256
	c.Lines = append([]string{`introspection_policy = "processes"`, `introspection_guards = ["dpi=off", "process=off"]`}, enforce.Lines...)
	g, err := t.StartGuest(c)
	if err != nil {
		return err
	}
	release, err := g.WaitUp()
	if err != nil {
		return err
	}
	t.Fact("guest_kernel", release)
	st, err := g.WaitState(protectLimit, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierViews, "its tier is views: %s %s", st.Tier, st.TierReason)
	if _, err := g.Run("mount -t tmpfs tmpfs /tmp"); err != nil {
		return err
	}
	var table []deedOutcome
	defer func() { t.Fact("outcomes", table) }()
	for _, action := range []string{"off", "alert", "block", "kill"} {
		if st, err = g.setDeeds(action); err != nil {
			return err
		}
		for _, d := range deeds {
			o, err := g.does(d, action)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", d.name, action, err)
			}
			table = append(table, o)
		}
		if err := g.doesRightly(action); err != nil {
			return err
		}
	}
	if err := g.isSealed(); err != nil {
		return err
	}
	if err := g.execsAsThief(); err != nil {
		return err
	}
	if err := g.isReported(); err != nil {
		return err
	}
	if err := g.execCost(); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return g.Shutdown()
}

// setDeeds sets the action of both guards.
func (g *Guest) setDeeds(action string) (st control.DomainStatus, err error) {
	return g.setEach(action, action)
}

// setEach sets that of each.
func (g *Guest) setEach(dpi, process string) (st control.DomainStatus, err error) {
	t := g.t
	if _, err := t.Exec("hvictl", "set", g.Name, "--live", "--guard", "dpi="+dpi, "--guard", "process="+process); err != nil {
		return st, err
	}
	if st, err = g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return st, err
	}
	for name, action := range map[string]string{"dpi": dpi, "process": process} {
		want := control.GuardArmed
		if action == "off" {
			want = control.GuardOff
		}
		gs := guardStatus(st, name)
		t.Check(gs.State == want && gs.Action == action, "guard %s is %s: %+v", name, action, gs)
	}
	t.Check(len(st.Breakpoints) == 0, "hvictl breakpoint shows an admin's alone: %+v", st.Breakpoints)
	return st, nil
}

// does makes a process do it, and checks what the guard owes.
func (g *Guest) does(d deed, action string) (o deedOutcome, err error) {
	t := g.t
	o = deedOutcome{Deed: d.name, Guard: d.guard, Action: action}
	before, err := g.Events()
	if err != nil {
		return o, err
	}
	command := "exploit " + d.args
	if d.hand {
		command = "exploit victim victim1 >/tmp/v & sleep 1; v=$(head -n 1 /tmp/v); exploit " + d.args + " $v; echo status=$?; sleep 1; cat /tmp/v; kill $v 2>/dev/null; wait"
	} else {
		command += "; echo status=$?"
	}
	out, err := g.Run(command)
	if err != nil {
		return o, err
	}
	if o.Landed = strings.Contains(out, "ran"); d.hand {
		o.Landed = strings.Contains(out, "changed")
	}
	if action == "off" {
		t.Check(o.Landed, "%s: it succeeds with the guard off: %q", d.name, out)
		return o, nil
	}
	events, err := g.eventsAfter(before, stopLimit, d.name+" is reported")
	if err != nil {
		return o, err
	}
	r := events[0]
	o.Reported = r.Action
	t.Fact("event."+action+"."+d.name, r)
	want := map[string]journal.Action{"alert": journal.Alerted, "block": journal.Blocked, "kill": journal.Killed}[action]
	comm := d.comm
	if comm == "" {
		comm = "exploit"
	}
	call := r.Target.Call
	if !t.Check(call != nil, "%s: it is reported as a call: %s", d.name, r.Summary()) {
		return o, nil
	}
	o.What = string(call.What)
	t.Check(len(events) == 1 && r.Guard == d.guard && r.Action == want && strings.Contains(o.What, d.what) && string(r.Process.Comm) == comm,
		"%s under %s: %d records, %s", d.name, action, len(events), r.Summary())
	t.Check(o.Landed == (action == "alert"), "%s under %s: landed %v: %q", d.name, action, o.Landed, out)
	switch action {
	case "block":
		t.Check(strings.Contains(out, "refused 1\n") && (d.guard == "dpi" || strings.Contains(out, "status=1")), "%s: it was told EPERM: %q", d.name, out)
	case "kill":
		t.Check(strings.Contains(out, "status=137") || d.comm != "" && strings.Contains(out, "status=1"), "%s: its process was ended: %q", d.name, out)
	}
	if d.hand {
		t.Check(call.Victim != nil && call.Victim.Comm == "victim1" && call.Program == "", "%s: whom it was done to: %+v", d.name, call.Victim)
	} else {
		t.Check(call.Victim == nil && call.Program == "/bin/busybox", "%s: which program: %q", d.name, call.Program)
	}
	return o, nil
}

// doesRightly has healthy processes do what looks like it.
func (g *Guest) doesRightly(action string) error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	for _, r := range rightful {
		out, err := g.Run("exploit victim victim1 >/tmp/v & sleep 1; v=$(head -n 1 /tmp/v); exploit " + r.args + "; kill $v; wait")
		if err != nil {
			return err
		}
		t.Check(strings.Contains(out, r.want) && !strings.Contains(out, "refused"), "%s goes on under %s: %q", r.name, action, out)
	}
	// Go's programs execute others from stacks of their own.
	out, err := g.Run("chores namespaces 5; echo status=$?")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out, "status=0"), "a program of Go's executes others under %s: %q", action, out)
	after, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(len(after) == len(before), "and none of it is an alarm under %s: %d", action, len(after)-len(before))
	return nil
}

// isSealed has a process that the policy seals take memory that it can execute.
func (g *Guest) isSealed() error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	if _, err := g.Run("exploit hold sealed </dev/null >/dev/null 2>&1 &"); err != nil {
		return err
	}
	events, err := g.eventsAfter(before, lookLimit, "it is found")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event.sealed", r)
	o := r.Target.Object
	t.Check(len(events) == 1 && r.Guard == "process" && r.Action == journal.Found && o != nil && strings.Contains(string(o.Name), "(sealed)") && strings.Contains(string(o.What), "anonymous memory"),
		"a sealed process with memory that it can execute is found: %d, %s", len(events), r.Summary())
	_, err = g.Run("killall sealed 2>/dev/null || for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" = sealed ] && kill ${p#/proc/}; done; true")
	return err
}

// execsAsThief has a process execute that was given the kernel's own credentials.
func (g *Guest) execsAsThief() error {
	t := g.t
	if _, err := g.setDeeds("block"); err != nil {
		return err
	}
	before, err := g.Events()
	if err != nil {
		return err
	}
	out, err := g.Run("exploit later thief /bin/busybox echo ran >/tmp/t & sleep 1; insmod /lib/hide.ko cred=thief; : >/tmp/thief; wait; cat /tmp/t")
	if err != nil {
		return err
	}
	// The look of creds may come first.
	err = t.Eventually(stopLimit, "it is reported", func() (bool, error) {
		all, err := g.Events()
		if err != nil {
			return false, err
		}
		for _, r := range all[len(before):] {
			if r.Guard == "dpi" {
				t.Fact("event.thief", r)
				t.Check(r.Action == journal.Blocked && r.Process.Comm == "thief" && strings.Contains(string(r.Target.Call.What), "init_cred"), "exec with the kernel's own credentials: %s", r.Summary())
				return true, nil
			}
		}
		return false, nil
	})
	t.Check(strings.Contains(out, "refused 1") && !strings.Contains(out, "ran"), "it was told EPERM: %q", out)
	return err
}

// isReported wants a process' fork, its child's exec and its own end recorded.
func (g *Guest) isReported() error {
	t := g.t
	before, err := g.Records()
	if err != nil {
		return err
	}
	if _, err := g.Run("exploit child reporter /bin/busybox true"); err != nil {
		return err
	}
	var what []string
	err = t.Eventually(stopLimit, "all of it is recorded", func() (bool, error) {
		all, err := g.Records()
		if err != nil {
			return false, err
		}
		what = nil
		for _, r := range all[len(before):] {
			if r.Action == journal.Noted && r.Guard == "process" && r.Target.Call != nil && r.Process.Comm == "reporter" {
				what = append(what, string(r.Target.Call.What)+" "+string(r.Target.Call.Program))
			}
		}
		return len(what) >= 3, nil
	})
	t.Fact("reported", what)
	slices.Sort(what)
	t.Check(slices.Equal(what, []string{"ends, with status 0 ", "executes a program /bin/busybox", "makes a process "}), "a listed process' fork, exec and end are recorded: %q", what)
	return err
}

// execCost times programs that are executed with the guards and without. process has
// all its lists: a fork, an exec, a look and an exit are an event each.
func (g *Guest) execCost() error {
	t := g.t
	const each = 60
	took, events := map[string]time.Duration{}, map[string]float64{}
	for _, on := range []struct{ name, dpi, process string }{{"off", "off", "off"}, {"dpi", "block", "off"}, {"both", "block", "block"}} {
		before, err := g.setEach(on.dpi, on.process)
		if err != nil {
			return err
		}
		for range timings {
			start := time.Now()
			if _, err := g.Run(fmt.Sprintf("i=0; while [ $i -lt %d ]; do /bin/busybox true; i=$((i+1)); done", each)); err != nil {
				return err
			}
			if d := time.Since(start); took[on.name] == 0 || d < took[on.name] {
				took[on.name] = d
			}
		}
		after, err := g.Status()
		if err != nil {
			return err
		}
		events[on.name] = float64(after.Counters.RingEvents-before.Counters.RingEvents) / (each * timings)
		is, was := guardStatus(after, "dpi"), guardStatus(before, "dpi")
		if passed := is.Passed - was.Passed; on.name == "dpi" {
			// The shell that is given the command may be executed, too.
			t.Check(passed >= each*timings && passed <= (each+2)*timings && is.Events == was.Events, "each exec was judged, and rightful: %d of %d", passed, each*timings)
		}
	}
	t.Fact("ring_events", events)
	instructions := func(d time.Duration) int64 { return int64(d.Seconds() * instructionsPerSecond / each) }
	t.Fact("exec", map[string]int64{
		"instructions":      instructions(took["off"]),
		"instructions_dpi":  instructions(took["dpi"] - took["off"]),
		"instructions_both": instructions(took["both"] - took["off"]),
	})
	return nil
}
