package xentest

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// RegisterWrite is an instruction of the guest's that writes a register.
type RegisterWrite struct {
	VCPU int
	// MSR is the register, or zero where it is control register CR, one of
	// abi.VMEventX86*.
	MSR   uint32
	CR    uint8
	Value uint64
	RIP   x86.VirtAddr
}

// WriteRegister has the guest write a register, and reports whether a listener
// was told. If so, the vCPU is paused for its answer; where the release, or the
// listener, has it so, the register gets its value only then, if at all. It
// panics for a register that the fake doesn't have.
func (d *Domain) WriteRegister(w RegisterWrite) (reported bool, err error) {
	defer d.lock()()
	v := d.vcpus[w.VCPU]
	reg := v.register(w)
	key := fmt.Sprintf("%d %d", abi.MonitorEventWriteCtrlReg, w.CR)
	if w.MSR != 0 {
		key = fmt.Sprintf("%d %d", abi.MonitorEventMovToMSR, w.MSR)
	}
	m, ok := d.monitored[key]
	if !ok || m.OnChangeOnly && *reg == w.Value || w.MSR == 0 && (*reg^w.Value)&^m.IgnoreBits == 0 {
		*reg = w.Value
		return false, nil
	}
	if err := d.send(d.writeEvent(w, m, *reg)); err != nil {
		return false, err
	}
	if d.deferRegisters || !d.h.layout.Has.MonitorControlRegisters {
		v.writing, v.value = reg, w.Value
	} else {
		*reg = w.Value
	}
	return true, nil
}

// endWrite is what hvm_vm_event_do_resume makes of a write that was answered.
func (v *vcpu) endWrite(denied bool) {
	if v.writing != nil && !denied {
		*v.writing = v.value
	}
	v.writing = nil
}

func (v *vcpu) register(w RegisterWrite) *uint64 {
	r := &v.regs
	if w.MSR != 0 {
		switch w.MSR {
		case x86.MSREFER:
			return &r.EFER
		case x86.MSRSTAR:
			return &r.STAR
		case x86.MSRLSTAR:
			return &r.LSTAR
		case x86.MSRCSTAR:
			return &r.CSTAR
		case x86.MSRSysenterEIP:
			return &r.SysenterEIP
		}
		panic(fmt.Sprintf("xentest: no MSR %#x", w.MSR))
	}
	switch w.CR {
	case abi.VMEventX86CR0:
		return &r.CR0
	case abi.VMEventX86CR3:
		return &r.CR3
	case abi.VMEventX86CR4:
		return &r.CR4
	}
	panic(fmt.Sprintf("xentest: no control register %d", w.CR))
}

// writeEvent is the request that tells of a write.
func (d *Domain) writeEvent(w RegisterWrite, m MonitorState, old uint64) []byte {
	l := &d.h.layout.VMEvent
	e := make([]byte, l.Size)
	put := func(off, n int, v uint64) { putLE(e[off:], n, v) }
	put(l.OffVCPU, 4, uint64(w.VCPU))
	if w.MSR != 0 {
		put(l.OffFlags, 4, abi.VMEventFlagVCPUPaused)
		put(l.OffReason, 4, abi.VMEventReasonMovToMSR)
		put(l.MovToMSR.MSR, 8, uint64(w.MSR))
		put(l.MovToMSR.New, 8, w.Value)
		put(l.MovToMSR.Old, 8, old)
	} else {
		if m.Sync {
			put(l.OffFlags, 4, abi.VMEventFlagVCPUPaused)
		}
		put(l.OffReason, 4, abi.VMEventReasonWriteCtrlReg)
		put(l.WriteCtrlReg.Index, 4, uint64(w.CR))
		put(l.WriteCtrlReg.New, 8, w.Value)
		put(l.WriteCtrlReg.Old, 8, old)
	}
	r := &d.vcpus[w.VCPU].regs
	put(l.Regs.RIP, 8, uint64(w.RIP))
	put(l.Regs.CR0, 8, r.CR0)
	put(l.Regs.CR3, 8, r.CR3)
	put(l.Regs.CR4, 8, r.CR4)
	put(l.Regs.MSREFER, 8, r.EFER)
	put(l.Regs.GSBase, 8, r.GSBase)
	return e
}
