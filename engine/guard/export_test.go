package guard

import (
	"time"

	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
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

// NewPatchedMovingForTest returns one that nobody has told of anything.
func NewPatchedMovingForTest() *PatchedMoving { return newPatchedMoving() }

// NotePatchedForTest says that a frame has been patched.
func NotePatchedForTest(p *PatchedMoving, gfn x86.GFN) { p.note(gfn) }
