package engine

import (
	"errors"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Xen keeps what is restricted in a view only until the same frame changes in the
// host's: it then copies the host's access over it (p2m_altp2m_propagate_change,
// xen/arch/x86/mm/p2m.c in 4.17). A guest that takes a page out of its memory and
// puts one back makes such a change, and so does the first write to a page while
// the guest's memory is logged for a live migration. In the host's view a page that is put
// in the place of another may be accessed freely, too. So what is restricted is looked at
// now and then, and what was lost is restricted again.

const (
	// viewCheckInterval is how long a lost restriction goes unnoticed at most, unless the
	// guest is quiet.
	viewCheckInterval = 10 * time.Second
	// firstViewCheck is when they are looked at for the first time: a guest that boots has
	// better to do, and what its code was is not known yet.
	firstViewCheck = 2 * viewCheckInterval
	// viewCheckQuiet is how much less often a quiet guest's are looked at: each five
	// minutes, as most else of one. There are 3,600 frames of a kernel's text to be asked
	// after, each by a call of its own, however they are put together.
	viewCheckQuiet = 30
)

// watchView begins to look at what is restricted in the domain's views, or, where it has
// none of ours, in the host's.
func (s *Session) watchView(views viewsStatus) {
	s.unwatchView()
	switch {
	case views.current().ID != noView:
		s.views = views
	case s.status.Load().Tier != TierAccess:
		return
	}
	s.viewCheck = s.chores.addRare(time.Now().Add(firstViewCheck), viewCheckInterval, viewCheckQuiet, s.chore)
}

// unwatchView ends that, before the view goes.
func (s *Session) unwatchView() {
	s.stopMoving()
	s.forgetOpen()
	s.chores.drop(s.viewCheck)
	s.views, s.viewCheck = nil, nil
}

// checkView looks at each frame that is to be restricted, and restricts those again that
// are not.
func (s *Session) checkView() {
	if s.viewCheck == nil {
		return
	}
	restored, err := s.checkShadows()
	if err != nil && !s.gone() {
		// What is restricted is looked at below all the same.
		s.log.Error("a page with a lost shadow could not be given back", "err", err)
	}
	restored += s.checkTraps()
	views := s.views
	if views == nil {
		views = s.status.Load().Views // the host's
	}
	for _, v := range views {
		n, guard, err := s.checkRestrictions(v)
		restored += n
		if err != nil {
			if !s.gone() {
				s.viewLost(guard, err)
			}
			break
		}
	}
	s.wakePatching()
	if restored > 0 {
		s.update(func(st *Status) { st.Restored += restored })
		s.log.Warn("Xen had dropped restrictions of pages, which are in force again", "frames", restored)
	}
}

// checkRestrictions looks at one view. With an error comes the guard that
// it concerns.
func (s *Session) checkRestrictions(v ViewStatus) (restored uint64, guard policy.GuardName, err error) {
	for _, r := range v.Restricted {
		n, err := s.restore(v, r)
		restored += n
		if err != nil {
			return restored, r.Guard, err
		}
	}
	return restored, "", nil
}

// restore restricts those frames again that Xen permits more, and returns how
// many they were. Frames that lead to a shadow page are checkShadows'.
func (s *Session) restore(v ViewStatus, r RestrictedFrames) (restored uint64, err error) {
	now, err := s.accesses(v.ID, r)
	if err != nil {
		return 0, err
	}
	for i := range r.Count {
		gfn := r.First + x86.GFN(i)
		if now != nil && now[i] == r.Access || v.Current && (s.shadowOf(gfn) != nil || s.isOpen(gfn) || s.isReadable(gfn) || s.isTrapped(gfn)) {
			continue
		}
		if v.ID == noView && now[i] == xen.AccessUnknown {
			continue // there is no page; one that is put there is found the next time
		}
		switch err := s.restrictAgain(v.ID, r.Access, gfn); {
		case err == nil && now != nil:
			restored++
			s.doubt(gfn)
		case err == nil:
		case errors.Is(err, syscall.ESRCH) && !s.gone():
			// The guest has no page there any more, so no code of its kernel.
		case errors.Is(err, ledger.ErrNotRestricted):
			// It could not be restricted when it came, as was said then.
		default:
			return restored, err
		}
	}
	return restored, nil
}

// accesses returns what a view permits of frames, nil where Xen does not tell: there they
// are restricted again without looking.
func (s *Session) accesses(view uint16, r RestrictedFrames) ([]xen.Access, error) {
	now := make([]xen.Access, r.Count)
	switch {
	case view == noView:
		return now, s.hv.MemAccesses(s.info.ID, r.First, now)
	case s.hv.Layout().Has.AltP2MGetMemAccess:
		return now, s.hv.ViewAccesses(s.info.ID, view, r.First, now)
	}
	return nil, nil
}

// restrictAgain restricts a frame, of which the ledger knows already.
func (s *Session) restrictAgain(view uint16, access xen.Access, gfn x86.GFN) error {
	if view == noView {
		return s.ledger.Adjust(access, gfn, 1)
	}
	return s.ledger.RestrictView(view, access, gfn, 1)
}

// doubt has a page compared that may have been written, or be another one, while nothing
// restricted it. Of the code of the kernel and of its modules it is known what it was;
// what else was restricted is taken as it is now.
func (s *Session) doubt(gfn x86.GFN) {
	s.memory.Invalidate(gfn, 1)
	s.doubtModule(gfn)
	p := &s.patching
	if p.patched == nil {
		return
	}
	page, ok := p.patched.Page(gfn)
	switch {
	case ok && p.scan == nil:
		s.doubtUnknown(gfn, page)
	case ok:
		s.patchedPage(gfn, p.scan, page, s.now())
	}
}

// viewLost says that a guard's pages are not restricted any more, for certain.
func (s *Session) viewLost(name policy.GuardName, err error) {
	s.closeAllPatched()
	s.unwatchView()
	s.setGuard(name, GuardDegraded, "its pages are no longer restricted: "+err.Error())
	s.setState(StateDegraded)
	s.log.Error("pages are no longer restricted", "guard", string(name), "err", err)
}
