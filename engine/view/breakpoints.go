package view

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Point is a hidden breakpoint.
type Point struct {
	// At is the instruction in physical memory: it is hit through whatever
	// address the guest executes it at.
	At x86.PhysAddr
	// Hits counts how often a vCPU came to it, a repeated string instruction
	// once. An instruction that faults and is started again is hit again.
	Hits atomic.Uint64
	// Judge, if it is not nil, is asked at each hit, on the ring goroutine, and neither
	// allocates nor locks nor logs. What it answers is done in the place of the
	// instruction, but for [vmevent.Continue]: then the vCPU goes on past the breakpoint.
	// It is not changed while the breakpoint is set.
	Judge func(*vmevent.Event) vmevent.Verdict
}

// Returner has a vCPU take the breakpoint exception that it was stopped at: the
// guest's own. insnLen is the length of the instruction in bytes.
type Returner func(vcpu uint32, insnLen uint8) error

// Breakpoints are the hidden breakpoints of one domain.
type Breakpoints struct {
	// Running is the view the vCPUs are in, Stepping the one they make a step in
	// over a breakpoint.
	running, stepping uint16

	mem    guest.Memory
	giveIt Returner
	table  atomic.Pointer[table]

	// mu guards the shadow pages' contents, and what breakpoints are in them.
	mu      sync.Mutex
	scratch []byte

	// Of the ring goroutine. What is read of an instruction is kept here, so that
	// reading it needs no heap.
	vcpus []vcpu
	insn  [2]byte

	returned, reads, writes, concealed, failed atomic.Uint64
}

// table is what the ring goroutine looks up. It is replaced as a whole.
type table struct {
	points  map[x86.PhysAddr]*Point
	pages   map[x86.GFN]*Page // by the guest's frame
	shadows map[x86.GFN]struct{}
}

// vcpu is what is remembered of a vCPU from one event to the next.
type vcpu struct {
	// changed is the page that the step under way may write to.
	changed *Page
	// rep is the hit of a repeated instruction that has not come to its end.
	rep struct {
		point    *Point
		rcx, rsp uint64
		cr3      uint64
	}
}

// Counters say what became of events that have to do with shadow pages.
type Counters struct {
	// Returned counts breakpoints of the guest's own, Reads and Writes accesses
	// to pages that have a shadow, Concealed accesses to shadow pages themselves.
	Returned, Reads, Writes, Concealed uint64
	// Failed counts breakpoints that could not be returned at the first try, and
	// shadows that could not follow their page.
	Failed uint64
}

// New returns the breakpoints, none so far, of a domain with so many vCPUs.
func New(running, stepping uint16, vcpus int, mem guest.Memory, giveIt Returner) *Breakpoints {
	b := &Breakpoints{
		running: running, stepping: stepping, mem: mem, giveIt: giveIt,
		scratch: make([]byte, x86.PageSize), vcpus: make([]vcpu, vcpus),
	}
	b.table.Store(&table{})
	return b
}

// MovedTo returns the breakpoints, none so far, of the same domain after it was taken
// into another view, with no page that has a shadow: the shadow pages are still
// inaccessible, and the counters go on. It is called with the domain paused and no event
// under way; what is remembered of steps, which are stopped then, is not taken along.
// The stepping view must restrict what the new one does.
func (b *Breakpoints) MovedTo(running uint16) *Breakpoints {
	to := New(running, b.stepping, len(b.vcpus), b.mem, b.giveIt)
	for frame := range b.table.Load().shadows {
		to.change(func(t *table) { t.shadows[frame] = struct{}{} })
	}
	for _, c := range []struct{ to, from *atomic.Uint64 }{
		{&to.returned, &b.returned}, {&to.reads, &b.reads}, {&to.writes, &b.writes}, {&to.concealed, &b.concealed}, {&to.failed, &b.failed},
	} {
		c.to.Store(c.from.Load())
	}
	return to
}

// Counters returns the counters of this moment.
func (b *Breakpoints) Counters() Counters {
	return Counters{
		Returned: b.returned.Load(), Reads: b.reads.Load(), Writes: b.writes.Load(),
		Concealed: b.concealed.Load(), Failed: b.failed.Load(),
	}
}

