package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Breakpoints of a domain that has no views: view.Traps says what they are. Here their
// pages are made such that they can't be executed, and executable again.

// maxFunction is how far before a page a function may begin that reaches into it; of a
// longer one the part in the page is taken for unknown.
const maxFunction = 64 << 10

// trapping is what a session has for breakpoints where it has no view. It is the session
// goroutine's.
type trapping struct {
	traps   *view.Traps              // nil while there are none
	resting map[*view.Trap]time.Time // until when
	stale   map[*view.Trap]struct{}  // of which the instructions are others by now
	timer   *time.Timer              // goes off when the first rest is over; nil while there is none
}

// sinceNow returns a clock that begins now and never goes back.
func sinceNow() func() time.Duration {
	epoch := time.Now()
	return func() time.Duration { return time.Since(epoch) }
}

// isTrapped reports whether a frame is of a page with breakpoints.
func (s *Session) isTrapped(gfn x86.GFN) bool {
	t := s.hidden.trapping.traps
	return t != nil && t.Page(gfn) != nil
}

// trap puts a breakpoint into a page of the domain's, which is paused.
func (s *Session) trap(b *breakpoint) error {
	h := &s.hidden.trapping
	if h.traps == nil {
		h.traps, h.resting = view.NewTraps(s.info.VCPUs, s.memory, s.set.Watches, sinceNow()), make(map[*view.Trap]time.Time)
		h.stale = make(map[*view.Trap]struct{})
		s.set.UseTraps(h.traps)
	}
	gfn := b.point.At.GFN()
	p := h.traps.Page(gfn)
	if p == nil {
		page := b.va &^ x86.PageMask
		code, err := s.instructions(page)
		if err != nil {
			return err
		}
		s.closePatchedFrame(gfn)
		p = view.NewTrap(gfn, page, code)
		if was := b.trap.Load(); was != nil { // of guards that were exchanged
			p.Rests.Store(was.Rests.Load())
		}
		h.traps.Add(p)
		if err := s.closeTrap(p); err != nil {
			return errors.Join(err, s.removeTrap(p))
		}
	}
	b.trap.Store(p)
	h.traps.Set(b.point)
	return nil
}

// untrap takes a breakpoint away, and has its page be as before with the last one.
func (s *Session) untrap(b *breakpoint) error {
	h := &s.hidden.trapping
	gone := true
	for _, other := range s.hidden.points {
		if other != b && other.point == b.point {
			return nil
		}
		gone = gone && (other == b || other.point.At.GFN() != b.point.At.GFN())
	}
	h.traps.Clear(b.point)
	if p := h.traps.Page(b.point.At.GFN()); gone && p != nil {
		return s.removeTrap(p)
	}
	return nil
}

func (s *Session) removeTrap(p *view.Trap) error {
	h := &s.hidden.trapping
	err := s.openTrap(p, true)
	delete(h.resting, p)
	delete(h.stale, p)
	h.traps.Remove(p)
	return err
}

// instructions finds those of a page of the kernel's code.
func (s *Session) instructions(page x86.VirtAddr) (*view.Instructions, error) {
	code := new(view.Instructions)
	const behind = 16 // as far as an instruction reaches
	as := s.kernel.AddressSpace()
	for end := page + x86.PageSize; end > page; {
		_, offset, ok := s.kernel.Symbolize(end - 1)
		if !ok || offset > maxFunction {
			break // what is before has no name
		}
		start := end - 1 - x86.VirtAddr(offset)
		bytes := make([]byte, end+behind-start)
		if err := as.Read(start, bytes); err != nil {
			return nil, fmt.Errorf("read the kernel's code at %s: %w", start, err)
		}
		code.Add(int(int64(start)-int64(page)), bytes)
		end = start
	}
	return code, nil
}

// restricted says what a page permits but for its breakpoints, and whether a guard
// restricts it.
func (s *Session) restricted(gfn x86.GFN) (xen.Access, bool) {
	return viewsStatus(s.status.Load().Views).access(noView, gfn)
}

// closeTrap has a page not be executed.
func (s *Session) closeTrap(p *view.Trap) error {
	access, guarded := s.restricted(p.GFN)
	closed := access &^ xen.AccessX
	err := s.ledger.Adjust(closed, p.GFN, 1)
	if !guarded && errors.Is(err, ledger.ErrNotRestricted) {
		err = s.ledger.Restrict(closed, p.GFN, 1)
	}
	return err
}

// openTrap has a page be executed as any other, for good or for a rest.
func (s *Session) openTrap(p *view.Trap, forGood bool) error {
	access, guarded := s.restricted(p.GFN)
	err := s.ledger.Adjust(access, p.GFN, 1)
	switch {
	case guarded || !forGood:
		return err
	case errors.Is(err, ledger.ErrNotRestricted):
		return nil // it never was
	}
	return errors.Join(err, s.ledger.Unrestrict(p.GFN, 1))
}

