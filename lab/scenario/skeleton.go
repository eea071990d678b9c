package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/control"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/x86"
)

func init() {
	Register(Scenario{
		Name:     "skeleton-intel",
		Brief:    "From xl create to xl shutdown on Intel: all guards armed before init, every attack blocked and reported",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      skeletonIntel,
	})
	Register(Scenario{
		Name:     "skeleton-amd",
		Brief:    "The same on AMD, without per-page access: syscall-entry and cr block, kernel-text finds a change later",
		Emulator: QEMU,
		Timeout:  15 * time.Minute,
		Run:      skeletonAMD,
	})
	Register(Scenario{
		Name:     "guest-pti",
		Brief:    "A guest with page-table isolation and all mitigations on, which then reboots",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      guestPTI,
	})
	Register(Scenario{
		Name:     "guards-off",
		Brief:    "The control: the same attacks succeed with the guards off, and under observe are reported and let pass",
		Emulator: Bochs,
		Timeout:  15 * time.Minute,
		Run:      guardsOff,
	})
}

// enforce is what a user writes to have a guest protected.
var enforce = GuestConfig{
	Name:   "web",
	Altp2m: "external",
	Lines:  []string{`introspection = "enforce"`},
}

// textAttacks and entryAttacks are, with controlAttacks, all the module can do.
var (
	textAttacks  = []string{"text", "alias", "rep"}
	entryAttacks = []string{"lstar", "star", "cstar", "sysenter-eip"}
)

// controlAttack clears a bit with which the processor guards the kernel.
type controlAttack struct {
	register, bit string
	feature       string // in /proc/cpuinfo of a guest whose processor has it, "" if all have
	deadly        bool   // to a guest in which it succeeds
}

var controlAttacks = map[string]controlAttack{
	"cr0-wp":   {register: "CR0", bit: "WP"},
	"cr4-smep": {register: "CR4", bit: "SMEP", feature: "smep"},
	"cr4-smap": {register: "CR4", bit: "SMAP", feature: "smap"},
	"cr4-umip": {register: "CR4", bit: "UMIP", feature: "umip"},
	"efer-sce": {register: "EFER", bit: "SCE"},
	"efer-nxe": {register: "EFER", bit: "NXE", feature: "nx", deadly: true},
}

// controlAttacks are those that the guest's processor can suffer, in order.
func (g *Guest) controlAttacks() ([]string, error) {
	out, err := g.Run("grep -m 1 ^flags /proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	flags := strings.Fields(out)
	var modes []string
	for _, mode := range slices.Sorted(maps.Keys(controlAttacks)) {
		if f := controlAttacks[mode].feature; f == "" || slices.Contains(flags, f) {
			modes = append(modes, mode)
		}
	}
	g.t.Fact("control_attacks", modes)
	return modes, nil
}

// victim is a function whose code is overwritten: part of every Linux, and
// called by nobody in the lab.
const victim = "machine_power_off"

// attackMSR is the register an attack mode writes.
var attackMSR = map[string]string{"lstar": "LSTAR", "star": "STAR", "cstar": "CSTAR", "sysenter-eip": "SYSENTER_EIP"}

func skeletonIntel(t *T) error {
	hvid, err := t.StartHVID()
	if err != nil {
		return err
	}
	c := enforce
	c.Lines = append(c.Lines, preserve)
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.checkSymbols(st); err != nil {
		return err
	}
	if err := g.checkViews(st); err != nil {
		return err
	}
	g.guardsBlock(st, "kernel-text", "kernel-rodata", "ex-table", "syscall-table", "idt", "vdso", "syscall-entry", "cr")
	follower, err := t.Start("hvictl", "events", "-f")
	if err != nil {
		return err
	}
	bits, err := g.controlAttacks()
	if err != nil {
		return err
	}
	for _, mode := range slices.Concat(textAttacks, entryAttacks, bits) {
		if err := g.attackIsBlocked(mode); err != nil {
			return err
		}
	}
	if err := g.dataIsSealed(); err != nil {
		return err
	}
	if err := g.wpKept(); err != nil {
		return err
	}
	if err := g.staysInView(); err != nil {
		return err
	}
	for _, want := range []string{victim, "LSTAR", "SYSENTER_EIP", "CR4 that clears SMEP"} {
		t.Check(strings.Contains(follower.Log(), want), "hvictl events -f has shown the attack on %s", want)
	}
	if err := follower.Signal(os.Interrupt); err != nil {
		return err
	}
	list, err := t.Exec("hvictl", "list")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(list.Stdout, g.Name) && strings.Contains(list.Stdout, "protecting"), "hvictl list shows the guest: %q", list.Stdout)
	if err := g.selfPatching(); err != nil {
		return err
	}
	if err := g.doctor(control.TierViews, 0); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	if err := g.crCostsNothing(); err != nil {
		return err
	}
	if err := t.Step("shutdown", func() error { _, err := g.letGo(); return err }); err != nil {
		return err
	}
	return t.Step("stop-hvid", func() error { return hvid.Stop(hvidLimit) })
}

