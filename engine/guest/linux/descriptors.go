package linux

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Sizes of descriptor tables, in bytes (Intel SDM volume 3, 3.5 and 6.10).
const (
	gateSize       = 16
	maxIDT         = 256 * gateSize
	descriptorSize = 8
	maxGDT         = 8192 * descriptorSize
)

// descriptorTable is a processor's table as its register describes it.
type descriptorTable struct {
	cpu  int
	base x86.VirtAddr
	size int // in bytes
}

// Interrupts reports the gates of each processor's interrupt descriptor table
// that are present. Linux has one table for all processors, but each has a
// register of its own. Without registers it is the kernel's own table, for
// processor 0, and the report says so.
func (r *Reader) Interrupts() (report.List[report.Gate], error) {
	out := report.List[report.Gate]{Items: []report.Gate{}}
	err := r.reading(&out.Reading, func() error {
		tables, err := r.interruptTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			var idt object
			if err := r.read(&idt, t.base, t.size); err != nil {
				return &ReadError{What: fmt.Sprintf("the IDT of CPU %d at %v", t.cpu, t.base), Err: err}
			}
			for v := range t.size / gateSize {
				if g, ok := gate(&idt, v); ok {
					g.CPU, g.Handler = t.cpu, r.place(g.Handler.Addr)
					out.Items = append(out.Items, g)
				}
			}
		}
		return nil
	})
	return out, err
}

// interruptTables returns the table of each processor.
func (r *Reader) interruptTables() ([]descriptorTable, error) {
	var out []descriptorTable
	for i := range r.cpus {
		// Early in boot, and on a processor that is off, there is none yet.
		if c := &r.cpus[i]; x86.VirtAddr(c.IDTBase).KernelHalf() {
			out = append(out, descriptorTable{i, x86.VirtAddr(c.IDTBase), tableSize(c.IDTLimit, maxIDT, gateSize)})
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	base, err := r.variable("idt_table")
	if err != nil {
		return nil, err
	}
	r.missing("the tables that the processors use: no registers; this is the kernel's own, idt_table")
	return []descriptorTable{{0, base, maxIDT}}, nil
}

// tableSize is the size that a limit gives, in whole entries.
func tableSize(limit uint32, most, entry int) int {
	return min(int(min(limit, 1<<16))+1, most) / entry * entry
}

// gate decodes a gate; ok is false where none is present.
func gate(idt *object, vector int) (g report.Gate, ok bool) {
	low, high := idt.u64(vector*gateSize), idt.u32(vector*gateSize+8)
	const present = 1 << 47
	if low&present == 0 {
		return g, false
	}
	g = report.Gate{Vector: vector, DPL: int(low >> 45 & 3), IST: int(low >> 32 & 7)}
	switch t := low >> 40 & 0x1f; t {
	case 0xe:
		g.Type = "interrupt"
	case 0xf:
		g.Type = "trap"
	default:
		g.Type = fmt.Sprintf("type-%d", t)
	}
	g.Handler.Addr = x86.VirtAddr(uint64(high)<<32 | low>>48<<16 | low&0xffff)
	return g, true
}

// leftFromBoot says that a gate is one of the earliest of boot, which Linux never
// replaces for exceptions that no processor raises. The code that it leads to is
// freed at the end of boot: 9 bytes for each vector, 13 with ENDBR
// (arch/x86/include/asm/segment.h, EARLY_IDT_HANDLER_SIZE).
func leftFromBoot(g report.Gate) bool {
	const exceptions = 32
	at := g.Handler.Offset
	return g.Vector < exceptions && g.Handler.Symbol == "early_idt_handler_array" && (at == uint64(g.Vector)*9 || at == uint64(g.Vector)*13)
}

// Segments reports the descriptors of each processor's global descriptor table
// that are present. Without registers they are those of processor 0's page, and
// the report says so.
func (r *Reader) Segments() (report.List[report.Segment], error) {
	out := report.List[report.Segment]{Items: []report.Segment{}}
	err := r.reading(&out.Reading, func() error {
		tables, err := r.segmentTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			var gdt object
			if err := r.read(&gdt, t.base, t.size); err != nil {
				return &ReadError{What: fmt.Sprintf("the GDT of CPU %d at %v", t.cpu, t.base), Err: err}
			}
			for i := 0; i < t.size/descriptorSize; {
				s, n := segment(&gdt, i)
				if n > 0 {
					s.CPU = t.cpu
					out.Items = append(out.Items, s)
				}
				i += max(n, 1)
			}
		}
		return nil
	})
	return out, err
}

func (r *Reader) segmentTables() ([]descriptorTable, error) {
	var out []descriptorTable
	for i := range r.cpus {
		if c := &r.cpus[i]; x86.VirtAddr(c.GDTBase).KernelHalf() {
			out = append(out, descriptorTable{i, x86.VirtAddr(c.GDTBase), tableSize(c.GDTLimit, maxGDT, descriptorSize)})
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	page, ok := r.k.Symbols.Lookup("gdt_page")
	if !ok || r.k.addr.perCPUOffset == 0 {
		return nil, &ReadError{What: "gdt_page", Err: ErrUnsupported}
	}
	area, err := r.as.ReadPointer(r.k.addr.perCPUOffset)
	if err != nil {
		return nil, &ReadError{What: "__per_cpu_offset", Err: err}
	}
	r.missing("the tables that the processors use: no registers; this is processor 0's own, gdt_page")
	const entries = 16 // GDT_ENTRIES
	return []descriptorTable{{0, area + page, entries * descriptorSize}}, nil
}

// segment decodes a descriptor and says how many entries it takes, 0 where none
// is present.
func segment(gdt *object, index int) (s report.Segment, entries int) {
	d := gdt.u64(index * descriptorSize)
	const present, memory, long, granular = 1 << 47, 1 << 44, 1 << 53, 1 << 55
	if d&present == 0 {
		return s, 0
	}
	s = report.Segment{Index: index, DPL: int(d >> 45 & 3)}
	base := d>>16&0xff_ffff | d>>56<<24
	s.Limit = d&0xffff | d>>48&0xf<<16
	if d&granular != 0 {
		s.Limit = s.Limit<<12 | 0xfff
	}
	entries = 1
	kind := d >> 40 & 0xf
	switch {
	case d&memory != 0 && kind&8 != 0:
		s.Type, s.Long = "code", d&long != 0
	case d&memory != 0:
		s.Type = "data"
	default:
		// A system descriptor of long mode takes two.
		base |= uint64(gdt.u32((index+1)*descriptorSize)) << 32
		entries = 2
		switch kind {
		case 2:
			s.Type = "ldt"
		case 9, 11:
			s.Type = "tss"
		default:
			s.Type = fmt.Sprintf("type-%d", kind)
		}
	}
	s.Base = report.Hex(base)
	return s, entries
}
