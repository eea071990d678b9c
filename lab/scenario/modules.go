package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
)

func init() {
	Register(Scenario{
		Name:     "modules",
		Brief:    "Modules are guarded, in a view and in the host's: attacks blocked, loading let be; and a panic is told of",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      modules,
	})
}

const (
	// moduleLimit is how long it may take until a module that was loaded is guarded.
	moduleLimit = 30 * time.Second
	// moduleTurns is how often a module is loaded and unloaded.
	moduleTurns = 5
)

// modules guards the modules of a guest that runs in a view, and of one that has no
// views, where a page is restricted for everybody.
func modules(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	for _, tt := range []struct {
		name, altp2m string
		tier         control.Tier
	}{
		{"views", "external", control.TierViews},
		{"access", "mixed", control.TierAccess}, // whose views the guest could change itself
	} {
		c := enforce
		c.Name, c.Altp2m = tt.name, tt.altp2m
		c.Lines = append(slices.Clone(c.Lines), `on_crash = "preserve"`)
		g, st, err := t.protectedGuest(c, control.StateProtecting)
		if err != nil {
			return err
		}
		t.Check(st.Tier == tt.tier, "its tier is %s: %s %s", tt.tier, st.Tier, st.TierReason)
		if err := g.modulesAreGuarded(); err != nil {
			return err
		}
		if tt.tier == control.TierAccess {
			err = g.panics()
		} else {
			err = g.Shutdown()
		}
		if err != nil {
			return err
		}
		if err := g.nothingLeft(); err != nil {
			return err
		}
	}
	return nil
}

// panicSoon has a guest's kernel panic when it has answered: then it does not any more.
const panicSoon = "(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &"

// panics has the guest's kernel panic, and wants that told with the end of its log.
func (g *Guest) panics() error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	if _, err := g.Run(panicSoon); err != nil {
		return err
	}
	events, err := g.eventsAfter(before, shutLimit, "the panic is told of")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event.panic", r)
	o := r.Target.Object
	t.Check(len(events) == 1 && r.Guard == "panic" && o != nil && strings.Contains(string(o.What), "Kernel panic"), "panic tells of it: %d records, %s", len(events), r.Summary())
	t.Check(slices.ContainsFunc(r.Detail.Log, func(l printable.Text) bool { return strings.Contains(string(l), "sysrq") }), "with the end of the kernel's log: %d lines", len(r.Detail.Log))
	if err := g.Destroy(); err != nil {
		return err
	}
	return g.WaitGone(hvidLimit)
}

// moduleFrames is how many frames hvid says it restricts for modules.
func moduleFrames(st control.DomainStatus) (n uint64) {
	for _, v := range st.Views {
		if !v.Current {
			continue
		}
		for _, r := range v.Restricted {
			if r.Guard == "modules" {
				n += r.Count
			}
		}
	}
	return n
}

// loadModule loads a module into the guest and returns the address of its code.
func (g *Guest) loadModule() (string, error) {
	return g.Run("insmod /lib/loop.ko && cat /sys/module/loop/sections/.text")
}

