package view_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// What is in a page of code.
var (
	push    = []byte{0x55}                         // push %rbp
	endbr   = []byte{0xf3, 0x0f, 0x1e, 0xfa}       // endbr64
	repMovs = []byte{0xf3, 0x48, 0xa5}             // rep movsq
	wrmsr   = []byte{0x0f, 0x30}                   // wrmsr
	ret     = []byte{0xc3}                         // ret
	movImm  = []byte{0x48, 0xc7, 0xc0, 1, 2, 3, 4} // mov $0x4030201,%rax
	movTo   = []byte{0x89, 0x44, 0x8f, 0x10}       // mov %eax,0x10(%rdi,%rcx,4)
	movGS   = []byte{0x65, 0x88, 0x07}             // mov %al,%gs:(%rdi)
	movRIP  = []byte{0x89, 0x05, 0, 0x30, 0, 0}    // mov %eax,0x3000(%rip)
	call    = []byte{0xe8, 0, 0, 0, 0}             // call
	btsReg  = []byte{0x48, 0x0f, 0xab, 0x07}       // bts %rax,(%rdi)
	btsImm  = []byte{0x48, 0x0f, 0xba, 0x2f, 3}    // btsq $3,(%rdi)
	load    = []byte{0x48, 0x8b, 0x07}             // mov (%rdi),%rax
)

// Where they begin. The one at -3 reaches into the page.
const (
	atEndbr = 4 + iota*16
	atRep
	atWRMSR
	atTo
	atGS
	atRIP
	atCall
	atBTSReg
	atBTSImm
	atLoad
)

const (
	trapFrame = x86.GFN(2)
	// All physical memory from 0 on is at physmap in the guest, by the tables in two
	// frames; data is a frame that it may write to, and watched one that a guard watches.
	physmap               = 0xffffffff80000000
	root, table           = x86.GFN(8), x86.GFN(9)
	data, watched, behind = x86.GFN(4), x86.GFN(5), x86.GFN(6)
)

// frames are a guest's memory.
type frames map[x86.GFN]*[x86.PageSize]byte

func (m frames) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	for len(buf) > 0 {
		p := m[pa.GFN()]
		if p == nil {
			p = new([x86.PageSize]byte)
		}
		n := copy(buf, p[pa.Offset():])
		buf, pa = buf[n:], pa+x86.PhysAddr(n)
	}
	return nil
}

type trapFixture struct {
	*view.Traps
	mem   frames
	page  *view.Trap
	clock time.Duration
	rsp   uint64
	rdi   uint64
	flags uint64
}

func trapped() *trapFixture {
	f := &trapFixture{mem: frames{trapFrame - 1: {}, trapFrame: {}, root: {}, table: {}}, rsp: physmap | uint64((data + 1).Addr()), rdi: physmap | uint64(data.Addr())}
	binary.LittleEndian.PutUint64(f.mem[root][8*511:], uint64(table.Addr())|3)
	binary.LittleEndian.PutUint64(f.mem[table][8*510:], 0x83) // 1 GiB
	f.Traps = view.NewTraps(2, f.mem, func(gfn x86.GFN) bool { return gfn == watched }, func() time.Duration { return f.clock })
	code := make([]byte, 3+x86.PageSize+16)
	for i := range code {
		code[i] = 0x90
	}
	for at, insns := range map[int][][]byte{
		-3: {movImm, endbr, push}, atRep: {repMovs, ret}, atWRMSR: {wrmsr, ret}, atTo: {movTo}, atGS: {movGS}, atRIP: {movRIP},
		atCall: {call}, atBTSReg: {btsReg}, atBTSImm: {btsImm}, atLoad: {load},
	} {
		for _, i := range insns {
			at += copy(code[3+at:], i)
		}
	}
	copy(f.mem[trapFrame-1][x86.PageSize-3:], code)
	copy(f.mem[trapFrame][:], code[3:])
	var insns view.Instructions
	insns.Add(-3, code)
	f.page = view.NewTrap(trapFrame, 0, &insns)
	f.Add(f.page)
	return f
}

