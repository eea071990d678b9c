package guard

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

func TestFrameTable(t *testing.T) {
	const top = 40_959 // a guest of 160 MiB
	table := newFrameTable(top)
	for _, gfn := range []x86.GFN{0, 511, 512, 0x1000, top} {
		if !table.set(gfn, 3) {
			t.Fatalf("frame %s did not fit", gfn)
		}
	}
	for gfn, want := range map[x86.GFN]uint8{0: 3, 1: 0, 511: 3, 512: 3, 513: 0, 0x1000: 3, top: 3, top + 1: 0, 1 << 60: 0, ^x86.GFN(0): 0} {
		if got := table.get(gfn); got != want {
			t.Errorf("frame %s: %d, want %d", gfn, got, want)
		}
	}
	for _, gfn := range []x86.GFN{1 << 20, ^x86.GFN(0)} {
		if table.set(gfn, 1) {
			t.Errorf("frame %s, beyond the guest's highest, was taken", gfn)
		}
	}
}

func BenchmarkFrameTable(b *testing.B) {
	table := newFrameTable(1 << 28)
	for i := range x86.GFN(4096) {
		table.set(i*7, 1)
	}
	var gfn x86.GFN
	var sum int
	for b.Loop() {
		sum += int(table.get(gfn))
		gfn = (gfn + 12_345) & (1<<28 - 1)
	}
	if sum == 0 {
		b.Fatal("nothing was found")
	}
}
