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
	// ErrReserved: an entry has a bit set that the architecture reserves;
	// the processor would fault on it too.
	ErrReserved = errors.New("reserved bit set in page-table entry")
	// ErrUnterminated: no NUL byte within the length the caller allowed.
	ErrUnterminated = errors.New("string is not terminated within its limit")
)

// TranslateError says where a page walk stopped. errors.Is finds
// [ErrNotPresent], [ErrNotCanonical], [ErrReserved] or the Memory's own error.
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
	tlb    *TLB       // or nil
	root   x86.PhysAddr
	levels uint8
	noNX   bool // EFER.NXE clear: bit 63 is reserved
}

// NewAddressSpace describes the address space of a vCPU in long mode by its
// control registers. PCID, cache bits and bit 63 of cr3 are dropped; bit 12 is
// kept, since only Linux page-table isolation gives it a meaning. CR4.LA57
// chooses between 4 and 5 levels. An efer of 0 means unknown, and is taken as
// having NXE, as every 64-bit kernel sets it.
func NewAddressSpace(mem Memory, cr3, cr4, efer uint64) AddressSpace {
	as := AddressSpace{mem: mem, root: x86.PhysAddr(cr3 & x86.CR3AddrMask), levels: 4}
	as.words, _ = mem.(WordReader)
	if cr4&x86.CR4LA57 != 0 {
		as.levels = 5
	}
	as.noNX = efer != 0 && efer&x86.EFERNXE == 0
	return as
}

// WithRoot returns the same paging mode over another root table.
func (as AddressSpace) WithRoot(root x86.PhysAddr) AddressSpace {
	as.root = root & x86.CR3AddrMask
	return as
}

// Root is the physical address of the top-level table.
func (as *AddressSpace) Root() x86.PhysAddr { return as.root }

// Levels is 4 or 5.
func (as *AddressSpace) Levels() int { return int(as.levels) }

// Memory returns the physical memory below.
func (as *AddressSpace) Memory() Memory { return as.mem }

// wordBufs serve Memories without WordReader: a buffer handed through an
// interface escapes, and a walk must not allocate.
var wordBufs = sync.Pool{New: func() any { return new([8]byte) }}

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

// Translate walks the page tables for va. It allocates only to report an error,
// which is a [*TranslateError].
func (as *AddressSpace) Translate(va x86.VirtAddr) (Translation, error) {
	if !va.Canonical(12 + 9*uint(as.levels)) {
		return Translation{}, &TranslateError{VA: va, Err: ErrNotCanonical}
	}
	if as.tlb != nil {
		return as.translateCached(va)
	}
	return as.walk(va, int(as.levels), as.root, pteW|pteU)
}

// walk translates va from the table of a level downwards. rights are those of
// the levels above: the bits of an entry that W, U and NX are.
func (as *AddressSpace) walk(va x86.VirtAddr, level int, table x86.PhysAddr, rights uint64) (Translation, error) {
	for ; ; level-- {
		shift := uint(12 + 9*(level-1))
		e, err := as.word(table + x86.PhysAddr(uint64(va)>>shift&0x1ff*8))
		if err != nil {
			return Translation{}, &TranslateError{VA: va, Level: level, Err: err}
		}
		if e&pteP == 0 {
			return Translation{}, &TranslateError{VA: va, Level: level, Entry: e, Err: ErrNotPresent}
		}
		if as.noNX && e&pteNX != 0 {
			return Translation{}, &TranslateError{VA: va, Level: level, Entry: e, Err: ErrReserved}
		}
		rights = rights&e&(pteW|pteU) | (rights|e)&pteNX
		table = x86.PhysAddr(e & pteAddr)
		if level > 1 && e&ptePS == 0 {
			if as.tlb != nil && level <= 3 {
				as.tlb.put(va, level, uint64(table)|rights)
			}
			continue
		}
		// Bit 12 of a large page's entry is PAT, masked with the offset;
		// the other address bits below the page size are reserved, and so
		// is the size bit in a PML4 or PML5 entry.
		if level > 1 && (level > 3 || uint64(table)&(1<<shift-1)&^(1<<12) != 0) {
			return Translation{}, &TranslateError{VA: va, Level: level, Entry: e, Err: ErrReserved}
		}
		e = uint64(table)&^(1<<shift-1) | rights | ptePS
		if as.tlb != nil {
			as.tlb.put(va, level, e)
		}
		return leaf(va, level, e), nil
	}
}

// leaf is the translation that the last entry of a walk gives. Of e it takes
// the page's address and the effective rights.
func leaf(va x86.VirtAddr, level int, e uint64) Translation {
	size := uint64(1) << uint(12+9*(level-1))
	return Translation{
		Phys:     x86.PhysAddr(e&pteAddr | uint64(va)&(size-1)),
		PageSize: size,
		Writable: e&pteW != 0,
		User:     e&pteU != 0,
		NX:       e&pteNX != 0,
	}
}

// Read fills buf from va on, across pages. Nothing is allocated when all of it
// is mapped. On an error buf may be partly filled.
func (as *AddressSpace) Read(va x86.VirtAddr, buf []byte) error {
	for len(buf) > 0 {
		t, err := as.Translate(va)
		if err != nil {
			return err
		}
		n := uint64(len(buf))
		if left := t.PageEnd(va); n > left {
			n = left
		}
		if err := as.mem.ReadPhys(t.Phys, buf[:n]); err != nil {
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
	if va&7 == 0 {
		t, err := as.Translate(va)
		if err != nil {
			return 0, err
		}
		v, err := as.word(t.Phys)
		if err != nil {
			return 0, &TranslateError{VA: va, Err: err}
		}
		return v, nil
	}
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

func (as *AddressSpace) small(va x86.VirtAddr, n int) (uint64, error) {
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
