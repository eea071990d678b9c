package guard

import (
	"math/bits"
	"sync/atomic"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Patched says which pages of its code the kernel has patched itself, or read, from the
// ring goroutine, which lets that happen, to whoever looks at the result.
//
// A page is named by its place in the code, the first being 0, as a [Scanner] of the
// code names it.
type Patched struct {
	frames []linux.FrameRange // in order of their place
	bits   []atomic.Uint64    // by place
	more   chan struct{}      // capacity one
	// originals keep what pages were, nil where nobody needs to know.
	originals atomic.Pointer[Originals]
}

func newPatched(frames []linux.FrameRange) *Patched {
	n := uint64(0)
	for _, f := range frames {
		n += f.N
	}
	return &Patched{frames: frames, bits: make([]atomic.Uint64, (n+63)/64), more: make(chan struct{}, 1)}
}

// UseOriginals has copies be kept of pages before they are patched for the first time; nil
// ends that.
func (p *Patched) UseOriginals(o *Originals) { p.originals.Store(o) }

// keep keeps the page that an access is about to change. It reports false if there is no
// room for it, so that the access must not happen yet.
func (p *Patched) keep(mem guest.Memory, gfn x86.GFN) bool {
	o := p.originals.Load()
	if o == nil {
		return true
	}
	page, ok := p.Page(gfn)
	if !ok || o.keep(mem, page, gfn) {
		return true
	}
	select {
	case p.more <- struct{}{}:
	default:
	}
	return false
}

// next returns the frame of the page behind one, if an access of size bytes at an offset may
// reach into it.
func (p *Patched) next(gfn x86.GFN, offset uint64, size int) (x86.GFN, bool) {
	if offset&x86.PageMask+uint64(size) <= x86.PageSize {
		return 0, false
	}
	page, ok := p.Page(gfn)
	if !ok {
		return 0, false
	}
	return p.Frame(page + 1)
}

// note says that a page has been patched. Until it is taken, to say so again does
// nothing.
func (p *Patched) note(gfn x86.GFN) {
	page, ok := p.Page(gfn)
	if !ok {
		return
	}
	w, bit := &p.bits[page/64], uint64(1)<<(page%64)
	if w.Load()&bit != 0 {
		return
	}
	w.Or(bit)
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// Page returns the page of a frame, the reverse of Frame.
func (p *Patched) Page(gfn x86.GFN) (page int, ok bool) {
	before := 0
	for _, f := range p.frames {
		if gfn >= f.First && uint64(gfn-f.First) < f.N {
			return before + int(gfn-f.First), true
		}
		before += int(f.N)
	}
	return 0, false
}

// Pages returns how many pages there are.
func (p *Patched) Pages() int {
	n := 0
	for _, f := range p.frames {
		n += int(f.N)
	}
	return n
}

// More delivers when there is a page to be taken.
func (p *Patched) More() <-chan struct{} { return p.more }

// Take calls f with each page that was patched since the last time, in order.
func (p *Patched) Take(f func(page int)) {
	select {
	case <-p.more:
	default:
	}
	for i := range p.bits {
		if p.bits[i].Load() == 0 {
			continue
		}
		for w := p.bits[i].Swap(0); w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// Frame returns the frame of a page; false beyond the last.
func (p *Patched) Frame(page int) (x86.GFN, bool) {
	n := uint64(page)
	for _, f := range p.frames {
		if n < f.N {
			return f.First + x86.GFN(n), true
		}
		n -= f.N
	}
	return 0, false
}

// PatchedMoving does so for a guard whose frames come and go: it holds so many as the
// kernel patches at a time, by their number.
type PatchedMoving struct {
	slots [patchedSlots]atomic.Uint64 // a frame's number and one, by a hash of it
	lost  atomic.Bool
	more  chan struct{} // capacity one
}

const (
	patchedSlots = 256
	// slotTries is how many slots a frame may be in.
	slotTries = 8
)

func newPatchedMoving() *PatchedMoving { return &PatchedMoving{more: make(chan struct{}, 1)} }

// note says that a frame has been patched. Only one goroutine does so.
func (p *PatchedMoving) note(gfn x86.GFN) {
	const golden = 0x9e37_79b9_7f4a_7c15 // 2^64 by the golden ratio
	at, v := uint64(gfn)*golden>>56, uint64(gfn)+1
	for i := range uint64(slotTries) {
		s := &p.slots[(at+i)%patchedSlots]
		switch s.Load() {
		case v:
			return
		case 0:
			s.Store(v)
			p.tell()
			return
		}
	}
	p.lost.Store(true)
	p.tell()
}

func (p *PatchedMoving) tell() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// More delivers when there is a frame to be taken.
func (p *PatchedMoving) More() <-chan struct{} { return p.more }

// Take calls f with each frame that was patched since the last time. lost says that there
// were more than it could hold: it may have been any others.
func (p *PatchedMoving) Take(f func(x86.GFN)) (lost bool) {
	select {
	case <-p.more:
	default:
	}
	lost = p.lost.Swap(false)
	for i := range p.slots {
		if p.slots[i].Load() == 0 {
			continue
		}
		f(x86.GFN(p.slots[i].Swap(0) - 1))
	}
	return lost
}
