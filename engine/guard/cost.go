package guard

import (
	"sync/atomic"
	"time"
)

// timedDecision is which of a guard's decisions is timed: each one would cost two
// readings of the clock, which is more than most decisions take.
const timedDecision = 16

// cost counts what a guard's decisions take. The ring thread counts, without a lock;
// anybody may read.
type cost struct {
	decisions atomic.Uint64
	// timed is the sum of the decisions that are timed, in nanoseconds.
	timed atomic.Int64
}

// begin counts a decision and returns when it begins, if it is timed, and else the
// zero time.
func (c *cost) begin() (began time.Time) {
	if c.decisions.Add(1)%timedDecision == 0 {
		began = time.Now()
	}
	return began
}

// end is to be called with what begin returned, when the decision is made.
func (c *cost) end(began time.Time) {
	if !began.IsZero() {
		c.timed.Add(int64(time.Since(began)))
	}
}

// Decisions returns how many events the guard has decided on, and about how long that
// took: the time of each sixteenth decision, sixteen times. It is the time from the
// moment when the guard is known whose event it is, until its answer is, with the taking
// of evidence, and without the reading and answering of the request.
func (a *Armed) Decisions() (n uint64, took time.Duration) {
	return a.cost.decisions.Load(), timedDecision * time.Duration(a.cost.timed.Load())
}
