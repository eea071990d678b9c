package linuxtest

import (
	"encoding/binary"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Functions of a guest of TextReadersConfig: one of the kernel's checkers, one that copies
// for anybody, another that does so with a frame pointer, and one that is neither.
const (
	TextChecker = "ftrace_verify_code"
	TextCopier  = "copy_from_kernel_nofault"
	TextFramed  = "insn_decode"
	TextOther   = "read_kcore"
	// CopierFrame is how far from the stack pointer the address is that the copier returns
	// to, once it has saved its registers, from byte CopierSaved of its code on.
	CopierFrame = 16
	CopierSaved = 4
)

const (
	orcIPs     = ROData + 0x1c_0000
	orcEntries = orcIPs + 0x1000
	orcCount   = 6
)

// TextReadersConfig is a guest whose kernel has functions that read its code, and the
// tables to unwind them by.
func TextReadersConfig() Config {
	bit := func(name string, off, n uint32) btf.Member {
		return btf.Member{Name: name, Type: u16, Offset: btf.Bits(off), BitfieldSize: btf.Bits(n)}
	}
	return Config{
		Functions: []string{TextChecker, TextChecker + ".cold", TextCopier, TextFramed, "bcmp", TextOther, "x86_verw_sel"},
		Types: []btf.Type{structOf("orc_entry", 6,
			member("sp_offset", 0, u16), member("bp_offset", 2, u16), bit("sp_reg", 32, 4), bit("bp_reg", 36, 4), bit("type", 40, 3))},
		Data: map[string]x86.VirtAddr{
			"__start_orc_unwind_ip": orcIPs, "__stop_orc_unwind_ip": orcIPs + 4*orcCount, "__start_orc_unwind": orcEntries,
		},
	}
}

// SetTextReaders fills the tables of a guest of TextReadersConfig in.
func (g *Guest) SetTextReaders() {
	const sp, bp, prevSP, call = 5, 4, 1, 2
	copier, framed := g.Addr(TextCopier), g.Addr(TextFramed)
	for i, e := range [orcCount]struct {
		from                       x86.VirtAddr
		spReg, spOff, bpReg, bpOff int
	}{
		{g.Base, sp, 8, 0, 0},
		{copier, sp, 8, 0, 0},
		{copier + CopierSaved, sp, CopierFrame + 8, 0, 0},
		{framed, sp, 8, 0, 0},
		{framed + 4, bp, 16, prevSP, -16},
		{framed + 64, sp, 8, 0, 0},
	} {
		at := g.Base + x86.VirtAddr(orcIPs+4*i)
		g.Write(at, binary.LittleEndian.AppendUint32(nil, uint32(e.from-at)))
		b := binary.LittleEndian.AppendUint16(nil, uint16(e.spOff))
		b = binary.LittleEndian.AppendUint16(b, uint16(e.bpOff))
		b = binary.LittleEndian.AppendUint16(b, uint16(e.spReg|e.bpReg<<4|call<<8))
		g.Write(g.Base+orcEntries+x86.VirtAddr(6*i), b)
	}
}