// withTraps returns the views, with what of the host's has breakpoints.
func (s *Session) withTraps(views viewsStatus, points []*breakpoint) viewsStatus {
	views = slices.Clone(views)
	for i := range views {
		if v := &views[i]; v.ID == noView {
			v.Traps = nil
			for _, p := range s.trapped() {
				n := 0
				for _, b := range points {
					if b.point.At.GFN() == p.GFN {
						n++
					}
				}
				v.Traps = append(v.Traps, TrappedPage{p, n})
			}
		}
	}
	return views
}

func (s *Session) trapped() []*view.Trap {
	if t := s.hidden.trapping.traps; t != nil {
		return t.Pages()
	}
	return nil
}

// restsAsked delivers the rests that are asked for.
func (s *Session) restsAsked() <-chan view.Rest {
	if t := s.hidden.trapping.traps; t != nil {
		return t.Rests()
	}
	return nil
}

// restOver delivers when a rest is over.
func (s *Session) restOver() <-chan time.Time {
	if t := s.hidden.trapping.timer; t != nil {
		return t.C
	}
	return nil
}

// rest has a page be executed for a while, and whoever waits for it go on.
func (s *Session) rest(r view.Rest) {
	now := time.Now()
	if s.hidden.trapping.traps.Page(r.Trap.GFN) == r.Trap { // else it can be executed for good
		s.beginRest(r, now)
	}
	if r.Held {
		s.server.Release(r.VCPU, vmevent.Continue)
	}
	s.endRests(now)
}

// beginRest begins one, or has it last as long as it must.
func (s *Session) beginRest(r view.Rest, now time.Time) {
	h := &s.hidden.trapping
	until, already := h.resting[r.Trap]
	if !already {
		r.Trap.Rests.Add(1)
		if err := s.openTrap(r.Trap, false); err != nil {
			s.loseTrap(r.Trap, err)
			return
		}
	}
	if end := now.Add(r.For); end.After(until) {
		h.resting[r.Trap] = end
	}
	if r.Changed {
		h.stale[r.Trap] = struct{}{}
	}
}

// loseTrap gives the breakpoints of a page up, for which Xen does not do what it must. What
// is executed there is carried out by the emulator as long as the page is as it is.
func (s *Session) loseTrap(p *view.Trap, why error) {
	h := &s.hidden
	delete(h.trapping.resting, p)
	delete(h.trapping.stale, p)
	h.trapping.traps.Remove(p)
	if s.gone() {
		return
	}
	h.points = slices.DeleteFunc(h.points, func(b *breakpoint) bool {
		lost := b.point.At.GFN() == p.GFN
		if lost {
			s.lose(b, why)
		}
		return lost
	})
	s.showBreakpoints()
}

// endRests ends those that are over.
func (s *Session) endRests(now time.Time) {
	h := &s.hidden.trapping
	next := time.Duration(-1)
	for p, until := range h.resting {
		if left := until.Sub(now); left > 0 {
			if next < 0 || left < next {
				next = left
			}
			continue
		}
		delete(h.resting, p)
		if _, stale := h.stale[p]; stale {
			delete(h.stale, p)
			if code, err := s.instructions(p.Addr); err == nil {
				p.Learn(code)
			}
		}
		if err := s.closeTrap(p); err != nil {
			s.loseTrap(p, err)
		}
	}
	if h.timer != nil {
		h.timer.Stop()
	}
	if h.timer = nil; next >= 0 {
		h.timer = time.NewTimer(next)
	}
}

// closeTraps forgets the pages, whose restrictions are undone, and has whoever waits for
// one go on.
func (s *Session) closeTraps() {
	h := &s.hidden.trapping
	if h.traps == nil {
		return
	}
	if s.set != nil {
		s.set.UseTraps(nil)
	}
	if h.timer != nil {
		h.timer.Stop()
	}
	s.releaseRests()
	*h = trapping{}
}

// releaseRests has those vCPUs go on that wait for a page that can be executed by now.
func (s *Session) releaseRests() {
	for {
		select {
		case r := <-s.restsAsked():
			if r.Held {
				s.server.Release(r.VCPU, vmevent.Continue)
			}
		default:
			return
		}
	}
}

// checkTraps has pages not be executed that can be, since the guest has exchanged them,
// and returns how many those were.
func (s *Session) checkTraps() (restored uint64) {
	for _, p := range s.trapped() {
		if _, rests := s.hidden.trapping.resting[p]; rests {
			continue
		}
		var now [1]xen.Access
		if err := s.hv.MemAccesses(s.info.ID, p.GFN, now[:]); err != nil {
			s.loseTrap(p, err)
			continue
		}
		if access, _ := s.restricted(p.GFN); now[0] == access&^xen.AccessX || now[0] == xen.AccessUnknown {
			continue
		}
		if err := s.closeTrap(p); err != nil {
			s.loseTrap(p, err)
			continue
		}
		restored++
		s.doubt(p.GFN)
	}
	return restored
}
