package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Fate is what became of a task for whose violation the action is to kill. It is not
// changed once it is in use.
type Fate struct {
	Task linux.Task
	// Killed says that a SIGKILL waits for the task. Spared is why not, for people.
	Killed bool
	Spared string
}

// MaxFates is how many are worth to be known at a time: of attackers that go on while
// they are ended, or can't be.
const MaxFates = 16

// Kills delivers the evidence of each violation for which a process is to be killed.
// Its vCPU is held, and is to be released with [Evidence.Refusal]. Nobody else
// records it.
func (s *Set) Kills() <-chan Evidence { return s.kills }

// UseFates says what is decided of which tasks. A violation by one of these is blocked
// at once, and delivered as all others are. The slice must not be changed afterwards.
func (s *Set) UseFates(f []*Fate) { s.fates.Store(&f) }

// fate returns what is decided of the task of a violation, nil if nothing is.
func (s *Set) fate(e *Evidence) *Fate {
	fates := s.fates.Load()
	if fates == nil || !e.HasTask {
		return nil
	}
	for _, f := range *fates {
		if f.Task.Is(&e.Task) {
			return f
		}
	}
	return nil
}

// Refusal is the answer that prevents the violation.
func (e *Evidence) Refusal() vmevent.Verdict {
	switch e.Reason {
	case vmevent.ReasonMemAccess:
		if e.Mem.Flags&vmevent.AccessWrite == 0 && !e.carries() {
			return vmevent.ReadOnes
		}
		return vmevent.Discard
	case vmevent.ReasonSoftwareBreakpoint:
		return vmevent.Skip
	}
	return vmevent.Deny
}

// Watches reports whether a guard of the set watches a frame.
func (s *Set) Watches(gfn x86.GFN) bool {
	if _, unreadable := s.unreadable[gfn]; unreadable || s.Fixed(gfn) {
		return true
	}
	moving := s.moving.Load()
	if moving == nil {
		return false
	}
	_, watched := (*moving)[gfn]
	return watched
}
