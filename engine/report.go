package engine

import (
	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// readBytes is how much is told of what was read, which may be more or less than that.
const readBytes = 8

// newRecord gives the evidence its meaning: symbols, the process, the bytes. What was
// done about it is the session's to say.
func (s *Session) newRecord(e *guard.Evidence) journal.Record {
	k := s.kernel
	r := journal.Record{
		Time:   e.When(),
		VCPU:   int(e.VCPU),
		Guard:  string(e.Guard),
		RIP:    location(k, x86.VirtAddr(e.Regs.RIP)),
		Detail: journal.Detail{CR3: journal.Hex(e.Regs.CR3)},
	}
	r.Instruction = instruction(e.Insn(), e.Regs.RIP)
	if e.InModule {
		// Module symbols are not read; the offset is the module's own.
		r.RIP.Module = printable.Escape(e.Module.Name())
		r.RIP.Symbol, r.RIP.Offset = r.RIP.Module, journal.Hex(r.RIP.Addr-e.Module.Base)
	}
	if e.HasTask {
		r.Process = journal.Process{
			PID: e.Task.PID, TGID: e.Task.TGID, Comm: printable.Escape(e.Task.Name()), Task: e.Task.Addr,
			Parents: parents(k, e.Task.Addr),
		}
		s.describe(&r.Process, &e.Task)
	} else {
		r.Process.Unknown = "the vCPU's current task could not be read"
	}
	r.Calls, r.CallsFrom = calls(k, &e.Regs, e.Stack())
	switch e.Reason {
	case vmevent.ReasonMovToMSR:
		index := e.MSR.MSR
		msr := &journal.MSRTarget{Index: journal.Hex(index), Name: x86.MSRName(index)}
		if index == x86.MSREFER {
			msr.Cleared = x86.EFERProtections.Names(e.MSR.Old &^ e.MSR.New)
		}
		r.Target = journal.Target{Kind: journal.TargetMSR, MSR: msr}
		r.Before, r.Attempted = journal.Number(e.MSR.Old), journal.Number(e.MSR.New)
		return r
	case vmevent.ReasonWriteCtrlReg:
		bits := x86.CR4Protections
		if e.CR.Reg == vmevent.CR0 {
			bits = x86.CR0Protections
		}
		r.Target = journal.Target{Kind: journal.TargetCR, CR: &journal.CRTarget{Name: e.CR.Reg.String(), Cleared: bits.Names(e.CR.Old &^ e.CR.New)}}
		r.Before, r.Attempted = journal.Number(e.CR.Old), journal.Number(e.CR.New)
		return r
	case vmevent.ReasonSoftwareBreakpoint:
		const none = "it is a call, and no write"
		r.Target = journal.Target{Kind: journal.TargetCall, Call: callTarget(&e.Call)}
		r.Before, r.Attempted = journal.Unknown(none), journal.Unknown(none)
		return r
	}
	m := &journal.MemoryTarget{Phys: e.Mem.Phys(), GFN: e.Mem.GFN}
	if e.Mem.Flags&vmevent.AccessGLAValid != 0 {
		m.Location = location(k, e.Mem.GLA)
	}
	if e.MappedAt != 0 {
		m.Module = printable.Escape(e.Target.Name())
		m.Symbol, m.Offset = m.Module, journal.Hex(e.MappedAt-e.Target.Base)
	}
	if m.Symbol == "" {
		// A write through another mapping of the page (the direct map, an
		// alias): name what lies at that physical address in the image.
		if va, ok := k.ImageAddr(e.Mem.Phys()); ok {
			m.Symbol, m.Offset = symbol(k, va)
		}
	}
	r.Target = journal.Target{Kind: journal.TargetMemory, Memory: m}
	r.Detail.Access = accessWord(e.Mem.Flags)
	attempted, err := e.Attempted()
	if err != nil {
		r.Attempted = journal.Unknown(err.Error())
	} else {
		r.Attempted = journal.Bytes(attempted)
	}
	n := max(len(attempted), 1)
	if r.Detail.Access == "r" {
		n = readBytes
	}
	if before := e.Before(); len(before) > 0 {
		r.Before = journal.Bytes(before[:min(len(before), n)])
	} else {
		r.Before = journal.Unknown("the target could not be read")
	}
	return r
}

func location(k *linux.Kernel, va x86.VirtAddr) journal.Location {
	l := journal.Location{Addr: va}
	l.Symbol, l.Offset = symbol(k, va)
	return l
}

// symbol names an address inside the kernel image; what lies elsewhere (a
// module) has no symbol here.
func symbol(k *linux.Kernel, va x86.VirtAddr) (printable.Text, journal.Hex) {
	name, off, ok := k.Symbolize(va)
	if !ok {
		return "", 0
	}
	return printable.Escape(name), journal.Hex(off)
}

// accessWord says what a violating access was. VT-x reports every write as a
// read too, which says nothing.
func accessWord(flags uint32) string {
	switch {
	case flags&vmevent.AccessWrite != 0:
		return "w"
	case flags&vmevent.AccessExecute != 0:
		return "x"
	}
	return "r"
}
