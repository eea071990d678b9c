package guest

import (
	"encoding/binary"

	"github.com/xen-hvi/hvi/engine/x86"
)

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

// DirectReader is an optional addition to [Memory] for one that has most of the
// guest's memory in its own process for as long as it is open, as an image has.
// An AddressSpace over it asks once, and then reads page tables without a call.
type DirectReader interface {
	// Direct says where, for as long as the Memory is used. The Memory may
	// clear it when it is closed.
	Direct() *Direct
}

// Direct is a stretch of physical memory from Start on.
type Direct struct {
	Start x86.PhysAddr
	Data  []byte
}

// word reads 8 bytes; ok is false if they are elsewhere, and for a nil Direct.
func (d *Direct) word(pa x86.PhysAddr) (v uint64, ok bool) {
	if d == nil {
		return 0, false
	}
	if i := uint64(pa - d.Start); i < uint64(len(d.Data)) && uint64(len(d.Data))-i >= 8 {
		return binary.LittleEndian.Uint64(d.Data[i:]), true
	}
	return 0, false
}

// PhysRange is the physical memory [Start, End).
type PhysRange struct{ Start, End x86.PhysAddr }

// CPU gives the registers of a guest's virtual processors. vcpu counts from 0.
type CPU interface {
	Registers(vcpu int) (x86.Registers, error)
}