// Shadow takes a page in: from now on its shadow follows it. The running view
// does not lead to the shadow before this returns.
func (b *Breakpoints) Shadow(p *Page) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := p.follow(b.mem, b.scratch); err != nil {
		return err
	}
	b.change(func(t *table) { t.pages[p.GFN], t.shadows[p.Shadow] = p, struct{}{} })
	return nil
}

// Unshadow lets a page go to which the running view does not lead any more. The
// frame of the shadow stays inaccessible.
func (b *Breakpoints) Unshadow(p *Page) {
	b.change(func(t *table) { delete(t.pages, p.GFN) })
}

// Set puts a breakpoint into a page that has a shadow. The guest may run.
func (b *Breakpoints) Set(p *Page, pt *Point) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Known before it can be hit.
	b.change(func(t *table) { t.points[pt.At] = pt })
	p.add(pt.At.Offset())
	err := p.follow(b.mem, b.scratch)
	if err != nil {
		// Or the next change of the page would bring it.
		p.remove(pt.At.Offset())
		b.change(func(t *table) { delete(t.points, pt.At) })
	}
	return err
}

// Clear takes a breakpoint away. The guest may run, and may be about to report a
// hit: where the guest's own page has no INT3, nothing comes of that.
func (b *Breakpoints) Clear(p *Page, pt *Point) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.remove(pt.At.Offset())
	err := p.follow(b.mem, b.scratch)
	b.change(func(t *table) { delete(t.points, pt.At) })
	return err
}

// change replaces the table by a changed copy.
func (b *Breakpoints) change(f func(*table)) {
	was := b.table.Load()
	t := &table{points: maps.Clone(was.points), pages: maps.Clone(was.pages), shadows: maps.Clone(was.shadows)}
	if t.points == nil {
		t.points, t.pages, t.shadows = map[x86.PhysAddr]*Point{}, map[x86.GFN]*Page{}, map[x86.GFN]struct{}{}
	}
	f(t)
	b.table.Store(t)
}

// HandleEvent answers, on the ring goroutine, the events that are about shadow pages
// and breakpoints alone. It reports false for those that a guard is to judge.
func (b *Breakpoints) HandleEvent(ev *vmevent.Event) (v vmevent.Verdict, ok bool) {
	if ev.View == b.running {
		b.caughtUp(ev.VCPU) // the step is over that ended without an event
	}
	switch ev.Reason {
	case vmevent.ReasonSoftwareBreakpoint:
		return b.stopped(ev), true
	case vmevent.ReasonSingleStep:
		b.caughtUp(ev.VCPU)
		ev.ReturnTo = b.running
		return vmevent.EndStep, true
	case vmevent.ReasonMemAccess:
		return b.accessed(ev)
	}
	return 0, false
}

// stopped answers a vCPU that has come to an INT3: at a breakpoint of ours, or
// at the guest's own.
func (b *Breakpoints) stopped(ev *vmevent.Event) vmevent.Verdict {
	at := ev.Stop.GFN.Addr() + x86.PhysAddr(ev.Regs.RIP&x86.PageMask)
	pt := b.table.Load().points[at]
	if pt == nil || ev.View != b.running {
		return b.giveBack(ev, at)
	}
	b.read(at)
	b.hit(ev, pt)
	if pt.Judge != nil {
		if v := pt.Judge(ev); v != vmevent.Continue {
			return v
		}
	}
	if b.insn[0] == int3 {
		// The guest has a breakpoint of its own at the same place.
		return b.giveBack(ev, at)
	}
	return b.step(ev, b.stepping)
}

// read reads the beginning of the guest's own instruction at a place, as far as its
// page goes.
func (b *Breakpoints) read(at x86.PhysAddr) bool {
	b.insn = [2]byte{}
	n := min(len(b.insn), x86.PageSize-int(at.Offset()))
	return b.mem.ReadPhys(at, b.insn[:n]) == nil
}

