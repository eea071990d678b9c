package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Page sizes in bytes, as [Translation.PageSize] reports them.
const (
	Page4K = 1 << 12
	Page2M = 1 << 21
	Page1G = 1 << 30
)

// Page-table entry bits (Intel SDM volume 3, section 4.5).
const (
	pteP  = 1 << 0
	pteW  = 1 << 1
	pteU  = 1 << 2
	ptePS = 1 << 7
	pteNX = 1 << 63

	pteAddr = x86.CR3AddrMask
)

// Errors a translation ends with; a [*TranslateError] wraps one of them.
var (
	// ErrNotPresent: the walk met an entry whose present bit is clear.
	ErrNotPresent = errors.New("not present")
	// ErrNotCanonical: the address is none the processor could use.
	ErrNotCanonical = errors.New("not canonical")
	// ErrOtherPart: the address is not in this part of the address space.
	ErrOtherPart = errors.New("in another part of the address space")
	// ErrReserved: an entry has a bit set that the architecture reserves;
	// the processor would fault on it too.
	ErrReserved = errors.New("reserved bit set in page-table entry")
	// ErrUnterminated: no NUL byte within the length the caller allowed.
	ErrUnterminated = errors.New("string is not terminated within its limit")
)

// TranslateError says where a page walk stopped. errors.Is finds
// [ErrNotPresent], [ErrNotCanonical], [ErrOtherPart], [ErrReserved] or the Memory's
// own error.
type TranslateError struct {
	VA x86.VirtAddr
	// Level is the level of the entry at fault: 5 or 4 for the root's, 1
	// for a page table's. 0 when no entry was read.
	Level int
	// Entry is the entry as read, 0 when it could not be read.
	Entry uint64
	Err   error
}

func (e *TranslateError) Error() string {
	if e.Level == 0 {
		return fmt.Sprintf("translate %v: %v", e.VA, e.Err)
	}
	return fmt.Sprintf("translate %v: level %d: %v", e.VA, e.Level, e.Err)
}

// Unwrap returns the cause.
func (e *TranslateError) Unwrap() error { return e.Err }

// Skip returns the first address after VA that the missing entry does not
// cover, for callers that step over holes. It is VA's next base page where no
// entry is to blame.
func (e *TranslateError) Skip() x86.VirtAddr {
	size := x86.VirtAddr(Page4K)
	if e.Level > 1 {
		size <<= 9 * (e.Level - 1)
	}
	return e.VA&^(size-1) + size
}

// Translation is where a virtual address leads, and with what rights.
type Translation struct {
	// Phys is the guest physical address of the very byte asked for.
	Phys x86.PhysAddr
	// PageSize is Page4K, Page2M or Page1G.
	PageSize uint64
	// Writable, User and NX are effective: over all levels of the walk. A
	// supervisor write with CR0.WP clear ignores Writable.
	Writable, User, NX bool
}

// PageEnd returns the number of bytes from va to the end of its page.
func (t Translation) PageEnd(va x86.VirtAddr) uint64 {
	return t.PageSize - uint64(va)&(t.PageSize-1)
}

// AddressSpace is one tree of page tables over a Memory. It remembers nothing
// unless it was given a [TLB], so two reads may see two states of a running
// guest. It is a value, safe for concurrent use as far as its Memory is; with a
// TLB, for one goroutine.
type AddressSpace struct {
	mem    Memory
	words  WordReader // mem, where it offers that
	direct *Direct    // of mem, where it offers that
	tlb    *TLB       // or nil
	root   uint64     // with the paging mode in its low bits
	// The canonical addresses, or those of a part: size of them from low on,
	// which wraps around.
	low, size uint64
	above     mapping // rights that the levels above the root's leave
}

// The paging mode, in the low bits of a root.
const (
	modeLevels = 7      // the number of levels
	modeNoNX   = 1 << 3 // EFER.NXE clear: bit 63 of an entry is reserved
	modeMask   = 0xfff
)

// NewAddressSpace describes the address space of a vCPU in long mode by its
// control registers. PCID, cache bits and bit 63 of cr3 are dropped; bit 12 is
// kept, since only Linux page-table isolation gives it a meaning. CR4.LA57
// chooses between 4 and 5 levels. An efer of 0 means unknown, and is taken as
// having NXE, as every 64-bit kernel sets it.
func NewAddressSpace(mem Memory, cr3, cr4, efer uint64) AddressSpace {
	as := AddressSpace{root: cr3 & x86.CR3AddrMask, above: pteW | pteU}
	as.setMemory(mem)
	half := uint64(1 << 47)
	if cr4&x86.CR4LA57 != 0 {
		as.root |= 5
		half = 1 << 56
	} else {
		as.root |= 4
	}
	as.low, as.size = -half, 2*half
	if efer != 0 && efer&x86.EFERNXE == 0 {
		as.root |= modeNoNX
	}
	return as
}

