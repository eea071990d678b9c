package control

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

// Limits of what is made of what a guest was seen to do.
const (
	// LearnedBytes is how many exceptions may differ in nothing but the bytes, or
	// the value, that is written. More are one, without that condition: code that
	// patches code writes other bytes every time.
	LearnedBytes = 3
	// LearnedProcesses is the same of the process.
	LearnedProcesses = 8
	// maxKinds bounds how many kinds of violations are told apart: a guest can make
	// as many as it likes.
	maxKinds = 4 * policy.MaxExceptions
)

// Proposal is an exception that would permit what a guest was seen to do, and what
// it is made from.
type Proposal struct {
	ID string `json:"id"`
	policy.Exception
	// Violations is how many were seen that it would permit, from First to Last.
	Violations uint64    `json:"violations"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	// Event is the newest of them.
	Event journal.ID `json:"event"`
	// Untold are the conditions that it lacks because events do not tell them, Various
	// those that it lacks because too many different ones were seen, of Conditions
	// both. It permits more than was seen.
	Untold  []string `json:"untold,omitempty"`
	Various []string `json:"various,omitempty"`
}

// Broad reports whether the exception permits more than was seen.
func (p *Proposal) Broad() bool { return len(p.Untold) > 0 || len(p.Various) > 0 }

// Learned is what can be made of what a guest was seen to do.
type Learned struct {
	// Proposals permit it, those that permit most violations first.
	Proposals []Proposal `json:"proposals"`
	// Violations is how many were seen in all, from First to Last.
	Violations uint64    `json:"violations"`
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	// Unrecorded is how many there were besides that have no record of their own,
	// since there were too many at once.
	Unrecorded uint64 `json:"unrecorded"`
	// Unproposed is how many no exception can permit that permits less than all that
	// the guard is for, or of kinds beyond the number that is told apart.
	Unproposed uint64 `json:"unproposed"`
}

// Learner proposes exceptions from violations. The zero Learner has seen none.
type Learner struct {
	// Any are the conditions that are left out of all, as in ExceptionOf.
	Any map[string]bool

	kinds   map[string]*Proposal
	learned Learned
}

// Add takes a record into account, if it is of a violation.
func (l *Learner) Add(r *journal.Record) {
	if r.Guard == "" || r.Action == journal.Noted {
		return
	}
	if r.Detail.Suppressed > 0 {
		l.learned.Unrecorded += r.Detail.Suppressed
		return
	}
	n := 1 + r.Detail.Repeats
	l.learned.Violations += n
	l.learned.First, l.learned.Last = span(l.learned.First, l.learned.Last, r.Time)
	p := Proposal{Violations: n, First: r.Time, Last: r.Time, Event: r.ID}
	any := map[string]bool{}
	for c, left := range l.Any {
		any[c] = left
	}
	for {
		e, err := ExceptionOf(r, any)
		var un *UnnamedError
		if errors.As(err, &un) && !any[un.Condition] {
			any[un.Condition] = true
			p.Untold = append(p.Untold, un.Condition)
			continue
		}
		p.Exception = e
		if err != nil || e.Validate() != nil {
			l.learned.Unproposed += n
			return
		}
		break
	}
	if l.kinds == nil {
		l.kinds = map[string]*Proposal{}
	}
	p.ID = p.Exception.ID()
	if len(l.kinds) >= maxKinds && l.kinds[p.ID] == nil {
		l.learned.Unproposed += n
		return
	}
	l.put(p)
}

// put adds a proposal, to one that permits the same if there is one.
func (l *Learner) put(p Proposal) {
	old := l.kinds[p.ID]
	if old == nil {
		l.kinds[p.ID] = &p
		return
	}
	old.Violations += p.Violations
	if p.Last.After(old.Last) {
		old.Event = p.Event
	}
	old.First, _ = span(old.First, old.Last, p.First)
	_, old.Last = span(old.First, old.Last, p.Last)
	old.Untold = union(old.Untold, p.Untold)
	old.Various = union(old.Various, p.Various)
}

// Result returns what was learnt so far.
func (l *Learner) Result() Learned {
	l.merge(AnyBytes, LearnedBytes, func(e *policy.Exception) { e.Bytes, e.Value = "", "" })
	l.merge(AnyProcess, LearnedProcesses, func(e *policy.Exception) { e.Process = "" })
	out := l.learned
	out.Proposals = []Proposal{}
	for _, p := range l.kinds {
		out.Proposals = append(out.Proposals, *p)
	}
	slices.SortFunc(out.Proposals, func(a, b Proposal) int {
		return cmp.Or(cmp.Compare(b.Violations, a.Violations), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// merge makes one of the proposals that differ in one condition alone, where there
// are more than most of them.
func (l *Learner) merge(condition string, most int, without func(*policy.Exception)) {
	groups := map[string][]Proposal{}
	for _, p := range l.kinds {
		wide := p.Exception
		without(&wide)
		if wide == p.Exception || wide.Validate() != nil {
			continue // it has no such condition, or nothing else
		}
		groups[wide.ID()] = append(groups[wide.ID()], *p)
	}
	for _, g := range groups {
		if len(g) <= most {
			continue
		}
		for _, p := range g {
			delete(l.kinds, p.ID)
		}
		for _, p := range g {
			without(&p.Exception)
			p.ID = p.Exception.ID()
			p.Various = union(p.Various, []string{condition})
			l.put(p)
		}
	}
}

// union is a with what only b has, in the order of Conditions.
func union(a, b []string) []string {
	var out []string
	for _, c := range Conditions() {
		if slices.Contains(a, c) || slices.Contains(b, c) {
			out = append(out, c)
		}
	}
	return out
}

// span widens the time from first to last, zero if there is none yet, to hold t.
func span(first, last, t time.Time) (time.Time, time.Time) {
	if first.IsZero() || t.Before(first) {
		first = t
	}
	if t.After(last) {
		last = t
	}
	return first, last
}
