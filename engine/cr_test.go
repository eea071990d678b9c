package engine_test

import (
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

// writeRegister has code in a module write a register, and waits for the answer
// if hvi was asked.
func (w *world) writeRegister(r xentest.RegisterWrite) (reported bool) {
	w.t.Helper()
	if r.RIP == 0 {
		r.RIP = w.guest.Base + 0x400000
	}
	w.dom.Responses()
	reported, err := w.dom.WriteRegister(r)
	if err != nil {
		w.t.Fatal(err)
	}
	for reported && len(w.dom.Responses()) == 0 {
		<-w.dom.Answered()
	}
	return reported
}

// TestControlRegisters has a guest clear its processor's protections, on every
// release and on both makes: the writes don't land, and what is no business of
// the guard's isn't even reported.
func TestControlRegisters(t *testing.T) {
	const pge, ts = 1 << 7, 1 << 3
	for _, rel := range abi.Releases() {
		for _, amd := range []bool{false, true} {
			name := rel.String() + " Intel"
			if amd {
				name = rel.String() + " AMD"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, xentest.Config{AMD: amd, Release: xen.Release{Major: rel.Major, Minor: rel.Minor}}, xentest.Spec{Pauses: 1})
				w.appear()
				w.boot()
				boot := w.dom.Registers(0)
				for _, a := range []struct {
					write   xentest.RegisterWrite
					target  string
					cleared []string
				}{
					{xentest.RegisterWrite{CR: abi.VMEventX86CR0, Value: boot.CR0 &^ x86.CR0WP}, "CR0", []string{"WP"}},
					{xentest.RegisterWrite{CR: abi.VMEventX86CR4, Value: boot.CR4 &^ x86.CR4SMEP}, "CR4", []string{"SMEP"}},
					{xentest.RegisterWrite{CR: abi.VMEventX86CR4, Value: x86.CR4PAE}, "CR4", []string{"SMEP", "SMAP"}},
					{xentest.RegisterWrite{MSR: x86.MSREFER, Value: boot.EFER &^ x86.EFERNXE}, "MSR EFER (0xc0000080)", []string{"NXE"}},
				} {
					if !w.writeRegister(a.write) {
						t.Fatalf("%s without %v was not reported", a.target, a.cleared)
					}
					if now := w.dom.Registers(0); now != boot {
						t.Errorf("%s without %v has landed: %+v", a.target, a.cleared, now)
					}
					r := <-w.events.got
					cleared := []string(nil)
					switch {
					case r.Target.CR != nil:
						cleared = r.Target.CR.Cleared
					case r.Target.MSR != nil:
						cleared = r.Target.MSR.Cleared
					}
					if r.Guard != "cr" || r.Action != journal.Blocked || r.Target.String() != a.target || !slices.Equal(cleared, a.cleared) ||
						uint64(*r.Attempted.Number) != a.write.Value || r.Process.PID != 214 {
						t.Errorf("record %+v", r)
					}
				}
				for what, write := range map[string]xentest.RegisterWrite{
					"a flush of the TLB": {CR: abi.VMEventX86CR4, Value: boot.CR4 | pge},
					"TS":                 {CR: abi.VMEventX86CR0, Value: boot.CR0 | ts},
					"the same EFER":      {MSR: x86.MSREFER, Value: boot.EFER},
				} {
					if w.writeRegister(write) {
						t.Errorf("%s was reported", what)
					}
				}
				if now := w.dom.Registers(0); now.CR4 != boot.CR4|pge || now.CR0 != boot.CR0|ts {
					t.Errorf("what the guest may write has not landed: %+v", now)
				}
				if n := w.dom.LostDenials(); n != 0 {
					t.Errorf("%d writes were denied before Xen had come to wait for the answer, and landed", n)
				}
				w.dom.Shutdown(abi.ShutdownPoweroff)
				w.engine.ShutDown(w.info)
				w.checkClean(1)
			})
		}
	}
}

// TestControlRegistersObserved lets the writes land and tells of them.
func TestControlRegistersObserved(t *testing.T) {
	w := newWorld(t, xentest.Config{}, xentest.Spec{Pauses: 1})
	w.decl = declare(t, "observe")
	w.appear()
	w.boot()
	want := w.dom.Registers(0)
	want.CR0 &^= x86.CR0WP
	w.writeRegister(xentest.RegisterWrite{CR: abi.VMEventX86CR0, Value: want.CR0})
	if r := <-w.events.got; r.Guard != "cr" || r.Action != journal.Alerted {
		t.Errorf("record %+v", r)
	}
	if now := w.dom.Registers(0); now != want {
		t.Errorf("under observe the guest's registers are %+v, want %+v", now, want)
	}
	if w.dom.DefersRegisters() {
		t.Error("register writes wait for answers that deny nothing")
	}
}

// TestControlRegistersHotplug has the guest's second processor come up after the
// guards were armed, as Linux does it: no alarm, and it is guarded from then on.
func TestControlRegistersHotplug(t *testing.T) {
	w := newWorld(t, xentest.Config{AMD: true}, xentest.Spec{Pauses: 1, VCPUs: 2})
	w.dom.SetOnline(1, false)
	w.appear()
	w.boot()
	full := w.dom.Registers(0)
	w.dom.SetOnline(1, true) // with registers of zero, as after a reset
	kernel := w.guest.Base + 0x1000
	for _, s := range []xentest.RegisterWrite{
		{CR: abi.VMEventX86CR4, Value: full.CR4, RIP: 0x98100},
		{MSR: x86.MSREFER, Value: full.EFER &^ x86.EFERLMA, RIP: 0x98110},
		{CR: abi.VMEventX86CR0, Value: full.CR0, RIP: 0x98120},
		{CR: abi.VMEventX86CR4, Value: x86.CR4PAE, RIP: kernel},
		{CR: abi.VMEventX86CR4, Value: full.CR4, RIP: kernel},
	} {
		s.VCPU = 1
		if !w.writeRegister(s) {
			t.Fatalf("not reported: %+v", s)
		}
	}
	up := w.dom.Registers(1)
	if up.CR0 != full.CR0 || up.CR4 != full.CR4 {
		t.Errorf("the processor did not come up: %+v", up)
	}
	w.writeRegister(xentest.RegisterWrite{VCPU: 1, CR: abi.VMEventX86CR4, Value: x86.CR4PAE, RIP: kernel})
	if now := w.dom.Registers(1); now != up {
		t.Errorf("once up it is not guarded: %+v", now)
	}
	if r := <-w.events.got; r.VCPU != 1 || r.Action != journal.Blocked {
		t.Errorf("record %+v", r)
	}
	for _, g := range w.status().Guards {
		if g.Name == "cr" && (g.State != engine.GuardArmed || g.Violations != 1 || g.Passed != 5) {
			t.Errorf("cr: %+v, want one violation and five writes of the kernel's own", g)
		}
	}
}
