package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// ScanPeriod is within what time a change is found: a round of scanTicks, in
	// each of which some is compared, and the looks that confirm it.
	ScanPeriod = 30 * time.Second
	scanTick   = time.Second
	scanTicks  = int(ScanPeriod/scanTick) - scanLooks
	// scanLooks is how often in a row, a tick apart, a change must be seen. The
	// kernel patches itself within milliseconds.
	scanLooks = 3
	// scanLooksUnderWay is that of what the kernel itself makes of a place while it
	// patches it: an INT3, which nobody gains anything by who doesn't change more. The
	// task that patches may be preempted there, and its guest be given little time. As
	// long as the kernel's lock says that one is at it, it is none of its looks.
	scanLooksUnderWay = 20
	// scanBudget bounds what one tick may take of a processor of dom0; what is
	// not done by then is the next tick's. A Debian kernel's share of a tick
	// takes under a millisecond.
	scanBudget = 100 * time.Millisecond
	// maxScanRecords bounds the records of one part: a guest that rewrites its
	// whole code is told of, not quoted.
	maxScanRecords = 4
)

// scan finds, some time afterwards, what a guard can't prevent on this platform:
// it compares what the guard protects with what it was when it was armed. The
// order is another one each time, so that a guest can't be ahead of it.
//
// It belongs to the session's goroutine.
type scan struct {
	guard   policy.GuardName
	scanner guard.Scanner

	order    []int             // of this round
	next     int               // in order
	suspects map[int]suspicion // parts with a change
	// undo undoes a change, and says what came of it; nil where that can't be done.
	undo func(part int, c guard.Change) (note string, undone bool)

	// lazy is that of the rounds, of which the next is due at nextRound.
	lazy      lazy
	nextRound time.Time
}

// suspicion is of a part in which something has changed.
type suspicion struct {
	looks int // in a row in which it was seen
	// at are the places that were changed in all of them.
	at []x86.VirtAddr
}

// again takes in another look, and returns those of the changes that were there in
// each of them. One that is elsewhere each time is a kernel at work.
func (s *suspicion) again(changes []guard.Change) []guard.Change {
	if s.looks > 0 {
		changes = slices.DeleteFunc(slices.Clone(changes), func(c guard.Change) bool { return !slices.Contains(s.at, c.Addr) })
	}
	s.looks++
	s.at = s.at[:0]
	for _, c := range changes {
		s.at = append(s.at, c.Addr)
	}
	return changes
}

// due reports whether a new round is to begin.
func (sc *scan) due(guest *activity) bool {
	now := time.Now()
	if now.Before(sc.nextRound) && !guest.busySince(sc.lazy.last) {
		return false
	}
	sc.nextRound = now.Add(time.Duration(scanTicks) * scanTick)
	return sc.lazy.due(guest, now)
}

// startScans begins to scan for the guards that the tier can't carry and that can
// do so. The domain must be paused.
func (s *Session) startScans() {
	s.stopScans()
	for _, g := range guard.All() {
		if g.Scan == nil || s.policy.Action(g.Name) == policy.ActionOff {
			continue
		}
		var now GuardStatus
		for _, st := range s.Status().Guards {
			if st.Name == g.Name {
				now = st
			}
		}
		if now.State != GuardUnavailable {
			continue
		}
		if v := s.currentView(); v != nil && !v.Holds(g.Name) {
			s.setGuard(g.Name, GuardUnavailable, now.Reason+"; and "+notInView(v.Name, s.policy.Views, g.Name))
			continue
		}
		scanner, err := g.Scan(&guard.Target{Kernel: s.kernel, Boot: s.arming, Actions: s.actions()})
		if err != nil {
			s.log.Warn("no scan instead of a guard", "guard", string(g.Name), "err", err)
			s.setGuard(g.Name, GuardUnavailable, now.Reason+"; and it can't be scanned for: "+err.Error())
			continue
		}
		s.scans = append(s.scans, &scan{
			guard: g.Name, scanner: scanner,
			order: rand.Perm(scanner.Parts()), suspects: make(map[int]suspicion),
		})
		s.setGuard(g.Name, GuardScanning, fmt.Sprintf("%s; instead a change is found within %v, and not prevented", now.Reason, ScanPeriod))
	}
	if len(s.scans) > 0 {
		s.scanning = s.chores.addEager(scanTick, s.chore)
	}
}

func (s *Session) stopScans() {
	s.chores.drop(s.scanning)
	s.scans, s.scanning = nil, nil
}

// scanSome does one tick's share of each scan.
func (s *Session) scanSome() {
	tlb, giveBack := borrowTLB()
	defer giveBack()
	r := s.kernel.NewReaderWith(tlb, nil)
	for _, sc := range s.scans {
		until := time.Now().Add(scanBudget)
		sc.scanner.Refresh(r)
		// In no order, so that a guest that changes everything can't have the same
		// parts wait each time.
		for part := range sc.suspects {
			if time.Now().After(until) {
				break
			}
			s.scanPart(r, sc, part)
		}
		share := len(sc.order)/scanTicks + 1
		for n := 0; n < share && time.Now().Before(until); n++ {
			if sc.next == len(sc.order) {
				if !sc.due(s.activity) {
					break
				}
				sc.order, sc.next = rand.Perm(sc.scanner.Parts()), 0
			}
			part := sc.order[sc.next]
			sc.next++
			if _, known := sc.suspects[part]; !known {
				s.scanPart(r, sc, part)
			}
		}
	}
	if s.scanning != nil {
		s.scanning.rest.Store(s.scanRest())
	}
}

