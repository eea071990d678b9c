package vmevent

import (
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Reason says what made the vCPU report (VM_EVENT_REASON_*).
type Reason uint32

// Reasons hvi arms or may meet. Values are Xen's and the same in every
// release from 4.11 to 4.22.
const (
	ReasonUnknown            Reason = abi.VMEventReasonUnknown
	ReasonMemAccess          Reason = abi.VMEventReasonMemAccess
	ReasonWriteCtrlReg       Reason = abi.VMEventReasonWriteCtrlReg
	ReasonMovToMSR           Reason = abi.VMEventReasonMovToMSR
	ReasonSoftwareBreakpoint Reason = abi.VMEventReasonSoftwareBreakpoint
	ReasonSingleStep         Reason = abi.VMEventReasonSingleStep
	ReasonGuestRequest       Reason = abi.VMEventReasonGuestRequest
	ReasonEmulUnimplemented  Reason = abi.VMEventReasonEmulUnimplemented

	// numReasons bounds the per-reason counters; later reasons share the
	// last one.
	numReasons = 20
)

func (r Reason) String() string {
	switch r {
	case ReasonMemAccess:
		return "mem_access"
	case ReasonWriteCtrlReg:
		return "write_ctrlreg"
	case ReasonMovToMSR:
		return "mov_to_msr"
	case ReasonSoftwareBreakpoint:
		return "software_breakpoint"
	case ReasonSingleStep:
		return "singlestep"
	case ReasonGuestRequest:
		return "guest_request"
	case ReasonEmulUnimplemented:
		return "emul_unimplemented"
	}
	return "unknown"
}

// Access bits of a memory violation (MEM_ACCESS_*).
const (
	AccessRead     = abi.MemAccessR
	AccessWrite    = abi.MemAccessW
	AccessExecute  = abi.MemAccessX
	AccessGLAValid = abi.MemAccessGLAValid
	// AccessWithGLA says the fault happened on the translation of GLA,
	// AccessInGPT that it happened while the guest's page tables were walked.
	AccessWithGLA = abi.MemAccessFaultWithGLA
	AccessInGPT   = abi.MemAccessFaultInGPT
)

// MemAccess is the payload of a ReasonMemAccess event.
type MemAccess struct {
	GFN    x86.GFN
	Offset uint64       // byte offset in the frame, below 4096
	GLA    x86.VirtAddr // valid only with AccessGLAValid
	Flags  uint32       // Access* bits; VT-x reports a write as read|write
}

// Phys returns the guest physical address that was touched.
func (m *MemAccess) Phys() x86.PhysAddr {
	return m.GFN.Addr() + x86.PhysAddr(m.Offset&x86.PageMask)
}

// CtrlReg is a control register's number in Xen's own numbering
// (VM_EVENT_X86_*).
type CtrlReg uint32

// Control registers Xen reports.
const (
	CR0  CtrlReg = 0
	CR3  CtrlReg = 1
	CR4  CtrlReg = 2
	XCR0 CtrlReg = 3

	// NumCtrlRegs is one more than the highest of them.
	NumCtrlRegs = 4
)

// String returns the SDM's name of the register.
func (r CtrlReg) String() string {
	switch r {
	case CR0:
		return "CR0"
	case CR3:
		return "CR3"
	case CR4:
		return "CR4"
	case XCR0:
		return "XCR0"
	}
	return "unknown"
}

// CtrlRegWrite is the payload of a ReasonWriteCtrlReg event.
type CtrlRegWrite struct {
	Reg      CtrlReg
	New, Old uint64
}

// MSRWrite is the payload of a ReasonMovToMSR event.
type MSRWrite struct {
	MSR      uint32
	New, Old uint64
}

// Breakpoint is the payload of a ReasonSoftwareBreakpoint event: the vCPU is at
// an INT3, which has not been executed.
type Breakpoint struct {
	// GFN is the frame of the instruction in the host's view.
	GFN     x86.GFN
	InsnLen uint8 // bytes
}

// Leave are registers with which a vCPU leaves a function that it was about to enter:
// what the function returns, and where to.
type Leave struct{ RAX, RSP, RIP uint64 }

// Event is one decoded request. Only the payload that Reason names is set.
// Everything but VCPU and Reason is under the guest's control.
//
// An Event is reused by the server for the next request: a handler copies what
// it wants to keep.
type Event struct {
	Reason Reason
	VCPU   uint32
	View   uint16 // altp2m view the vCPU ran in
	// Paused says that the vCPU waits for the answer.
	Paused bool
	// Long says that it executes 64-bit code.
	Long bool

	// StepIn is the view that Step makes its step in, and ReturnTo the one that
	// the vCPU is in after it, and after EndStep. The handler sets them; before,
	// they are 0, which is the host's view.
	StepIn, ReturnTo uint16

	// Leave is what Skip sets. The handler fills it in; before, it is of another event.
	Leave Leave

	Mem  MemAccess
	CR   CtrlRegWrite
	MSR  MSRWrite
	Stop Breakpoint
	Regs x86.Registers

	// slot is the request as it stood in the ring: a response is the same
	// bytes with other flags.
	slot [maxSlot]byte
}

// maxSlot is at least the largest sizeof(vm_event_st) of any known release.
const maxSlot = 512

// Verdict is the answer to an event: a set of what Xen shall do before the
// vCPU goes on. The zero value lets it go on unchanged.
type Verdict uint32

const (
	// Continue lets the vCPU go on: a denied access is retried.
	Continue Verdict = 0
	// Emulate carries the instruction out in Xen's emulator, past the
	// page's restriction.
	Emulate Verdict = 1 << 0
	// Discard carries the instruction out in Xen's emulator but drops its
	// writes to memory. Registers change as if the write had landed.
	Discard Verdict = 1 << 1
	// Deny drops a control or model-specific register write. It needs
	// MONITOR_OP_CONTROL_REGISTERS from Xen 4.14 on.
	Deny Verdict = 1 << 2
	// Step carries the instruction out in the view Event.StepIn and puts the
	// vCPU in Event.ReturnTo after it. It needs views, and single steps monitored.
	// Before Xen 4.14 a step ends in an event of its own, which is to be answered
	// with EndStep.
	Step Verdict = 1 << 3
	// EndStep ends a step that was reported: the vCPU returns to
	// Event.ReturnTo.
	EndStep Verdict = 1 << 4
	// Report, with Step, has the step end in an event on every release. It is not
	// for a vCPU in a step that Xen ends without one: Xen would end that instead.
	Report Verdict = 1 << 5
	// ReadOnes carries the instruction out in Xen's emulator with all bits set
	// in what it reads from the page, as from memory that is not there.
	ReadOnes Verdict = 1 << 6
	// Return has the vCPU go on in Event.ReturnTo, where a denied access is tried
	// again. It is for a vCPU that is in a view which it should have left.
	Return Verdict = 1 << 7
	// Skip has the vCPU go on with the registers in Event.Leave, and all others as they
	// are. It is for one that waits for the answer.
	Skip Verdict = 1 << 8
	// Hold leaves the request unanswered, its vCPU stopped, until
	// Server.Release. It is meaningless for an event that paused nothing.
	Hold Verdict = 1 << 31
)

// responseFlags maps a verdict to Xen's flags. EMULATE_NOWRITE alone is not
// enough: the instruction would be retried for ever, so Discard is both.
func (v Verdict) responseFlags() uint32 {
	var f uint32
	if v&Emulate != 0 {
		f |= abi.VMEventFlagEmulate
	}
	if v&Discard != 0 {
		f |= abi.VMEventFlagEmulate | abi.VMEventFlagEmulateNoWrite
	}
	if v&Deny != 0 {
		f |= abi.VMEventFlagDeny
	}
	if v&ReadOnes != 0 {
		f |= abi.VMEventFlagEmulate | abi.VMEventFlagSetEmulReadData
	}
	if v&Skip != 0 {
		f |= abi.VMEventFlagSetRegisters
	}
	return f
}
