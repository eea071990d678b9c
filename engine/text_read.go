package engine

import (
	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
)

// A guard that watches who reads has its pages executed and nothing else, in the view
// that the domain runs in. Those who may read make a step in the view that steps over
// breakpoints are made in, which there is for that, too.

// needsUnreadable is why such a guard can't be had without a view.
const needsUnreadable = "it has pages that can be executed and not read, which takes the tier views: "

// unreadable reports whether a guard is the one that watches who reads.
func unreadable(set *guard.Set, name policy.GuardName) bool {
	r := set.Reads()
	return r != nil && r.Guard.Name == name
}

// letRead readies the view for those who may read. The domain is paused.
func (s *Session) letRead(set *guard.Set) {
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
