package linux

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// What the kernel makes read-only at the end of its boot (mark_rodata_ro, and
// set_memory_ro for the table of interrupts) and never writes again, not even
// through text_poke, which takes code alone.

// Range is a stretch of the kernel's addresses, [Start, End).
type Range struct{ Start, End x86.VirtAddr }

// Contains reports whether an address lies in the range.
func (r Range) Contains(va x86.VirtAddr) bool { return va >= r.Start && va < r.End }

// PhysRange is N bytes of guest-physical memory.
type PhysRange struct {
	Start x86.PhysAddr
	N     uint64
}

const (
	// maxROData bounds the kernel's read-only data: Debian's have 8 to 12 MiB.
	maxROData = 256 << 20
	// maxVDSO bounds one vDSO image, of two or three pages.
	maxVDSO = 1 << 20
)

// VDSOImageOffsets lays out struct vdso_image: what a vDSO is mapped from.
type VDSOImageOffsets struct {
	Data  int `c:"data"`
	Bytes int `c:"size"`
}

// ROData is the kernel's read-only data, whole pages: constants, what may be
// written during boot alone (__ro_after_init), the tables of system calls and
// of exceptions, the vDSO.
func (k *Kernel) ROData() (Range, error) {
	r, err := k.between("__start_rodata", "__end_rodata", maxROData)
	if err == nil && (r.Start.Offset() != 0 || r.End.Offset() != 0) {
		err = &ReadError{What: "__start_rodata", Got: fmt.Sprintf("%v to %v", r.Start, r.End), Err: ErrImplausible}
	}
	return r, err
}

// ExceptionTable is __ex_table: to which code the kernel goes on from an
// instruction that faults.
func (k *Kernel) ExceptionTable() (Range, error) {
	return k.between("__start___ex_table", "__stop___ex_table", maxROData)
}

// SyscallTables are the tables of system calls that the kernel has.
func (k *Kernel) SyscallTables() ([]Range, error) {
	var out []Range
	for _, name := range syscallTables {
		if start, end, ok := k.Symbols.Range(name); ok && start >= k.Base {
			out = append(out, Range{start, min(end, start+maxSyscalls*8)})
		}
	}
	if len(out) == 0 {
		return nil, &ReadError{What: syscallTables[0], Err: ErrUnsupported}
	}
	return out, nil
}

// InterruptTable is idt_table, a page of its own that all processors use.
func (k *Kernel) InterruptTable() (Range, error) {
	va, ok := k.Symbols.Lookup("idt_table")
	if !ok || va < k.Base {
		return Range{}, &ReadError{What: "idt_table", Err: ErrUnsupported}
	}
	const vectors = 256
	if va.Offset() != 0 {
		return Range{}, &ReadError{What: "idt_table", Got: va.String(), Err: ErrImplausible}
	}
	return Range{va, va + vectors*gateSize}, nil
}

// vdsoImages are the kernel's variables, of which it has some.
var vdsoImages = [...]string{
	"vdso_image_64", "vdso_image_32", "vdso_image_x32",
	"vdso64_image", "vdso32_image", "vdsox32_image",
}

// VDSO are the pages of code that the kernel maps into every process.
func (k *Kernel) VDSO() ([]Range, error) {
	o := &k.Offsets.VDSOImage
	if err := need("vdso_image.data", o.Data, "vdso_image.size", o.Bytes); err != nil {
		return nil, err
	}
	data, err := k.ROData()
	if err != nil {
		return nil, err
	}
	var out []Range
	for _, name := range vdsoImages {
		image, ok := k.Symbols.Lookup(name)
		if !ok {
			continue
		}
		start, err := k.as.ReadPointer(image + x86.VirtAddr(o.Data))
		if err != nil {
			return nil, &ReadError{What: name, Err: err}
		}
		size, err := k.as.ReadUint64(image + x86.VirtAddr(o.Bytes))
		if err != nil {
			return nil, &ReadError{What: name, Err: err}
		}
		if size == 0 || size > maxVDSO || !data.Contains(start) || !data.Contains(start+x86.VirtAddr(size)-1) {
			return nil, &ReadError{What: name, Got: fmt.Sprintf("%d bytes at %v", size, start), Err: ErrImplausible}
		}
		out = append(out, Range{start, start + x86.VirtAddr(size)})
	}
	if len(out) == 0 {
		return nil, &ReadError{What: vdsoImages[0], Err: ErrUnsupported}
	}
	return out, nil
}

// between is the range of two symbols.
func (k *Kernel) between(first, last string, most x86.VirtAddr) (Range, error) {
	start, ok := k.Symbols.Lookup(first)
	if !ok {
		return Range{}, &ReadError{What: first, Err: ErrUnsupported}
	}
	end, ok := k.Symbols.Lookup(last)
	if !ok {
		return Range{}, &ReadError{What: last, Err: ErrUnsupported}
	}
	if start < k.Base || end <= start || end-start > most {
		return Range{}, &ReadError{What: first, Got: fmt.Sprintf("from %v to %v", start, end), Err: ErrImplausible}
	}
	return Range{start, end}, nil
}

// Frames returns the frames behind the pages of a range, as [Kernel.TextFrames]
// does.
func (k *Kernel) Frames(r Range) ([]FrameRange, error) { return frames(k.as, r.Start, r.End) }

// Phys returns where the bytes of a range lie, in the order of their addresses,
// neighbours joined.
func (k *Kernel) Phys(r Range) ([]PhysRange, error) {
	var out []PhysRange
	for va := r.Start; va < r.End; {
		t, err := k.as.Translate(va)
		if err != nil {
			return nil, &ReadError{What: "a part of the kernel's image", Err: err}
		}
		n := min(t.PageEnd(va), uint64(r.End-va))
		if last := len(out) - 1; last >= 0 && out[last].Start+x86.PhysAddr(out[last].N) == t.Phys {
			out[last].N += n
		} else {
			out = append(out, PhysRange{t.Phys, n})
		}
		va += x86.VirtAddr(n)
	}
	return out, nil
}
