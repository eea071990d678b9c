package engine

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/view"
)

// Guards that judge calls stand at hidden breakpoints. These are like those that an
// admin sets, share pages and places with them, and are the set's: they come and go with
// it, and hvictl breakpoint does not show them.

// needsViews is why a guard of calls can't be had without a view.
const needsViews = "it judges what processes ask of the kernel, which takes the tier views: "

// nothingToDo is why such a guard is inactive.
const nothingToDo = "its policy gives it nothing to do: it lists no process"

// placeCalls puts the breakpoints of the guards that judge calls into the view that the
// domain, which is paused, runs in. A guard of which one can't be placed is degraded.
func (s *Session) placeCalls(set *guard.Set) {
	places := set.Places()
	for _, a := range set.Armed() {
		switch {
		case a.Guard.Calls == nil:
		case slices.ContainsFunc(places, func(p *guard.Place) bool { return slices.Contains(p.Guards, a.Guard.Name) }):
			if s.views == nil {
				s.setGuard(a.Guard.Name, GuardUnavailable, needsViews+s.Status().TierReason)
			}
		case a.Guard.Look == nil || a.Guard.Look.Finding(s.policy) == nil:
			s.setGuard(a.Guard.Name, GuardInactive, nothingToDo)
		}
	}
	if s.views == nil {
		return
	}
	for _, p := range places {
		if err := s.placeCall(p); err != nil {
			s.callLost(p, fmt.Errorf("no breakpoint could be placed at %s: %w", p.Symbol, err))
		}
	}
}

func (s *Session) placeCall(p *guard.Place) error {
	b, err := s.locate(p.Symbol)
	if err != nil {
		return err
	}
	b.call, b.point.Judge = p, p.Judge
	if err := s.place(b); err != nil {
		return err
	}
	s.hidden.points = append(s.hidden.points, b)
	return nil
}

// callLost says of the guards that judge at a place that they see nothing there.
func (s *Session) callLost(p *guard.Place, why error) {
	for _, name := range p.Guards {
		s.setGuard(name, GuardDegraded, why.Error())
	}
	s.log.Error("guards don't see calls", "place", p.Symbol, "err", why)
}

// dropCalls forgets the breakpoints of guards that are taken down, with the views that
// they were in.
func (s *Session) dropCalls() {
	s.hidden.points = slices.DeleteFunc(s.hidden.points, func(b *breakpoint) bool { return b.call != nil })
	for _, b := range s.hidden.points {
		if b.point.Judge != nil { // it was shared
			own := &view.Point{At: b.point.At}
			own.Hits.Store(b.hits())
			b.point, b.before = own, 0
		}
	}
}

// shareWithGuards gives an admin's breakpoint that of guards at the same place, of which
// there can be one alone.
func (s *Session) shareWithGuards(b *breakpoint) {
	for _, other := range s.hidden.points {
		if b.call == nil && other.call != nil && other.point.At == b.point.At && other.point != b.point {
			b.point, b.before = other.point, other.point.Hits.Load()-b.hits()
		}
	}
}

// hits is how often a vCPU came to it since it was asked for.
func (b *breakpoint) hits() uint64 { return b.point.Hits.Load() - b.before }

// kind orders breakpoints: those of guards first.
func kind(b *breakpoint) int {
	if b.call != nil {
		return 0
	}
	return 1
}

// lose tells of a breakpoint that is no more.
func (s *Session) lose(b *breakpoint, why error) {
	if b.call != nil {
		s.callLost(b.call, fmt.Errorf("the breakpoint at %s is lost: %w", b.symbol, why))
		s.settle()
		return
	}
	s.log.Warn("breakpoint lost", "symbol", b.symbol, "err", why)
}

// errNoView: the domain has no view any more.
var errNoView = errors.New("the domain has no view any more")

// callTarget says what was wrong with a call.
func callTarget(c *guard.CallEvidence) *journal.CallTarget {
	t := &journal.CallTarget{Program: printable.Escape(string(c.Program())), RIP: c.User.RIP, RSP: c.User.RSP}
	what := ""
	switch c.Fault {
	case guard.FaultCode:
		what = "executes a program from code that is in no file: " + mappingWords(c)
	case guard.FaultStack:
		what = "executes a program with its stack pointer where no stack is: " + mappingWords(c)
	case guard.FaultCredentials:
		what = "executes a program and " + c.Credentials.String()
	case guard.FaultChild:
		what = "executes a program and may start none"
	case guard.FaultTrace:
		what = "begins to trace a process that is protected"
	case guard.FaultWrite:
		what = "writes into the memory of a process that is protected"
	case guard.FaultMemory:
		what = "opens the memory of a process that is protected, to write"
	case guard.NoteExec:
		what = "executes a program"
	case guard.NoteFork:
		what = "makes a process"
	case guard.NoteExit:
		what = "ends, with status " + strconv.Itoa(int(c.Code>>8&0xff))
		if signal := c.Code & 0x7f; signal != 0 {
			what = "ends by signal " + strconv.Itoa(int(signal))
		}
	}
	t.What = printable.Text(what)
	if c.HasVictim {
		t.Victim = &journal.Parent{TGID: c.Victim.TGID, Comm: printable.Escape(c.Victim.Name())}
	}
	return t
}

// mappingWords says in words what the code or the stack of a process lay in.
func mappingWords(c *guard.CallEvidence) string {
	m := &c.Mapping
	if !c.Mapped {
		return "nothing is mapped there"
	}
	kind := "anonymous memory"
	switch {
	case c.Heap:
		kind = "the heap"
	case m.File():
		kind = "a file's memory"
	case m.Special():
		kind = "memory of the kernel's own making"
	case m.Stack():
		kind = "the stack"
	}
	rights := ""
	for _, r := range []struct {
		has  bool
		word string
	}{{m.Writable(), "writable"}, {m.Executable(), "executable"}} {
		if r.has {
			rights += ", " + r.word
		}
	}
	return fmt.Sprintf("%s from %s to %s%s", kind, m.Start, m.End, rights)
}

// notes delivers the calls that are to be recorded and are no violations.
func (s *Session) notes() <-chan guard.Evidence {
	if s.set == nil {
		return nil
	}
	return s.set.Notes()
}

var noted = outcome{action: journal.Noted}

// noteCall records one, as far as the guard's budget for such goes.
func (s *Session) noteCall(e *guard.Evidence) {
	s.countOverflow()
	if !s.fold.budgetOf(budgetOwner{e.Guard, true}).affords(e.When()) {
		s.suppress(e.Guard, noted, e.When(), 1)
		return
	}
	s.write(noted.in(s.newRecord(e)))
}

// countUnnoted takes over what a guard's queue of notes had no room for.
func (s *Session) countUnnoted(a *guard.Armed) {
	n := a.Unnoted.Load()
	if n == s.fold.unnoted[a] {
		return
	}
	s.suppress(a.Guard.Name, noted, time.Now(), n-s.fold.unnoted[a])
	if s.fold.unnoted == nil {
		s.fold.unnoted = make(map[*guard.Armed]uint64)
	}
	s.fold.unnoted[a] = n
}
