package engine

import (
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// A guard that watches who reads has its pages executed and nothing else, in the view
// that the domain runs in. Those who may read make a step in the view that steps over
// breakpoints are made in, which there is for that, too.
//
// A kernel that switches its function tracer checks each of 50,000 places before it
// patches them, so what is opened for patching ([Session.openPatched]) comes too late.
// While it reads page after page, those pages and the next ones may be read by anybody for
// a moment.

// checking follows what of its code the kernel reads. It is the session goroutine's.
type checking struct {
	checked *guard.Patched // nil where no guard watches reads
	timer   *time.Timer    // nil while there is nothing to see to
	readRun
	// open are the frames that may be read, and since when; eager says that the last pages
	// were opened, so that there are few events.
	open  map[x86.GFN]time.Time
	eager bool
	// closed says that none is opened any more, since that failed.
	closed bool
}

// readRun is the kernel's way through its code: how many pages have followed each other
// up to the foremost, and when it has last come to one.
type readRun struct {
	pages, front int
	last         time.Time
}

const (
	// readGap is how many pages without anything to check may lie between two with. The
	// places of a static key are farther apart, or in no order.
	readGap = 4
	// readAhead is how many pages are opened at a time.
	readAhead = 64
)

// came takes in a page that was read. Any other than one of the next ends a run, and so
// does time: what the kernel reads now and then opens nothing.
func (r *readRun) came(page int, now time.Time) {
	switch ahead := page - r.front; {
	case now.Sub(r.last) > openFor || ahead < 0 || ahead > readGap:
		r.pages, r.front = 1, page
	case ahead > 0:
		r.pages, r.front = r.pages+1, page
	}
	r.last = now
}

// needsUnreadable is why such a guard can't be had without a view.
const needsUnreadable = "it has pages that can be executed and not read, which takes the tier views: "

// unreadable reports whether a guard is the one that watches who reads.
func unreadable(set *guard.Set, name policy.GuardName) bool {
	r := set.Reads()
	return r != nil && r.Guard.Name == name
}

// letRead readies the view for those who may read. The domain is paused.
func (s *Session) letRead(set *guard.Set) {
	s.stopChecking()
	r := set.Reads()
	switch {
	case r == nil:
		return
	case s.views == nil:
		s.setGuard(r.Guard.Name, GuardUnavailable, needsUnreadable+s.Status().TierReason)
		return
	}
	if err := s.openStepping(); err != nil {
		s.readsLost(err)
		return
	}
	set.UseReads(s.hidden.stepping)
	s.showBreakpoints()
	s.checking = checking{checked: set.Checked(), open: make(map[x86.GFN]time.Time)}
}

// readsLost says that there is no such view: reads that are let through are made in the
// host's, where the same instruction can write anywhere.
func (s *Session) readsLost(why error) {
	r := s.set.Reads()
	if r == nil {
		return
	}
	s.set.UseReads(noView)
	s.setGuard(r.Guard.Name, GuardDegraded, "there is no view for reads that are let through, which may write to what is guarded: "+why.Error())
	s.log.Error("reads are let through in the host's view", "guard", string(r.Guard.Name), "err", why)
}

// stopChecking forgets what the kernel has read. What is open is closed before, or the
// view is given up.
func (s *Session) stopChecking() {
	if s.checking.timer != nil {
		s.checking.timer.Stop()
	}
	s.checking = checking{}
}

// checkedMore delivers when the kernel begins to read its code.
func (s *Session) checkedMore() <-chan struct{} {
	c := &s.checking
	if c.checked == nil || c.timer != nil && !c.eager {
		return nil
	}
	return c.checked.More()
}

// checkingDue is when to see to it the next time, nil for never.
func (s *Session) checkingDue() <-chan time.Time {
	if s.checking.timer == nil {
		return nil
	}
	return s.checking.timer.C
}

// isUnreadable reports whether a frame is to be executed and nothing else where the domain
// runs.
func (s *Session) isUnreadable(gfn x86.GFN) bool {
	if s.views == nil {
		return false
	}
	access, restricted := s.views.access(s.views.current().ID, gfn)
	return restricted && access == xen.AccessX
}

// isReadable reports whether a frame of the code may be read at the moment.
func (s *Session) isReadable(gfn x86.GFN) bool {
	_, readable := s.checking.open[gfn]
	return readable
}

// followChecking opens what the kernel is reading, and closes what it has read.
func (s *Session) followChecking(now time.Time) {
	c := &s.checking
	if c.checked == nil {
		return
	}
	more := false
	c.checked.Take(func(page int) {
		c.came(page, now)
		more = true
	})
	// The kernel is in one of the last pages that were opened.
	s.closeChecked(func(page int, since time.Time) bool { return now.Sub(since) >= openFor || page < c.front-readAhead })
	if c.eager = more && c.pages >= rowPages && !c.closed; c.eager {
		s.openChecked(now)
	}
	switch {
	case len(c.open) == 0 && now.Sub(c.last) > openFor:
		if c.timer != nil {
			c.timer.Stop()
			c.timer = nil
		}
	case c.timer == nil:
		c.timer = time.NewTimer(patchTick)
	default:
		c.timer.Reset(patchTick)
	}
}

// openChecked lets the next pages of a run be read without an event.
func (s *Session) openChecked(now time.Time) {
	c := &s.checking
	if s.views == nil {
		return
	}
	var gfns []x86.GFN
	for page := c.front; page <= c.front+readAhead; page++ {
		gfn, ok := c.checked.Frame(page)
		if !ok || s.isReadable(gfn) || s.isOpen(gfn) || s.shadowOf(gfn) != nil {
			continue
		}
		c.open[gfn] = now
		gfns = append(gfns, gfn)
	}
	c.front += readAhead
	slices.Sort(gfns)
	if err := s.permitPatched(gfns, xen.AccessRX); err != nil {
		if !s.gone() {
			s.log.Warn("pages that the kernel reads can't be opened", "err", err)
		}
		c.closed = true // and what was opened is closed when its time is over
	}
}

// closeChecked closes those that may be read of which it is said, by their page and since
// when they may.
func (s *Session) closeChecked(which func(page int, since time.Time) bool) {
	c := &s.checking
	var gfns []x86.GFN
	for gfn, since := range c.open {
		page, ok := c.checked.Page(gfn)
		if ok && !which(page, since) {
			continue
		}
		delete(c.open, gfn)
		// What is open for patching is closed by that, and a page with a shadow is.
		if !s.isOpen(gfn) && s.shadowOf(gfn) == nil && s.isUnreadable(gfn) {
			gfns = append(gfns, gfn)
		}
	}
	if len(gfns) == 0 || s.views == nil {
		return
	}
	slices.Sort(gfns)
	if err := s.permitPatched(gfns, xen.AccessX); err != nil && !s.gone() {
		s.viewLost(s.set.Reads().Guard.Name, err)
	}
}