func skeletonAMD(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.Altp2m = "" // xl refuses it where the processor has none
	c.Lines = append(c.Lines, preserve)
	g, st, err := t.protectedGuest(c, control.StateDegraded)
	if err != nil {
		return err
	}
	if err := g.checkSymbols(st); err != nil {
		return err
	}
	t.Check(st.Tier == control.TierRegisters, "tier is registers: %s", st.Tier)
	text := guardStatus(st, "kernel-text")
	t.Check(text.State == control.GuardScanning, "kernel-text can only be compared: %s", text.State)
	t.Check(strings.Contains(text.Reason, "VT-x") && strings.Contains(text.Reason, scanPeriod.String()), "and says what it needs, and what it does instead: %q", text.Reason)
	t.Fact("kernel_text_reason", text.Reason)
	g.guardsBlock(st, "syscall-entry", "cr")
	bits, err := g.controlAttacks()
	if err != nil {
		return err
	}
	for _, mode := range slices.Concat(entryAttacks, bits) {
		if err := g.attackIsBlocked(mode); err != nil {
			return err
		}
	}
	if err := g.wpKept(); err != nil {
		return err
	}
	if err := g.denialHolds(); err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: "text", Symbol: victim})
	if err != nil {
		return err
	}
	if err := g.doctor(control.TierRegisters, 7); err != nil {
		return err
	}
	t.Check(v.Written, "with kernel-text scanning the write to kernel text lands, as its status implies")
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	if err := g.crCostsNothing(); err != nil {
		return err
	}
	// Both kinds of finding afterwards, in the same time.
	before, err := g.Events()
	if err != nil {
		return err
	}
	if err := g.hideAndSteal(); err != nil {
		return err
	}
	if err := g.foundLater(); err != nil {
		return err
	}
	if err := g.isFound(before, false); err != nil {
		return err
	}
	return t.Step("shutdown", func() error { _, err := g.letGo(); return err })
}

