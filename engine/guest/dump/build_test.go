package dump

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/xen-hvi/hvi/engine/x86"
)

// chunk is memory from an address on, as the builders of files below take it.
type chunk struct {
	at   uint64
	data []byte
}

// random returns n bytes that depend on at.
func random(at uint64, n int) chunk {
	rng := rand.New(rand.NewPCG(at, uint64(n)))
	c := chunk{at, make([]byte, n)}
	for i := range c.data {
		c.data[i] = byte(rng.Uint32())
	}
	return c
}

// fields appends values by their own size, little-endian.
func fields(b []byte, values ...any) []byte {
	for _, v := range values {
		switch v := v.(type) {
		case uint16:
			b = binary.LittleEndian.AppendUint16(b, v)
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		case string:
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		default:
			panic(v)
		}
	}
	return b
}

func padded(b []byte, to int) []byte {
	return append(b, make([]byte, (to-len(b)%to)%to)...)
}

func limeFile(chunks ...chunk) []byte {
	var b []byte
	for _, c := range chunks {
		b = fields(b, "EMiL", uint32(1), c.at, c.at+uint64(len(c.data))-1, uint64(0), c.data)
	}
	return b
}

func noteOf(name string, kind uint32, desc []byte) []byte {
	b := fields(nil, uint32(len(name)+1), uint32(len(desc)), kind, name, "\x00")
	return padded(append(padded(b, 4), desc...), 4)
}

// header makes an ELF header of a core.
func header(programs, sections uint64, nPrograms, nSections, names int) []byte {
	return fields(nil, "\x7fELF\x02\x01\x01\x00", uint64(0), uint16(4), uint16(62), uint32(1), uint64(0),
		programs, sections, uint32(0), uint16(64), uint16(56), uint16(nPrograms), uint16(64), uint16(nSections), uint16(names))
}

// elfFile makes an ELF core as QEMU does: headers, notes, memory.
func elfFile(notes []byte, chunks ...chunk) []byte {
	off := uint64(64 + 56*(1+len(chunks)))
	program := func(b []byte, kind uint32, at uint64, n int) []byte {
		b = fields(b, kind, uint32(0), off, uint64(0), at, uint64(n), uint64(n), uint64(0))
		off += uint64(n)
		return b
	}
	b := program(header(64, 0, 1+len(chunks), 0, 0), 4, 0, len(notes))
	for _, c := range chunks {
		b = program(b, 1, c.at, len(c.data))
	}
	b = append(b, notes...)
	for _, c := range chunks {
		b = append(b, c.data...)
	}
	return b
}

// qemuNote is the state of a vCPU in which every number is its own.
func qemuNote(kernelGS bool) []byte {
	b := fields(nil, uint32(1), uint32(440))
	for i := range 18 {
		b = fields(b, uint64(0x1000+i))
	}
	for i := range 10 {
		b = fields(b, uint32(0x10+i), uint32(0x100+i), uint32(3<<13), uint32(0), uint64(0x2000+i))
	}
	for i := range 5 {
		b = fields(b, uint64(0x3000+i))
	}
	if kernelGS {
		b = fields(b, uint64(0x4000))
	}
	return b
}

var qemuRegs = x86.Registers{
	RAX: 0x1000, RBX: 0x1001, RCX: 0x1002, RDX: 0x1003, RSI: 0x1004, RDI: 0x1005, RSP: 0x1006, RBP: 0x1007,
	R8: 0x1008, R9: 0x1009, R10: 0x100a, R11: 0x100b, R12: 0x100c, R13: 0x100d, R14: 0x100e, R15: 0x100f,
	RIP: 0x1010, RFLAGS: 0x1011, CS: 0x10, SS: 0x15, CPL: 3, FSBase: 0x2003, GSBase: 0x2004,
	GDTBase: 0x2008, GDTLimit: 0x108, IDTBase: 0x2009, IDTLimit: 0x109,
	CR0: 0x3000, CR2: 0x3002, CR3: 0x3003, CR4: 0x3004, KernelGSBase: 0x4000,
}

// xenFile makes a Xen core as xl dump-core does: sections, notes, contexts,
// pages, frame numbers, names. The chunks are whole pages.
func xenFile(magic, version uint64, contexts []byte, chunks ...chunk) []byte {
	names := "\x00.shstrtab\x00.note.Xen\x00.xen_prstatus\x00.xen_pages\x00.xen_pfn\x00"
	var pages, frames []byte
	for _, c := range chunks {
		pages = append(pages, c.data...)
		for off := 0; off < len(c.data); off += 4096 {
			frames = fields(frames, (c.at+uint64(off))>>12)
		}
	}
	// A page that was ballooned out while the dump was written.
	pages, frames = append(pages, make([]byte, 4096)...), fields(frames, ^uint64(0))
	count := uint64(len(pages) / 4096)
	notes := noteOf("Xen", 0x2000000, nil)
	notes = append(notes, noteOf("Xen", 0x2000001, fields(nil, magic, uint64(len(contexts)/5168), count, uint64(4096)))...)
	notes = append(notes, noteOf("Xen", 0x2000003, fields(nil, version))...)

	b := header(0, 64, 0, 6, 1)
	off := uint64(64 + 6*64)
	b = append(b, make([]byte, 64)...)
	parts := [][]byte{[]byte(names), notes, contexts, pages, frames}
	at := 1
	for _, p := range parts {
		b = fields(b, uint32(at), uint32(1), uint64(0), uint64(0), off, uint64(len(p)), uint32(0), uint32(0), uint64(0), uint64(0))
		off += uint64(len(p))
		for at++; names[at-1] != 0; at++ {
		}
	}
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// xenContext is the context of a vCPU in which every number is its own.
func xenContext(ring uint16) []byte {
	b := make([]byte, 5168)
	put := func(off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
	for i := range 25 {
		put(520+8*i, uint64(0x1000+i))
	}
	binary.LittleEndian.PutUint16(b[520+136:], 0x10|ring)
	binary.LittleEndian.PutUint16(b[520+160:], 0x18|ring)
	for i := range 8 {
		put(4984+8*i, uint64(0x3000+i))
	}
	put(5144, 0x2000)
	put(5152, 0x2001)
	put(5160, 0x2002)
	return b
}

var xenRegs = x86.Registers{
	R15: 0x1000, R14: 0x1001, R13: 0x1002, R12: 0x1003, RBP: 0x1004, RBX: 0x1005, R11: 0x1006, R10: 0x1007,
	R9: 0x1008, R8: 0x1009, RAX: 0x100a, RCX: 0x100b, RDX: 0x100c, RSI: 0x100d, RDI: 0x100e,
	RIP: 0x1010, RFLAGS: 0x1012, RSP: 0x1013, CS: 0x10, SS: 0x18,
	CR0: 0x3000, CR2: 0x3002, CR3: 0x3003, CR4: 0x3004, FSBase: 0x2000, GSBase: 0x2001, KernelGSBase: 0x2002,
}
