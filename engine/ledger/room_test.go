package ledger_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// TestDiskFull attaches with a disk that gets full at any moment: at once, or after so
// many changes. What is refused has not been made, and all that was made can be undone,
// with a line for each.
func TestDiskFull(t *testing.T) {
	refusals := map[int]bool{}
	for room := int64(0); room <= 40<<10; room += 8 << 10 {
		t.Run(fmt.Sprintf("%d bytes", room), func(t *testing.T) {
			disk := ledger.NewDisk(t, room)
			dir, c := t.TempDir(), &calls{}
			l, err := ledger.Open(dir, 5, uuid, c)
			if err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
					t.Errorf("%v is left, %v", files, err)
				}
				refusals[0] = true
				return
			}
			err = l.Pause()
			if err == nil {
				_, err = l.EnableRing()
			}
			made := 0
			for i := range 60 {
				if err != nil {
					break
				}
				if err = l.Restrict(xen.AccessRX, x86.GFN(0x10+2*i), 1); err == nil {
					made++
				}
			}
			if err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				refusals[made] = true
			}
			asked := func(what string) (n int) {
				for _, m := range c.made {
					if strings.HasPrefix(m, what) {
						n++
					}
				}
				return n
			}
			if n := asked("access r-x"); n != made {
				t.Errorf("%d pages restricted, want %d", n, made)
			}
			disk.Free = 0 // now at the latest
			if err := errors.Join(l.Pause(), l.OweResume(), l.Undo(ledger.OpResume), undoAll(l)); err != nil {
				t.Errorf("undo: %v", err)
			}
			if n := asked("access rwx"); n != made {
				t.Errorf("%d pages freed, want %d", n, made)
			}
			if left := l.Outstanding(); len(left) != 0 || !slices.Contains(c.made, "disable 5") && !slices.Contains(c.made, "disable") {
				t.Errorf("left %v", left)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if !refusals[0] || len(refusals) < 3 {
		t.Errorf("refused after %v changes: the disk was not full at different moments", refusals)
	}
}
