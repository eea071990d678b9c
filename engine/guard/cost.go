package guard

import (
	"sync/atomic"
	"time"
)

const (
	// timedDecision is which of a guard's decisions is timed: each one would cost two
	// readings of the clock, which is more than most decisions take.
	timedDecision = 16
	// slowAfter is how many timed decisions in a row must take longer than they may for
	// a guard to be slow: a single one may have met a moment in which dom0 did
	// something else.
	slowAfter = 3
	// quickAfter is how many in a row must not for it to be slow no longer.
	quickAfter = 64
)

// cost counts what a guard's decisions take. The ring goroutine counts, without a lock;
// anybody may read what is atomic.
type cost struct {
	decisions atomic.Uint64
	// timed is the sum of each sixteenth decision, in nanoseconds.
	timed atomic.Int64
	// over counts timed decisions beyond the budget, longest is the longest of them in
	// nanoseconds.
	over    atomic.Uint64
	longest atomic.Int64
	slow    atomic.Bool

	// row counts the timed decisions in a row that were beyond the budget, or below
	// zero those that were not. It is the ring goroutine's.
	row int
}

// epoch is what elapsed counts from.
var epoch = time.Now()

// elapsed is the time for who wants to know how long something takes. To read all of the
// clock takes twice as long, which in a paravirtualized dom0 can be two system calls.
func elapsed() time.Time { return epoch.Add(time.Since(epoch)) }

// decision is one that is being made.
type decision struct {
	began time.Time // zero if it is not timed
	// counts says that it is one of those by which the cost is told.
	counts bool
}

// begin counts a decision, and begins to time it if it is due, or if the last one that
// was timed took too long.
func (s *Set) begin(a *Armed) decision {
	d := decision{counts: a.cost.decisions.Add(1)%timedDecision == 0}
	if d.counts || a.cost.row > 0 {
		d.began = s.now()
	}
	return d
}

// end is to be called when the decision is made.
func (s *Set) end(a *Armed, d decision) {
	if d.began.IsZero() {
		return
	}
	c, took := &a.cost, s.now().Sub(d.began)
	if d.counts {
		c.timed.Add(int64(took))
	}
	if s.budget <= 0 {
		return
	}
	was := c.slow.Load()
	if took > s.budget {
		c.over.Add(1)
		if int64(took) > c.longest.Load() {
			c.longest.Store(int64(took))
		}
		if c.row = max(c.row, 0) + 1; c.row >= slowAfter {
			c.slow.Store(true)
		}
	} else if c.row = min(c.row, 0) - 1; c.row <= -quickAfter {
		c.row = -quickAfter
		c.slow.Store(false)
	}
	if c.slow.Load() != was {
		select {
		case s.paces <- struct{}{}:
		default:
		}
	}
}

// UseBudget says how long a guard's decision may take; 0 is as long as it likes. It
// is called before the first event can arrive.
//
// A guard that takes longer is still asked, and its answers are given: were it not, a
// guest that found out how to keep a guard busy would be rid of it.
func (s *Set) UseBudget(d time.Duration) { s.budget = d }

// Paces delivers when there is an armed guard of which Slow reports something else
// than before.
func (s *Set) Paces() <-chan struct{} { return s.paces }

// Slow reports whether the guard's decisions take longer than they may, and how long
// the longest took.
func (a *Armed) Slow() (slow bool, longest time.Duration) {
	return a.cost.slow.Load(), time.Duration(a.cost.longest.Load())
}

// OverBudget returns how many of the decisions that were timed took longer than they
// may.
func (a *Armed) OverBudget() uint64 { return a.cost.over.Load() }

// Decisions returns how many events the guard has decided on, and about how long that
// took: the time of each sixteenth decision, sixteen times. It is the time from the
// moment when the guard is known whose event it is, until its answer is, with the taking
// of evidence, and without the reading and answering of the request.
func (a *Armed) Decisions() (n uint64, took time.Duration) {
	return a.cost.decisions.Load(), timedDecision * time.Duration(a.cost.timed.Load())
}
