package view

import (
	"bytes"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Traps are the breakpoints of a domain that has no views. Nothing is written to its
// memory: the pages with breakpoints can't be executed, each instruction in one is an
// event, and Xen's emulator carries it out, on whichever vCPU.
//
// That is slow, the emulator doesn't know all instructions, and it writes also where the
// guest may not. So a page rests at times: it is executed for a moment as any other, and
// nobody sees what is hit then. Rests are counted.
type Traps struct {
	table   atomic.Pointer[trapTable]
	rests   chan Rest
	mem     guest.Memory
	guarded func(x86.GFN) bool
	now     func() time.Duration

	// Of the ring goroutine.
	vcpus  []trapped
	window window
	insn   [maxInsn]byte
}

// trapTable is what the ring goroutine looks up. It is replaced as a whole.
type trapTable struct {
	points map[x86.PhysAddr]*Point
	pages  map[x86.GFN]*Trap
}

// trapped is what is remembered of a vCPU from one event to the next: the last, if it was
// an instruction in a trap that may be repeated.
type trapped struct {
	rip, rcx uint64
	repeats  bool
}

// maxStores is how many pages an instruction may write to, all of its turns together.
const maxStores = 8

// Trap is a page that can't be executed.
type Trap struct {
	GFN x86.GFN
	// Addr is where the kernel has the page.
	Addr x86.VirtAddr
	code atomic.Pointer[Instructions]
	// Events counts the instructions that were carried out for the guest, Rests how often
	// the page was executed as any other for a moment.
	Events, Rests atomic.Uint64
}

// NewTrap returns one of a page with those instructions.
func NewTrap(gfn x86.GFN, at x86.VirtAddr, code *Instructions) *Trap {
	p := &Trap{GFN: gfn, Addr: at}
	p.Learn(code)
	return p
}

// Learn has the page have other instructions from now on. The guest may run.
func (p *Trap) Learn(code *Instructions) { p.code.Store(code) }

// Rest asks that a page be executed as any other for a while. A vCPU that is Held waits
// for it.
type Rest struct {
	Trap *Trap
	For  time.Duration
	VCPU uint32
	Held bool
	// Changed says that the page is another than the one whose instructions are known.
	Changed bool
}

const (
	// shortRest is for an instruction that the emulator is not to carry out: about as long
	// as it takes to see to it.
	shortRest = time.Millisecond
	// trapWindow is how long events are summed up for, and trapShare how much of it a
	// guest may spend with them. It rests for what is left.
	trapWindow = time.Second
	trapShare  = trapWindow / 2
	// sameRun is how soon one event follows another at most where a guest does nothing
	// but what makes them.
	sameRun = time.Millisecond
)

// window sums up the time that events take.
type window struct {
	begun, last, spent time.Duration
}

// over takes in an event and reports, once the window's share is spent, how long the rest
// of it is.
func (w *window) over(now time.Duration) (rest time.Duration, over bool) {
	if now-w.begun >= trapWindow {
		*w = window{begun: now, last: now}
		return 0, false
	}
	if gap := now - w.last; gap < sameRun {
		w.spent += gap
	}
	w.last = now
	return trapWindow - (now - w.begun), w.spent >= trapShare
}

// NewTraps returns the traps, none so far, of a domain with so many vCPUs. guarded says of
// a frame whether a guard judges writes to it, which the emulator would make unseen. now is
// a clock that never goes back.
func NewTraps(vcpus int, mem guest.Memory, guarded func(x86.GFN) bool, now func() time.Duration) *Traps {
	t := &Traps{rests: make(chan Rest, vcpus), mem: mem, guarded: guarded, now: now, vcpus: make([]trapped, vcpus)}
	t.table.Store(&trapTable{})
	return t
}

// Rests delivers the rests that are asked for.
func (t *Traps) Rests() <-chan Rest { return t.rests }

// Add takes a page in, before it can't be executed any more.
func (t *Traps) Add(p *Trap) { t.change(func(to *trapTable) { to.pages[p.GFN] = p }) }

// Remove lets a page go that can be executed again.
func (t *Traps) Remove(p *Trap) { t.change(func(to *trapTable) { delete(to.pages, p.GFN) }) }

// Set puts a breakpoint into a page that was added. The guest may run.
func (t *Traps) Set(pt *Point) { t.change(func(to *trapTable) { to.points[pt.At] = pt }) }

// Clear takes one away. The guest may run.
func (t *Traps) Clear(pt *Point) { t.change(func(to *trapTable) { delete(to.points, pt.At) }) }

// Pages returns the pages, in the order of their frames.
func (t *Traps) Pages() []*Trap {
	pages := t.table.Load().pages
	out := make([]*Trap, 0, len(pages))
	for _, gfn := range slices.Sorted(maps.Keys(pages)) {
		out = append(out, pages[gfn])
	}
	return out
}

// Page returns the trap of a frame, or nil.
func (t *Traps) Page(gfn x86.GFN) *Trap { return t.table.Load().pages[gfn] }

func (t *Traps) change(f func(*trapTable)) {
	was := t.table.Load()
	to := &trapTable{points: maps.Clone(was.points), pages: maps.Clone(was.pages)}
	if to.points == nil {
		to.points, to.pages = map[x86.PhysAddr]*Point{}, map[x86.GFN]*Trap{}
	}
	f(to)
	t.table.Store(to)
}

// HandleEvent answers, on the ring goroutine, what is executed in a trap. It reports false
// for all else. Nil has no traps.
func (t *Traps) HandleEvent(ev *vmevent.Event) (v vmevent.Verdict, ok bool) {
	if t == nil || ev.Reason != vmevent.ReasonMemAccess || ev.Mem.Flags&vmevent.AccessExecute == 0 {
		return 0, false
	}
	table := t.table.Load()
	p := table.pages[ev.Mem.GFN]
	if p == nil {
		return 0, false
	}
	code := p.code.Load()
	// An instruction at the end of the page before may be fetched from here in part.
	off := int(ev.Regs.RIP & x86.PageMask)
	if off > x86.PageSize-maxInsn && ev.Mem.Offset < maxInsn {
		off -= x86.PageSize
	} else {
		t.came(ev, code, off, table.points[ev.Mem.GFN.Addr()+x86.PhysAddr(off)])
	}
	insn, known := code.known[int16(off)]
	if !known || !ev.Long {
		return t.rest(ev, Rest{Trap: p, For: shortRest, Changed: !t.same(ev, code, off, maxInsn)}), true
	}
	if !t.same(ev, code, off, int(insn.n)) {
		return t.rest(ev, Rest{Trap: p, For: shortRest, Changed: true}), true
	}
	if insn.writes && !t.mayStore(ev, &insn.to) {
		return t.rest(ev, Rest{Trap: p, For: shortRest}), true
	}
	if left, over := t.window.over(t.now()); over {
		return t.rest(ev, Rest{Trap: p, For: left}), true
	}
	p.Events.Add(1)
	return vmevent.Emulate, true
}

// same reports whether what a vCPU is about to execute, of so many bytes, is what was read
// of that place. It is read where the emulator does: through the vCPU's page tables.
func (t *Traps) same(ev *vmevent.Event, code *Instructions, off, n int) bool {
	as := addressSpace(t.mem, ev)
	now := t.insn[:n]
	return as.Read(x86.VirtAddr(ev.Regs.RIP), now) == nil && bytes.Equal(now, code.at(off)[:n])
}

// addressSpace is what a vCPU sees of the memory.
func addressSpace(mem guest.Memory, ev *vmevent.Event) guest.AddressSpace {
	return guest.NewAddressSpace(mem, ev.Regs.CR3, ev.Regs.CR4, ev.Regs.EFER)
}

// mayStore reports whether nobody has to judge what an instruction writes.
func (t *Traps) mayStore(ev *vmevent.Event, to *store) bool {
	first, n := to.at(&ev.Regs)
	if n == 0 {
		return true
	}
	if first%x86.PageSize+n > maxStores*x86.PageSize {
		return false
	}
	as := addressSpace(t.mem, ev)
	last := first + n - 1
	for va := first; ; va = va&^x86.PageMask + x86.PageSize {
		where, err := as.Translate(x86.VirtAddr(va))
		if err != nil || t.guarded(where.Phys.GFN()) {
			return false // where there is no page the processor says so itself
		}
		if va&^x86.PageMask == last&^x86.PageMask {
			return true
		}
	}
}

// came counts a hit, but for a turn of a repeated instruction that is not its first.
func (t *Traps) came(ev *vmevent.Event, code *Instructions, off int, pt *Point) {
	if int(ev.VCPU) >= len(t.vcpus) {
		if pt != nil {
			pt.Hits.Add(1)
		}
		return
	}
	last := &t.vcpus[ev.VCPU]
	again := last.repeats && last.rip == ev.Regs.RIP && ev.Regs.RCX < last.rcx
	*last = trapped{ev.Regs.RIP, ev.Regs.RCX, repeats(code.at(off)[0], code.at(off)[1])}
	if pt != nil && !again {
		pt.Hits.Add(1)
	}
}

// rest asks for one. A vCPU that nobody has room for tries again.
func (t *Traps) rest(ev *vmevent.Event, r Rest) vmevent.Verdict {
	r.VCPU, r.Held = ev.VCPU, ev.Paused
	select {
	case t.rests <- r:
		if ev.Paused {
			return vmevent.Hold
		}
	default:
	}
	return vmevent.Continue
}
