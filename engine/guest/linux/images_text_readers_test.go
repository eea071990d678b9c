package linux

import (
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/x86"
)

// TestImagesTextReaders finds what reads its own code in a real kernel: each copier can be
// unwound at each instruction after its first, and what it copies for counts.
func TestImagesTextReaders(t *testing.T) {
	for _, img := range testImages(t) {
		t.Run(img.name(), func(t *testing.T) {
			k := img.reader(t).Kernel()
			r, err := k.NewTextReaders()
			if err != nil {
				t.Fatal(err)
			}
			checkers, copiers := 0, 0
			for _, c := range r.code {
				if c.End <= c.Start || c.End-c.Start > 1<<16 {
					t.Errorf("%v to %v", c.Start, c.End)
				}
				if !c.copies {
					checkers++
					continue
				}
				copiers++
				if e, err := k.orcOf(c.Start); err != nil || e.kind != orcCall || e.spReg != r.reg.sp || e.spOffset != 8 {
					name, _, _ := k.Symbolize(c.Start)
					t.Errorf("%s begins with the frame %+v, %v", name, e, err)
				}
			}
			var missing []string
			for _, name := range append(append([]string(nil), textCheckers...), textCopiers...) {
				if _, ok := k.Lookup(name); !ok {
					missing = append(missing, name)
				}
			}
			t.Logf("%d checkers, %d copiers, %d stretches; without %s", checkers, copiers, len(r.orc), strings.Join(missing, " "))
			if checkers < 30 || copiers < 10 {
				t.Errorf("%d checkers and %d copiers", checkers, copiers)
			}
			for name, want := range map[string]bool{"ftrace_verify_code": true, "register_kprobe": true, "do_exit": false, "vfs_read": false} {
				at, ok := k.Lookup(name)
				if !ok {
					t.Errorf("no %s", name)
				}
				regs := x86.Registers{RIP: uint64(at) + 8}
				if got := r.Own(&regs); got != want {
					t.Errorf("%s may read: %v", name, got)
				}
			}
		})
	}
}
