package engine

import (
	"encoding/binary"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// parents returns the processes that led to a task, the nearest first. They are
// read when the vCPU runs on: a process may have ended meanwhile, and who has the
// kernel may have changed them.
func parents(k *linux.Kernel, task x86.VirtAddr) []journal.Parent {
	o := &k.Offsets.Task
	if o.RealParent < 0 || o.TGID < 0 || o.Comm < 0 {
		return nil
	}
	as := k.AddressSpace()
	var out []journal.Parent
	for len(out) < journal.MaxParents {
		parent, err := as.ReadPointer(task + x86.VirtAddr(o.RealParent))
		if err != nil || parent == task || !parent.KernelHalf() || parent&7 != 0 {
			break
		}
		tgid, err := as.ReadUint32(parent + x86.VirtAddr(o.TGID))
		t := linux.Task{TGID: int32(tgid)}
		if err != nil || as.Read(parent+x86.VirtAddr(o.Comm), t.Comm[:]) != nil {
			break
		}
		out = append(out, journal.Parent{TGID: t.TGID, Comm: printable.Escape(t.Name())})
		if t.TGID == 0 {
			break // the kernel's own
		}
		task = parent
	}
	return out
}

// describe adds what else is known of a task: its program, its control group and its
// user. They are read when the vCPU runs on, as its parents are.
func (s *Session) describe(p *journal.Process, t *linux.Task) {
	if s.describer == nil || s.describer.Kernel() != s.kernel {
		s.describer = s.kernel.NewReader(nil)
	}
	was, err := s.describer.ProcessOf(t)
	if err != nil {
		return
	}
	p.Exe, p.Cgroup = was.Exe, was.Cgroup
	if was.Cred.Addr != 0 {
		p.UID, p.EUID = &was.Cred.UID, &was.Cred.EUID
	}
}

// instruction returns what lies at an address, as an instruction; nil if nothing could be
// read there.
func instruction(code []byte, rip uint64) *journal.Instruction {
	if len(code) == 0 {
		return nil
	}
	inst, err := x86asm.Decode(code, 64)
	if err != nil || inst.Len == 0 || inst.Len > len(code) {
		return &journal.Instruction{Bytes: slices.Clone(code)}
	}
	return &journal.Instruction{
		Bytes: slices.Clone(code[:inst.Len]),
		Text:  printable.Escape(x86asm.GNUSyntax(inst, rip, nil)),
	}
}

// calls returns where the calls return to that a kernel was in. Its stack is unwound as
// far as the kernel has tables for its code. Where it ends before its outermost call, as at
// a module's first function, which is gone when it has returned, what looks like such
// addresses on the rest is returned besides.
func calls(k *linux.Kernel, regs *x86.Registers, stack []byte) ([]journal.Location, journal.CallsFrom) {
	var found []journal.Location
	at, rest, whole := k.Unwind(regs, stack, journal.MaxCalls)
	for _, va := range at {
		l, _ := codeLocation(k, va)
		found = append(found, l)
	}
	from := journal.CallsUnwound
	if !whole {
		if more := scanned(k, rest, journal.MaxCalls-len(found)); len(more) > 0 {
			found, from = append(found, more...), journal.CallsScanned
		}
	}
	if len(found) == 0 {
		return nil, ""
	}
	return found, from
}

// codeLocation is that of an address in the kernel's code or a module's; false if it is
// in neither.
func codeLocation(k *linux.Kernel, va x86.VirtAddr) (journal.Location, bool) {
	l := location(k, va)
	if va > k.TextStart && va < k.TextEnd {
		return l, true
	}
	var m linux.Module
	if va < moduleSpace || !k.ModuleAt(va, &m) {
		return l, false
	}
	// Symbols of modules are not read.
	l.Module = printable.Escape(m.Name())
	l.Symbol, l.Offset = l.Module, journal.Hex(va-m.Base)
	return l, true
}

// scanned returns what on a stack looks like addresses to return to, most of them at
// most: those in the kernel's code or a module's right behind a call instruction.
func scanned(k *linux.Kernel, stack []byte, most int) []journal.Location {
	as := k.AddressSpace()
	var out []journal.Location
	for ; len(stack) >= 8 && len(out) < most; stack = stack[8:] {
		va := x86.VirtAddr(binary.LittleEndian.Uint64(stack))
		inKernel := va > k.TextStart && va < k.TextEnd
		if !inKernel && va < moduleSpace || !behindCall(&as, va) {
			continue
		}
		if l, ok := codeLocation(k, va); ok {
			out = append(out, l)
		}
	}
	return out
}

// moduleSpace is where the kernel's image, and above it its modules, can lie: the
// last 2 GiB (Documentation/arch/x86/x86_64/mm.rst).
const moduleSpace = x86.VirtAddr(0xffff_ffff_8000_0000)

// behindCall reports whether an instruction before va could be a call: direct, five
// bytes long, or indirect through a register or memory (Intel SDM volume 2, CALL).
func behindCall(as *guest.AddressSpace, va x86.VirtAddr) bool {
	var b [7]byte
	if as.Read(va-x86.VirtAddr(len(b)), b[:]) != nil {
		return false
	}
	if b[2] == 0xe8 {
		return true
	}
	for _, n := range []int{2, 3, 4, 6, 7} {
		if at := len(b) - n; b[at] == 0xff && b[at+1]>>3&7 == 2 {
			return true
		}
	}
	return false
}
