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
	for _, s := range []struct {
		name, on string
		emulator Emulator
		kernel   string
		altp2m   string
	}{
		{"attacks", "in a view, on Intel", Bochs, "", "external"},
		{"attacks-old", "the same on Debian 11's kernel", Bochs, "5.10-cloud", "external"},
		{"attacks-middle", "the same on kernel 6.12", Bochs, "6.12-cloud", "external"},
		{"attacks-next", "the same on the next Debian's kernel", Bochs, "7.2-cloud", "external"},
		{"attacks-access", "without views, on Intel", Bochs, "", "mixed"},
		{"attacks-amd", "on AMD", QEMU, "", ""},
	} {
		Register(Scenario{
			Name:        s.name,
			Brief:       "Each attack with the guards off, under observe and under enforce, " + s.on,
			Emulator:    s.emulator,
			GuestKernel: s.kernel,
			Timeout:     75 * time.Minute,
			Run:         func(t *T) error { return attacks(t, s.altp2m) },
		})
	}
}

// attack is one of the table in docs/protection.md.
type attack struct {
	name  string // as the table calls it
	guard string // whose it is
	// module is what the guest's attack module does.
	module Attack
	// object is part of the name of what a guard finds that looks, and what of what it
	// says of that.
	object, what string
	deadly       bool // to a guest in which it succeeds
}

// trapped are attacks that are undone by themselves at once, so that each can be
// made in every guest. code is the address of a module's.
func (g *Guest) trapped(code string) ([]attack, error) {
	at, err := g.dataAddresses()
	if err != nil {
		return nil, err
	}
	text, err := g.addresses(victim)
	if err != nil {
		return nil, err
	}
	var out []attack
	add := func(name, guard string, a Attack) { out = append(out, attack{name: name, guard: guard, module: a}) }
	add("inline patch of kernel code, page table entry made writable", "kernel-text", Attack{Mode: "text", Symbol: text[victim]})
	add("inline patch of kernel code through the direct mapping", "kernel-text", Attack{Mode: "alias", Symbol: text[victim]})
	add("inline patch of kernel code through another mapping of its frame", "kernel-text", Attack{Mode: "map", Symbol: text[victim]})
	add("inline patch of kernel code with rep movsb", "kernel-text", Attack{Mode: "rep", Symbol: text[victim]})
	for _, d := range dataAttacks {
		add("write to "+d.symbol, d.guard, Attack{Mode: "text", Symbol: at[d.symbol]})
		add("write to "+d.symbol+" through the direct mapping", d.guard, Attack{Mode: "alias", Symbol: at[d.symbol]})
	}
	add("inline patch of a module's code", "modules", Attack{Mode: "text", Symbol: code})
	for _, mode := range entryAttacks {
		add("write of MSR "+attackMSR[mode], "syscall-entry", Attack{Mode: mode})
	}
	bits, err := g.controlAttacks()
	for _, mode := range bits {
		c := controlAttacks[mode]
		out = append(out, attack{name: fmt.Sprintf("%s.%s cleared", c.register, c.bit), guard: "cr", module: Attack{Mode: mode}, deadly: c.deadly})
	}
	return out, err
}

// lasting are attacks that are made together at the end, since nothing undoes them.
var lasting = []attack{
	{name: "process taken off the task list", guard: "hidden-objects", object: "(hidden)"},
	{name: "module taken off the module list", guard: "hidden-objects", object: "module hide"},
	{name: "the kernel's own credentials given to a process", guard: "creds", object: "(thief)"},
	{name: "user number of a process overwritten with root's", guard: "creds", object: "(mortal)"},
	{name: "modprobe_path set to a program in /tmp", guard: "usermode-helper", object: "modprobe_path"},
	{name: "core_pattern set to a program in /tmp", guard: "usermode-helper", object: "core_pattern"},
	{name: "call gate put into the table of segments", guard: "gdt", object: "of the GDT of CPU"},
	{name: "processor given another table of segments", guard: "gdt", object: "the GDT of CPU", what: "no processor's gdt_page"},
	{name: "processor given another table of interrupts", guard: "idt", object: "the IDT of CPU"},
	{name: "function pointer to a hidden module", guard: "function-pointers", object: "panic_blink"},
	{name: "page made executable with set_memory_x", guard: "kernel-exec", object: "executable memory in the direct mapping"},
	{name: "page of vmalloc made executable in its page table", guard: "kernel-exec", object: "executable memory in vmalloc's area"},
	{name: "kernel code made writable in its page table", guard: "kernel-exec", object: "writable code in the kernel's image"},
	{name: "eBPF program of type kprobe loaded", guard: "ebpf", object: "eBPF program sneaky of type kprobe"},
	{name: "eBPF program of type raw_tracepoint loaded", guard: "ebpf", object: "eBPF program listener of type raw_tracepoint"},
	{name: "module loaded that the policy does not list", guard: "modules", object: "module decoy"},
	{name: "kernel function traced by a hidden module", guard: "function-pointers", object: "ftrace"},
	{name: "kernel function probed by a hidden module", guard: "function-pointers", object: "kprobe"},
	{name: "error in the kernel that it lives through (oops)", guard: "panic", object: "oops"},
}

