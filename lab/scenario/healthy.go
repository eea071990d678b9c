package scenario

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
)

func init() {
	const alone, atOnce = "one by one and all at once", "all at once for ten minutes"
	for _, s := range []struct {
		name, how, on, kernel string
	}{
		{"healthy", alone, "Debian 12's, 6.1", ""},
		{"healthy-long", atOnce, "Debian 12's, 6.1", ""},
		{"healthy-old", alone, "Debian 11's, 5.10", "5.10-cloud"},
		{"healthy-middle", alone, "6.12", "6.12-cloud"},
		{"healthy-next", alone, "the next Debian's, 7.2", "7.2-cloud"},
		{"healthy-next-long", atOnce, "7.2", "7.2-cloud"},
	} {
		Register(Scenario{
			Name:          s.name,
			Brief:         "No alarm under linux-strict while a kernel does its chores, " + s.how + ": " + s.on,
			Emulator:      Bochs,
			GuestKernel:   s.kernel,
			GuestPrograms: []string{"lab/cmd/chores"},
			Memory:        2048,
			Timeout:       4 * time.Hour,
			Run: func(t *T) error {
				if s.how == atOnce {
					return healthy(t, nil, 10*time.Minute)
				}
				return healthy(t, chores, time.Minute)
			},
		})
	}
}

const (
	// choreLimit is how long a chore may take, emulated.
	choreLimit = 10 * time.Minute
	// choreTurns is how often each is done by itself.
	choreTurns = 100
)

const tracing = "/sys/kernel/tracing/"

// chore is something that a healthy kernel does to itself, or has others do.
type chore struct {
	name string
	// command does it $1 times and ends with a code other than 0 where it fails.
	command string
	// times is how often, 0 for choreTurns.
	times int
}

func each(command string) string {
	return "i=0; while [ $i -lt $1 ]; do { " + command + "; } || exit 1; i=$((i+1)); done"
}

// chores are the smallest things first.
var chores = []chore{
	{name: "modules", command: each("insmod /lib/fat.ko && rmmod fat")},
	{name: "static-keys", command: each("echo 1 >/proc/sys/kernel/sched_schedstats && echo 0 >/proc/sys/kernel/sched_schedstats")},
	// Once as many functions as there are, else those of files.
	{name: "ftrace", command: "cd " + tracing + " && " + each(
		`if [ $i -eq 50 ]; then echo >set_ftrace_filter; else echo 'vfs_*' >set_ftrace_filter; fi && echo function >current_tracer && ls / >/dev/null && `+
			`echo nop >current_tracer`) + "; echo >set_ftrace_filter; echo >trace"},
	{name: "kprobes", command: "cd " + tracing + " && " + each(
		`echo 'p:chore vfs_rmdir' >kprobe_events && echo 'r:chore_back vfs_mkdir' >>kprobe_events && echo 1 >events/kprobes/enable && mkdir /tmp/kp && rmdir /tmp/kp && `+
			`echo 0 >events/kprobes/enable && echo >kprobe_events`)},
	{name: "events", command: "cd " + tracing + " && " + each("echo 1 >events/sched/enable && ls / >/dev/null && echo 0 >events/sched/enable") + "; echo >trace"},
	{name: "bpf-filter", command: "chores filter $1"},
	// The kernel waits for all its tasks each time.
	{name: "bpf-trace", command: "chores trace $1", times: 20},
	{name: "bpf-xdp", command: "chores xdp $1"},
	{name: "perf", command: "chores perf $1"},
	{name: "watchpoint", command: "chores watch $1"},
	{name: "containers", command: "chores namespaces $1"},
	{name: "livepatch", command: each("insmod /lib/livepatch.ko && grep -q patched /proc/cmdline && echo 0 >/sys/kernel/livepatch/livepatch/enabled && " +
		"{ n=0; while [ -e /sys/kernel/livepatch/livepatch ] && [ $n -lt 200 ]; do usleep 100000; n=$((n+1)); done; rmmod livepatch; } && ! grep -q patched /proc/cmdline"), times: 10},
	{name: "stopped", command: "sleep 1000 & p=$!; " + each("kill -STOP $p && kill -CONT $p") + "; kill $p"},
	{name: "files", command: each("rm -rf /tmp/pkg && mkdir -p /tmp/pkg/a/b && cp /init /tmp/pkg/a && ln -s a /tmp/pkg/l && tar -C /tmp -cf /tmp/pkg.tar pkg && tar -C /tmp/pkg/a/b -xf /tmp/pkg.tar && " +
		"sha256sum /tmp/pkg.tar >/tmp/pkg.sum && sha256sum -c /tmp/pkg.sum >/dev/null && chmod -R 700 /tmp/pkg && /bin/busybox true")},
	{name: "log", command: "echo on >/proc/sys/kernel/printk_devkmsg; " + each("for l in a b c d e f g h i j; do echo \"<7>chore $l\" >/dev/kmsg || exit 1; done")},
}

// mountForChores gives the guest the file systems that they need.
func (g *Guest) mountForChores() error {
	for _, dir := range []string{"tracefs " + tracing, "tmpfs /tmp"} {
		kind, at, _ := strings.Cut(dir, " ")
		if _, err := g.Run(fmt.Sprintf("mkdir -p %s; mount -t %s %s %[1]s", at, kind, kind)); err != nil {
			return err
		}
	}
	return nil
}

