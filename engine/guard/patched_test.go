package guard_test

import (
	"github.com/xen-hvi/hvi/engine/vmevent"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestPatched has the kernel patch itself, and is told which pages, once until they are
// taken; not those that somebody else writes to.
func TestPatched(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	a, p := f.set.Patched()
	if a == nil || a.Guard.Name != policy.GuardKernelText {
		t.Fatalf("the guard is %+v", a)
	}
	told := func() bool {
		select {
		case <-p.More():
			return true
		default:
			return false
		}
	}
	take := func() (pages []int) {
		p.Take(func(page int) { pages = append(pages, page) })
		return pages
	}
	if told() || take() != nil {
		t.Error("told of something before anything was patched")
	}
	f.set.HandleEvent(f.write(0x2010, module))
	if told() {
		t.Error("what is blocked is told as patched")
	}
	for _, off := range []uint64{0x3008, 0x1000, 0x1234} {
		f.set.HandleEvent(poke(f.write(off, f.guest.Base+0x100)))
	}
	if !told() || told() {
		t.Error("not told once")
	}
	if got, want := take(), []int{1, 3}; !slices.Equal(got, want) {
		t.Errorf("patched are %v, want %v", got, want)
	}
	f.set.HandleEvent(poke(f.write(0x1000, f.guest.Base+0x100)))
	if got := take(); !slices.Equal(got, []int{1}) || told() {
		t.Errorf("patched again are %v", got)
	}
	for page := range 5 {
		gfn, ok := p.Frame(page)
		if want := (f.guest.PhysBase + x86.PhysAddr(page)<<x86.PageShift).GFN(); !ok || gfn != want || !f.set.Alone(a, gfn) {
			t.Errorf("page %d is frame %v, %v, want %v", page, gfn, ok, want)
		}
	}
	if gfn, ok := p.Frame(5); ok {
		t.Errorf("there is a page beyond the code's last: %v", gfn)
	}
	if f.set.Alone(a, (f.guest.PhysBase + 0x10_0000).GFN()) {
		t.Error("it watches a frame that is none of the code's")
	}
}

// TestPatchedMoving is told of frames by their number, once until they are taken, and
// says so when there were too many.
func TestPatchedMoving(t *testing.T) {
	p := guard.NewPatchedMovingForTest()
	take := func() (frames []x86.GFN, lost bool) {
		lost = p.Take(func(gfn x86.GFN) { frames = append(frames, gfn) })
		slices.Sort(frames)
		return frames, lost
	}
	for range 3 {
		for _, gfn := range []x86.GFN{0, 5, 1 << 40} {
			guard.NotePatchedForTest(p, gfn)
		}
	}
	if got, lost := take(); lost || !slices.Equal(got, []x86.GFN{0, 5, 1 << 40}) {
		t.Errorf("%v, lost %v", got, lost)
	}
	if got, lost := take(); lost || got != nil {
		t.Errorf("taken again: %v, lost %v", got, lost)
	}
	for gfn := range x86.GFN(1000) {
		guard.NotePatchedForTest(p, gfn)
	}
	if got, lost := take(); !lost || len(got) < 100 || len(got) > 256 {
		t.Errorf("of 1000 at once %d, lost %v", len(got), lost)
	}
	if _, lost := take(); lost {
		t.Error("lost for ever")
	}
}

// TestOriginals has the kernel patch more pages than there is room for what they were: it
// waits with the first that there is none for, until there is, or nobody needs to know.
func TestOriginals(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	a, p := f.set.Patched()
	poked := func(off uint64) vmevent.Verdict { return f.set.HandleEvent(poke(f.write(off, f.guest.Base+0x100))) }
	page := make([]byte, x86.PageSize)
	if err := f.guest.Memory().ReadPhys(f.guest.PhysBase+0x1000, page); err != nil {
		t.Fatal(err)
	}
	was := string(page)
	o := guard.NewOriginals(p.Pages(), 0)
	p.UseOriginals(o)
	for range 2 {
		if v := poked(0x1010); v != vmevent.Continue || a.Passed.Load() != 0 {
			t.Fatalf("there is no room, and the verdict is %v; %d passed", v, a.Passed.Load())
		}
	}
	if o.Grow() {
		t.Error("there may be more room")
	}
	if len(p.More()) == 0 {
		t.Error("nobody is told that it waits")
	}
	// Nobody makes any, and the guest goes on.
	tries := 0
	for poked(0x1010) == vmevent.Continue {
		if tries++; tries > 1<<17 {
			t.Fatal("the guest is never let go on")
		}
	}
	if tries < 1000 || a.Passed.Load() != 1 || o.Page(1) != nil {
		t.Errorf("after %d tries %d passed", tries, a.Passed.Load())
	}
	o = guard.NewOriginals(p.Pages(), 1)
	p.UseOriginals(o)
	if !o.Grow() {
		t.Error("there is no room")
	}
	if v := poked(0x1010); v == vmevent.Continue || a.Passed.Load() != 2 {
		t.Errorf("the verdict is %v; %d passed", v, a.Passed.Load())
	}
	f.guest.Write(f.guest.Base+0x1010, []byte{0x90})
	poked(0x1020)
	if got := o.Page(1); got == nil || string(got[:]) != was {
		t.Error("what the page was is not kept")
	}
	if o.Page(2) != nil {
		t.Error("a page that nobody patched is kept")
	}
	p.UseOriginals(nil)
	if v := poked(0x2010); v == vmevent.Continue {
		t.Errorf("nobody needs to know, and the verdict is %v", v)
	}
}

// TestPatchedAcross tells of both pages where a store may reach into the next.
func TestPatchedAcross(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	_, p := f.set.Patched()
	f.set.HandleEvent(poke(f.write(0x1ffc, f.guest.Base+0x100)))
	var pages []int
	p.Take(func(page int) { pages = append(pages, page) })
	if !slices.Equal(pages, []int{1, 2}) {
		t.Errorf("patched are %v", pages)
	}
}
