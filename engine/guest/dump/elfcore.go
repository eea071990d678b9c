package dump

import (
	"debug/elf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Sizes of a 64-bit ELF file's structures, and the count that says that the
// true one is in the first section header.
const (
	elfMagic      = elf.ELFMAG
	elfHeaderSize = 64
	programSize   = 56
	sectionSize   = 64
	programsXNum  = 0xffff
)

// elfHeader is the part of a file's header that is used.
type elfHeader struct {
	programs, sections   uint64 // offsets
	nPrograms, nSections uint64
	names                uint64 // index of the section of names
}

// parseELF reads an ELF core or a Xen core. A Xen core has sections and no
// program headers.
func parseELF(data []byte) (Format, layout, error) {
	h, err := parseELFHeader(data)
	if err != nil {
		return ELFCore, layout{}, err
	}
	if h.nPrograms == 0 {
		l, err := parseXenCore(data, h)
		return XenCore, l, err
	}
	l, err := parseELFCore(data, h)
	return ELFCore, l, err
}

func parseELFHeader(data []byte) (elfHeader, error) {
	var h elfHeader
	if len(data) < elfHeaderSize {
		return h, broken(ErrTruncated, ELFCore, "a file of %d bytes", len(data))
	}
	if class := elf.Class(data[elf.EI_CLASS]); class != elf.ELFCLASS64 {
		return h, &OpenError{Format: ELFCore, Err: ErrUnsupported, Detail: "a 32-bit file", Hint: "hvi reads 64-bit guests; QEMU writes such a file while the guest has not entered 64-bit mode"}
	}
	if order := elf.Data(data[elf.EI_DATA]); order != elf.ELFDATA2LSB {
		return h, &OpenError{Format: ELFCore, Err: ErrUnsupported, Detail: "big-endian", Hint: "hvi reads x86-64 guests"}
	}
	kind := elf.Type(le16(data[16:]))
	if kind != elf.ET_CORE {
		return h, &OpenError{Err: ErrNotImage, Detail: "an ELF " + map[elf.Type]string{
			elf.ET_EXEC: "executable", elf.ET_DYN: "executable or library", elf.ET_REL: "object file",
		}[kind] + " (" + kind.String() + "), not a core", Hint: "a memory image is written by virsh dump --memory-only or xl dump-core"}
	}
	if machine := elf.Machine(le16(data[18:])); machine != elf.EM_X86_64 {
		return h, &OpenError{Format: ELFCore, Err: ErrUnsupported, Detail: "of a machine " + machine.String(), Hint: "hvi reads x86-64 guests in 64-bit mode"}
	}
	h = elfHeader{
		programs: le64(data[32:]), sections: le64(data[40:]),
		nPrograms: uint64(le16(data[56:])), nSections: uint64(le16(data[60:])), names: uint64(le16(data[62:])),
	}
	if h.nPrograms > 0 && le16(data[54:]) != programSize {
		return h, broken(ErrDamaged, ELFCore, "program headers of %d bytes", le16(data[54:]))
	}
	if h.nSections > 0 && le16(data[58:]) != sectionSize {
		return h, broken(ErrDamaged, ELFCore, "section headers of %d bytes", le16(data[58:]))
	}
	if h.nPrograms == programsXNum && h.sections != 0 {
		first, ok := part(data, h.sections, sectionSize)
		if !ok {
			return h, broken(ErrTruncated, ELFCore, "section headers at offset %#x", h.sections)
		}
		h.nPrograms = uint64(le32(first[44:]))
	}
	return h, nil
}

func parseELFCore(data []byte, h elfHeader) (layout, error) {
	var l layout
	table, ok := part(data, h.programs, h.nPrograms*programSize)
	if !ok {
		return l, broken(ErrTruncated, ELFCore, "%d program headers at offset %#x", h.nPrograms, h.programs)
	}
	above := false // some memory isn't at address 0
	loads, notes := 0, 0
	for ; len(table) > 0; table = table[programSize:] {
		kind := elf.ProgType(le32(table))
		off, phys, size := le64(table[8:]), le64(table[24:]), le64(table[32:])
		if kind != elf.PT_LOAD && kind != elf.PT_NOTE {
			continue
		}
		content, ok := part(data, off, size)
		if !ok {
			return l, broken(ErrTruncated, ELFCore, "%#x bytes at offset %#x, of a file of %#x", size, off, len(data))
		}
		if kind == elf.PT_NOTE {
			if notes++; notes > maxNotes {
				return l, broken(ErrDamaged, ELFCore, "more than %d segments of notes", maxNotes)
			}
			forNotes(content, func(name string, kind uint32, desc []byte) {
				if name == "QEMU" && kind == 0 {
					if r, ok := qemuRegisters(desc); ok && len(l.regs) < maxVCPUs {
						l.regs = append(l.regs, r)
					}
				}
			})
			continue
		}
		if phys >= maxPhys || size > maxPhys-phys {
			return l, broken(ErrDamaged, ELFCore, "%#x bytes of memory at %#x", size, phys)
		}
		loads++
		above = above || phys != 0
		l.add(phys, size, off)
	}
	switch {
	case loads == 0:
		return l, broken(ErrNotImage, ELFCore, "no memory in it")
	case loads > 1 && !above:
		return l, &OpenError{Format: ELFCore, Err: ErrNotImage, Detail: "a core of a process: no physical addresses",
			Hint: "a guest's is written by virsh dump --memory-only, or QEMU's dump-guest-memory"}
	}
	l.arrange()
	return l, nil
}

const (
	// maxVCPUs bounds the registers kept; QEMU and Xen allow fewer.
	maxVCPUs = 4096
	// maxNotes bounds segments of notes, of which there is one: each may be
	// the whole file.
	maxNotes = 16
)

// forNotes calls f for each note of a note segment, up to the first that is not
// whole. Names and descriptors are padded to 4 bytes.
func forNotes(notes []byte, f func(name string, kind uint32, desc []byte)) {
	for len(notes) >= 12 {
		nameSize, descSize, kind := uint64(le32(notes)), uint64(le32(notes[4:])), le32(notes[8:])
		descOff := 12 + (nameSize+3)&^3
		desc, ok := part(notes, descOff, descSize)
		if !ok {
			return
		}
		name := notes[12 : 12+nameSize]
		if n := len(name); n > 0 && name[n-1] == 0 {
			name = name[:n-1]
		}
		f(string(name), kind, desc)
		notes = notes[min(descOff+(descSize+3)&^3, uint64(len(notes))):]
	}
}

// QEMU's note of a vCPU: version u32, size u32, 16 general registers, rip,
// rflags, ten segments of 24 bytes (selector, limit, flags, padding u32; base
// u64), CR0 to CR4, and from 2.12 on the kernel's GS base.
const (
	qemuVersion   = 1
	qemuSegments  = 152
	qemuSegment   = 24
	qemuControl   = qemuSegments + 10*qemuSegment
	qemuKernelGS  = qemuControl + 5*8
	qemuStateSize = qemuKernelGS // of the older
)

// Segments in their order in the note.
const (
	qemuCS = iota
	_      // DS
	_      // ES
	qemuFS
	qemuGS
	qemuSS
	_ // LDT
	_ // TR
	qemuGDT
	qemuIDT
)

func qemuRegisters(note []byte) (r x86.Registers, ok bool) {
	if len(note) < qemuStateSize || le32(note) != qemuVersion {
		return r, false
	}
	for i, to := range []*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RSP, &r.RBP,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15, &r.RIP, &r.RFLAGS,
	} {
		*to = le64(note[8+8*i:])
	}
	seg := func(i int) []byte { return note[qemuSegments+i*qemuSegment:] }
	base := func(i int) uint64 { return le64(seg(i)[16:]) }
	limit := func(i int) uint32 { return le32(seg(i)[4:]) }
	r.CS, r.SS = uint16(le32(seg(qemuCS))), uint16(le32(seg(qemuSS)))
	r.CPL = uint8(le32(seg(qemuSS)[8:]) >> 13 & 3) // SS.DPL
	r.FSBase, r.GSBase = base(qemuFS), base(qemuGS)
	r.GDTBase, r.GDTLimit = base(qemuGDT), limit(qemuGDT)
	r.IDTBase, r.IDTLimit = base(qemuIDT), limit(qemuIDT)
	control := note[qemuControl:]
	r.CR0, r.CR2, r.CR3, r.CR4 = le64(control), le64(control[16:]), le64(control[24:]), le64(control[32:])
	if len(note) >= qemuKernelGS+8 {
		r.KernelGSBase = le64(note[qemuKernelGS:])
	}
	return r, true
}