// healthy has a guest that is watched as closely as can be do some of them one by one, and
// then all of them at once for a while.
func healthy(t *T, alone []chore, together time.Duration) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := GuestConfig{
		Name: "healthy", Memory: 512, Programs: true, Altp2m: enforce.Altp2m,
		Lines: []string{`introspection = "enforce"`, `introspection_policy = "linux-strict"`, `introspection_guards = ["dpi=block"]`},
	}
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Fact("guest_kernel", st.GuestKernel)
	if err := g.mountForChores(); err != nil {
		return err
	}
	if _, err := g.Run("ifconfig lo 127.0.0.1"); err != nil {
		return err
	}
	before, err := g.Status()
	if err != nil {
		return err
	}
	facts := map[string]any{}
	for _, ch := range alone {
		start := time.Now()
		times := cmp.Or(ch.times, choreTurns)
		out, err := g.runWithin(choreLimit, fmt.Sprintf("set -- %d; %s", times, ch.command))
		if _, failed := errors.AsType[*CommandError](err); err != nil && !failed {
			return err
		}
		took := time.Since(start)
		t.Check(err == nil, "the kernel does %s %d times: %v %s", ch.name, times, err, out)
		if before, err = g.noAlarm(ch.name, before, facts, took); err != nil {
			return err
		}
	}
	t.Fact("chores", facts)
	if err := g.allAtOnce(before, together); err != nil {
		return err
	}
	return g.Shutdown()
}

// noAlarm checks that no guard has taken for an attack what went on since.
func (g *Guest) noAlarm(what string, before control.DomainStatus, facts map[string]any, took time.Duration) (control.DomainStatus, error) {
	t := g.t
	st, err := g.Status()
	if err != nil {
		return st, err
	}
	t.Check(st.State == before.State, "%s: the guest is %s still: %s", what, before.State, st.State)
	for _, is := range st.Guards {
		was := guardStatus(before, is.Name)
		if is.Events != was.Events || is.State != was.State {
			t.Check(false, "%s: %s has %d alarms more and is %s %s, was %s", what, is.Name, is.Events-was.Events, is.State, is.Reason, was.State)
		}
	}
	events, err := g.Events()
	if err != nil {
		return st, err
	}
	summary := ""
	if len(events) > 0 {
		summary = events[len(events)-1].Summary()
	}
	t.Check(len(events) == 0, "%s: no alarm: %d, %s", what, len(events), summary)
	facts[what] = map[string]any{"seconds": round(took), "ring_events": st.Counters.RingEvents - before.Counters.RingEvents}
	return st, nil
}

// choresEnd waits until each is through with its last round. The error says which are not
// in time, and how the guest is.
func (g *Guest) choresEnd() error {
	names := make([]string, len(chores))
	for i, ch := range chores {
		names[i] = ch.name
	}
	out, err := g.runWithin(2*choreLimit, fmt.Sprintf("cd /tmp/rounds; n=0; until [ $(ls *.end 2>/dev/null | wc -l) -eq %d ]; do n=$((n+1)); "+
		"[ $n -lt %d ] || { for c in %s; do [ -e $c.end ] || { echo \"$c: $(tail -n 1 $c.log)\"; }; done; ps; free; df /tmp; dmesg | grep -i 'killed process'; exit 1; }; sleep 1; done",
		len(chores), int(choreLimit.Seconds()), strings.Join(names, " ")))
	if _, failed := errors.AsType[*CommandError](err); failed {
		return fmt.Errorf("not all chores have ended: %s", out)
	}
	return err
}

// allAtOnce has all of them done again and again, beside each other.
func (g *Guest) allAtOnce(before control.DomainStatus, d time.Duration) error {
	t := g.t
	// One command is one line, and each chore a process with a count.
	for _, ch := range chores {
		command := fmt.Sprintf("mkdir -p /tmp/rounds; : >/tmp/going; (cd /; set -- 1; while [ -e /tmp/going ]; do (%s) >/tmp/rounds/%s.log 2>&1 && echo >>/tmp/rounds/%[2]s; done; : >/tmp/rounds/%[2]s.end) </dev/null >/dev/null 2>&1 &", ch.command, ch.name)
		if _, err := g.Run(command); err != nil {
			return err
		}
	}
	start := time.Now()
	if err := t.wait(d); err != nil {
		return err
	}
	if _, err := g.Run("rm /tmp/going"); err != nil {
		return err
	}
	if err := g.choresEnd(); err != nil {
		return err
	}
	// And until everything has been looked at since.
	if err := t.wait(lookLimit); err != nil {
		return err
	}
	facts := map[string]any{}
	if _, err := g.noAlarm("together", before, facts, time.Since(start)); err != nil {
		return err
	}
	for _, ch := range chores {
		out, err := g.Run("wc -l </tmp/rounds/" + ch.name)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(strings.TrimSpace(out))
		t.Check(err == nil && n > 0, "beside all the others, the kernel does %s: %d times", ch.name, n)
		facts["rounds."+ch.name] = n
	}
	t.Fact("together", facts)
	return nil
}