// lastingAttacks makes them.
const lastingAttacks = `{ bpfload </dev/null >/tmp/bpfload 2>&1 & } ; sleep 1; grep -q loaded /tmp/bpfload && insmod /lib/decoy.ko && insmod /lib/hide.ko task=hidden cred=thief uid=mortal gdt=1 lgdt=1 lidt=1 pointer=1 exec=1 nx=1 rwx=` + victim + ` ftrace=` + victim + ` kprobe=` + probed + ` module=1 && ` +
	`echo /tmp/x >/proc/sys/kernel/modprobe && echo '|/tmp/x' >/proc/sys/kernel/core_pattern && ! grep -q '^hide ' /proc/modules && ! insmod /lib/pwn.ko mode=oops 2>/dev/null`

// probed is a function that nobody calls in the lab either.
const probed = "kernel_halt"

// listingPolicy is the policy of the guests that are protected: they may load what the
// attacks are made with, and no other module.
const listingPolicy = "allowed_modules = [\"loop\", \"pwn\"]\n"

// Outcome is what came of an attack in one of the guests: a cell of the table in
// docs/protection.md.
type Outcome struct {
	Attack   string         `json:"attack"`
	Guard    string         `json:"guard"`
	Mode     string         `json:"mode"`
	State    string         `json:"state"` // of the guard
	Landed   bool           `json:"landed"`
	Reported journal.Action `json:"reported,omitempty"`
	By       string         `json:"by,omitempty"` // the guard that reported it
	Attacker string         `json:"attacker,omitempty"`
}

// Cell is the outcome in a word or two.
func (o Outcome) Cell() string {
	switch {
	case o.Reported != "":
		return string(o.Reported)
	case o.Landed && o.Mode == "off":
		return "succeeds"
	case o.Landed:
		return "not seen"
	}
	return "fails"
}

// attacks fills a table: each attack in a guest without protection, in one that is
// observed and in one that is protected.
func attacks(t *T, altp2m string) error {
	const policies = "/etc/hvi/policies"
	if err := os.MkdirAll(policies, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(policies+"/listing.toml", []byte(listingPolicy), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(policies + "/listing.toml") }()
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	var table []Outcome
	defer func() { t.Fact("outcomes", table) }()
	for _, mode := range []string{"off", "observe", "enforce"} {
		rows, err := attackAll(t, mode, altp2m)
		table = append(table, rows...)
		if err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
	}
	return nil
}

func attackAll(t *T, mode, altp2m string) (table []Outcome, err error) {
	c := GuestConfig{Name: mode, Altp2m: altp2m, Lines: []string{fmt.Sprintf("introspection = %q", mode)}}
	if mode != "off" {
		c.Lines = append(c.Lines, `introspection_policy = "listing"`)
	}
	g, err := t.StartGuest(c)
	if err != nil {
		return nil, err
	}
	if _, err := g.WaitUp(); err != nil {
		return nil, err
	}
	states := []control.State{control.StateUnprotected}
	if mode != "off" {
		states = []control.State{control.StateProtecting, control.StateDegraded}
	}
	st, err := g.WaitState(protectLimit, states...)
	if err != nil {
		return nil, err
	}
	t.Fact("tier."+mode, st.Tier)
	code, err := g.loadModule()
	if err != nil {
		return nil, err
	}
	if mode != "off" && guardStatus(st, "modules").State == control.GuardArmed {
		err := t.Eventually(moduleLimit, "the module is guarded", func() (bool, error) {
			st, err = g.Status()
			return err == nil && moduleFrames(st) > 0, err
		})
		if err != nil {
			return nil, err
		}
	}
	list, err := g.trapped(code)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		gs := guardStatus(st, a.guard)
		if a.deadly && (mode != "enforce" || gs.State != control.GuardArmed) {
			continue
		}
		o, err := g.makeAttack(a, mode, gs)
		if err != nil {
			return table, err
		}
		table = append(table, o)
	}
	rows, err := g.makeLasting(mode, st)
	table = append(table, rows...)
	if err != nil {
		return table, err
	}
	if out, err := g.Run("echo alive"); err != nil || out != "alive" {
		return table, fmt.Errorf("the guest is not alive any more: %q, %w", out, err)
	}
	o, err := g.makePanic(mode, guardStatus(st, "panic"))
	if err != nil {
		return table, err
	}
	return append(table, o), g.Destroy()
}

