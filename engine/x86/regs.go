package x86

// Registers is the state of one vCPU that hvi reads. A source that cannot
// supply a field leaves it zero and says so in its own documentation: a ring
// event carries no STAR or CSTAR, a saved context carries all.
//
// Every value here comes from the guest and is to be treated as hostile.
type Registers struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64

	CR0, CR2, CR3, CR4 uint64
	EFER               uint64

	// FSBase and GSBase are the active segment bases; KernelGSBase is the
	// one SWAPGS would exchange with GSBase (MSR_SHADOW_GS_BASE in Xen).
	FSBase, GSBase, KernelGSBase uint64

	// SYSCALL and SYSENTER entry points.
	STAR, LSTAR, CSTAR, SFMask           uint64
	SysenterCS, SysenterESP, SysenterEIP uint64
	IDTBase, GDTBase                     uint64
	IDTLimit, GDTLimit                   uint32
	CS, SS                               uint16
	// CPL is the current privilege level, 0 to 3 (SS.DPL in a VMCS).
	CPL uint8
}

// Control register bits, named as in the SDM.
const (
	CR0PE = 1 << 0
	CR0WP = 1 << 16
	CR0PG = 1 << 31

	CR4PAE      = 1 << 5
	CR4UMIP     = 1 << 11
	CR4LA57     = 1 << 12
	CR4FSGSBASE = 1 << 16
	CR4PCIDE    = 1 << 17
	CR4SMEP     = 1 << 20
	CR4SMAP     = 1 << 21
	CR4PKE      = 1 << 22
	CR4CET      = 1 << 23

	EFERSCE = 1 << 0
	EFERLME = 1 << 8
	EFERLMA = 1 << 10
	EFERNXE = 1 << 11

	RFLAGSTF = 1 << 8
	RFLAGSIF = 1 << 9
)

// CR3 fields: the low 12 bits are PCID (CR4.PCIDE) or PWT/PCD, bit 63 asks to
// keep TLB entries, the rest is the physical address of the root table.
const (
	CR3AddrMask = 0x000f_ffff_ffff_f000
	// CR3KPTIUser is the bit by which Linux page-table isolation tells the
	// user half of a pair of page-table roots from the kernel half.
	CR3KPTIUser = 1 << 12
)

// Model-specific registers.
const (
	MSRSysenterCS   = 0x174
	MSRSysenterESP  = 0x175
	MSRSysenterEIP  = 0x176
	MSREFER         = 0xc000_0080
	MSRSTAR         = 0xc000_0081
	MSRLSTAR        = 0xc000_0082
	MSRCSTAR        = 0xc000_0083
	MSRSFMask       = 0xc000_0084
	MSRFSBase       = 0xc000_0100
	MSRGSBase       = 0xc000_0101
	MSRKernelGSBase = 0xc000_0102
)

// NamedMSRs returns the MSRs that have a name here.
func NamedMSRs() []uint32 {
	return []uint32{
		MSRSysenterCS, MSRSysenterESP, MSRSysenterEIP, MSREFER, MSRSTAR, MSRLSTAR, MSRCSTAR, MSRSFMask, MSRFSBase, MSRGSBase, MSRKernelGSBase,
	}
}

// MSRName returns the SDM's short name of an MSR hvi knows, or "".
func MSRName(msr uint32) string {
	switch msr {
	case MSRSysenterCS:
		return "SYSENTER_CS"
	case MSRSysenterESP:
		return "SYSENTER_ESP"
	case MSRSysenterEIP:
		return "SYSENTER_EIP"
	case MSREFER:
		return "EFER"
	case MSRSTAR:
		return "STAR"
	case MSRLSTAR:
		return "LSTAR"
	case MSRCSTAR:
		return "CSTAR"
	case MSRSFMask:
		return "SFMASK"
	case MSRFSBase:
		return "FS_BASE"
	case MSRGSBase:
		return "GS_BASE"
	case MSRKernelGSBase:
		return "KERNEL_GS_BASE"
	}
	return ""
}