// scanRest is until when there is nothing to scan, nil if there is something.
func (s *Session) scanRest() *rest {
	var all *rest
	for _, sc := range s.scans {
		if sc.next < len(sc.order) || len(sc.suspects) > 0 {
			return nil
		}
		if all == nil {
			all = &rest{until: sc.nextRound, since: sc.lazy.last}
		}
		if sc.nextRound.Before(all.until) {
			all.until = sc.nextRound
		}
		if sc.lazy.last.Before(all.since) {
			all.since = sc.lazy.last
		}
	}
	return all
}

// scanPart compares one part. What can't be read now is looked at again in the
// next round: a domain that goes away is noticed elsewhere.
func (s *Session) scanPart(r *linux.Reader, sc *scan, part int) {
	changes, err := sc.scanner.Compare(r, part)
	if err != nil {
		s.log.Debug("scan", "guard", string(sc.guard), "part", part, "err", err)
		return
	}
	s.judgeChanges(sc, part, changes)
}

// underWay says that a change is what the kernel makes of a place for a moment.
func underWay(c guard.Change) bool { return c.UnderWay }

// judgeChanges takes in what has changed in a part, and reports what lasts.
func (s *Session) judgeChanges(sc *scan, part int, changes []guard.Change) {
	sus := sc.suspects[part]
	lasting := sus.again(changes)
	switch {
	case len(changes) == 0:
		delete(sc.suspects, part)
		return
	case len(lasting) == 0:
		sus = suspicion{}
		sus.again(changes)
		fallthrough
	case sus.looks < scanLooks:
		sc.suspects[part] = sus
		return
	}
	if slices.ContainsFunc(lasting, underWay) && s.kernel.Patching() {
		// Who does it may not have had the processor since. Once it is over it must be seen
		// as often as any other change.
		sus.looks = min(sus.looks, scanLooksUnderWay-scanLooks)
	}
	if sus.looks < scanLooksUnderWay {
		if lasting = slices.DeleteFunc(lasting, underWay); len(lasting) == 0 {
			sc.suspects[part] = sus
			return
		}
	}
	delete(sc.suspects, part)
	changes = lasting
	if changes = s.withoutPermitted(sc, changes); len(changes) == 0 {
		return
	}
	s.countFound(sc.guard, len(changes))
	done := s.outcomeFound(sc.guard)
	for i, c := range changes {
		undone := false
		if sc.undo != nil {
			var note string
			if note, undone = sc.undo(part, c); note != "" {
				c.Note += "; " + note
			}
		}
		if !undone {
			sc.scanner.Accept(c)
		}
		s.tellChange(sc.guard, done, c, i < maxScanRecords)
	}
}

// tellChange records what was found, alone or with others.
func (s *Session) tellChange(name policy.GuardName, done outcome, c guard.Change, alone bool) {
	if now := time.Now(); !alone || !s.affordable(name, now) {
		s.unrecorded.Add(1)
		s.suppress(name, done, now, 1)
		return
	}
	r := s.write(done.in(s.changeRecord(name, c)))
	s.explainStop(name, r.ID)
}

// withoutPermitted returns the changes that no exception permits, and takes the
// others for known.
func (s *Session) withoutPermitted(sc *scan, changes []guard.Change) []guard.Change {
	var rest []guard.Change
	allowed := uint64(0)
	for _, c := range changes {
		if !s.exceptions.Load().PermitsChange(sc.guard, c, time.Now()) {
			rest = append(rest, c)
			continue
		}
		sc.scanner.Accept(c)
		allowed++
	}
	if allowed > 0 {
		s.countAllowed(sc.guard, allowed)
	}
	return rest
}

// changeRecord is the record of a change that was found.
func (s *Session) changeRecord(name policy.GuardName, c guard.Change) journal.Record {
	l, _ := codeLocation(s.kernel, c.Addr)
	m := &journal.MemoryTarget{Location: l}
	as := s.kernel.AddressSpace()
	if t, err := as.Translate(c.Addr); err == nil {
		m.Phys, m.GFN = t.Phys, t.Phys.GFN()
	}
	r := foundRecord(name, journal.Target{Kind: journal.TargetMemory, Memory: m})
	r.Before, r.Attempted = journal.Unknown("only its digest is kept"), journal.Bytes(c.Now[:min(len(c.Now), maxFoundBytes)])
	r.Detail = journal.Detail{Access: "w", Note: printable.Escape(c.Note)}
	return r
}

// maxFoundBytes is how much of what was found is kept.
const maxFoundBytes = 64

// actions is what the policy asks for of each guard.
func (s *Session) actions() map[policy.GuardName]policy.Action {
	out := make(map[policy.GuardName]policy.Action)
	for _, g := range s.policy.Guards {
		out[g.Name] = g.Action
	}
	return out
}
