// Package guesttest builds guests for tests: a flat physical memory with page
// tables in it that a test maps as it needs, in the format the processor reads.
//
// A [Builder] owns its memory and everything made from it; nothing is released.
package guesttest

import (
	"encoding/binary"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Bits of a page-table entry, for the flags of [Builder.Map].
const (
	Present  = 1 << 0
	Writable = 1 << 1
	User     = 1 << 2
	Large    = 1 << 7
	NX       = 1 << 63
)

// Builder is a guest under construction. It panics on a test's own mistakes.
type Builder struct {
	// Mem is the physical memory; byte n is physical address n.
	Mem []byte
	// Root is the physical address of the top-level table.
	Root   x86.PhysAddr
	levels int
	next   x86.PhysAddr // tables and pages are taken from here on, downwards
}

// New makes a guest of size bytes, with 4 or 5 levels of page tables, that maps
// nothing. Page tables are placed from the top of memory down.
func New(levels, size int) *Builder {
	b := &Builder{Mem: make([]byte, size), levels: levels, next: x86.PhysAddr(size)}
	b.Root = b.AllocPage()
	return b
}

// AllocPage takes a zeroed page from the top of memory.
func (b *Builder) AllocPage() x86.PhysAddr {
	if b.next < x86.PageSize {
		panic("guesttest: out of memory")
	}
	b.next -= x86.PageSize
	return b.next
}

// Memory is the guest's memory as guest.Memory; later changes show through.
func (b *Builder) Memory() *guest.RawImage { return guest.NewRawImage(b.Mem) }

// CR3 is the root as a control register.
func (b *Builder) CR3() uint64 { return uint64(b.Root) }

// CR4 has PAE, and LA57 for 5 levels.
func (b *Builder) CR4() uint64 {
	if b.levels == 5 {
		return x86.CR4PAE | x86.CR4LA57
	}
	return x86.CR4PAE
}

// EFER is that of a processor in long mode with NX.
func (b *Builder) EFER() uint64 { return x86.EFERLME | x86.EFERLMA | x86.EFERNXE | x86.EFERSCE }

// AddressSpace is the address space of the tables.
func (b *Builder) AddressSpace() guest.AddressSpace {
	return guest.NewAddressSpace(b.Memory(), b.CR3(), b.CR4(), b.EFER())
}

// Entry returns the physical address of the entry for va at a level (1 to 5),
// making the tables above it, with all rights, where they are missing.
func (b *Builder) Entry(va x86.VirtAddr, level int) x86.PhysAddr {
	table := b.Root
	for l := b.levels; ; l-- {
		at := table + x86.PhysAddr(uint64(va)>>(12+9*(l-1))&0x1ff*8)
		if l == level {
			return at
		}
		e := b.Get(at)
		if e&Present == 0 {
			e = uint64(b.AllocPage()) | Present | Writable | User
			b.Put(at, e)
		}
		table = x86.PhysAddr(e & x86.CR3AddrMask)
	}
}

// Map maps n bytes from va on to pa on, with pages of the given size and the
// given flags besides Present.
func (b *Builder) Map(va x86.VirtAddr, pa x86.PhysAddr, n, pageSize, flags uint64) {
	level := map[uint64]int{guest.Page4K: 1, guest.Page2M: 2, guest.Page1G: 3}[pageSize]
	if level == 0 || uint64(va)%pageSize != 0 || uint64(pa)%pageSize != 0 {
		panic(fmt.Sprintf("guesttest: map %v to %v by %#x", va, pa, pageSize))
	}
	if level > 1 {
		flags |= Large
	}
	for off := uint64(0); off < n; off += pageSize {
		b.Put(b.Entry(va+x86.VirtAddr(off), level), (uint64(pa)+off)|flags|Present)
	}
}

// Put stores a word at a physical address.
func (b *Builder) Put(pa x86.PhysAddr, v uint64) { binary.LittleEndian.PutUint64(b.Mem[pa:], v) }

// Get loads a word from a physical address.
func (b *Builder) Get(pa x86.PhysAddr) uint64 { return binary.LittleEndian.Uint64(b.Mem[pa:]) }

// Write stores bytes at a virtual address that is mapped.
func (b *Builder) Write(va x86.VirtAddr, data []byte) {
	as := b.AddressSpace()
	for len(data) > 0 {
		t, err := as.Translate(va)
		if err != nil {
			panic("guesttest: " + err.Error())
		}
		n := copy(b.Mem[t.Phys:uint64(t.Phys)+min(uint64(len(data)), t.PageEnd(va))], data)
		data, va = data[n:], va+x86.VirtAddr(n)
	}
}

// WriteUint64 stores a word at a virtual address that is mapped.
func (b *Builder) WriteUint64(va x86.VirtAddr, v uint64) {
	b.Write(va, binary.LittleEndian.AppendUint64(nil, v))
}