// WithRoot returns the same paging mode over another root table.
func (as AddressSpace) WithRoot(root x86.PhysAddr) AddressSpace {
	as.root = uint64(root)&x86.CR3AddrMask | as.root&modeMask
	return as
}

// WithMemory returns the same page tables in another Memory, without a TLB.
func (as AddressSpace) WithMemory(mem Memory) AddressSpace {
	as.tlb = nil
	as.setMemory(mem)
	return as
}

func (as *AddressSpace) setMemory(mem Memory) {
	as.mem, as.direct = mem, nil
	as.words, _ = mem.(WordReader)
	if d, ok := mem.(DirectReader); ok {
		as.direct = d.Direct()
	}
}

// Root is the physical address of the top-level table.
func (as *AddressSpace) Root() x86.PhysAddr { return x86.PhysAddr(as.root &^ modeMask) }

// Levels is 4 or 5, and 3 of a [AddressSpace.Part].
func (as *AddressSpace) Levels() int { return int(as.root & modeLevels) }

// Memory returns the physical memory below.
func (as *AddressSpace) Memory() Memory { return as.mem }

// wordBufs serve Memories without WordReader: a buffer handed through an
// interface escapes, and a walk must not allocate.
var wordBufs = sync.Pool{New: func() any { return new([8]byte) }}

// word reads an entry that isn't in direct memory.
func (as *AddressSpace) word(pa x86.PhysAddr) (uint64, error) {
	if as.words != nil {
		return as.words.ReadPhysUint64(pa)
	}
	b := wordBufs.Get().(*[8]byte)
	err := as.mem.ReadPhys(pa, b[:])
	v := binary.LittleEndian.Uint64(b[:])
	wordBufs.Put(b)
	return v, err
}

// mapping is the entry that maps a page, as walks and the [TLB] hand it on: the
// page's address, the effective rights where an entry has its own, and the level
// in bits that an entry leaves to software. Of level 0 is an entry that leads to
// a table.
type mapping uint64

const (
	mappingRights = pteW | pteU | pteNX
	mappingLevel  = 9 // the lower of the two bits
)

func (m mapping) level() uint64              { return uint64(m) >> mappingLevel & 3 }
func (m mapping) base() x86.PhysAddr         { return x86.PhysAddr(m & pteAddr) }
func (m mapping) size() uint64               { return 1 << ((3 + 9*m.level()) & 63) }
func (m mapping) off(va x86.VirtAddr) uint64 { return uint64(va) & (m.size() - 1) }

// under is the rights of what an entry leads to, m being those of the levels
// above.
func (m mapping) under(e uint64) mapping {
	return m&mapping(e)&(pteW|pteU) | (m|mapping(e))&pteNX
}

// phys is where va leads, and left the number of bytes from there to the end of
// the page.
func (m mapping) phys(va x86.VirtAddr) x86.PhysAddr { return m.base() | x86.PhysAddr(m.off(va)) }
func (m mapping) left(va x86.VirtAddr) uint64       { return m.size() - m.off(va) }

// checkEntry returns why an entry of any level leads nowhere, or nil.
func (as *AddressSpace) checkEntry(e uint64) error {
	if e&pteP == 0 {
		return ErrNotPresent
	}
	if as.root&modeNoNX != 0 && e&pteNX != 0 {
		return ErrReserved
	}
	return nil
}

// Translate walks the page tables for va. It allocates only to report an error,
// which is a [*TranslateError].
func (as *AddressSpace) Translate(va x86.VirtAddr) (t Translation, err error) {
	m, err := as.lookup(va)
	if err != nil {
		return t, err
	}
	// Field by field: a structure of five is copied through memory.
	t.Phys = m.phys(va)
	t.PageSize = m.size()
	t.Writable = m&pteW != 0
	t.User = m&pteU != 0
	t.NX = m&pteNX != 0
	return t, nil
}

// lookup finds what maps va, from the TLB if there is one.
func (as *AddressSpace) lookup(va x86.VirtAddr) (mapping, error) {
	if uint64(va)-as.low >= as.size {
		return 0, as.outside(va)
	}
	if as.tlb != nil {
		return as.cached(as.tlb, va)
	}
	return as.walk(va, as.root&modeLevels, as.Root(), as.above)
}

// outside is the error for an address that the address space doesn't have.
func (as *AddressSpace) outside(va x86.VirtAddr) error {
	err := ErrNotCanonical
	if as.root&modeLevels == 3 {
		err = ErrOtherPart
	}
	return &TranslateError{VA: va, Err: err}
}

