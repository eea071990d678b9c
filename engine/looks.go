package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Some guards look into the guest now and then for what they can't trap. A look
// takes milliseconds, and seconds where something is suspicious and must be seen to
// last; so a goroutine of its own makes them, with memory of its own that is
// mapped for one look. It shares nothing with the session but what can't change,
// and hands in what it found.

const (
	// firstLook is within what time of the arming the first look is made, and not before
	// half of it: a guest that boots has better to do.
	firstLook = 40 * time.Second
	// maxFailedLooks is how many looks in a row may fail before the guard is said to
	// see nothing: one may meet a guest that is busy changing what is read, and a
	// hostile guest can have all of them fail.
	maxFailedLooks = 3
)

// looks are those of one session. They are the session goroutine's, but for what
// look uses.
type looks struct {
	cancel  context.CancelFunc
	ended   chan struct{}
	results chan lookResult
	// known is what was found the last time, by guard. What is not found any more may
	// be told again.
	known map[policy.GuardName]map[string]findingState
	// failed counts the looks in a row that failed, by guard, and blind has what
	// the guard was before it was said to see nothing.
	failed map[policy.GuardName]int
	blind  map[policy.GuardName]GuardStatus
}

// findingState is what has become of what a look has found.
type findingState uint8

const (
	findingTold      findingState = iota + 1
	findingPermitted              // by an exception, and counted
)

// lookResult is what one look of a guard has found.
type lookResult struct {
	guard   policy.GuardName
	verdict report.Verdict
	err     error
}

// lookDue is a guard that looks, again and again.
type lookDue struct {
	guard guard.Guard
	find  guard.Find
	chore *chore
}

// startLooks begins to look for all guards of the policy that do.
func (s *Session) startLooks() {
	s.stopLooks()
	var due []lookDue
	wake := make(chan struct{}, 1)
	now := time.Now()
	for _, g := range guard.All() {
		if g.Look == nil || s.policy.Action(g.Name) == policy.ActionOff {
			continue
		}
		if find := g.Look.Finding(s.policy); find != nil {
			first := now.Add(s.firstLook/2 + rand.N((s.firstLook+1)/2))
			due = append(due, lookDue{guard: g, find: find, chore: s.chores.add(first, g.Look.Every, g.Look.Jitter(), wake)})
		}
	}
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &looks{
		cancel: cancel, ended: make(chan struct{}), results: make(chan lookResult),
		known:  map[policy.GuardName]map[string]findingState{},
		failed: map[policy.GuardName]int{}, blind: map[policy.GuardName]GuardStatus{},
	}
	if s.looks != nil {
		l.known = s.looks.known // told before the policy changed
	}
	s.looks = l
	go func() {
		defer close(l.ended)
		look(ctx, s.hv, s.info, s.kernel, due, wake, l.results)
		for _, d := range due {
			s.chores.drop(d.chore)
		}
	}()
}

// stopLooks ends them, and returns when none of the guest's memory is mapped for
// one any more. What was told stays known.
func (s *Session) stopLooks() {
	if s.looks == nil || s.looks.cancel == nil {
		return
	}
	s.looks.cancel()
	<-s.looks.ended
	s.looks.cancel = nil
}

// found delivers what looks have found.
func (s *Session) found() <-chan lookResult {
	if s.looks == nil {
		return nil
	}
	return s.looks.results
}

// look makes those looks that are due each time it is woken, until ctx ends.
func look(ctx context.Context, hv Hypervisor, info xen.DomainInfo, k *linux.Kernel, due []lookDue, wake <-chan struct{}, results chan<- lookResult) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		for _, d := range due {
			if !d.chore.taken() {
				continue
			}
			r := lookResult{guard: d.guard.Name}
			r.verdict, r.err = lookOnce(ctx, hv, info, k, howRead(d.guard.Look), d.find)
			select {
			case <-ctx.Done():
				return
			case results <- r:
			}
		}
	}
}

// errOtherKernel: the guest runs another kernel than the one that was identified.
var errOtherKernel = errors.New("the guest's processors don't run the kernel that was identified")

// howRead is how a look reads.
func howRead(l *guard.Look) xen.Reading {
	if l.Bulk {
		return xen.InARow
	}
	return xen.HereAndThere
}

// lookOnce looks into a domain's kernel.
func lookOnce(ctx context.Context, hv Hypervisor, info xen.DomainInfo, k *linux.Kernel, how xen.Reading, find guard.Find) (v report.Verdict, err error) {
	mem := newReading(ctx, nil, hv.OpenMemoryFor(info.ID, how))
	defer func() { err = errors.Join(err, mem.Close()) }()
	registers := func() ([]x86.Registers, error) { return registers(hv, info) }
	regs, err := registers()
	if err != nil {
		return v, err
	}
	if k = k.Over(mem); !k.RunsOn(&regs[0]) {
		return v, errOtherKernel
	}
	tlb, giveBack := borrowTLB()
	defer giveBack()
	r := k.NewReaderWith(tlb, regs)
	r.Follow(ctx, registers)
	v, err = find(r)
	// A reader may have left out what it could not read any more.
	return v, errors.Join(err, mem.stopped())
}

