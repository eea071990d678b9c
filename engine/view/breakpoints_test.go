package view_test

import (
	"sync"
	"testing"

	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// memory is some of a guest's, from address 0 on.
type memory struct {
	mu    sync.RWMutex
	bytes [4 * x86.PageSize]byte
}

func (m *memory) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(buf, m.bytes[pa:])
	return nil
}

func (m *memory) write(pa x86.PhysAddr, b byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes[pa] = b
}

const (
	running, stepping = 1, 2
	code              = x86.GFN(2)
)

type fixture struct {
	*view.Breakpoints
	mem    *memory
	page   *view.Page
	shadow []byte
	given  int
}

// shadowed is a page of code that has a shadow.
func shadowed(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{mem: &memory{}, shadow: make([]byte, x86.PageSize)}
	for i := range f.mem.bytes {
		f.mem.bytes[i] = byte(i * 7)
	}
	f.Breakpoints = view.New(running, stepping, 2, f.mem, func(uint32, uint8) error { f.given++; return nil })
	f.page = view.NewPage(code, 1<<20, f.shadow)
	if err := f.Shadow(f.page); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) set(t testing.TB, off uint64) *view.Point {
	t.Helper()
	p := &view.Point{At: code.Addr() + x86.PhysAddr(off)}
	if err := f.Set(f.page, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func hit(p *view.Point) *vmevent.Event {
	ev := &vmevent.Event{Reason: vmevent.ReasonSoftwareBreakpoint, View: running, Paused: true, Stop: vmevent.Breakpoint{GFN: p.At.GFN(), InsnLen: 1}}
	ev.Regs.RIP = 0xffffffff81000000 | p.At.Offset()
	return ev
}

// TestBreakpointsShareAPage sets several in one page and clears one of them.
func TestBreakpointsShareAPage(t *testing.T) {
	f := shadowed(t)
	first, last := f.set(t, 0), f.set(t, x86.PageSize-1)
	if f.shadow[0] != 0xcc || f.shadow[x86.PageSize-1] != 0xcc || f.shadow[1] != 7 {
		t.Errorf("the shadow begins with % x and ends with %#x", f.shadow[:2], f.shadow[x86.PageSize-1])
	}
	if err := f.Clear(f.page, first); err != nil {
		t.Fatal(err)
	}
	if f.shadow[0] != f.mem.bytes[code.Addr()] || f.shadow[x86.PageSize-1] != 0xcc {
		t.Errorf("without the first the shadow begins with %#x and ends with %#x", f.shadow[0], f.shadow[x86.PageSize-1])
	}
	if v, ok := f.HandleEvent(hit(last)); !ok || v != vmevent.Step || last.Hits.Load() != 1 {
		t.Errorf("a hit of the last: %#x, %v, %d hits", v, ok, last.Hits.Load())
	}
	if v, ok := f.HandleEvent(hit(first)); !ok || v != vmevent.Continue || first.Hits.Load() != 0 || f.given != 0 {
		t.Errorf("a late hit of the first: %#x, %v, %d hits, %d given to the guest", v, ok, first.Hits.Load(), f.given)
	}
}

// TestJudge: who is asked at a hit answers it, also where the guest has a breakpoint of
// its own at the same place, and lets it go on by Continue.
func TestJudge(t *testing.T) {
	f := shadowed(t)
	answer, asked := vmevent.Skip, 0
	p := &view.Point{At: code.Addr() + 5, Judge: func(*vmevent.Event) vmevent.Verdict { asked++; return answer }}
	if err := f.Set(f.page, p); err != nil {
		t.Fatal(err)
	}
	if v, ok := f.HandleEvent(hit(p)); !ok || v != vmevent.Skip {
		t.Errorf("answered with %#x", v)
	}
	answer = vmevent.Continue
	if v, ok := f.HandleEvent(hit(p)); !ok || v != vmevent.Step {
		t.Errorf("what may go on is answered with %#x", v)
	}
	f.mem.write(p.At, 0xcc)
	if v, ok := f.HandleEvent(hit(p)); !ok || v != vmevent.Continue || f.given != 1 {
		t.Errorf("at the guest's own it is answered with %#x, %d given", v, f.given)
	}
	answer = vmevent.Hold
	if v, ok := f.HandleEvent(hit(p)); !ok || v != vmevent.Hold || f.given != 1 {
		t.Errorf("at the guest's own it is answered with %#x, %d given", v, f.given)
	}
	if asked != 4 || p.Hits.Load() != 4 {
		t.Errorf("asked %d times of %d", asked, p.Hits.Load())
	}
}

// TestHitDoesNotAllocate is the promise of the event path.
func TestHitDoesNotAllocate(t *testing.T) {
	f := shadowed(t)
	bp := hit(f.set(t, 16))
	read := &vmevent.Event{Reason: vmevent.ReasonMemAccess, View: running, Mem: vmevent.MemAccess{GFN: code, Flags: vmevent.AccessRead}}
	write := &vmevent.Event{Reason: vmevent.ReasonMemAccess, View: running, Mem: vmevent.MemAccess{GFN: code, Flags: vmevent.AccessRead | vmevent.AccessWrite}}
	end := &vmevent.Event{Reason: vmevent.ReasonSingleStep}
	if n := testing.AllocsPerRun(100, func() {
		f.HandleEvent(bp)
		f.HandleEvent(read)
		f.Pass(write)
		f.HandleEvent(end)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestChangedUnderLoad sets and clears breakpoints while the guest runs into others
// and patches its code: no breakpoint is lost, and no byte of the guest's.
func TestChangedUnderLoad(t *testing.T) {
	f := shadowed(t)
	stays := f.set(t, 100)
	const rounds = 300
	var wg sync.WaitGroup
	wg.Go(func() { // the ring goroutine
		for i := range rounds {
			f.HandleEvent(hit(stays))
			f.Pass(&vmevent.Event{Reason: vmevent.ReasonMemAccess, View: running, Mem: vmevent.MemAccess{GFN: code}})
			f.mem.write(code.Addr()+200, byte(i))
			f.HandleEvent(&vmevent.Event{Reason: vmevent.ReasonSingleStep})
		}
	})
	for range rounds {
		p := f.set(t, 104) // in the same word
		if f.shadow[104] != 0xcc {
			t.Fatal("a breakpoint that was set is not there")
		}
		if err := f.Clear(f.page, p); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	f.Follow()
	for i, b := range f.shadow {
		want := f.mem.bytes[int(code.Addr())+i]
		if i == 100 {
			want = 0xcc
		}
		if b != want {
			t.Errorf("byte %d of the shadow is %#x, want %#x", i, b, want)
		}
	}
	if n := stays.Hits.Load(); n != rounds {
		t.Errorf("%d hits, want %d", n, rounds)
	}
}

func BenchmarkHit(b *testing.B) {
	f := shadowed(b)
	ev := hit(f.set(b, 16))
	b.ReportAllocs()
	for b.Loop() {
		f.HandleEvent(ev)
	}
}