// hit counts, but for a turn of a repeated instruction that is not its first: the
// processor ends a step after each.
func (b *Breakpoints) hit(ev *vmevent.Event, pt *Point) {
	if int(ev.VCPU) >= len(b.vcpus) {
		pt.Hits.Add(1)
		return
	}
	r := &b.vcpus[ev.VCPU].rep
	again := r.point == pt && r.rcx == ev.Regs.RCX+1 && r.rsp == ev.Regs.RSP && r.cr3 == ev.Regs.CR3
	if !again {
		pt.Hits.Add(1)
	}
	if r.point = nil; repeats(b.insn[0], b.insn[1]) {
		r.point, r.rcx, r.rsp, r.cr3 = pt, ev.Regs.RCX, ev.Regs.RSP, ev.Regs.CR3
	}
}

// repeats says whether an instruction has a prefix that may repeat it.
func repeats(first, second byte) bool {
	const repne, rep, operandSize = 0xf2, 0xf3, 0x66
	if first == operandSize {
		first = second
	}
	return first == rep || first == repne
}

// giveBack answers a vCPU at an INT3 that is not ours. Where the guest's page has
// none, it is one of ours that has been taken away meanwhile, or the guest's own
// that it has taken away itself: the instruction that is there now is executed.
func (b *Breakpoints) giveBack(ev *vmevent.Event, at x86.PhysAddr) vmevent.Verdict {
	if b.read(at) && b.insn[0] != int3 {
		return vmevent.Continue
	}
	if err := b.giveIt(ev.VCPU, ev.Stop.InsnLen); err != nil {
		// It comes to the instruction once more, and is tried again.
		b.failed.Add(1)
		return vmevent.Continue
	}
	b.returned.Add(1)
	return vmevent.Continue
}

// accessed answers accesses to shadow pages, and reads of pages that have one.
func (b *Breakpoints) accessed(ev *vmevent.Event) (vmevent.Verdict, bool) {
	t := b.table.Load()
	write := ev.Mem.Flags&vmevent.AccessWrite != 0
	if _, ours := t.shadows[ev.Mem.GFN]; ours {
		b.concealed.Add(1)
		switch {
		case write:
			return vmevent.Discard, true
		case ev.Mem.Flags&vmevent.AccessExecute != 0:
			// What is executed there is the kernel's own code.
			return vmevent.Emulate, true
		}
		return vmevent.ReadOnes, true
	}
	if t.pages[ev.Mem.GFN] == nil || write || ev.View != b.running {
		return 0, false
	}
	b.reads.Add(1)
	return b.step(ev, b.stepping), true
}

// Pass lets a write happen that a guard has no objection to. Where the page has
// a shadow, that follows when the step is over.
func (b *Breakpoints) Pass(ev *vmevent.Event) vmevent.Verdict {
	const host = 0
	p := b.table.Load().pages[ev.Mem.GFN]
	if p == nil {
		return b.step(ev, host)
	}
	b.writes.Add(1)
	if int(ev.VCPU) < len(b.vcpus) {
		b.vcpus[ev.VCPU].changed = p
	}
	if ev.View != b.running {
		// In a step over a breakpoint, which ends by itself where Xen can do that:
		// the next event will do.
		return b.step(ev, host)
	}
	return b.step(ev, host) | vmevent.Report
}

func (b *Breakpoints) step(ev *vmevent.Event, in uint16) vmevent.Verdict {
	ev.StepIn, ev.ReturnTo = in, b.running
	return vmevent.Step
}

// caughtUp has the shadow of the page that a vCPU's step may have written to follow
// it, the step being over.
func (b *Breakpoints) caughtUp(vcpu uint32) {
	if int(vcpu) >= len(b.vcpus) || b.vcpus[vcpu].changed == nil {
		return
	}
	v := &b.vcpus[vcpu]
	b.mu.Lock()
	defer b.mu.Unlock()
	if v.changed.follow(b.mem, b.scratch) != nil {
		b.failed.Add(1)
	}
	v.changed = nil
}

// Steps reports whether a vCPU in that view is in a step over a breakpoint.
func (b *Breakpoints) Steps(view uint16) bool { return view == b.stepping }

// Follow has the shadows of all pages follow them, in case a change was missed.
func (b *Breakpoints) Follow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.table.Load().pages {
		if p.follow(b.mem, b.scratch) != nil {
			b.failed.Add(1)
		}
	}
}
