package scenario

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
)

// twofold is a policy of two views: in the second the kernel's code may be changed.
const twofold = `[[view]]
name = "strict"

[[view]]
name = "maintenance"
guards = ["kernel-rodata", "ex-table", "syscall-table", "idt", "vdso"]
`

// declaredViews protects a guest, which runs without protection, by a policy of two
// views, goes from one into the other and back under load, and detaches in the second,
// with a hidden breakpoint set all the while.
func (g *Guest) declaredViews(pool uint64) error {
	t := g.t
	const file = "/etc/hvi/policies/twofold.toml"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(twofold), 0o644); err != nil {
		return err
	}
	defer os.Remove(file)
	for _, args := range [][]string{
		{"policy", "check", file}, {"set", g.Name, "--mode", "enforce", "--policy", "twofold", "--config"}, {"attach", g.Name},
	} {
		if _, err := t.Exec("hvictl", args...); err != nil {
			return err
		}
	}
	st, err := g.WaitState(protectLimit, control.StateProtecting)
	if err != nil {
		return err
	}
	n, err := g.restrictedIn(st)
	if err != nil {
		return err
	}
	t.Fact("declared_views_restricted", n)
	named := len(st.Views) == 3 && st.Views[1].Name == "strict" && st.Views[1].Current && st.Views[2].Name == "maintenance"
	t.Check(named && n.inView > 0 && n.inView == n.frames && n.inHost == 0, "both declared views are Xen's, and it runs in the initial one: %d of %d frames restricted, %d in the host's: %+v", n.inView, n.frames, n.inHost, names(st))
	if err := t.breakpoint("set", g, hot); err != nil {
		return err
	}
	// It patches its own code all the while, so that steps are under way.
	if _, err := g.Run("(i=0; while [ $i -lt 2000 ]; do echo 1 >/proc/sys/kernel/sched_schedstats; echo 0 >/proc/sys/kernel/sched_schedstats; i=$((i+1)); done) & echo $! >/tmp/patching"); err != nil {
		return err
	}
	for range 5 {
		for _, view := range []string{"maintenance", "strict"} {
			if err := g.switchedTo(view); err != nil {
				return err
			}
		}
	}
	out, err := g.Run("kill $(cat /tmp/patching); cat /proc/sys/kernel/sched_schedstats >/dev/null; echo 0 >/proc/sys/kernel/sched_schedstats; cat /proc/sys/kernel/sched_schedstats")
	if err != nil {
		return err
	}
	t.Check(out == "0", "the guest has patched itself all the while: %q", out)
	if err := errors.Join(g.attackIsBlocked("alias"), g.switchedTo("maintenance")); err != nil {
		return err
	}
	before, err := g.Events()
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "text", Symbol: victim})
	if err != nil {
		return err
	}
	after, err := g.Events()
	if err != nil {
		return err
	}
	t.Check(v.Written && v.After == v.Tried && len(after) == len(before), "in view maintenance, as declared, the kernel's code can be changed, which is not reported: tried %#x, after %#x, %d events", v.Tried, v.After, len(after)-len(before))
	if err := errors.Join(g.attackIsBlocked("lstar"), g.switchedTo("strict"), g.attackIsBlocked("text"), g.lifeGoesOn(), g.switchedTo("maintenance")); err != nil {
		return err
	}
	b, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "detach", g.Name); err != nil {
		return err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return err
	}
	t.Check(left.restricted == 0 && left.frames > 0 && !left.views && left.steps == 0 && !left.paused && left.pool == pool,
		"detached in view maintenance, with a breakpoint hit %d times, nothing is left: %+v", b.Hits, left)
	return g.lifeGoesOn()
}

func names(st control.DomainStatus) (out []string) {
	for _, v := range st.Views {
		out = append(out, fmt.Sprintf("%d %q", v.ID, v.Name))
	}
	return out
}

// switchedTo switches to a view and checks what is said of that, and that no hit of the
// breakpoint is missed in it.
func (g *Guest) switchedTo(view string) error {
	t := g.t
	before, err := g.Records()
	if err != nil {
		return err
	}
	if _, err := t.Exec("hvictl", "views", g.Name, "--switch", view); err != nil {
		return err
	}
	b, st, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	const opens = 20
	if err := g.opens(0, opens); err != nil {
		return err
	}
	now, _, err := g.breakpoint(hot)
	if err != nil {
		return err
	}
	all, err := g.Records()
	if err != nil {
		return err
	}
	var noted []journal.ViewTarget
	for _, r := range all[len(before):] {
		if r.Target.View != nil && r.Action == journal.Noted {
			noted = append(noted, *r.Target.View)
		}
	}
	t.Check(len(noted) == 1 && noted[0].To == view && noted[0].By.UID == 0 && noted[0].By.PID > 1, "the switch is recorded, with who asked: %+v", noted)
	text, want := guardStatus(st, "kernel-text"), control.GuardArmed
	if view != "strict" {
		want = control.GuardInactive
	}
	t.Check(st.State == control.StateProtecting && text.State == want && (want == control.GuardArmed) == (text.Reason == ""), "in view %s kernel-text is %s: %s", view, text.State, strings.TrimSpace(text.Reason))
	t.Check(now.Hits >= b.Hits+opens, "and the breakpoint stands in it: %d hits more", now.Hits-b.Hits)
	return nil
}