// walk finds what maps va from the table of a level downwards. rights are those
// of the levels above.
func (as *AddressSpace) walk(va x86.VirtAddr, level uint64, table x86.PhysAddr, rights mapping) (mapping, error) {
	for ; ; level-- {
		shift := (3 + 9*level) & 63
		pa := table + x86.PhysAddr(uint64(va)>>shift&0x1ff*8)
		e, ok := as.direct.word(pa)
		if !ok {
			var err error
			if e, err = as.word(pa); err != nil {
				return 0, &TranslateError{VA: va, Level: int(level), Err: err}
			}
		}
		if err := as.checkEntry(e); err != nil {
			return 0, &TranslateError{VA: va, Level: int(level), Entry: e, Err: err}
		}
		rights = rights.under(e)
		table = x86.PhysAddr(e & pteAddr)
		if level > 1 && e&ptePS == 0 {
			if as.tlb != nil && level <= 3 {
				as.tlb.put(va, level, mapping(table)|rights)
			}
			continue
		}
		// Bit 12 of a large page's entry is PAT, masked with the offset;
		// the other address bits below the page size are reserved, and so
		// is the size bit in a PML4 or PML5 entry.
		if level > 1 && (level > 3 || uint64(table)&(1<<shift-1)&^(1<<12) != 0) {
			return 0, &TranslateError{VA: va, Level: int(level), Entry: e, Err: ErrReserved}
		}
		m := mapping(table)&^(1<<shift-1) | mapping(level)<<mappingLevel | rights
		if as.tlb != nil {
			as.tlb.put(va, level, m)
		}
		return m, nil
	}
}

// Read fills buf from va on, across pages. Nothing is allocated when all of it
// is mapped. On an error buf may be partly filled.
func (as *AddressSpace) Read(va x86.VirtAddr, buf []byte) error {
	for len(buf) > 0 {
		m, err := as.lookup(va)
		if err != nil {
			return err
		}
		n := min(uint64(len(buf)), m.left(va))
		if err := as.mem.ReadPhys(m.phys(va), buf[:n]); err != nil {
			return &TranslateError{VA: va, Err: err}
		}
		buf = buf[n:]
		va += x86.VirtAddr(n)
		if va == 0 && len(buf) > 0 { // ran over the top of the address space
			return &TranslateError{VA: va, Err: ErrNotCanonical}
		}
	}
	return nil
}

// ReadUint64 reads a little-endian 8-byte word, aligned or not.
func (as *AddressSpace) ReadUint64(va x86.VirtAddr) (uint64, error) {
	return as.small(va, 8)
}

// ReadUint32 reads a little-endian 4-byte word, aligned or not.
func (as *AddressSpace) ReadUint32(va x86.VirtAddr) (uint32, error) {
	v, err := as.small(va, 4)
	return uint32(v), err
}

// ReadUint16 reads a little-endian 2-byte word, aligned or not.
func (as *AddressSpace) ReadUint16(va x86.VirtAddr) (uint16, error) {
	v, err := as.small(va, 2)
	return uint16(v), err
}

// ReadUint8 reads one byte.
func (as *AddressSpace) ReadUint8(va x86.VirtAddr) (uint8, error) {
	v, err := as.small(va, 1)
	return uint8(v), err
}

// ReadPointer reads an aligned or unaligned 8-byte word as an address.
func (as *AddressSpace) ReadPointer(va x86.VirtAddr) (x86.VirtAddr, error) {
	v, err := as.ReadUint64(va)
	return x86.VirtAddr(v), err
}

// small reads a number of n bytes, at most 8.
func (as *AddressSpace) small(va x86.VirtAddr, n uint64) (uint64, error) {
	// Most lie in one aligned word, which needs no buffer.
	if in := uint64(va) & 7; in+n <= 8 && as.words != nil {
		m, err := as.lookup(va)
		if err != nil {
			return 0, err
		}
		pa := m.phys(va) &^ 7
		v, ok := as.direct.word(pa)
		if !ok {
			v, err = as.words.ReadPhysUint64(pa)
		}
		if err == nil {
			return v >> (8 * in) & (1<<(8*n) - 1), nil
		}
		// The last word of memory may be there in part.
	}
	b := wordBufs.Get().(*[8]byte)
	*b = [8]byte{}
	err := as.Read(va, b[:n])
	v := binary.LittleEndian.Uint64(b[:])
	wordBufs.Put(b)
	return v, err
}

// ReadCString reads a NUL-terminated string of at most max bytes, NUL not
// counted. It reads no page that the string does not reach. A longer one is
// [ErrUnterminated], wrapped in a [*TranslateError].
func (as *AddressSpace) ReadCString(va x86.VirtAddr, max int) (string, error) {
	var out []byte
	start := va
	buf := make([]byte, 256)
	for len(out) <= max {
		n := min(len(buf), max+1-len(out), int(x86.PageSize-va.Offset()))
		if err := as.Read(va, buf[:n]); err != nil {
			return "", err
		}
		if i := bytes.IndexByte(buf[:n], 0); i >= 0 {
			return string(append(out, buf[:i]...)), nil
		}
		out = append(out, buf[:n]...)
		va += x86.VirtAddr(n)
	}
	return "", &TranslateError{VA: start, Err: ErrUnterminated}
}