// guestPTI protects a guest that isolates its page tables, where most of the
// guest's life is spent on tables that do not map its kernel. Then the guest
// reboots, which makes a new domain of the same UUID.
func guestPTI(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	c := enforce
	c.KernelArgs = []string{"pti=on", "mitigations=auto"}
	g, st, err := t.protectedGuest(c, control.StateProtecting)
	if err != nil {
		return err
	}
	if err := g.checkViews(st); err != nil {
		return err
	}
	if err := g.checkSymbols(st); err != nil {
		return err
	}
	out, err := g.Run("cat /sys/devices/system/cpu/vulnerabilities/meltdown")
	if err != nil {
		return err
	}
	t.Check(strings.Contains(out, "PTI"), "the guest isolates its page tables: %q", out)
	attacks := func() error {
		for _, mode := range []string{"text", "alias", "lstar"} {
			if err := g.attackIsBlocked(mode); err != nil {
				return err
			}
		}
		return nil
	}
	if err := attacks(); err != nil {
		return err
	}
	if err := g.selfPatching(); err != nil {
		return err
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	before := g.ID
	if _, err := t.XL("reboot", g.Name); err != nil {
		return err
	}
	if err := g.WaitGone(shutLimit); err != nil {
		return err
	}
	err = t.Eventually(hvidLimit, "xl has made the guest anew", func() (bool, error) {
		g, err = t.OpenGuest(c.Name)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	t.Check(g.ID != before, "it is another domain: %d, then %d", before, g.ID)
	if st, err = g.WaitState(protectLimit, control.StateProtecting); err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	if err := g.checkEntry(st); err != nil {
		return err
	}
	if err := g.checkViews(st); err != nil {
		return err
	}
	if err := attacks(); err != nil {
		return err
	}
	if err := g.Shutdown(); err != nil {
		return err
	}
	return g.nothingLeft()
}

func guardsOff(t *T) error {
	if _, err := t.StartHVID(); err != nil {
		return err
	}
	// No protection at all: every attack succeeds.
	off := enforce
	off.Name, off.Lines = "off", []string{`introspection = "off"`}
	g, err := t.StartGuest(off)
	if err != nil {
		return err
	}
	if _, err := g.WaitUp(); err != nil {
		return err
	}
	st, err := g.WaitState(hvidLimit, control.StateUnprotected)
	if err != nil {
		return err
	}
	t.Check(st.AttachedAt.IsZero(), "hvid has not attached to a guest whose introspection is off")
	bits, err := g.controlAttacks()
	if err != nil {
		return err
	}
	bits = slices.DeleteFunc(bits, func(mode string) bool { return controlAttacks[mode].deadly })
	for _, mode := range slices.Concat(textAttacks, []string{wpAttack}, entryAttacks, bits) {
		v, err := g.Attack(Attack{Mode: mode, Symbol: symbolFor(mode)})
		if err != nil {
			return err
		}
		t.Check(v.Written, "attack %s succeeds with introspection off", mode)
	}
	at, err := g.dataAddresses()
	if err != nil {
		return err
	}
	for _, a := range dataAttacks {
		v, err := g.Attack(Attack{Mode: "text", Symbol: at[a.symbol]})
		if err != nil {
			return err
		}
		t.Check(v.Written, "the attack on %s succeeds with introspection off", a.symbol)
	}
	if err := g.Shutdown(); err != nil {
		return err
	}

	// Observe: reported, and let pass.
	observe := enforce
	observe.Name, observe.Lines = "observe", []string{`introspection = 1`}
	g, _, err = t.protectedGuest(observe, control.StateProtecting)
	if err != nil {
		return err
	}
	for _, mode := range []string{"text", "rep", "lstar", "cr0-wp", "cr4-smep", "efer-sce"} {
		before, err := g.Events()
		if err != nil {
			return err
		}
		v, err := g.Attack(Attack{Mode: mode, Symbol: symbolFor(mode)})
		if err != nil {
			return err
		}
		t.Check(v.Written, "attack %s succeeds under observe", mode)
		after, err := g.Events()
		if err != nil {
			return err
		}
		if t.Check(len(after) > len(before), "and is reported: %d events, then %d", len(before), len(after)) {
			t.Check(after[len(before)].Action == journal.Alerted, "as alerted: %s", after[len(before)].Action)
		}
	}
	if err := g.lifeGoesOn(); err != nil {
		return err
	}
	return g.Shutdown()
}

// protectedGuest starts a guest, waits until it is up and in a state, and
// checks what must hold of every guest hvid protects.
func (t *T) protectedGuest(c GuestConfig, want control.State) (g *Guest, st control.DomainStatus, err error) {
	if err = t.Step("create", func() (err error) { g, err = t.StartGuest(c); return err }); err != nil {
		return nil, st, err
	}
	if err = t.Step("protecting", func() (err error) { st, err = g.WaitState(protectLimit, want); return err }); err != nil {
		return nil, st, err
	}
	var release string
	if err = t.Step("guest-up", func() (err error) { release, err = g.WaitUp(); return err }); err != nil {
		return nil, st, err
	}
	t.Fact("guest_kernel", st.GuestKernel)
	if t.Check(st.GuestKernel != nil, "the guest's kernel was identified") {
		t.Check(string(st.GuestKernel.Release) == release, "hvid names the release the guest names: %s, %s", st.GuestKernel.Release, release)
	}
	return g, st, g.checkEntry(st)
}

// checkSymbols compares what hvid read from the guest's memory with what the
// guest's own /proc/kallsyms says of the kernel image. It takes a guest six
// emulated seconds, so it is for the scenarios of whole lives.
func (g *Guest) checkSymbols(st control.DomainStatus) error {
	out, err := g.Run(withKernelSymbols("wc -l <" + kernelSymbols + "; grep -m 1 -w _text " + kernelSymbols))
	if err != nil {
		return err
	}
	f := strings.Fields(out)
	if len(f) < 2 || st.GuestKernel == nil {
		return fmt.Errorf("unexpected kallsyms: %q", out)
	}
	g.t.Check(f[0] == strconv.Itoa(st.GuestKernel.SymbolCount), "hvid read every symbol of the kernel: %d, the guest says %s", st.GuestKernel.SymbolCount, f[0])
	base, err := strconv.ParseUint(f[1], 16, 64)
	if err != nil {
		return err
	}
	g.t.Check(uint64(st.GuestKernel.Base) == base, "and its base: %s, the guest says %#x", st.GuestKernel.Base, base)
	return nil
}

// checkEntry checks that hvid attached before the guest's first instruction.
func (g *Guest) checkEntry(st control.DomainStatus) error {
	entry, err := kernelEntry(GuestKernel)
	if err != nil {
		return err
	}
	pc := x86.VirtAddr(0)
	if st.AttachPC != nil {
		pc = *st.AttachPC
	}
	g.t.Check(pc == entry, "hvid attached before the first instruction: at %s, the entry point is %s", pc, entry)
	return nil
}

func symbolFor(mode string) string {
	if attackMSR[mode] != "" || controlAttacks[mode].register != "" {
		return ""
	}
	return victim
}

// crCostsNothing checks that the guard of the control registers was asked about
// attacks alone: Xen is not to report what a kernel writes there all day.
func (g *Guest) crCostsNothing() error {
	st, err := g.Status()
	cr := guardStatus(st, "cr")
	g.t.Check(err == nil && cr.Passed == 0, "of its healthy life cr was asked nothing: %d writes let through, %d attacks", cr.Passed, cr.Events)
	return err
}

// dataAttack overwrites data that the kernel has sealed.
type dataAttack struct {
	symbol string // in the guest's /proc/kallsyms; its first byte is overwritten
	guard  string
}

var dataAttacks = []dataAttack{
	{"linux_proc_banner", "kernel-rodata"},
	{"__start___ex_table", "ex-table"},
	{"sys_call_table", "syscall-table"},
	{"idt_table", "idt"},
	{"raw_data", "vdso"},
}

// dataAddresses are those of what dataAttacks overwrite.
func (g *Guest) dataAddresses() (map[string]string, error) {
	var symbols []string
	for _, a := range dataAttacks {
		symbols = append(symbols, a.symbol)
	}
	return g.addresses(symbols...)
}

// dataIsSealed overwrites sealed data, through its own mapping and through
// another, and wants each attack blocked and reported by the guard of that data.
func (g *Guest) dataIsSealed() error {
	t := g.t
	at, err := g.dataAddresses()
	if err != nil {
		return err
	}
	for _, a := range dataAttacks {
		for _, mode := range []string{"text", "alias"} {
			before, err := g.Events()
			if err != nil {
				return err
			}
			v, err := g.Attack(Attack{Mode: mode, Symbol: at[a.symbol]})
			if err != nil {
				return err
			}
			t.Check(!v.Written && v.After == v.Before, "attack %s on %s is blocked: before %#x, tried %#x, after %#x", mode, a.symbol, v.Before, v.Tried, v.After)
			events, err := g.eventsAfter(before, hvidLimit, "the attack on "+a.symbol+" is reported")
			if err != nil {
				return err
			}
			r := events[0]
			t.Fact("event."+mode+"."+a.symbol, r)
			t.Check(len(events) == 1 && r.Guard == a.guard && r.Action == journal.Blocked, "%s reports it, blocked: %d records, %s %s", a.guard, len(events), r.Guard, r.Action)
			t.Check(r.RIP.Module == "pwn" && r.Process.Comm == "insmod", "and who it was: %s, %+v", r.RIP, r.Process)
			t.Check(len(r.Attempted.Bytes) == 1 && uint64(r.Attempted.Bytes[0]) == v.Tried, "and the byte tried: %s, the module says %#x", r.Attempted, v.Tried)
		}
	}
	return nil
}

// wpAttack writes kernel text if it can clear CR0.WP.
const wpAttack = "wp"

// wpKept attacks kernel text by way of CR0.WP, and wants that stopped at its
// first step.
func (g *Guest) wpKept() error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	v, err := g.Attack(Attack{Mode: wpAttack, Symbol: victim})
	if err != nil {
		return err
	}
	events, err := g.eventsAfter(before, hvidLimit, "CR0.WP is reported")
	if err != nil {
		return err
	}
	t.Check(!v.Written && len(events) == 1 && events[0].Guard == "cr", "with CR0.WP kept, nothing of the rootkit's reaches kernel text: written %v, %d records", v.Written, len(events))
	return nil
}

// attackIsBlocked attacks and checks that the attack failed, the guest's
// memory is what it was, and one record tells all about it.
func (g *Guest) attackIsBlocked(mode string) error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	var v Verdict
	if err := t.Step("attack-"+mode, func() (err error) { v, err = g.Attack(Attack{Mode: mode, Symbol: symbolFor(mode)}); return err }); err != nil {
		return err
	}
	t.Check(!v.Written && v.After == v.Before, "attack %s is blocked: before %#x, tried %#x, after %#x", mode, v.Before, v.Tried, v.After)
	events, err := g.eventsAfter(before, hvidLimit, "the attack is reported")
	if err != nil {
		return err
	}
	t.Check(len(events) == 1, "attack %s makes one record: %d", mode, len(events))
	r := events[0]
	t.Fact("event."+mode, r)
	t.Check(r.Action == journal.Blocked, "the record says blocked: %s", r.Action)
	t.Check(r.Domain.UUID == g.UUID && int(r.Domain.ID) == g.ID && string(r.Domain.Name) == g.Name, "and which domain: %+v", r.Domain)
	t.Check(r.Process.Comm == "insmod" && r.Process.PID > 1, "and which process: %+v", r.Process)
	t.Check(r.RIP.Addr.KernelHalf() && r.RIP.Addr != 0, "and where the instruction is: %s", r.RIP)
	t.Check(r.RIP.Module == "pwn", "which lies in the module: %s", r.RIP)
	t.Check(r.Instruction != nil && r.Instruction.Text != "", "and what it is: %+v", r.Instruction)
	t.Check(r.CallsFrom != "" && slices.ContainsFunc(r.Calls, func(l journal.Location) bool { return l.Symbol == "do_one_initcall" }),
		"and how the kernel came there, which initialises a module: %s, %v", r.CallsFrom, r.Calls)
	if msr := attackMSR[mode]; msr != "" {
		t.Check(r.Guard == "syscall-entry" && r.Target.MSR != nil && r.Target.MSR.Name == msr, "and the register: %s", r.Target)
		t.Check(r.Attempted.Number != nil && uint64(*r.Attempted.Number) == v.Tried, "and the value tried: %s, the module says %#x", r.Attempted, v.Tried)
		t.Check(r.Before.Number != nil && uint64(*r.Before.Number) == v.Before, "and the value before: %s, the module says %#x", r.Before, v.Before)
		return nil
	}
	if c := controlAttacks[mode]; c.register != "" {
		register, cleared := "", []string(nil)
		switch {
		case r.Target.CR != nil:
			register, cleared = r.Target.CR.Name, r.Target.CR.Cleared
		case r.Target.MSR != nil:
			register, cleared = r.Target.MSR.Name, r.Target.MSR.Cleared
		}
		t.Check(r.Guard == "cr" && register == c.register && slices.Equal(cleared, []string{c.bit}), "and the register and its bit: %s, %v", r.Target, cleared)
		t.Check(r.Attempted.Number != nil && uint64(*r.Attempted.Number) == v.Tried, "and the value tried: %s, the module says %#x", r.Attempted, v.Tried)
		t.Check(r.Before.Number != nil && uint64(*r.Before.Number) == v.Before, "and the value before: %s, the module says %#x", r.Before, v.Before)
		return nil
	}
	t.Check(r.Guard == "kernel-text" && r.Target.Memory != nil && string(r.Target.Memory.Symbol) == victim, "and the function: %s", r.Target)
	t.Check(len(r.Attempted.Bytes) > 0 && uint64(r.Attempted.Bytes[0]) == v.Tried&0xff, "and the bytes tried: %s, the module says %#x", r.Attempted, v.Tried)
	t.Check(len(r.Before.Bytes) > 0 && uint64(r.Before.Bytes[0]) == v.Before&0xff, "and the bytes before: %s, the module says %#x", r.Before, v.Before)
	return nil
}

// staysInView has the guest's kernel execute VMFUNC for each view there can be,
// and wants it refused, and the guest guarded as before. Nothing is reported: the
// processor raises #UD in the guest by itself.
func (g *Guest) staysInView() error {
	t := g.t
	v, err := g.Attack(Attack{Mode: "vmfunc"})
	if err != nil {
		return err
	}
	t.Check(!v.Written && v.After == 0 && v.Tried == 0x3ff, "VMFUNC is #UD in the guest, whichever view it names: tried %#x, carried out %#x", v.Tried, v.After)
	return g.attackIsBlocked("text")
}

// eventsAfter waits for records of the guest that were not there before, and
// returns them. The error names what.
func (g *Guest) eventsAfter(before []journal.Record, limit time.Duration, what string) (events []journal.Record, err error) {
	err = g.t.Eventually(limit, what, func() (bool, error) {
		all, err := g.Events()
		if err != nil {
			return false, err
		}
		events = all[len(before):]
		return len(events) > 0, nil
	})
	return events, err
}

// denials are enough for Xen's processors to have met in every order.
const denials = 200

// denialHolds attacks one register again and again, with more processors than
// one: a denial that Xen is not ready for yet is lost, and the write lands.
func (g *Guest) denialHolds() error {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return err
	}
	var v Verdict
	if err := t.Step("denials", func() (err error) { v, err = g.Attack(Attack{Mode: "star", Times: denials}); return err }); err != nil {
		return err
	}
	after, err := g.Status()
	if err != nil {
		return err
	}
	blocked := guardStatus(after, "syscall-entry").Blocked - guardStatus(before, "syscall-entry").Blocked
	t.Check(!v.Written, "of %d denied writes none lands: before %#x, tried %#x, after %#x at the %d.", denials, v.Before, v.Tried, v.After, blocked)
	t.Check(blocked == denials, "and each was denied: %d", blocked)
	return nil
}

