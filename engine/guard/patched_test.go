package guard_test

import (
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
