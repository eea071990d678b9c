package dump

import (
	"bytes"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Numbers of Xen's core format (tools/libs/guest/xg_core.h). The header note is
// magic, number of vCPUs, number of pages and page size, 8 bytes each.
const (
	xenNoteHeader   = 0x200_0001
	xenNoteFormat   = 0x200_0003
	xenMagicPV      = 0xf00f_ebed
	xenMagicHVM     = 0xf00f_ebee
	xenFormatMajor  = 0
	xenNoPage       = ^uint64(0)
	xenMaxSections  = 64
	xenNameMax      = 32
	xenHeaderFields = 4
)

// Offsets in struct vcpu_guest_context of x86-64 (xen/include/public/arch-x86/
// xen.h); the same in every release since 4.11.
const (
	xenContextSize = 5168
	xenUserRegs    = 520
	xenControl     = 4984
	xenFSBase      = 5144
	xenGSKernel    = 5152
	xenGSUser      = 5160
)

// parseXenCore reads what xl dump-core writes: pages in .xen_pages and for each
// its gfn in .xen_pfn.
func parseXenCore(data []byte, h elfHeader) (layout, error) {
	var l layout
	sections, err := xenSections(data, h)
	if err != nil {
		return l, err
	}
	note, ok := sections[".note.Xen"]
	if !ok {
		return l, &OpenError{Format: ELFCore, Err: ErrNotImage, Detail: "neither program headers nor a section .note.Xen",
			Hint: "a guest's memory is written by virsh dump --memory-only or xl dump-core"}
	}
	var magic, vcpus, pages, pageSize, major uint64
	forNotes(note.content, func(name string, kind uint32, desc []byte) {
		switch {
		case name != "Xen":
		case kind == xenNoteHeader && len(desc) >= 8*xenHeaderFields:
			magic, vcpus, pages, pageSize = le64(desc), le64(desc[8:]), le64(desc[16:]), le64(desc[24:])
		case kind == xenNoteFormat && len(desc) >= 8:
			major = le64(desc) >> 32
		}
	})
	switch {
	case magic == xenMagicPV:
		return l, &OpenError{Format: XenCore, Err: ErrUnsupported, Detail: "of a PV guest", Hint: "hvi reads HVM and PVH guests"}
	case magic != xenMagicHVM:
		return l, broken(ErrDamaged, XenCore, "magic number %#x", magic)
	case major != xenFormatMajor:
		return l, broken(ErrUnsupported, XenCore, "format version %d, and %d is read", major, xenFormatMajor)
	case pageSize != x86.PageSize:
		return l, broken(ErrDamaged, XenCore, "pages of %d bytes", pageSize)
	}
	content, frames := sections[".xen_pages"], sections[".xen_pfn"].content
	if pages == 0 || uint64(len(content.content))/x86.PageSize < pages || uint64(len(frames))/8 < pages {
		return l, broken(ErrDamaged, XenCore, "%d pages, with %#x bytes of contents and %#x of frame numbers", pages, len(content.content), len(frames))
	}
	for i := range pages {
		gfn := le64(frames[8*i:])
		if gfn == xenNoPage {
			continue
		}
		if gfn >= maxPhys>>x86.PageShift {
			return l, broken(ErrDamaged, XenCore, "a frame number %#x", gfn)
		}
		l.add(gfn<<x86.PageShift, x86.PageSize, content.off+i<<x86.PageShift)
	}
	if len(l.segments) == 0 {
		return l, broken(ErrNotImage, XenCore, "no memory in it")
	}
	l.arrange()
	contexts := sections[".xen_prstatus"].content
	for range min(vcpus, uint64(len(contexts))/xenContextSize, maxVCPUs) {
		l.regs = append(l.regs, xenRegisters(contexts[:xenContextSize]))
		contexts = contexts[xenContextSize:]
	}
	return l, nil
}

// section is a part of the file that has a name.
type section struct {
	off     uint64
	content []byte
}

// xenSections returns the sections by name.
func xenSections(data []byte, h elfHeader) (map[string]section, error) {
	if h.nSections > xenMaxSections {
		return nil, broken(ErrDamaged, XenCore, "%d sections", h.nSections)
	}
	table, ok := part(data, h.sections, h.nSections*sectionSize)
	if !ok {
		return nil, broken(ErrTruncated, XenCore, "%d section headers at offset %#x", h.nSections, h.sections)
	}
	read := func(i uint64) (name uint64, s section, err error) {
		header := table[i*sectionSize:]
		off, size := le64(header[24:]), le64(header[32:])
		content, ok := part(data, off, size)
		if !ok {
			return 0, s, broken(ErrTruncated, XenCore, "%#x bytes at offset %#x, of a file of %#x", size, off, len(data))
		}
		return uint64(le32(header)), section{off, content}, nil
	}
	if h.names >= h.nSections {
		return nil, broken(ErrDamaged, XenCore, "names in section %d of %d", h.names, h.nSections)
	}
	_, names, err := read(h.names)
	if err != nil {
		return nil, err
	}
	out := map[string]section{}
	for i := uint64(1); i < h.nSections; i++ {
		at, s, err := read(i)
		if err != nil {
			return nil, err
		}
		if at >= uint64(len(names.content)) {
			return nil, broken(ErrDamaged, XenCore, "the name of section %d", i)
		}
		name := names.content[at:min(at+xenNameMax, uint64(len(names.content)))]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			out[string(name[:end])] = s
		}
	}
	return out, nil
}

// xenRegisters reads a vCPU's context as XEN_DOMCTL_getvcpucontext gives it of
// an HVM guest (arch_get_info_guest in xen/arch/x86/domctl.c).
func xenRegisters(b []byte) x86.Registers {
	var r x86.Registers
	user := b[xenUserRegs:]
	for i, to := range []*uint64{
		&r.R15, &r.R14, &r.R13, &r.R12, &r.RBP, &r.RBX, &r.R11, &r.R10,
		&r.R9, &r.R8, &r.RAX, &r.RCX, &r.RDX, &r.RSI, &r.RDI,
	} {
		*to = le64(user[8*i:])
	}
	r.RIP, r.CS, r.RFLAGS, r.RSP, r.SS = le64(user[128:]), le16(user[136:]), le64(user[144:]), le64(user[152:]), le16(user[160:])
	r.CPL = uint8(r.SS & 3)
	control := b[xenControl:]
	r.CR0, r.CR2, r.CR3, r.CR4 = le64(control), le64(control[16:]), le64(control[24:]), le64(control[32:])
	r.FSBase = le64(b[xenFSBase:])
	// Xen tells the two by the ring the vCPU is in, not by which is active.
	r.GSBase, r.KernelGSBase = le64(b[xenGSKernel:]), le64(b[xenGSUser:])
	if r.CPL != 0 {
		r.GSBase, r.KernelGSBase = r.KernelGSBase, r.GSBase
	}
	return r
}