// selfPatching has the kernel patch its own text: scheduler statistics are
// behind static keys, and switching them writes hundreds of bytes.
func (g *Guest) selfPatching() error {
	t := g.t
	before, err := g.Status()
	if err != nil {
		return err
	}
	for _, value := range []string{"1", "0"} {
		err := t.Step("schedstats-"+value, func() error {
			out, err := g.Run("echo " + value + " > /proc/sys/kernel/sched_schedstats && cat /proc/sys/kernel/sched_schedstats")
			t.Check(out == value, "the kernel patches itself: sched_schedstats is %q, want %s", out, value)
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
	was, is := guardStatus(before, "kernel-text"), guardStatus(after, "kernel-text")
	t.Fact("text_poke_writes_passed", is.Passed-was.Passed)
	t.Check(is.Passed > was.Passed, "the guard saw the kernel's own writes and let them pass: %d", is.Passed-was.Passed)
	t.Check(is.Events == was.Events, "and took none for an attack: %d", is.Events-was.Events)
	g.checkLetThrough(before, after, is.Passed-was.Passed)
	return nil
}

// doctor checks what `hvictl doctor` says of the host and of the guest, and its
// exit code: 7 where something asked for is not to be had.
func (g *Guest) doctor(tier control.Tier, code int) error {
	t := g.t
	out, err := t.Exec("hvictl", "-o", "json", "doctor")
	got := 0
	var exit *ExecError
	if errors.As(err, &exit) {
		got = exit.Code
	} else if err != nil {
		return err
	}
	t.Check(got == code, "hvictl doctor ends with %d: %d", code, got)
	var r control.DoctorReport
	if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
		return fmt.Errorf("hvictl doctor: %w in %.200q", err, out.Stdout)
	}
	t.Fact("doctor", r)
	m, err := Machine(t.ctx)
	if err != nil {
		return err
	}
	for _, c := range r.Checks {
		t.Check(c.Status == control.CheckOK || c.Detail != "" && (c.Fix != "" || c.Status == control.CheckInfo), "%s: %s, or what and how to mend it: %q %q", c.Name, c.Status, c.Detail, c.Fix)
	}
	i := slices.IndexFunc(r.Checks, func(c control.Check) bool { return c.Name == "keeper" })
	t.Check(i >= 0 && r.Checks[i].Status == control.CheckOK && strings.Contains(r.Checks[i].Detail, "watches over hvid"), "the keeper is alive: %+v", r.Checks)
	t.Check(len(r.Checks) > 3 && strings.Contains(r.Checks[0].Detail, m.Xen), "it names Xen's release: %+v", r.Checks[0])
	if t.Check(len(r.Domains) == 1, "it examines the guest: %d", len(r.Domains)) {
		d := r.Domains[0]
		t.Check(d.UUID == g.UUID && d.Tier == tier && (tier == control.TierViews || d.TierReason != ""), "and its tier: %s %q", d.Tier, d.TierReason)
	}
	return nil
}

// lifeGoesOn checks that the guest works under load and that nobody takes its
// life for an attack.
func (g *Guest) lifeGoesOn() error {
	t := g.t
	before, err := g.Events()
	if err != nil {
		return err
	}
	if err := g.Load(true); err != nil {
		return err
	}
	out, err := g.Run("i=0; while [ $i -lt 20 ]; do /bin/busybox true; i=$((i+1)); done; echo $i")
	if err != nil {
		return err
	}
	t.Check(out == "20", "the guest goes on: %q", out)
	if err := g.Load(false); err != nil {
		return err
	}
	after, err := g.Events()
	if err != nil {
		return err
	}
	alarms := slices.DeleteFunc(after[min(len(before), len(after)):], func(r journal.Record) bool {
		// What an attack before has done again and again is told of in a while.
		return r.Detail.Suppressed+r.Detail.Repeats > 0 && r.RIP.Module == "pwn"
	})
	t.Check(len(alarms) == 0, "and its ordinary life raises no alarm: %d", len(alarms))
	return nil
}

// preserve keeps a domain that has powered off, so that Xen can be asked about
// it afterwards.
const preserve = `on_poweroff = "preserve"`

// letGo shuts a guest down whose domain is kept, and checks through Xen itself
// that hvid has let go of it: a new listener can be connected and no page is
// restricted. Then it destroys the domain and checks that it goes.
func (g *Guest) letGo() (leftovers, error) {
	t := g.t
	if _, err := t.XL("shutdown", strconv.Itoa(g.ID)); err != nil {
		return leftovers{}, err
	}
	st, err := g.WaitState(shutLimit, control.StateDetached)
	if err != nil {
		return leftovers{}, err
	}
	left, err := t.leftovers(g.ID)
	if err != nil {
		return left, fmt.Errorf("connect a new listener to the guest that was shut down: %w", err)
	}
	t.Check(true, "a new listener can be connected to the guest that was shut down")
	t.Check((left.frames > 0 || st.Tier == control.TierRegisters) && left.restricted == 0, "Xen restricts none of its pages: %d of %d", left.restricted, left.frames)
	t.Check(!left.paused, "and nobody holds it paused")
	t.Check(!left.views, "and no view of its memory is left (altp2m active: %v)", left.views)
	if err := g.Destroy(); err != nil {
		return left, err
	}
	if err := g.WaitGone(hvidLimit); err != nil {
		return left, err
	}
	return left, g.nothingLeft()
}

// nothingLeft checks, once the domain is gone, that nothing of it or of hvid's
// remains: no zombie, no ledger, and hvid has forgotten it.
func (g *Guest) nothingLeft() error {
	t := g.t
	err := t.Eventually(hvidLimit, "hvid forgets the domain", func() (bool, error) {
		_, err := g.Status()
		return err != nil, nil
	})
	if err != nil {
		return err
	}
	out, err := t.XL("list")
	if err != nil {
		return err
	}
	t.Check(!strings.Contains(out.Stdout, "(null)") && strings.Count(strings.TrimSpace(out.Stdout), "\n") == 1,
		"xl list shows dom0 alone, no zombie: %d lines", strings.Count(out.Stdout, "\n"))
	left, err := os.ReadDir("/run/hvi/ledger")
	if err != nil {
		return err
	}
	t.Check(len(left) == 0, "no change of Xen's state is outstanding: %d ledgers", len(left))
	return nil
}
