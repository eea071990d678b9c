package linux

import (
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

// compareAll returns what changed in all of a kernel's code.
func compareAll(t *testing.T, w *ImageWatch, r *Reader) []ImageChange {
	t.Helper()
	var out []ImageChange
	for page := range w.Pages() {
		c, err := w.Compare(r, page)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c...)
	}
	return out
}

// TestImagesText knows each place that a real kernel patches, finds nothing
// changed, and then what an attack changes.
func TestImagesText(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			g := img.tampered(t)
			w, err := g.WatchText(Taking{})
			if err != nil {
				t.Fatal(err)
			}
			var sites [4]int
			branch, call := w.sites[0], w.sites[0]
			for _, s := range w.sites {
				sites[s.kind]++
				switch s.kind {
				case siteKey:
					branch = s
				case siteTrace:
					call = s
				}
			}
			t.Logf("%d pages; branches, calls, traced functions, prefixes: %v", w.Pages(), sites)
			if sites[siteKey] < 1000 || sites[siteCall] < 100 {
				t.Errorf("too few places that the kernel patches: %v", sites)
			}
			if c := compareAll(t, w, g.Reader); len(c) != 0 {
				t.Fatalf("%d changes, the first %+v", len(c), c[0])
			}
			// A byte of a function, a branch that leads elsewhere, a call of data.
			victim := g.symbol("kernel_restart") + 16
			g.patch(victim, 0xcc)
			g.patch(w.start+x86.VirtAddr(branch.off), 0xe9, 1, 0, 0, 0)
			want := 2
			if sites[siteTrace] > 0 {
				g.patch(w.start+x86.VirtAddr(call.off), 0xe8, 1, 0, 0, 0)
				want++
			}
			got := compareAll(t, w, g.Reader)
			if len(got) != want {
				t.Fatalf("%d changes, want %d: %+v", len(got), want, got)
			}
			for _, c := range got {
				at := c.Addr
				if !c.Patch {
					if at != victim&^(textLine-1) {
						t.Errorf("change at %v, want the line of %v", at, victim)
					}
				} else if off := uint32(at - w.start); off != branch.off && off != call.off {
					t.Errorf("patch at %v", at)
				}
				w.Accept(c)
			}
			if c := compareAll(t, w, g.Reader); len(c) != 0 {
				t.Errorf("told again: %+v", c)
			}
		})
	}
}

// patch overwrites code.
func (g *tampered) patch(va x86.VirtAddr, b ...byte) {
	g.t.Helper()
	to, err := g.k.as.Translate(va)
	if err != nil {
		g.t.Fatal(err)
	}
	copy(g.mem[to.Phys:], b)
}
