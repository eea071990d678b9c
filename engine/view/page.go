package view

import (
	"encoding/binary"
	"slices"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// int3 is the one-byte breakpoint instruction.
const int3 = 0xcc

// Page is a page of the guest's that has a shadow.
type Page struct {
	// GFN is the guest's page, Shadow the frame of ours.
	GFN, Shadow x86.GFN
	// bytes is the shadow page, mapped and writable.
	bytes []byte
	// offsets are where breakpoints stand in it, in order. They are guarded by
	// Breakpoints.mu.
	offsets []uint64
}

// NewPage returns the page that a mapped shadow page stands for. bytes must stay
// mapped as long as the Page is used.
func NewPage(gfn, shadow x86.GFN, bytes []byte) *Page {
	return &Page{GFN: gfn, Shadow: shadow, bytes: bytes}
}

// follow makes the shadow what the guest's page is now, but for the breakpoints.
// Only words that differ are stored: the guest may be executing them, and changes
// its own code with the care that takes.
func (p *Page) follow(mem guest.Memory, scratch []byte) error {
	if err := mem.ReadPhys(p.GFN.Addr(), scratch); err != nil {
		return err
	}
	for _, off := range p.offsets {
		scratch[off] = int3
	}
	to := words(p.bytes)
	for i := range to {
		if w := binary.LittleEndian.Uint64(scratch[8*i:]); to[i].Load() != w {
			to[i].Store(w)
		}
	}
	return nil
}

func (p *Page) add(off uint64) {
	i, found := slices.BinarySearch(p.offsets, off)
	if !found {
		p.offsets = slices.Insert(p.offsets, i, off)
	}
}

func (p *Page) remove(off uint64) {
	if i, found := slices.BinarySearch(p.offsets, off); found {
		p.offsets = slices.Delete(p.offsets, i, i+1)
	}
}
