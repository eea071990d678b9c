package xentest

import (
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// putCPU writes a CPU record.
func putCPU(l *abi.Layout, rec handle, r *x86.Registers) {
	f := &l.HVMHWCPU
	clear(rec.b)
	for _, x := range []struct {
		off, width int
		v          uint64
	}{
		{f.RAX, 8, r.RAX}, {f.RBX, 8, r.RBX}, {f.RCX, 8, r.RCX}, {f.RDX, 8, r.RDX},
		{f.RSI, 8, r.RSI}, {f.RDI, 8, r.RDI}, {f.RBP, 8, r.RBP}, {f.RSP, 8, r.RSP},
		{f.R8, 8, r.R8}, {f.R9, 8, r.R9}, {f.R10, 8, r.R10}, {f.R11, 8, r.R11},
		{f.R12, 8, r.R12}, {f.R13, 8, r.R13}, {f.R14, 8, r.R14}, {f.R15, 8, r.R15},
		{f.RIP, 8, r.RIP}, {f.RFLAGS, 8, r.RFLAGS},
		{f.CR0, 8, r.CR0}, {f.CR2, 8, r.CR2}, {f.CR3, 8, r.CR3}, {f.CR4, 8, r.CR4},
		{f.MSREFER, 8, r.EFER}, {f.FSBase, 8, r.FSBase}, {f.GSBase, 8, r.GSBase}, {f.ShadowGS, 8, r.KernelGSBase},
		{f.MSRSTAR, 8, r.STAR}, {f.MSRLSTAR, 8, r.LSTAR}, {f.MSRCSTAR, 8, r.CSTAR}, {f.MSRSyscallMask, 8, r.SFMask},
		{f.SysenterCS, 8, r.SysenterCS}, {f.SysenterESP, 8, r.SysenterESP}, {f.SysenterEIP, 8, r.SysenterEIP},
		{f.IDTRBase, 8, r.IDTBase}, {f.GDTRBase, 8, r.GDTBase},
		{f.IDTRLimit, 4, uint64(r.IDTLimit)}, {f.GDTRLimit, 4, uint64(r.GDTLimit)},
		{f.CSSel, 4, uint64(r.CS)}, {f.SSSel, 4, uint64(r.SS)},
		{f.SSArBytes, 4, 0x93 | uint64(r.CPL)<<5},
	} {
		rec.put(x.off, x.width, x.v)
	}
}
