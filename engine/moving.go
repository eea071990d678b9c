package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Some of what is guarded comes and goes while the guest runs: modules. The session
// looks for it now and then and restricts what has come. What has gone may be
// anybody's by then: the guard's judge sees that at the first write, and the session
// lets go of it.

// moving is what a session has restricted for the guard whose frames move. It is
// the session goroutine's.
type moving struct {
	chore  *chore // nil while nothing is followed
	frames map[x86.GFN]x86.VirtAddr
	failed int          // looks in a row
	blind  *GuardStatus // what the guard was before it was said to see nothing
}

// startMoving restricts what there is, and begins to follow it. The domain is
// paused.
func (s *Session) startMoving() {
	s.stopMoving()
	a := s.set.Moving()
	if a == nil || !s.status.Load().holdsAnywhere(a.Guard.Name) {
		return
	}
	s.moving.chore = s.chores.add(time.Now().Add(a.Guard.Moving.Every), a.Guard.Moving.Every, 0, s.chore)
	s.followMoving()
}

// stopMoving ends that. What is restricted stays so, to be undone with all else.
func (s *Session) stopMoving() {
	s.chores.drop(s.moving.chore)
	s.moving = moving{}
}

// followMoving restricts what has come since the last time, and lets go of what has
// gone.
func (s *Session) followMoving() {
	a := s.set.Moving()
	if a == nil {
		return
	}
	name, m := a.Guard.Name, &s.moving
	found, err := s.findMoving(a.Guard)
	if err != nil {
		s.log.Debug("what a guard is to watch could not be found", "guard", string(name), "err", err)
		if m.failed++; m.failed == maxFailedLooks {
			was := s.blinded(name, fmt.Sprintf("the last %d times what to guard could not be found: %v", maxFailedLooks, err))
			m.blind = &was
		}
		return
	}
	if m.blind != nil {
		s.seeing(*m.blind)
	}
	m.failed, m.blind = 0, nil
	now := make(map[x86.GFN]x86.VirtAddr, len(found))
	both := make(map[x86.GFN]x86.VirtAddr, len(found)+len(m.frames))
	for gfn, va := range m.frames {
		both[gfn] = va
	}
	for _, f := range found {
		if !s.set.Fixed(f.GFN) {
			now[f.GFN], both[f.GFN] = f.VA, f.VA
		}
	}
	// Known before it can make events, and until it can't any more.
	s.set.UseMoving(both)
	var errs []error
	for gfn := range now {
		if _, had := m.frames[gfn]; !had {
			errs = append(errs, s.restrictMoving(name, gfn, a.Guard.Moving.Access))
		}
	}
	for gfn := range m.frames {
		if _, has := now[gfn]; !has {
			errs = append(errs, s.freeMoving(name, gfn))
		}
	}
	s.set.UseMoving(now)
	m.frames = now
	if err := errors.Join(errs...); err != nil && !s.gone() {
		s.setGuard(name, GuardDegraded, "not all of its pages could be restricted: "+err.Error())
		s.settle()
	}
	s.showMoving(a)
	if name == policy.GuardModules {
		s.followModules()
	}
}

// showMoving puts what is restricted into the status, and into what is looked at in
// the views.
func (s *Session) showMoving(a *guard.Armed) {
	views := viewsStatus(s.Status().Views).withMoving(a.Guard.Name, a.Guard.Moving.Access, s.moving.frames)
	if s.views != nil {
		s.views = views
	}
	s.update(func(st *Status) { st.Views = views })
}

// goneFrames delivers the frames that are to be let go of.
func (s *Session) goneFrames() <-chan guard.GoneFrame {
	if s.set == nil {
		return nil
	}
	return s.set.Gone()
}

// letGoOf lets go of a frame that is not what it was, and of all others of which
// that is known, and has their vCPUs go on.
func (s *Session) letGoOf(g guard.GoneFrame) {
	a, held := s.set.Moving(), []uint32{}
	if a == nil {
		return
	}
	now := maps.Clone(s.moving.frames)
	for more := true; more; {
		held = append(held, g.VCPU)
		if _, ours := now[g.GFN]; ours {
			delete(now, g.GFN)
			s.forgetModulePage(g.GFN)
			if err := s.freeMoving(a.Guard.Name, g.GFN); err != nil && !s.gone() {
				s.log.Warn("a page that is a module's no more could not be let go of", "gfn", g.GFN, "err", err)
			}
		}
		select {
		case g = <-s.set.Gone():
		default:
			more = false
		}
	}
	s.moving.frames = now
	s.set.UseMoving(now)
	s.showMoving(a)
	for _, vcpu := range held {
		s.server.Release(vcpu, vmevent.Continue)
	}
}

// releaseGone has those vCPUs go on that wait for a frame to be let go of, where all
// are.
func (s *Session) releaseGone() {
	if s.set == nil {
		return
	}
	for {
		select {
		case g := <-s.set.Gone():
			s.server.Release(g.VCPU, vmevent.Continue)
		default:
			return
		}
	}
}

// findMoving asks the guest for the frames of a guard.
func (s *Session) findMoving(g guard.Guard) ([]linux.MappedFrame, error) {
	mem := newReading(context.Background(), nil, s.hv.OpenMemoryFor(s.info.ID, xen.HereAndThere))
	tlb, giveBack := borrowTLB()
	defer giveBack()
	found, err := g.Moving.Find(s.kernel.Over(mem).NewReaderWith(tlb, nil))
	return found, errors.Join(err, mem.Close())
}

// restrictMoving restricts a frame, in each view in which the guard holds. One that
// the guest has taken out of its memory permits nothing anyway.
func (s *Session) restrictMoving(name policy.GuardName, gfn x86.GFN, access xen.Access) error {
	if s.views == nil {
		return s.ledger.Restrict(access, gfn, 1)
	}
	return s.permitInViews(name, gfn, access)
}

// freeMoving ends that.
func (s *Session) freeMoving(name policy.GuardName, gfn x86.GFN) error {
	if s.views == nil {
		return s.ledger.Unrestrict(gfn, 1)
	}
	return s.permitInViews(name, gfn, xen.AccessRWX)
}

func (s *Session) permitInViews(name policy.GuardName, gfn x86.GFN, access xen.Access) error {
	for _, v := range s.views {
		if !v.holds(name) {
			continue
		}
		if err := s.ledger.RestrictView(v.ID, access, gfn, 1); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// withMoving returns the views with what a guard watches now in the place of what
// it watched before.
func (v viewsStatus) withMoving(name policy.GuardName, access xen.Access, frames map[x86.GFN]x86.VirtAddr) viewsStatus {
	gfns := make([]x86.GFN, 0, len(frames))
	for gfn := range frames {
		gfns = append(gfns, gfn)
	}
	slices.SortFunc(gfns, cmp.Compare)
	var rows []RestrictedFrames
	for _, gfn := range gfns {
		if n := len(rows) - 1; n >= 0 && rows[n].First+x86.GFN(rows[n].Count) == gfn {
			rows[n].Count++
			continue
		}
		rows = append(rows, RestrictedFrames{First: gfn, Count: 1, Access: access, Guard: name})
	}
	out := slices.Clone(v)
	for i := range out {
		if !out[i].holds(name) {
			continue
		}
		others := slices.DeleteFunc(slices.Clone(out[i].Restricted), func(r RestrictedFrames) bool { return r.Guard == name })
		out[i].Restricted = append(others, rows...)
	}
	return out
}
