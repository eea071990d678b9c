package engine

import (
	"slices"
	"sync"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// useExceptions puts in force what is permitted in the domain now: by its policy,
// and by the host. The counts of exceptions that are in force already go on.
func (s *Session) useExceptions() {
	list := slices.Clone(s.policy.Exceptions)
	if s.permitted != nil {
		list = append(list, s.permitted(s.info.UUID)...)
	}
	uuid := s.info.UUID.String()
	list = slices.DeleteFunc(list, func(e policy.Exception) bool { return e.Domain != "" && e.Domain != uuid })
	x := guard.NewExceptions(list, s.kernel, s.exceptions.Load())
	s.exceptions.Store(x)
	if s.set != nil {
		s.set.UseExceptions(x)
	}
}

// RefreshExceptions has every session ask anew what is permitted, and returns
// when that is in force. No guest is paused for it.
func (e *Engine) RefreshExceptions() {
	e.mu.Lock()
	ds := make([]*domain, 0, len(e.domains))
	for _, d := range e.domains {
		ds = append(ds, d)
	}
	e.mu.Unlock()
	var all sync.WaitGroup
	for _, d := range ds {
		if s := d.current(); s != nil {
			all.Go(func() {
				s.do(func() {
					// Before there is a kernel nothing is armed; then arm asks.
					if s.kernel != nil && !s.finished {
						s.useExceptions()
					}
				})
			})
		}
	}
	all.Wait()
}

// Permitted returns the host's exceptions that hold for a domain, besides those of
// its policy. It must return soon, and may be called from many goroutines.
type Permitted func(xen.UUID) []policy.Exception
