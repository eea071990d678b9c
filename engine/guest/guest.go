package guest

import "github.com/xen-hvi/hvi/engine/x86"

// Memory is a guest's physical memory.
//
// ReadPhys fills all of buf from guest physical address pa, or returns an error
// and leaves buf in an unspecified state. A range may cross frames. An
// implementation keeps no reference to buf, and allocates nothing when the
// range is present, or the promises of [AddressSpace] do not hold.
//
// A Memory that several goroutines use must be safe for that itself.
type Memory interface {
	ReadPhys(pa x86.PhysAddr, buf []byte) error
}

// WordReader is an optional addition to [Memory]: one aligned little-endian
// 8-byte word with no buffer between. An AddressSpace over a Memory that has it
// walks page tables a good deal faster.
type WordReader interface {
	ReadPhysUint64(pa x86.PhysAddr) (uint64, error)
}

// PhysRange is the physical memory [Start, End).
type PhysRange struct{ Start, End x86.PhysAddr }

// CPU gives the registers of a guest's virtual processors. vcpu counts from 0.
type CPU interface {
	Registers(vcpu int) (x86.Registers, error)
}
