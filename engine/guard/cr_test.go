package guard_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

func onlyCR(a policy.Action) map[policy.GuardName]policy.Action {
	return map[policy.GuardName]policy.Action{policy.GuardControlRegisters: a}
}

// cr is a write of a control register of the last vCPU by code at rip.
func cr(f fixture, reg vmevent.CtrlReg, old, value uint64, rip x86.VirtAddr) *vmevent.Event {
	ev := &vmevent.Event{
		Reason: vmevent.ReasonWriteCtrlReg, Paused: true, VCPU: 1, Regs: f.guest.Regs[0],
		CR: vmevent.CtrlRegWrite{Reg: reg, Old: old, New: value},
	}
	ev.Regs.RIP = uint64(rip)
	return ev
}

// TestControlRegisters is the meaning of the guard, write by write.
func TestControlRegisters(t *testing.T) {
	const (
		cr0  = x86.CR0PG | x86.CR0WP | x86.CR0PE
		cr4  = x86.CR4PAE | x86.CR4SMEP | x86.CR4SMAP
		efer = x86.EFERLME | x86.EFERLMA | x86.EFERNXE | x86.EFERSCE
		ts   = 1 << 3
		pge  = 1 << 7
		svme = 1 << 12
	)
	type write struct {
		msr       uint32
		reg       vmevent.CtrlReg
		old, new  uint64
		violation bool
	}
	for name, w := range map[string]write{
		"WP cleared":                          {0, vmevent.CR0, cr0, cr0 &^ x86.CR0WP, true},
		"WP cleared with paging":              {0, vmevent.CR0, cr0, x86.CR0PE, true},
		"WP set":                              {0, vmevent.CR0, cr0 &^ x86.CR0WP, cr0, false},
		"TS set":                              {0, vmevent.CR0, cr0, cr0 | ts, false},
		"SMEP cleared":                        {0, vmevent.CR4, cr4, cr4 &^ x86.CR4SMEP, true},
		"SMAP cleared":                        {0, vmevent.CR4, cr4, cr4 &^ x86.CR4SMAP, true},
		"SMAP cleared while UMIP is set":      {0, vmevent.CR4, cr4, cr4&^x86.CR4SMAP | x86.CR4UMIP, true},
		"UMIP cleared, which was off at boot": {0, vmevent.CR4, cr4 | x86.CR4UMIP, cr4, false},
		"PGE flipped":                         {0, vmevent.CR4, cr4 | pge, cr4, false},
		"CR3":                                 {0, vmevent.CR3, 0x1000, 0x2000, false},
		"XCR0":                                {0, vmevent.XCR0, 7, 3, false},
		"a register there isn't":              {0, 9, 7, 3, false},
		"NXE cleared":                         {x86.MSREFER, 0, efer, efer &^ x86.EFERNXE, true},
		"SCE cleared":                         {x86.MSREFER, 0, efer, efer &^ x86.EFERSCE, true},
		"SVME set":                            {x86.MSREFER, 0, efer, efer | svme, false},
		"another MSR":                         {x86.MSRLSTAR, 0, 1, 0, false},
	} {
		for _, action := range []policy.Action{policy.ActionAlert, policy.ActionBlock} {
			t.Run(name+"/"+action.String(), func(t *testing.T) {
				f := arm(t, onlyCR(action))
				ev := cr(f, w.reg, w.old, w.new, module)
				if w.msr != 0 {
					ev.Reason, ev.MSR = vmevent.ReasonMovToMSR, vmevent.MSRWrite{MSR: w.msr, Old: w.old, New: w.new}
				}
				want := vmevent.Continue
				if w.violation && action == policy.ActionBlock {
					want = vmevent.Deny
				}
				if got := f.set.HandleEvent(ev); got != want {
					t.Errorf("verdict %#x, want %#x", got, want)
				}
				a := f.set.Armed()[0]
				if got := a.Violations.Load() == 1; got != w.violation {
					t.Errorf("taken for a violation: %v, want %v", got, w.violation)
				}
				if !w.violation {
					return
				}
				if e := <-f.set.Violations(); e.Guard != policy.GuardControlRegisters || e.VCPU != 1 || e.CR != ev.CR || e.MSR != ev.MSR || e.Task.Name() != "insmod" {
					t.Errorf("evidence %+v", e)
				}
			})
		}
	}
}

// TestControlRegistersWatch checks that Xen is asked for the guarded bits alone:
// any other would cost an event each time the kernel flushes its TLB.
func TestControlRegistersWatch(t *testing.T) {
	f := arm(t, onlyCR(policy.ActionBlock))
	w := f.set.Armed()[0].Watch
	want := []guard.CtrlRegBits{{Reg: vmevent.CR0, Bits: x86.CR0WP}, {Reg: vmevent.CR4, Bits: x86.CR4SMEP | x86.CR4SMAP}}
	if !slices.Equal(w.CtrlRegs, want) || !slices.Equal(w.MSRs, []uint32{x86.MSREFER}) || !w.DefersWrites() {
		t.Errorf("watches %+v and MSRs %#x, want %+v and EFER", w.CtrlRegs, w.MSRs, want)
	}
}