// fetch is the event of one that executes at an offset, from the page before where that is
// negative.
func (f *trapFixture) fetch(off int, rcx uint64) *vmevent.Event {
	ev := &vmevent.Event{Reason: vmevent.ReasonMemAccess, Paused: true, Long: true}
	ev.Mem = vmevent.MemAccess{GFN: trapFrame, Offset: uint64(max(off, 0)), Flags: vmevent.AccessExecute}
	ev.Regs = x86.Registers{RIP: physmap + 0x2000 + uint64(off), RCX: rcx, RSP: f.rsp, RDI: f.rdi, RFLAGS: f.flags, CR3: uint64(root.Addr())}
	f.clock += 10 * time.Microsecond
	return ev
}

func (f *trapFixture) wants(t *testing.T, ev *vmevent.Event, want vmevent.Verdict) {
	t.Helper()
	if v, ok := f.HandleEvent(ev); !ok || v != want {
		t.Errorf("at %#x: %#x, %v, want %#x", ev.Regs.RIP, v, ok, want)
	}
}

func (f *trapFixture) setAt(off int) *view.Point {
	p := &view.Point{At: trapFrame.Addr() + x86.PhysAddr(off)}
	f.Set(p)
	return p
}

// TestTraps has instructions carried out by the emulator, and counts those with a
// breakpoint: a repeated one once, and none after it was taken away.
func TestTraps(t *testing.T) {
	f := trapped()
	first, rep := f.setAt(atEndbr), f.setAt(atRep)
	f.wants(t, f.fetch(-3, 0), vmevent.Emulate) // it reaches into the page
	elsewhere := f.fetch(atEndbr+4, 0)
	elsewhere.Mem.Offset = 0 // of what is fetched together with it
	f.wants(t, elsewhere, vmevent.Emulate)
	for range 2 {
		f.wants(t, f.fetch(atEndbr, 0), vmevent.Emulate)
		f.wants(t, f.fetch(atEndbr+4, 0), vmevent.Emulate)
	}
	if first.Hits.Load() != 2 {
		t.Errorf("%d hits of 2", first.Hits.Load())
	}
	for range 2 {
		for rcx := uint64(9); rcx > 0; rcx -= 3 { // some turns at a time
			f.wants(t, f.fetch(atRep, rcx), vmevent.Emulate)
		}
		f.wants(t, f.fetch(atRep+3, 0), vmevent.Emulate)
	}
	if rep.Hits.Load() != 2 {
		t.Errorf("a repeated instruction: %d hits of 2", rep.Hits.Load())
	}
	f.Clear(first)
	f.wants(t, f.fetch(atEndbr, 0), vmevent.Emulate)
	if first.Hits.Load() != 2 {
		t.Errorf("%d hits after it was taken away", first.Hits.Load())
	}
	if f.page.Events.Load() != 15 || f.page.Rests.Load() != 0 {
		t.Errorf("%d instructions, %d rests", f.page.Events.Load(), f.page.Rests.Load())
	}
	f.Remove(f.page)
	if _, ok := f.HandleEvent(f.fetch(atEndbr, 0)); ok {
		t.Error("a page that was let go of is answered for")
	}
}

// TestTrapsOthers leaves to guards what is no execution, or elsewhere.
func TestTrapsOthers(t *testing.T) {
	f := trapped()
	write := f.fetch(atEndbr, 0)
	write.Mem.Flags = vmevent.AccessWrite
	elsewhere := f.fetch(atEndbr, 0)
	elsewhere.Mem.GFN++
	for _, ev := range []*vmevent.Event{write, elsewhere, {Reason: vmevent.ReasonMovToMSR}} {
		if _, ok := f.HandleEvent(ev); ok {
			t.Errorf("answered: %+v", ev.Mem)
		}
	}
	if _, ok := (*view.Traps)(nil).HandleEvent(f.fetch(atEndbr, 0)); ok {
		t.Error("no traps answer")
	}
}

