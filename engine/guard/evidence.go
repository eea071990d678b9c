package guard

import (
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxInsn is the longest x86 instruction, in bytes.
	maxInsn = 15
	// maxBytes is how much of the target's and the source's memory is kept.
	maxBytes = 16
	// maxStack is how much of the kernel's stack is kept, in bytes: the last dozen
	// or so of calls.
	maxStack = 512
)

// Evidence is what was true at the moment of a violation, with the vCPU still
// stopped: the guest can change all of it a moment later. It is of fixed size
// so that taking it allocates nothing.
type Evidence struct {
	Time   int64 // Unix time in nanoseconds
	Guard  policy.GuardName
	Action policy.Action // what was done
	VCPU   uint32
	Regs   x86.Registers

	// Event payload: Mem for a memory access, MSR or CR for a register write.
	Reason vmevent.Reason
	Mem    vmevent.MemAccess
	MSR    vmevent.MSRWrite
	CR     vmevent.CtrlRegWrite

	// Call is of a call of the kernel's.
	Call CallEvidence

	// Fate is what became of the task, if that was known when the evidence was taken.
	Fate *Fate

	insn, before, source          [maxBytes]byte
	insnLen, beforeLen, sourceLen uint8

	stack    [maxStack]byte
	stackLen uint16

	// Task is the process on that vCPU; HasTask is false when it could not
	// be read.
	Task    linux.Task
	HasTask bool
	// Module is the loaded module that RIP lies in, if InModule.
	Module   linux.Module
	InModule bool
	// MappedAt is where the kernel maps what was accessed, if it belongs to a
	// loaded module, Target; 0 if not.
	MappedAt x86.VirtAddr
	Target   linux.Module
}

// Insn returns the bytes at RIP that could be read.
func (e *Evidence) Insn() []byte { return e.insn[:e.insnLen] }

// Before returns the bytes at the target as they were before the write.
func (e *Evidence) Before() []byte { return e.before[:e.beforeLen] }

// Stack returns what lay on the kernel's stack, from RSP upwards; nothing if user
// code ran.
func (e *Evidence) Stack() []byte { return e.stack[:e.stackLen] }

// When returns the time of the violation.
func (e *Evidence) When() time.Time { return time.Unix(0, e.Time) }

// take fills e from an event. page is where the kernel maps the page of a module
// that was accessed, 0 for all else. Whatever cannot be read is left out: a violation
// is reported with what there is.
func (e *Evidence) take(t *Target, mem guest.Memory, ev *vmevent.Event, page x86.VirtAddr) {
	e.Time = time.Now().UnixNano()
	e.VCPU, e.Regs, e.Reason, e.Mem, e.MSR, e.CR = ev.VCPU, ev.Regs, ev.Reason, ev.Mem, ev.MSR, ev.CR
	e.HasTask = t.Kernel.ReadTask(&ev.Regs, &e.Task) == nil
	if e.MappedAt = 0; page != 0 && t.Kernel.ModuleAt(page, &e.Target) {
		e.MappedAt = page + x86.VirtAddr(ev.Mem.Offset)
	}

	rip := x86.VirtAddr(ev.Regs.RIP)
	if rip.KernelHalf() && (rip < t.Kernel.TextStart || rip >= t.Kernel.TextEnd) {
		e.InModule = t.Kernel.ModuleAt(rip, &e.Module)
	}
	as := guest.NewAddressSpace(mem, ev.Regs.CR3, ev.Regs.CR4, ev.Regs.EFER)
	e.insnLen = uint8(readUpTo(&as, rip, e.insn[:maxInsn]))
	if rsp := x86.VirtAddr(ev.Regs.RSP); rsp.KernelHalf() && ev.Regs.CPL == 0 {
		e.stackLen = uint16(readUpTo(&as, rsp, e.stack[:]))
	}
	if ev.Reason == vmevent.ReasonSoftwareBreakpoint && e.Call.Fault.executes() {
		e.Call.takeProgram(&as)
	}
	if ev.Reason != vmevent.ReasonMemAccess {
		return
	}
	if e.copies() {
		e.sourceLen = uint8(readUpTo(&as, x86.VirtAddr(ev.Regs.RSI), e.source[:]))
	}
	n := min(maxBytes, x86.PageSize-int(ev.Mem.Offset))
	if mem.ReadPhys(ev.Mem.Phys(), e.before[:n]) == nil {
		e.beforeLen = uint8(n)
	}
}

// readUpTo reads as much of buf as lies in mapped pages and returns the count.
func readUpTo(as *guest.AddressSpace, va x86.VirtAddr, buf []byte) int {
	n := min(len(buf), x86.PageSize-int(va.Offset()))
	if as.Read(va, buf[:n]) != nil {
		return 0
	}
	if n < len(buf) && as.Read(va+x86.VirtAddr(n), buf[n:]) == nil {
		n = len(buf)
	}
	return n
}
