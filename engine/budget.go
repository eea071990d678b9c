package engine

import (
	"fmt"

	"github.com/xen-hvi/hvi/engine/guard"
)

// A vCPU stands still while a guard decides. One that takes too long for that, again
// and again, is said to be degraded. It stays in force: what it decides is right, if
// late, and a guard that were switched off for it could be switched off by a guest. One
// that does not come back at all is the keeper's to notice (engine/keeper).

// paces delivers when heedPaces has something to do.
func (s *Session) paces() <-chan struct{} {
	if s.set == nil {
		return nil
	}
	return s.set.Paces()
}

// heedPaces says of guards that they have become slow, and takes it back of those that
// are so no longer.
func (s *Session) heedPaces() {
	for _, a := range s.set.Armed() {
		name := a.Guard.Name
		slow, longest := a.Slow()
		was, known := s.slow[name]
		switch {
		case slow && !known:
			s.slow[name] = s.blinded(name, whySlow(a, s.budget.String(), longest.String()))
			s.log.Warn("a guard's decisions take longer than they may", "guard", string(name), "longest", longest, "budget", s.budget)
		case !slow && known:
			delete(s.slow, name)
			s.seeing(was)
			s.log.Info("a guard's decisions are quick again", "guard", string(name))
		}
	}
}

// whySlow says so for people.
func whySlow(a *guard.Armed, budget, longest string) string {
	return fmt.Sprintf("in force, but its decisions take longer than the %s they may (watchdog.decision), the longest %s: a processor of the guest waits that long for each", budget, longest)
}
