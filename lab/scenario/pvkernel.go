package scenario

import (
	"bytes"
	"encoding/binary"
	"os"
)

// pvKernel is where the smallest PV kernel there is lies in dom0.
const pvKernel = "/run/pv-kernel"

// writePVKernel writes an ELF that Xen's domain builder takes for a 64-bit PV
// kernel: the notes it asks for and one endless loop. Debian's guest kernels
// have no PV support, and nothing but the builder ever looks at this one.
func writePVKernel(path string) error {
	const base = 0xffffffff80000000
	note := func(typ uint32, desc []byte) []byte {
		var b bytes.Buffer
		_ = binary.Write(&b, binary.LittleEndian, []uint32{4, uint32(len(desc)), typ})
		b.WriteString("Xen\x00")
		b.Write(desc)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		return b.Bytes()
	}
	u64 := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	var notes []byte
	// XEN_ELFNOTE_*, xen/include/public/elfnote.h.
	notes = append(notes, note(1, u64(base+0x1000))...)      // ENTRY
	notes = append(notes, note(2, u64(base+0x2000))...)      // HYPERCALL_PAGE
	notes = append(notes, note(3, u64(base))...)             // VIRT_BASE
	notes = append(notes, note(5, []byte("xen-3.0\x00"))...) // XEN_VERSION
	notes = append(notes, note(6, []byte("hvi-lab\x00"))...) // GUEST_OS
	notes = append(notes, note(8, []byte("generic\x00"))...) // LOADER
	notes = append(notes, note(9, []byte("yes\x00"))...)     // PAE_MODE
	notes = append(notes, note(4, u64(0))...)                // PADDR_OFFSET

	const ehdr, phdr = 64, 56
	image := make([]byte, 0x3000)
	copy(image[0x1000:], []byte{0xeb, 0xfe}) // jmp .
	copy(image[0x100:], notes)

	var b bytes.Buffer
	le := func(v ...any) {
		for _, x := range v {
			_ = binary.Write(&b, binary.LittleEndian, x)
		}
	}
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	le(uint16(2), uint16(62), uint32(1), uint64(base+0x1000), uint64(ehdr), uint64(0),
		uint32(0), uint16(ehdr), uint16(phdr), uint16(2), uint16(64), uint16(0), uint16(0))
	// PT_LOAD of everything, PT_NOTE inside it.
	le(uint32(1), uint32(7), uint64(0x1000), uint64(base), uint64(0), uint64(len(image)), uint64(len(image)), uint64(0x1000))
	le(uint32(4), uint32(4), uint64(0x1000+0x100), uint64(base+0x100), uint64(0x100), uint64(len(notes)), uint64(len(notes)), uint64(4))
	b.Write(make([]byte, 0x1000-b.Len()))
	b.Write(image)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
