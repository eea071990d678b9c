package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// sealed is a guard of memory that the kernel itself never writes once its boot
// is over, through whatever mapping: every write is a violation. find says where
// the memory is.
//
// Pages stay executable, since the vDSO is among them.
//
// Without page access, the memory is compared now and then with what it was.
func sealed(name policy.GuardName, find func(*linux.Kernel) ([]linux.Range, error)) Guard {
	return Guard{
		Name:  name,
		Needs: NeedMemAccess,
		Watch: func(t *Target) (Watch, error) {
			ranges, err := find(t.Kernel)
			if err != nil {
				return Watch{}, err
			}
			w := Watch{Access: xen.AccessRX}
			for _, r := range ranges {
				p, err := t.Kernel.Phys(r)
				if err != nil {
					return Watch{}, err
				}
				w.Ranges = append(w.Ranges, p...)
			}
			return w, nil
		},
		Bind: anyWrite,
		Scan: func(t *Target) (Scanner, error) {
			ranges, err := find(t.Kernel)
			if err != nil {
				return nil, err
			}
			return scanData(t, ranges, nil)
		},
	}
}

// anyWrite judges that every write is a violation.
func anyWrite(*Target) (func(*vmevent.Event) bool, error) {
	return func(ev *vmevent.Event) bool {
		return ev.Reason == vmevent.ReasonMemAccess && ev.Mem.Flags&vmevent.AccessWrite != 0
	}, nil
}

// dataScanner is the Scanner of memory that is never written.
type dataScanner struct {
	watches []*linux.ImageWatch
}

// scanData watches ranges but for what is in except.
func scanData(t *Target, ranges, except []linux.Range) (Scanner, error) {
	var s dataScanner
	reader := t.Kernel.NewReader(nil)
	for _, r := range ranges {
		w, err := reader.WatchData(r, except)
		if err != nil {
			return nil, err
		}
		s.watches = append(s.watches, w)
	}
	return s, nil
}

func (s dataScanner) Parts() int {
	n := 0
	for _, w := range s.watches {
		n += w.Pages()
	}
	return n
}

// find returns the watch that has a part, and the part's number in it.
func (s dataScanner) find(part int) (*linux.ImageWatch, int) {
	for _, w := range s.watches {
		if part < w.Pages() {
			return w, part
		}
		part -= w.Pages()
	}
	panic(fmt.Sprintf("guard: part %d beyond the last", part))
}

func (s dataScanner) Compare(r *linux.Reader, part int) ([]Change, error) {
	w, page := s.find(part)
	found, err := w.Compare(r, page)
	var out []Change
	for _, c := range found {
		out = append(out, Change{Addr: c.Addr, Now: c.Now, Note: "found by comparison; it lies within 64 bytes from there", image: c, part: part})
	}
	return out, err
}

func (s dataScanner) Accept(c Change) {
	w, _ := s.find(c.part)
	w.Accept(c.image)
}

// Refresh has nothing to do: data that is never written is compared with nothing else.
func (s dataScanner) Refresh(*linux.Reader) {}

func (s dataScanner) Undo(c Change, was *[x86.PageSize]byte) []linux.Bytes {
	w, _ := s.find(c.part)
	return w.Undo(c.image, was)
}
