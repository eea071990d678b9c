package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Need is a capability of the platform a guard cannot do without.
type Need uint8

// Capabilities guards may need.
const (
	// NeedMemAccess is per-page access control: Intel VT-x with HAP.
	NeedMemAccess Need = 1 << iota
	// NeedMSRWrite is events for writes of model-specific registers.
	NeedMSRWrite
	// NeedCtrlRegWrite is events for writes of control registers.
	NeedCtrlRegWrite
	// NeedCalls is hidden breakpoints, which take views.
	NeedCalls
	// NeedViews is pages that can be executed and not read. In the host's view everybody
	// would have to be let through by Xen's emulator.
	NeedViews
)

// Watch is what a guard asks Xen to report.
type Watch struct {
	// Frames are restricted to Access, which must not be more than what the
	// guest's own use of them needs. Those of one guard may be those of another that
	// permits no reads: that one then judges reads, and what nobody else does.
	Frames []linux.FrameRange
	// Ranges are bytes to watch on frames that are restricted likewise. An access
	// to one is this guard's to judge, also where another watches the frame; what
	// else is on the frame is nobody's, or that other's. It must be memory that a
	// healthy guest leaves alone: how many bytes an access takes is not known, so
	// one that begins before a range and reaches into it is not the range's.
	Ranges []linux.PhysRange
	Access xen.Access
	// MSRs are reported when a write changes their value.
	MSRs []uint32
	// CtrlRegs are reported when a write changes one of the bits named.
	CtrlRegs []CtrlRegBits
}

// CtrlRegBits are some bits of a control register, at least one.
type CtrlRegBits struct {
	Reg  vmevent.CtrlReg
	Bits uint64
}

// DefersWrites reports whether w watches registers. To deny a write of one, Xen
// must be told to wait for the answer.
func (w *Watch) DefersWrites() bool { return len(w.MSRs)+len(w.CtrlRegs) > 0 }

// Target is the guest a guard protects, as far as it is known when it is
// armed.
type Target struct {
	Kernel *linux.Kernel
	// Boot holds vCPU 0's registers at the end of the kernel's boot.
	Boot x86.Registers
	// Now holds each vCPU's registers while the guards are being armed; a vCPU
	// that is not up has those of a processor after its reset, all zero here.
	Now []x86.Registers
	// Actions is what the policy asks for of each guard.
	Actions map[policy.GuardName]policy.Action
	// Policy is the whole of it, for the guards whose lists say what is watched.
	Policy policy.Effective
	// Taking is how Scan reads what it takes for right, of a guest that runs.
	Taking linux.Taking
}

// Guard is one protection.
type Guard struct {
	Name  policy.GuardName
	Needs Need
	// Watch says what to report for this guest. It may read guest memory. It is
	// nil, and Bind is, for a guard that only looks, or judges calls, or whose frames move.
	Watch func(*Target) (Watch, error)
	// Bind returns the judge of this guest's events: true means violation.
	// The judge runs on the ring goroutine and must not allocate.
	Bind func(*Target) (func(*vmevent.Event) bool, error)
	// Scan finds violations afterwards where the platform lacks what the guard
	// needs; nil for a guard that can't. The guest must be paused while it is
	// called, but where Taking knows what has been patched since.
	Scan func(*Target) (Scanner, error)
	// Patches says that the writes which the guard lets pass are the kernel's patching
	// of its own code, the result of which Scan can judge. Its Watch has whole frames
	// alone, in the order of Scan's parts.
	Patches bool
	// Moving is for a guard whose frames come and go; nil for all others.
	Moving *Moving
	// Calls says at which functions of the kernel the guard judges; nil for one that
	// judges at none. It returns none if the policy gives it nothing to do.
	Calls func(*Target) ([]Call, error)
	// Look finds violations afterwards, on every platform; nil for a guard that
	// has no need to.
	Look *Look
}

// All returns every guard, in the order they are armed and shown.
func All() []Guard {
	return []Guard{
		KernelText(), KernelTextRead(), Modules(), ReadOnlyData(), ExceptionTable(), SyscallTable(), InterruptTable(), VDSO(),
		SegmentTable(), SyscallEntry(), ControlRegisters(), FunctionPointers(), ExecutableMemory(), EBPF(), UsermodeHelpers(), Credentials(), HiddenObjects(), Processes(), Exploits(), Panic(),
	}
}