func (g *Guest) modulesAreGuarded() error {
	t := g.t
	code, err := g.loadModule()
	if err != nil {
		return err
	}
	var st control.DomainStatus
	start := time.Now()
	err = t.Eventually(moduleLimit, "the module is guarded", func() (bool, error) {
		st, err = g.Status()
		return err == nil && moduleFrames(st) > 0, err
	})
	if err != nil {
		return err
	}
	t.Fact("guarded.seconds."+g.Name, round(time.Since(start)))
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Fact("frames."+g.Name, n)
	where := n.inView
	if st.Tier == control.TierAccess {
		where = n.inHost
	}
	t.Check(n.frames > 0 && where == n.frames, "Xen restricts all that hvid says it does: %d of %d", where, n.frames)

	recorded, err := g.Events()
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "text", Symbol: code})
	if err != nil {
		return err
	}
	t.Check(!v.Written && v.After == v.Before, "the attack on the module is blocked: before %#x, tried %#x, after %#x", v.Before, v.Tried, v.After)
	events, err := g.eventsAfter(recorded, hvidLimit, "the attack on the module is reported")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event."+g.Name, r)
	t.Check(len(events) == 1 && r.Guard == "modules" && r.Action == journal.Blocked, "by modules, blocked: %d records, %s", len(events), r.Summary())
	t.Check(r.Target.Memory != nil && r.Target.Memory.Module == "loop" && r.RIP.Module == "pwn", "and says which module was attacked, by which: %s, %s", r.Target, r.RIP)

	if err := g.remappedPageIsCompared(code); err != nil {
		return err
	}

	// What a module had is soon somebody else's.
	before, err := g.Status()
	if err != nil {
		return err
	}
	turns := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do insmod /lib/fat.ko && sleep 1 && rmmod fat && dd if=/dev/zero of=/fill bs=64k count=100 2>/dev/null && rm /fill || exit 1; i=$((i+1)); done; rmmod loop; echo turned $i`, moduleTurns)
	var out string
	if err := t.Step("load-and-unload-"+g.Name, func() error { out, err = g.Run(turns); return err }); err != nil {
		return err
	}
	t.Check(strings.Contains(out, fmt.Sprint("turned ", moduleTurns)), "modules come and go: %q", out)
	err = t.Eventually(moduleLimit, "what was unloaded is let go of", func() (bool, error) {
		st, err = g.Status()
		return err == nil && moduleFrames(st) == 0, err
	})
	if err != nil {
		return err
	}
	if err := g.modulesAreNoted(code); err != nil {
		return err
	}
	was, is := guardStatus(before, "modules"), guardStatus(st, "modules")
	t.Fact("passed."+g.Name, is.Passed-was.Passed)
	t.Check(is.Events == was.Events && is.State == control.GuardArmed, "and none of it is an alarm: %d, %s %s", is.Events-was.Events, is.State, is.Reason)
	if err := g.selfPatching(); err != nil {
		return err
	}
	return g.lifeGoesOn()
}

// remappedPageIsCompared has the guest write to a page of a module's while it is none by the page
// tables, which must be let through: what is in it when it is the module's again is found.
func (g *Guest) remappedPageIsCompared(code string) error {
	t := g.t
	recorded, err := g.Events()
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "elsewhere", Symbol: code})
	if err != nil {
		return err
	}
	t.Check(v.Written && v.After == v.Tried, "a page that is not the module's for a moment is written: tried %#x, after %#x", v.Tried, v.After)
	events, err := g.eventsAfter(recorded, moduleLimit, "what was written is found")
	if err != nil {
		return err
	}
	r := events[0]
	t.Fact("event.elsewhere."+g.Name, r)
	m := r.Target.Memory
	t.Check(len(events) == 1 && r.Guard == "modules" && r.Action == journal.Found && m != nil && m.Module == "loop" && uint64(m.Addr) <= v.Address && v.Address < uint64(m.Addr)+64,
		"once, by modules, which says where: %d records, %s for %#x", len(events), r.Summary(), v.Address)
	// Back to what it was, before anybody executes it.
	back, err := g.Attack(Attack{Mode: "elsewhere", Symbol: code})
	if err != nil {
		return err
	}
	t.Check(back.After == v.Before, "and it is put back: %#x", back.After)
	return t.wait(moduleLimit / 2) // it is looked at once more
}

// modulesAreNoted checks what was recorded of the module that was loaded and unloaded.
func (g *Guest) modulesAreNoted(code string) error {
	t := g.t
	all, err := g.Records()
	if err != nil {
		return err
	}
	var changes []journal.ModuleChange
	for _, r := range all {
		m := r.Target.Module
		if m == nil || m.Name != "loop" {
			continue
		}
		changes = append(changes, m.Change)
		t.Fact(fmt.Sprintf("event.%s.%s", m.Change, g.Name), r)
		t.Check(r.Guard == "modules" && r.Action == journal.Noted && r.Severity == journal.Informational && m.Base.String() == code && len(m.SHA256) == 32,
			"it is noted where it lies, %s, and what its code is: %s", code, r.Summary())
	}
	t.Check(slices.Equal(changes, []journal.ModuleChange{journal.ModuleLoaded, journal.ModuleUnloaded}), "once when it came and once when it went: %v", changes)
	return nil
}
