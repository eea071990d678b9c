package guard

import (
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
)

// UseClock has the set read another clock than the system's.
func (s *Set) UseClock(now func() time.Time) { s.now = now }

// Hamper has an armed guard do something else first whenever it decides.
func (s *Set) Hamper(name policy.GuardName, first func()) {
	for _, a := range s.armed {
		if a.Guard.Name == name {
			judge := a.judge
			a.judge = func(ev *vmevent.Event) bool {
				first()
				return judge(ev)
			}
		}
	}
}