// problem is why a look has told nothing, or nil. A check that the kernel does not
// have is no problem unless it has none of them.
func (l *lookResult) problem() error {
	if l.err != nil {
		return l.err
	}
	var missing []string
	for _, c := range l.verdict.Checks {
		switch c.Status {
		case report.CheckUnavailable:
			missing = append(missing, c.Why)
		case report.CheckFailed:
			return fmt.Errorf("%s: %s", c.Name, c.Why)
		}
	}
	if len(missing) == len(l.verdict.Checks) {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}

// tell records what a look has found and what was not found before.
func (s *Session) tell(l lookResult) {
	if err := l.problem(); err != nil {
		s.log.Debug("a look into the guest failed", "guard", string(l.guard), "err", err)
		if s.looks.failed[l.guard]++; s.looks.failed[l.guard] == maxFailedLooks {
			s.looks.blind[l.guard] = s.blinded(l.guard, fmt.Sprintf("its last %d looks into the guest failed: %v", maxFailedLooks, err))
		}
		return
	}
	if was, blind := s.looks.blind[l.guard]; blind {
		delete(s.looks.blind, l.guard)
		s.seeing(was)
	}
	s.looks.failed[l.guard] = 0
	means := map[string]string{}
	for _, c := range l.verdict.Checks {
		means[c.Name] = c.Means
	}
	before, now := s.looks.known[l.guard], map[string]findingState{}
	s.looks.known[l.guard] = now
	for _, f := range l.verdict.Findings {
		key := f.Check + "\x00" + string(f.Object)
		if now[key] != 0 {
			continue
		}
		switch {
		case s.permits(l.guard, f.Object, f.Detail, before[key] == findingPermitted):
			now[key] = findingPermitted
			continue
		case before[key] == findingTold:
			now[key] = findingTold
			continue
		}
		now[key] = findingTold
		s.countFound(l.guard, 1)
		done := s.outcomeFound(l.guard)
		if at := time.Now(); !s.affordable(l.guard, at) {
			s.unrecorded.Add(1)
			s.suppress(l.guard, done, at, 1)
			continue
		}
		r := s.write(done.in(findingRecord(l.guard, f, means[f.Check])))
		s.explainStop(l.guard, r.ID)
	}
}

// permits reports whether an exception permits what a guard has found, and counts it
// unless that was so the last time too.
func (s *Session) permits(name policy.GuardName, object, what printable.Text, again bool) bool {
	if !s.exceptions.Load().PermitsFinding(name, string(object), string(what), again, time.Now()) {
		return false
	}
	if !again {
		s.countAllowed(name, 1)
	}
	return true
}

// blinded says of a guard that it sees nothing, and returns what it was.
func (s *Session) blinded(name policy.GuardName, why string) (was GuardStatus) {
	for _, g := range s.Status().Guards {
		if g.Name == name {
			was = g
		}
	}
	s.setGuard(name, GuardDegraded, why)
	s.settle()
	return was
}

// seeing takes that back. What the guard was need not have been armed: where it can
// only compare, it does that again.
func (s *Session) seeing(was GuardStatus) {
	s.setGuard(was.Name, was.State, was.Reason)
	s.settle()
}

// countFound counts what a guard has found.
func (s *Session) countFound(name policy.GuardName, n int) {
	s.update(func(st *Status) {
		for i := range st.Guards {
			if g := &st.Guards[i]; g.Name == name {
				g.Violations += uint64(n)
				g.Found += uint64(n)
			}
		}
	})
}

// countAllowed counts what a guard has found that exceptions permit.
func (s *Session) countAllowed(name policy.GuardName, n uint64) {
	s.update(func(st *Status) {
		for i := range st.Guards {
			if g := &st.Guards[i]; g.Name == name {
				g.Allowed += n
			}
		}
	})
}

// foundRecord is the record of something that was found, when nobody could see any
// more who did it.
func foundRecord(name policy.GuardName, target journal.Target) journal.Record {
	const late = "it was found afterwards"
	return journal.Record{
		Time: time.Now(), Guard: string(name), Action: journal.Found,
		Process: journal.Process{Unknown: late}, Target: target,
		Before: journal.Unknown(late), Attempted: journal.Unknown(late),
	}
}

// findingRecord is the record of what a look has found.
func findingRecord(name policy.GuardName, f report.Finding, means string) journal.Record {
	o := &journal.ObjectTarget{Check: f.Check, Name: f.Object, What: f.Detail}
	if f.Place != nil {
		o.Leads = &journal.Location{Addr: f.Place.Addr, Symbol: f.Place.Symbol, Offset: journal.Hex(f.Place.Offset), Module: f.Place.Module}
	}
	r := foundRecord(name, journal.Target{Kind: journal.TargetObject, Object: o})
	r.Detail.Note = report.Text(means)
	r.Detail.Log = crashLog(f.Log)
	return r
}
