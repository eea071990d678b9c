package scenario

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/inspect"
	"github.com/xen-hvi/hvi/engine/journal"
)

func init() {
	Register(Scenario{
		Name:     "violation-actions",
		Brief:    "One attack has its process killed, one the guest paused and dumped, also while hvid dies, one it shut down",
		Emulator: Bochs,
		Timeout:  30 * time.Minute,
		Run:      violationActions,
	})
}

const (
	// stopLimit is how long it may take until a guest is seen to be paused.
	stopLimit = 10 * time.Second
	// standsStill is for how long one that is paused is watched.
	standsStill = 2 * time.Second
	// dumpLimit is how long a memory dump may take, in the emulator.
	dumpLimit = 4 * time.Minute
)

func violationActions(t *T) error {
	// The control domain lives in its memory.
	dir, err := t.TempDir()
	if err != nil {
		return err
	}
	settings := filepath.Join(dir, "hvid.toml")
	if err := os.WriteFile(settings, []byte("[dumps]\non_violation = true\nmax_count = 2\nmin_free = 0\n"), 0o600); err != nil {
		return err
	}
	hvid, err := t.StartHVID("--config", settings)
	if err != nil {
		return err
	}
	c := enforce
	// What has crashed goes, what has powered off would stay.
	c.Lines = []string{`introspection = "enforce"`, `introspection_guards = [ "idt=kill", "syscall-entry=kill", "syscall-table=pause", "kernel-text=shutdown" ]`, preserve, `on_crash = "destroy"`}
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	t.Check(st.Tier == control.TierViews, "its tier is views: %s %s", st.Tier, st.TierReason)
	at, err := g.dataAddresses()
	if err != nil {
		return err
	}
	for _, a := range []struct {
		guard  string
		attack Attack
	}{
		{"idt", Attack{Mode: "text", Symbol: at["idt_table"]}},
		{"syscall-entry", Attack{Mode: "lstar"}},
	} {
		if err := g.isKilled(a.guard, a.attack); err != nil {
			return err
		}
	}
	attacked, err := g.isPaused(Attack{Mode: "text", Symbol: at["sys_call_table"]})
	if err != nil {
		return err
	}
	if err := g.isDumped(); err != nil {
		return err
	}
	if err := g.resumed(attacked); err != nil {
		return err
	}

	// Again, and hvid dies meanwhile, in one way and the other.
	if attacked, err = g.isPaused(Attack{Mode: "alias", Symbol: at["sys_call_table"]}); err != nil {
		return err
	}
	for _, end := range []struct {
		how string
		do  func() error
	}{
		{"is killed", func() error { return hvid.Signal(syscall.SIGKILL) }},
		{"is stopped", func() error { return hvid.Stop(hvidLimit) }},
	} {
		if err := end.do(); err != nil {
			return err
		}
		if err := g.standsStill("while hvid " + end.how); err != nil {
			return err
		}
		if hvid, err = t.StartHVID("--config", settings); err != nil {
			return err
		}
		if st, err = g.WaitState(protectLimit, control.StateProtecting); err != nil {
			return err
		}
		t.Check(strings.Contains(st.Held, "guard syscall-table paused it, event "), "the next hvid, after one that %s, says why the guest is held: %q", end.how, st.Held)
		if err := g.standsStill("with the next hvid"); err != nil {
			return err
		}
	}
	if err := g.resumed(attacked); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return g.isShutDown(Attack{Mode: "text", Symbol: victim})
}

// isKilled makes an attack for which its process is to be killed, by a process that
// would go on after it.
func (g *Guest) isKilled(guard string, a Attack) error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	arguments := "mode=" + a.Mode
	if a.Symbol != "" {
		arguments += " address=" + a.Symbol
	}
	// The shell becomes insmod, so that its number is known, in a control group of its own.
	out, err := g.Run("mkdir -p /cg; mount -t cgroup2 none /cg; mkdir -p /cg/attacker; dmesg -c >/dev/null; sh -c 'echo $$ >/cg/attacker/cgroup.procs; echo pid=$$; exec insmod /lib/pwn.ko " + arguments + "'; echo status=$?; dmesg | grep hvi-pwn; rmmod pwn; ls /sys/module/pwn 2>/dev/null | wc -l")
	if err != nil {
		return err
	}
	t.Fact("killed."+guard, out)
	v, err := parseVerdict(out)
	if err != nil {
		return err
	}
	t.Check(!v.Written && v.After == v.Before, "%s: the attack has failed: before %#x, tried %#x, after %#x", guard, v.Before, v.Tried, v.After)
	t.Check(strings.Contains(out, "status=137"), "%s: its process was ended by SIGKILL: %s", guard, lastLines(out, 4))
	events, err := g.eventsAfter(before, stopLimit, "the attack is reported")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event.killed."+guard, r)
	t.Check(len(events) == 1 && r.Guard == guard && r.Action == journal.Killed && r.Detail.Note == "", "as blocked, with the process killed: %d records, %s %s", len(events), r.Summary(), r.Detail.Note)
	t.Check(r.Process.Comm == "insmod" && strings.Contains(out, "pid="+strconv.Itoa(int(r.Process.PID))+"\n"), "and which process it was: %+v", r.Process)
	p := r.Process
	t.Check(strings.HasSuffix(string(p.Exe), "/busybox") && p.Cgroup == "/attacker" && p.UID != nil && *p.UID == 0 && p.EUID != nil && *p.EUID == 0 && len(p.Parents) > 0,
		"and its program, control group, user and parents: %+v", p)
	comms, err := g.Run("cat /proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	t.Check(!strings.Contains(comms, "insmod"), "it is there no more: %s", lastLines(comms, 3))
	st, err := g.Status()
	if err != nil {
		return err
	}
	t.Check(st.State == control.StateProtecting && st.Held == "", "the guest goes on, protected: %s, %q", st.State, st.Held)
	return g.lifeGoesOn()
}

