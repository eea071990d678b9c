package x86

import "fmt"

const (
	// PageShift is log2 of the base page size.
	PageShift = 12
	// PageSize is the base page size in bytes.
	PageSize = 1 << PageShift
	// PageMask selects the offset of an address within its base page.
	PageMask = PageSize - 1
)

// VirtAddr is a guest linear (virtual) address.
type VirtAddr uint64

// PhysAddr is a guest physical address: what the guest believes to be
// physical, second-level translation not applied.
type PhysAddr uint64

// GFN is a guest frame number: a guest physical address divided by PageSize.
type GFN uint64

// GFN returns the frame that holds the address.
func (a PhysAddr) GFN() GFN { return GFN(a >> PageShift) }

// Offset returns the byte offset of the address within its frame.
func (a PhysAddr) Offset() uint64 { return uint64(a) & PageMask }

// String formats the address as 0x-prefixed hexadecimal.
func (a PhysAddr) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// Addr returns the first address of the frame.
func (g GFN) Addr() PhysAddr { return PhysAddr(g) << PageShift }

// String formats the frame number as 0x-prefixed hexadecimal.
func (g GFN) String() string { return fmt.Sprintf("%#x", uint64(g)) }

// Offset returns the byte offset of the address within its base page.
func (a VirtAddr) Offset() uint64 { return uint64(a) & PageMask }

// Page returns the address of the base page that holds a.
func (a VirtAddr) Page() VirtAddr { return a &^ PageMask }

// KernelHalf reports whether the address lies in the upper canonical half,
// where 64-bit kernels live. It holds for 4-level and 5-level paging.
func (a VirtAddr) KernelHalf() bool { return int64(a) < 0 }

// Canonical reports whether the address is canonical for a linear address
// width of bits (48 with 4-level, 57 with 5-level paging).
func (a VirtAddr) Canonical(bits uint) bool {
	s := 64 - bits
	return VirtAddr(int64(a)<<s>>s) == a
}

// String formats the address as 0x-prefixed hexadecimal.
func (a VirtAddr) String() string { return fmt.Sprintf("%#x", uint64(a)) }