// makePanic has the guest's kernel end itself, which nothing prevents.
func (g *Guest) makePanic(mode string, gs control.GuardStatus) (o Outcome, err error) {
	o = Outcome{Attack: "kernel panic", Guard: "panic", Mode: mode, State: string(gs.State), Landed: true}
	var before []journal.Record
	if mode != "off" {
		if before, err = g.Events(); err != nil {
			return o, err
		}
	}
	if _, err := g.Run(panicSoon); err != nil || mode == "off" {
		return o, err
	}
	events, err := g.eventsAfter(before, shutLimit, "the panic is reported")
	if err != nil {
		return o, err
	}
	r := events[0]
	o.Reported, o.By = r.Action, r.Guard
	g.t.Check(r.Guard == "panic" && r.Action == journal.Found && r.Target.Object != nil && strings.Contains(string(r.Target.Object.What), "Kernel panic"),
		"%s under %s: %s", o.Attack, mode, r.Summary())
	return o, nil
}

// makeAttack makes one that undoes itself, and checks what a guard in this state owes.
func (g *Guest) makeAttack(a attack, mode string, gs control.GuardStatus) (o Outcome, err error) {
	t := g.t
	o = Outcome{Attack: a.name, Guard: a.guard, Mode: mode, State: string(gs.State)}
	var before []journal.Record
	if mode != "off" {
		if before, err = g.Events(); err != nil {
			return o, err
		}
	}
	v, err := g.Attack(a.module)
	if err != nil {
		return o, fmt.Errorf("%s: %w", a.name, err)
	}
	o.Landed = v.Written
	if mode == "off" {
		t.Check(v.Written, "%s: it succeeds in a guest without protection", a.name)
		return o, nil
	}
	if gs.State != control.GuardArmed {
		// It has been undone before anybody could have found it.
		t.Check(v.Written, "%s: it lands, since %s is %s", a.name, a.guard, gs.State)
		return o, nil
	}
	events, err := g.eventsAfter(before, hvidLimit, a.name+" is reported")
	if err != nil {
		return o, err
	}
	r := events[0]
	o.Reported, o.By, o.Attacker = r.Action, r.Guard, string(r.RIP.Module)
	want, landed := journal.Blocked, false
	if mode == "observe" {
		want, landed = journal.Alerted, true
	}
	t.Check(v.Written == landed && r.Action == want && r.Guard == a.guard && r.RIP.Module == "pwn" && r.Process.Comm == "insmod",
		"%s under %s: landed %v, %s", a.name, mode, v.Written, r.Summary())
	return o, nil
}

// makeLasting makes those that nothing undoes, and waits until all are found.
func (g *Guest) makeLasting(mode string, st control.DomainStatus) (table []Outcome, err error) {
	t := g.t
	if _, err := g.Run(looksSetup); err != nil {
		return nil, err
	}
	var before []journal.Record
	if mode != "off" {
		if before, err = g.Events(); err != nil {
			return nil, err
		}
	}
	if _, err := g.Run(lastingAttacks); err != nil {
		return nil, err
	}
	for _, a := range lasting {
		table = append(table, Outcome{Attack: a.name, Guard: a.guard, Mode: mode, State: string(guardStatus(st, a.guard).State), Landed: true})
	}
	if mode == "off" {
		return table, nil
	}
	err = t.Eventually(deepLookLimit, "all is found", func() (bool, error) {
		all, err := g.Events()
		if err != nil {
			return false, err
		}
		missing := 0
		for i, a := range lasting {
			at := slices.IndexFunc(all[len(before):], func(r journal.Record) bool {
				return r.Guard == a.guard && r.Target.Object != nil && strings.Contains(string(r.Target.Object.Name), a.object) && strings.Contains(string(r.Target.Object.What), a.what)
			})
			if at < 0 {
				missing++
				continue
			}
			table[i].Reported, table[i].By = all[len(before)+at].Action, a.guard
		}
		return missing == 0, nil
	})
	for _, o := range table {
		t.Check(o.Reported == journal.Found, "%s under %s: %q by %s", o.Attack, mode, o.Reported, o.By)
	}
	return table, err
}