// TestTrapsRest has a page rest where the emulator may not know the instruction, or where
// none begins, and counts a hit all the same.
func TestTrapsRest(t *testing.T) {
	f := trapped()
	pt := f.setAt(atWRMSR)
	for i, off := range []int{atWRMSR, atEndbr + 1} {
		f.wants(t, f.fetch(off, 0), vmevent.Hold)
		if r := <-f.Rests(); r.Trap != f.page || !r.Held || r.Changed || r.For <= 0 || r.For > 10*time.Millisecond {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if pt.Hits.Load() != 1 {
		t.Errorf("%d hits of 1", pt.Hits.Load())
	}
	// Nobody sees to them: there is room for as many as there are vCPUs.
	for range 2 {
		f.wants(t, f.fetch(atWRMSR, 0), vmevent.Hold)
	}
	f.wants(t, f.fetch(atWRMSR, 0), vmevent.Continue)
}

// TestTrapsGuarded leaves to the processor what writes to a page that a guard watches: the
// emulator would do so unseen.
func TestTrapsGuarded(t *testing.T) {
	const page = x86.PageSize
	at := func(gfn x86.GFN) uint64 { return physmap | uint64(gfn.Addr()) }
	for _, c := range []struct {
		name          string
		off           int
		rsp, rdi, rcx uint64
		backwards     bool
		rests         bool
	}{
		{name: "push", off: atEndbr + 4, rsp: at(data) + 8},
		{name: "push to it", off: atEndbr + 4, rsp: at(watched) + 8, rests: true},
		{name: "push into it from behind", off: atEndbr + 4, rsp: at(behind), rests: true},
		{name: "push across its end", off: atEndbr + 4, rsp: at(behind) + 4, rests: true},
		{name: "call", off: atCall, rsp: at(data) + 8},
		{name: "call to it", off: atCall, rsp: at(watched) + 8, rests: true},
		{name: "store", off: atTo, rdi: at(data), rcx: 2},
		{name: "store to it", off: atTo, rdi: at(data), rcx: page/4 - 4, rests: true},
		{name: "store across its beginning", off: atTo, rdi: at(data) - 3, rcx: page/4 - 4, rests: true},
		{name: "store through a segment", off: atGS, rdi: page - 1},
		{name: "to it", off: atGS, rdi: page, rests: true},
		{name: "store beside the code, to it", off: atRIP, rests: true},
		{name: "set a bit anywhere", off: atBTSReg, rdi: at(data), rests: true},
		{name: "set a bit", off: atBTSImm, rdi: at(data)},
		{name: "set one of its bits", off: atBTSImm, rdi: at(watched), rests: true},
		{name: "read it", off: atLoad, rdi: at(watched)},
		{name: "copy", off: atRep, rdi: at(data), rcx: page / 8},
		{name: "copy too much", off: atRep, rdi: at(data), rcx: page/8 + 1, rests: true},
		{name: "copy backwards", off: atRep, rdi: at(behind) + page - 8, rcx: page / 8, backwards: true},
		{name: "copy too much backwards", off: atRep, rdi: at(behind) + page - 8, rcx: page/8 + 1, backwards: true, rests: true},
		{name: "copy over it", off: atRep, rdi: at(data), rcx: 3 * page / 8, rests: true},
		{name: "copy very much", off: atRep, rdi: at(behind), rcx: 1 << 62, rests: true},
		{name: "copy nothing to it", off: atRep, rdi: at(watched)},
		{name: "store where nothing is", off: atTo, rdi: 0xffff888000000000, rests: true},
		{name: "store where nothing can be", off: atTo, rdi: 1 << 60, rests: true},
		{name: "store at the end of it all", off: atTo, rdi: ^uint64(0x10), rests: true},
	} {
		f := trapped()
		f.rsp, f.rdi = c.rsp, c.rdi
		if c.backwards {
			f.flags = 1 << 10
		}
		ev := f.fetch(c.off, c.rcx)
		ev.Regs.GSBase = at(data)
		v, ok := f.HandleEvent(ev)
		if want := map[bool]vmevent.Verdict{false: vmevent.Emulate, true: vmevent.Hold}[c.rests]; !ok || v != want {
			t.Errorf("%s: %#x, want %#x", c.name, v, want)
		}
	}
}

// TestTrapsChanged has the page of other instructions than were known, until those are
// learnt.
func TestTrapsChanged(t *testing.T) {
	f := trapped()
	copy(f.mem[trapFrame][atEndbr:], wrmsr)
	f.wants(t, f.fetch(atEndbr, 0), vmevent.Hold)
	if r := <-f.Rests(); !r.Changed {
		t.Errorf("%+v", r)
	}
	copy(f.mem[trapFrame][atEndbr:], call)
	var insns view.Instructions
	insns.Add(atEndbr, append(f.mem[trapFrame][atEndbr:], make([]byte, 16)...))
	f.page.Learn(&insns)
	f.wants(t, f.fetch(atEndbr, 0), vmevent.Emulate)
	f.rsp = physmap | uint64((watched + 1).Addr())
	f.wants(t, f.fetch(atEndbr, 0), vmevent.Hold)

	// What is around the page, as the guest's tables have it.
	f = trapped()
	f.mem[trapFrame-1][x86.PageSize-1] ^= 1
	f.wants(t, f.fetch(-3, 0), vmevent.Hold)
	if r := <-f.Rests(); !r.Changed {
		t.Errorf("%+v", r)
	}
	f.wants(t, f.fetch(-2, 0), vmevent.Hold) // no instruction of the kernel's
	<-f.Rests()
	short := f.fetch(atEndbr, 0)
	short.Long = false // of 32 bits it is another instruction
	f.wants(t, short, vmevent.Hold)
}

// TestTrapsSpecial leaves to the processor what changes more than memory and the ordinary
// registers.
func TestTrapsSpecial(t *testing.T) {
	for name, code := range map[string][]byte{
		"mov %rax,%cr0": {0x0f, 0x22, 0xc0}, "mov %rax,%dr7": {0x0f, 0x23, 0xf8}, "mov %eax,%ds": {0x8e, 0xd8}, "pop %fs": {0x0f, 0xa1},
		"wrmsr": wrmsr, "iretq": {0x48, 0xcf}, "swapgs": {0x0f, 0x01, 0xf8}, "hlt": {0xf4}, "int3": {0xcc}, "movdqa %xmm0,(%rdi)": {0x66, 0x0f, 0x7f, 0x07},
		"mov %eax,(%edi)": {0x67, 0x89, 0x07}, "pop (%rsp)": {0x8f, 0x04, 0x24}, "pushw": {0x66, 0x6a, 1},
	} {
		f := trapped()
		copy(f.mem[trapFrame][atEndbr:], code)
		var insns view.Instructions
		insns.Add(atEndbr, f.mem[trapFrame][atEndbr:])
		f.page.Learn(&insns)
		if v, _ := f.HandleEvent(f.fetch(atEndbr, 0)); v != vmevent.Hold {
			t.Errorf("%s: %#x", name, v)
		}
	}
}

// TestTrapsTooHot has a page rest for what is left of a second of which half was spent
// with its events, and not where they come seldom.
func TestTrapsTooHot(t *testing.T) {
	f := trapped()
	for range 10_000 { // ten seconds
		f.clock += time.Millisecond
		f.wants(t, f.fetch(atEndbr, 0), vmevent.Emulate)
	}
	for i := range 3 {
		start, n := f.clock, 0
		for ; n < 200_000; n++ {
			if v, _ := f.HandleEvent(f.fetch(atEndbr, 0)); v != vmevent.Emulate {
				break
			}
		}
		r := <-f.Rests()
		if spent := f.clock - start; spent > time.Second || r.For < 400*time.Millisecond || r.For > 500*time.Millisecond {
			t.Errorf("%d: after %d events, %v, a rest of %v", i, n, spent, r.For)
		}
		f.clock += r.For
	}
}

// TestTrapsAllocateNothing is of the ring goroutine's path.
func TestTrapsAllocateNothing(t *testing.T) {
	f := trapped()
	f.setAt(atEndbr)
	hit, store, odd := f.fetch(atEndbr, 0), f.fetch(atRep, 100), f.fetch(atWRMSR, 0)
	odd.Paused = false
	if n := testing.AllocsPerRun(100, func() {
		f.clock += time.Millisecond
		f.HandleEvent(hit)
		f.HandleEvent(store)
		f.HandleEvent(odd)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzInstructions takes any code for a function's, and has each instruction executed with
// any registers.
func FuzzInstructions(f *testing.F) {
	f.Add(-3, append(append([]byte{}, movImm...), endbr...), uint64(1), uint64(physmap))
	f.Add(4090, append(append([]byte{}, wrmsr...), repMovs...), ^uint64(0), ^uint64(0))
	f.Fuzz(func(t *testing.T, at int, code []byte, rcx, rest uint64) {
		var i view.Instructions
		i.Add(max(min(at, x86.PageSize), -(64<<10)), code[:min(len(code), 2*x86.PageSize)])
		fix := trapped()
		fix.page.Learn(&i)
		for off := range x86.PageSize {
			if at > off || off >= at+len(code) {
				continue
			}
			fix.rsp, fix.rdi = rest, rest
			ev := fix.fetch(off, rcx)
			ev.Paused = false
			if _, ok := fix.HandleEvent(ev); !ok {
				t.Fatal("not answered")
			}
		}
	})
}
