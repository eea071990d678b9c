package guard

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Scanner compares what a guard protects with what it was. It is for a platform
// that lacks what the guard needs, where a violation is not seen when it takes
// place but can be found afterwards.
//
// It belongs to one goroutine. It reads the guest's memory, with a Reader of the
// caller's, and holds nothing.
type Scanner interface {
	// Parts is in how many parts the comparison can be made.
	Parts() int
	// Compare returns what is not as it was in a part below Parts. The guest may
	// be in the middle of a change of its own: what is still there a second
	// later is a violation.
	Compare(r *linux.Reader, part int) ([]Change, error)
	// Accept takes a change that was told for known.
	Accept(Change)
	// Refresh has the next comparisons read anew what they need to know of the guest
	// beside what they compare. It is called before each lot of them.
	Refresh(r *linux.Reader)
	// Undo returns what is to be written so that a change is none any more, given what
	// the part was when there was none; nothing if that can't be told.
	Undo(c Change, was *[x86.PageSize]byte) []linux.Bytes
}

// Change is something that is not as it was.
type Change struct {
	// Addr is where it begins, Now what is there.
	Addr x86.VirtAddr
	Now  []byte
	// Note is what else is known of it, one sentence or nothing.
	Note string
	// UnderWay says that it is what the guest's kernel makes of this place for a moment,
	// which lasts if the task that does it is not given a processor.
	UnderWay bool

	image linux.ImageChange
	part  int
}

// textScanner is the Scanner of kernel text.
type textScanner struct{ watch *linux.ImageWatch }

func scanText(t *Target) (Scanner, error) {
	w, err := t.Kernel.NewReader(nil).WatchText(t.Taking)
	if err != nil {
		return nil, err
	}
	return textScanner{w}, nil
}

// ModuleScanner is the Scanner of a module's code. Its memory comes and goes, so each lot
// of comparisons has a Reader of its own.
type ModuleScanner struct{ textScanner }

// NewModuleScanner takes a module's code as it is now for right. It returns nil of one
// that has none.
func NewModuleScanner(r *linux.Reader, m report.Module, traced linux.TraceSites) (*ModuleScanner, error) {
	w, err := r.WatchModule(m, traced)
	if w == nil || err != nil {
		return nil, err
	}
	return &ModuleScanner{textScanner{w}}, nil
}

// Start is where the first part begins.
func (s *ModuleScanner) Start() x86.VirtAddr { return s.watch.Start() }

func (s textScanner) Parts() int { return s.watch.Pages() }

func (s textScanner) Compare(r *linux.Reader, part int) ([]Change, error) {
	found, err := s.watch.Compare(r, part)
	var out []Change
	for _, c := range found {
		n := "found by comparison; it lies within 64 bytes from there"
		if c.Patch {
			n = "found by comparison; the kernel patches this place, but with other instructions"
			if c.To.Addr != 0 {
				n += fmt.Sprintf(": this one leads to %s (%s)", c.To.Addr, c.To.In)
			}
		}
		out = append(out, Change{Addr: c.Addr, Now: c.Now, Note: n, UnderWay: c.UnderWay, image: c})
	}
	return out, err
}

func (s textScanner) Accept(c Change) { s.watch.Accept(c.image) }

func (s textScanner) Refresh(r *linux.Reader) { s.watch.Refresh(r) }

func (s textScanner) Undo(c Change, was *[x86.PageSize]byte) []linux.Bytes {
	return s.watch.Undo(c.image, was)
}
