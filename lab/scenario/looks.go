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
		Name:     "looks-intel",
		Brief:    "What can't be trapped is found by looking: hidden things, stolen rights, pointers, helpers, tables",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      func(t *T) error { return looks(t, enforce.Altp2m, control.StateProtecting) },
	})
	Register(Scenario{
		Name:     "looks-amd",
		Brief:    "The same on AMD, where nothing but registers can be trapped",
		Emulator: QEMU,
		Timeout:  15 * time.Minute,
		Run:      func(t *T) error { return looks(t, "", control.StateDegraded) },
	})
}

const (
	// lookLimit is how long a guard may take that looks each 30 s, deepLookLimit
	// one that looks each minute: a quarter more, two seconds in which what is
	// suspicious must last, and the emulator's own slowness.
	lookLimit     = 90 * time.Second
	deepLookLimit = 150 * time.Second
)

// looksSetup starts a process to be hidden, one to be given the kernel's rights,
// and one of another user who is to become root.
const looksSetup = `mkdir -p /k /etc && echo 'u:x:1000:1000::/:/bin/sh' >>/etc/passwd; ` +
	`for n in hidden thief; do printf '#!/bin/sh\nwhile :; do sleep 100000; done\n' >/k/$n; chmod 755 /k/$n; /k/$n </dev/null >/dev/null 2>&1 & done; ` +
	`printf '#!/bin/sh\nwhile :; do sleep 100000; done\n' >/k/mortal; chmod 755 /k/mortal; ` +
	`start-stop-daemon -S -b -c 1000:1000 -x /k/mortal; sleep 1; ` +
	`for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = mortal ] && grep Uid: $p/status; done; true`

// looks lets a guest live, attacks what no page or register gives away, and wants
// each attack found by its guard, once.
func looks(t *T, altp2m string, state control.State) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m = altp2m
	g, st, err := t.protectedGuest(c, state)
	if err != nil {
		return err
	}
	guards := []string{"hidden-objects", "creds", "usermode-helper", "gdt", "function-pointers"}
	for _, name := range guards {
		gs := guardStatus(st, name)
		t.Check(gs.State == control.GuardArmed && gs.Action == "alert", "guard %s looks: %+v", name, gs)
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	before, err := g.Events()
	if err != nil {
		return err
	}
	if err := g.hideAndSteal(); err != nil {
		return err
	}
	if err := g.isFound(before, true); err != nil {
		return err
	}
	if st, err = g.Status(); err != nil {
		return err
	}
	for _, name := range guards {
		gs := guardStatus(st, name)
		t.Check(gs.Found > 0 && gs.Blocked == 0, "status counts it as found: %+v", gs)
	}
	list, err := t.Exec("hvictl", "events", g.Name)
	if err != nil {
		return err
	}
	t.Check(strings.Contains(list.Stdout, "hidden-objects found: ") && strings.Contains(list.Stdout, "modprobe_path"), "hvictl events shows it: %s", lastLines(list.Stdout, 3))
	if err := g.Destroy(); err != nil {
		return fmt.Errorf("destroy the guest: %w", err)
	}
	if err := g.WaitGone(hvidLimit); err != nil {
		return err
	}
	return g.nothingLeft()
}

// hideAndSteal makes the attacks that are found by looking.
func (g *Guest) hideAndSteal() error {
	out, err := g.Run(looksSetup)
	if err != nil {
		return err
	}
	g.t.Check(strings.Contains(out, "1000"), "a process of another user runs: %q", out)
	const attack = "insmod /lib/hide.ko task=hidden cred=thief uid=mortal gdt=1 lidt=1 pointer=1 module=1 && echo /tmp/x >/proc/sys/kernel/modprobe && ! grep -q '^hide ' /proc/modules"
	return g.t.Step("attack", func() error { _, err := g.Run(attack); return err })
}

// lookFind is what comes of one of them.
type lookFind struct {
	guard, object, what string
	deep                bool // by a guard that looks seldom
}

// is says whether a record is of that.
func (f lookFind) is(r journal.Record) bool {
	o := r.Target.Object
	return r.Guard == f.guard && r.Action == journal.Found && strings.Contains(string(o.Name), f.object) && strings.Contains(string(o.What), f.what)
}

var lookFinds = []lookFind{
	{"hidden-objects", "(hidden)", "not on the kernel's lists", false},
	{"hidden-objects", "module hide", "not on the list of modules", false},
	{"creds", "(thief)", "the kernel's first task", false},
	{"creds", "(mortal)", "is user 0 by its credentials, which are those of user 1000", false},
	{"usermode-helper", "modprobe_path", `"/tmp/x"`, false},
	{"idt", "the IDT of CPU", "not the kernel's idt_table", false},
	{"gdt", "of the GDT of CPU", "type-12", false},
	{"function-pointers", "panic_blink", "should hold no code", true},
}

// isFound waits until each is told of, once and with nothing else; deep says that
// the guards which look seldom are waited for.
func (g *Guest) isFound(before []journal.Record, deep bool) error {
	t := g.t
	start, limit := time.Now(), lookLimit
	if deep {
		limit = deepLookLimit
	}
	var found []journal.Record
	missing := func() (out []string) {
		for _, w := range lookFinds {
			if w.deep && !deep {
				continue
			}
			if !slices.ContainsFunc(found, w.is) {
				out = append(out, w.guard+" "+w.object)
			}
		}
		return out
	}
	err := t.Eventually(limit, "what was attacked is found", func() (bool, error) {
		all, err := g.Events()
		if err != nil {
			return false, err
		}
		found = slices.DeleteFunc(slices.Clone(all[len(before):]), func(r journal.Record) bool { return r.Target.Object == nil })
		return len(missing()) == 0, nil
	})
	t.Fact("found", found)
	t.Fact("found.seconds", round(time.Since(start)))
	t.Check(len(missing()) == 0, "each attack is found by its guard; missing: %q", missing())
	told := map[string]int{}
	for _, r := range found {
		o := r.Target.Object
		told[r.Guard+" "+o.Check+" "+string(o.Name)]++
		t.Check(slices.ContainsFunc(lookFinds, func(w lookFind) bool { return w.is(r) }), "nothing else is told: %s", r.Summary())
	}
	for what, n := range told {
		t.Check(n == 1, "%s is told once: %d", what, n)
	}
	return err
}