// TestControlRegistersHotplug takes a processor through what the trampoline and
// secondary_startup_64 of Linux 6.1 do, and attacks before and after.
func TestControlRegistersHotplug(t *testing.T) {
	f := arm(t, onlyCR(policy.ActionBlock))
	const (
		full  = x86.CR4PAE | x86.CR4SMEP | x86.CR4SMAP
		small = x86.CR4PAE
	)
	kernel := f.guest.Base + 0x1000
	for _, s := range []struct {
		what     string
		vcpu     uint32
		old, new uint64
		rip      x86.VirtAddr
		want     vmevent.Verdict
	}{
		{"an attack first", 1, full, small, module, vmevent.Deny},
		{"the trampoline, after a reset", 1, 0, full, 0x98100, vmevent.Continue},
		{"an attack on the other processor meanwhile", 0, full, small, module, vmevent.Deny},
		{"secondary_startup_64", 1, full, small, kernel, vmevent.Continue},
		{"cr4_init", 1, small, full, kernel, vmevent.Continue},
		{"an attack after it", 1, full, small, kernel, vmevent.Deny},
		{"an attack that takes one bit for another", 1, full, full &^ x86.CR4SMEP, module, vmevent.Deny},
		{"a vCPU that the domain doesn't have", 4096, full, small, module, vmevent.Deny},
		{"a vCPU that the domain doesn't have, reset", 4096, 0, small, module, vmevent.Continue},
	} {
		ev := cr(f, vmevent.CR4, s.old, s.new, s.rip)
		ev.VCPU = s.vcpu
		if got := f.set.HandleEvent(ev); got != s.want {
			t.Errorf("%s: verdict %#x, want %#x", s.what, got, s.want)
		}
	}
}

// TestControlRegistersArmedInHotplug arms the guard while a processor is on its
// way up, and while one is in user mode.
func TestControlRegistersArmedInHotplug(t *testing.T) {
	const full, small = x86.CR4PAE | x86.CR4SMEP | x86.CR4SMAP, x86.CR4PAE
	for name, tt := range map[string]struct {
		now  func(r x86.Registers) x86.Registers
		want vmevent.Verdict
	}{
		"not up":                {func(x86.Registers) x86.Registers { return x86.Registers{} }, vmevent.Continue},
		"in the trampoline":     {func(r x86.Registers) x86.Registers { r.RIP, r.CPL = 0x98100, 0; return r }, vmevent.Continue},
		"in a process":          {func(r x86.Registers) x86.Registers { r.RIP, r.CPL = 0x401000, 3; return r }, vmevent.Deny},
		"in the kernel":         {func(r x86.Registers) x86.Registers { return r }, vmevent.Deny},
		"hooked since the boot": {func(r x86.Registers) x86.Registers { r.CR4 = small; return r }, vmevent.Deny},
	} {
		g := linuxtest.New(linuxtest.Config{})
		k, err := linux.Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		boot := g.Regs[0]
		boot.RIP = uint64(g.Base)
		set, err := guard.NewSet(&guard.Target{Kernel: k, Boot: boot, Now: []x86.Registers{boot, tt.now(boot)}}, g.Memory(), onlyCR(policy.ActionBlock))
		if err != nil {
			t.Fatal(err)
		}
		f := fixture{g, k, set}
		if got := set.HandleEvent(cr(f, vmevent.CR4, full, small, g.Base+0x1000)); got != tt.want {
			t.Errorf("%s: verdict %#x, want %#x", name, got, tt.want)
		}
	}
}

// TestControlRegistersLost checks that a guest taken up without what every Linux
// has is not said to be protected.
func TestControlRegistersLost(t *testing.T) {
	for name, lose := range map[string]func(*x86.Registers){
		"WP":  func(r *x86.Registers) { r.CR0 &^= x86.CR0WP },
		"SCE": func(r *x86.Registers) { r.EFER &^= x86.EFERSCE },
	} {
		g := linuxtest.New(linuxtest.Config{})
		k, err := linux.Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		boot := g.Regs[0]
		lose(&boot)
		set, err := guard.NewSet(&guard.Target{Kernel: k, Boot: boot, Now: []x86.Registers{boot}}, g.Memory(), onlyCR(policy.ActionBlock))
		var p *guard.PrepareError
		if !errors.As(err, &p) || p.Guard != policy.GuardControlRegisters || len(set.Armed()) != 0 {
			t.Errorf("without %s: %v, %d armed", name, err, len(set.Armed()))
		}
	}
}

// TestControlRegistersDoNotAllocate is the promise of the event path.
func TestControlRegistersDoNotAllocate(t *testing.T) {
	f := arm(t, onlyCR(policy.ActionBlock))
	up := cr(f, vmevent.CR4, 0, x86.CR4PAE|x86.CR4SMEP, 0x98100)
	svme := &vmevent.Event{Reason: vmevent.ReasonMovToMSR, MSR: vmevent.MSRWrite{MSR: x86.MSREFER, Old: 0xd01, New: 0x1d01}}
	if n := testing.AllocsPerRun(100, func() { f.set.HandleEvent(up); f.set.HandleEvent(svme) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
