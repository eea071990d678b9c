package guard

import (
	"sync/atomic"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Originals are copies of pages as they were before the kernel patched them for the first
// time: so what all of its code was can be found out later, in peace, and not while a guest
// that boots waits for it.
//
// The ring goroutine keeps them, for which another one makes room with Grow. Anybody may
// read what is kept.
type Originals struct {
	// kept has a bit for each page of the code that is kept, for the ring goroutine.
	kept   []uint64
	blocks []atomic.Pointer[originalsBlock]
	used   atomic.Int32
	// refused counts accesses in a row for which there was no room. It is the ring
	// goroutine's.
	refused int
}

// originalsBlock has room for some pages. What is below used doesn't change.
type originalsBlock struct {
	pages  [originalsPerBlock]int
	copies [originalsPerBlock][x86.PageSize]byte
}

const (
	originalsPerBlock = 32
	// originalsAhead is how many pages there is room for when the session has just made
	// some: about as many as a Debian that boots patches in all.
	originalsAhead = 64
	// maxRefused is how often in a row an access is refused for want of room, which is
	// made within milliseconds. Then it takes place all the same: whoever makes the room
	// may hang, and the guest must not.
	maxRefused = 1 << 16
)

// NewOriginals returns room for some of a kernel's pages of code, and for so many at most
// when it has grown.
func NewOriginals(pages, most int) *Originals {
	o := &Originals{kept: make([]uint64, (pages+63)/64), blocks: make([]atomic.Pointer[originalsBlock], (most+originalsPerBlock-1)/originalsPerBlock)}
	o.Grow()
	return o
}

// Grow makes room for pages to come. It reports false if there may be no more, so that the
// kernel waits for [Patched.UseOriginals] if it patches others. It is for one goroutine.
func (o *Originals) Grow() bool {
	used := int(o.used.Load())
	for i := range o.blocks {
		if b := &o.blocks[i]; b.Load() == nil && i*originalsPerBlock < used+originalsAhead {
			b.Store(new(originalsBlock))
		}
	}
	return used < len(o.blocks)*originalsPerBlock
}

// keep keeps a page, if it is not kept yet. It reports false if there is no room, so that the
// access has to be tried again.
func (o *Originals) keep(mem guest.Memory, page int, gfn x86.GFN) bool {
	w, bit := &o.kept[page/64], uint64(1)<<(page%64)
	if *w&bit != 0 {
		return true
	}
	n := int(o.used.Load())
	block, at := n/originalsPerBlock, n%originalsPerBlock
	var b *originalsBlock
	if block < len(o.blocks) {
		b = o.blocks[block].Load()
	}
	if b == nil {
		o.refused++
		return o.refused > maxRefused
	}
	o.refused = 0
	if err := mem.ReadPhys(gfn.Addr(), b.copies[at][:]); err != nil {
		return true // it has gone, or the domain has
	}
	*w |= bit
	b.pages[at] = page
	o.used.Store(int32(n + 1))
	return true
}

// Page returns what a page was, and nil of one that was not patched. It belongs to o.
func (o *Originals) Page(page int) *[x86.PageSize]byte {
	for i := range o.used.Load() {
		if b := o.blocks[i/originalsPerBlock].Load(); b.pages[i%originalsPerBlock] == page {
			return &b.copies[i%originalsPerBlock]
		}
	}
	return nil
}
