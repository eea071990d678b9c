package guard

import (
	"errors"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// ControlRegisters protects the bits of CR0, CR4 and EFER by which the processor
// itself keeps the kernel from being changed or misled: [x86.CR0Protections] and
// its like. One that was set at the end of the kernel's boot may not be cleared
// afterwards. To set one is no violation.
//
// Linux does not clear them while it runs. Since 5.3 its own functions refuse to
// (native_write_cr0, native_write_cr4), so who clears one does it with an
// instruction of his own. What was looked for in its source, up to 6.12:
//
//   - text_poke, alternatives and ftrace write through a second mapping, with
//     CR0.WP set.
//   - EFI's runtime services are called with other page tables and the same CR0.
//   - CR0.CD is set while MTRRs are changed, CR4.PGE cleared to flush the TLB, and
//     CR4.PCE, TSD and VMXE come and go. None of them is asked for.
//   - A processor that comes up (hotplug, wake from suspend to RAM) starts in the
//     trampoline below 1 MiB with the kernel's CR4, which secondary_startup_64
//     then reduces to PAE and a few more, to be filled again by cr4_init. A
//     processor is let do that from its reset on, when CR4 is 0, which no code in
//     long mode can bring about, until CR4 has all bits and the kernel runs at its
//     own addresses.
//   - kexec (relocate_kernel) clears WP and most of CR4, and a reset through real
//     mode (machine_real_restart) WP and EFER, once, as the kernel's last deed.
//     They can't be told from an attack by what an attacker couldn't pretend, and
//     are violations.
//   - KVM changes EFER for a guest's guest on processors that can't do so by
//     themselves. Nested virtualization doesn't go with hvi.
//
// Not seen: a processor that an attacker resets himself and starts with code of
// his own has none of the bits, and never sets them.
func ControlRegisters() Guard {
	return Guard{
		Name:  policy.GuardControlRegisters,
		Needs: NeedCtrlRegWrite | NeedMSRWrite,
		Watch: func(t *Target) (Watch, error) {
			w := Watch{MSRs: []uint32{x86.MSREFER}}
			for _, r := range []CtrlRegBits{
				{vmevent.CR0, t.Boot.CR0 & x86.CR0Protections.Mask()},
				{vmevent.CR4, t.Boot.CR4 & x86.CR4Protections.Mask()},
			} {
				if r.Bits != 0 {
					w.CtrlRegs = append(w.CtrlRegs, r)
				}
			}
			return w, nil
		},
		Bind: func(t *Target) (func(*vmevent.Event) bool, error) {
			// Every Linux of 64 bits sets these two. A guest taken up while it
			// runs may have lost them already.
			if t.Boot.CR0&x86.CR0WP == 0 {
				return nil, errors.New("CR0.WP is clear: read-only memory is writable to the kernel already")
			}
			if t.Boot.EFER&x86.EFERSCE == 0 {
				return nil, errors.New("EFER.SCE is clear: system calls are diverted already")
			}
			j := crJudge{
				cr0:      t.Boot.CR0 & x86.CR0Protections.Mask(),
				cr4:      t.Boot.CR4 & x86.CR4Protections.Mask(),
				efer:     t.Boot.EFER & x86.EFERProtections.Mask(),
				starting: make([]bool, len(t.Now)),
			}
			for i := range t.Now {
				j.starting[i] = inTrampoline(&t.Now[i])
			}
			return j.violation, nil
		},
	}
}

// crJudge judges writes of CR0, CR4 and EFER. It is the ring goroutine's.
type crJudge struct {
	// cr0, cr4 and efer are the bits that may not be cleared.
	cr0, cr4, efer uint64
	// starting says for each vCPU that it was reset and has not come up yet.
	starting []bool
}

func (j *crJudge) violation(ev *vmevent.Event) bool {
	switch {
	case ev.Reason == vmevent.ReasonMovToMSR && ev.MSR.MSR == x86.MSREFER:
		return ev.MSR.Old&^ev.MSR.New&j.efer != 0
	case ev.Reason != vmevent.ReasonWriteCtrlReg:
		return false
	case ev.CR.Reg == vmevent.CR0:
		return ev.CR.Old&^ev.CR.New&j.cr0 != 0
	case ev.CR.Reg == vmevent.CR4:
		return !j.comingUp(ev) && ev.CR.Old&^ev.CR.New&j.cr4 != 0
	}
	return false
}

// comingUp follows a processor from its reset to the kernel, by its writes of
// CR4, and reports whether this is one of them.
func (j *crJudge) comingUp(ev *vmevent.Event) bool {
	if uint64(ev.VCPU) >= uint64(len(j.starting)) {
		return false
	}
	starting := &j.starting[ev.VCPU]
	switch {
	case ev.CR.Old == 0: // as after a reset; long mode needs PAE
		*starting = true
	case *starting && ev.CR.New&j.cr4 == j.cr4 && x86.VirtAddr(ev.Regs.RIP).KernelHalf():
		*starting = false
		return true
	}
	return *starting
}

// inTrampoline reports whether a vCPU has not come as far as the kernel itself.
func inTrampoline(r *x86.Registers) bool {
	return r.CR0&x86.CR0PG == 0 || r.CPL == 0 && !x86.VirtAddr(r.RIP).KernelHalf()
}