// attempt is an attack under way: the guest may not answer for long.
type attempt struct {
	verdict Verdict
	err     error
}

// attackAside attacks without waiting for the verdict.
func (g *Guest) attackAside(a Attack) <-chan attempt {
	done := make(chan attempt, 1)
	go func() {
		v, err := g.Attack(a)
		done <- attempt{v, err}
	}()
	return done
}

// isPaused makes an attack for which the guest is to be paused.
func (g *Guest) isPaused(a Attack) (<-chan attempt, error) {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return nil, err
	}
	attacked := g.attackAside(a)
	events, err := g.eventsAfter(before, stopLimit, "the attack is reported")
	if err != nil {
		return nil, err
	}
	r := events[0]
	t.Fact("event."+a.Mode, r)
	t.Check(len(events) == 1 && r.Guard == "syscall-table" && r.Action == journal.Paused && r.Prevented, "as blocked, with the domain paused: %d records, %s", len(events), r.Summary())
	t.Check(r.RIP.Module == "pwn" && r.Process.Comm == "insmod", "and who it was: %s, %+v", r.RIP, r.Process)
	st, err := g.Status()
	if err != nil {
		return nil, err
	}
	t.Check(strings.Contains(st.Held, "guard syscall-table paused it, event "+string(r.ID)+";"), "hvictl status says so, and which event it was: %q", st.Held)
	return attacked, g.standsStill("after the attack")
}

// isDumped wants the memory of the guest, which is paused, to be on disk, with the process
// in it that made the attack.
func (g *Guest) isDumped() error {
	t := g.t
	events, err := g.Events()
	if err != nil {
		return err
	}
	r := events[len(events)-1]
	var d control.MemoryDump
	err = t.Eventually(dumpLimit, "the dump is written", func() (bool, error) {
		st, err := g.Status()
		if err != nil || st.Dump == nil {
			return false, err
		}
		d = *st.Dump
		return d.State == "written" || d.State == "failed", nil
	})
	if err != nil {
		return err
	}
	t.Fact("dump", d)
	t.Check(d.State == "written" && d.File == string(r.Detail.Dump), "the guest's memory is dumped, where the event says: %+v, %q", d, r.Detail.Dump)
	info, err := os.Stat(d.File)
	if err != nil {
		return err
	}
	t.Check(info.Mode() == 0o600, "for root alone: %v", info.Mode())
	var ps report.List[report.Process]
	if err := t.HVICtl(&ps, "inspect", d.File, string(inspect.Processes)); err != nil {
		return err
	}
	found := slices.ContainsFunc(ps.Items, func(p report.Process) bool {
		return p.PID == r.Process.PID && string(p.Comm) == string(r.Process.Comm)
	})
	t.Check(found, "hvictl inspect FILE ps lists the attacker, %s, among %d processes", r.Process, len(ps.Items))
	return os.Remove(d.File)
}

// standsStill checks that the guest is paused, and stays so for a while.
func (g *Guest) standsStill(when string) error {
	t := g.t
	err := t.Stays(standsStill, "the guest stands still "+when, func() (bool, error) { return t.paused(g.ID) })
	t.Check(err == nil, "the guest stands still %s: %v", when, err)
	return err
}

// resumed has the guest run on, and wants the attack to have failed. An answer that
// the attacker's processor had not acted upon when hvid ended is lost: then it tries
// again, and meets the guards of the next hvid.
func (g *Guest) resumed(attacked <-chan attempt) error {
	t := g.t
	times := 0
	var done attempt
	err := t.Eventually(stopLimit, "the attacker goes on", func() (bool, error) {
		select {
		case done = <-attacked:
			return true, done.err
		default:
		}
		st, err := g.Status()
		if err != nil || st.Held == "" {
			return false, err
		}
		times++
		var now control.DomainStatus
		if err := t.HVICtl(&now, "resume", strconv.Itoa(g.ID)); err != nil {
			return false, err
		}
		return false, nil
	})
	if err != nil {
		return err
	}
	t.Check(times == 1 || times == 2, "hvictl resume lets it run on: called %d times", times)
	v := done.verdict
	t.Check(!v.Written && v.After == v.Before, "and the attack has failed: before %#x, tried %#x, after %#x", v.Before, v.Tried, v.After)
	st, err := g.Status()
	if err != nil {
		return err
	}
	t.Check(st.Held == "" && st.State == control.StateProtecting, "it is protected and not held any more: %s, %q", st.State, st.Held)
	return nil
}

// isShutDown makes an attack for which the guest is to be shut down.
func (g *Guest) isShutDown(a Attack) error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	g.attackAside(a) // nobody will answer
	events, err := g.eventsAfter(before, stopLimit, "the attack is reported")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event.shutdown", r)
	t.Check(r.Guard == "kernel-text" && r.Action == journal.ShutDown && r.Prevented, "as blocked, with the domain shut down: %s", r.Summary())
	if err := g.WaitGone(shutLimit); err != nil {
		return err
	}
	t.Check(true, "its toolstack has done what on_crash says")
	all, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(len(all) == len(before)+len(events) && len(events) == 1, "and there is no other record, as of a panic: %d", len(all)-len(before))
	return g.nothingLeft()
}
