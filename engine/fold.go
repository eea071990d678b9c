package engine

import (
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// foldWindow is how long repetitions of one violation are gathered.
	foldWindow = time.Second
	// maxRecords bounds the records of one guard of one domain in a foldWindow.
	// Violations beyond it are judged and answered as ever, counted as unrecorded,
	// and told by one record that says how many they are: a guest must not fill
	// dom0's journal and log by attacking in a loop.
	maxRecords = 100
)

// violationKey is what two violations share that differ in time alone.
type violationKey struct {
	guard     policy.GuardName
	action    policy.Action
	rip       uint64
	pid       int32
	reason    vmevent.Reason
	target    x86.PhysAddr
	msr       vmevent.MSRWrite
	cr        vmevent.CtrlRegWrite
	call      guard.CallEvidence
	attempted string
	fate      *guard.Fate
}

func keyOf(e *guard.Evidence) violationKey {
	k := violationKey{guard: e.Guard, action: e.Action, rip: e.Regs.RIP, pid: e.Task.PID, reason: e.Reason, fate: e.Fate}
	switch e.Reason {
	case vmevent.ReasonMemAccess:
		if e.Mem.Flags&vmevent.AccessWrite != 0 { // who reads on and on is told of once
			k.target = e.Mem.Phys()
		}
		b, _ := e.Attempted() // what can't be told is the same for all
		k.attempted = string(b)
	case vmevent.ReasonWriteCtrlReg:
		k.cr = e.CR
	case vmevent.ReasonSoftwareBreakpoint:
		k.call = e.Call
	default:
		k.msr = e.MSR
	}
	return k
}

// folder gathers repetitions of the violation recorded last. It is the
// session's goroutine's.
type folder struct {
	key   violationKey
	last  journal.Record
	begin time.Time // of the window
	// repeats counts violations like last since it was recorded, when the
	// time of the latest.
	repeats uint64
	when    time.Time
	timer   *time.Timer

	// budgets are those of each guard, and summary is when what they suppressed is
	// due to be told, nil while there is nothing.
	budgets map[budgetOwner]*budget
	summary *time.Timer
	// overflow is what each guard's queue has told already, unnoted what that of its notes
	// has.
	overflow, unnoted map[*guard.Armed]uint64
}

// budget is a guard's in one window.
type budget struct {
	begin   time.Time // of the window
	records int
	// suppressed counts the violations without a record of their own that were not
	// told yet; when and outcome are those of the latest.
	suppressed uint64
	when       time.Time
	outcome    outcome
}

// report records a violation, or counts it to the one before.
func (s *Session) report(e *guard.Evidence) {
	s.stopIfDue()
	s.countOverflow()
	f := &s.fold
	key := keyOf(e)
	if key == f.key && within(f.begin, e.When()) {
		if f.repeats++; f.repeats == 1 {
			f.timer = time.NewTimer(foldWindow)
		}
		f.when = e.When()
		return
	}
	s.flush()
	if !s.affordable(e.Guard, e.When()) {
		s.unrecorded.Add(1)
		s.suppress(e.Guard, s.outcomeOf(e.Action, e.Fate), e.When(), 1)
		return
	}
	r := s.outcomeOf(e.Action, e.Fate).in(s.newRecord(e))
	if e.Action.Stops() && s.stop.last == "" {
		r.Detail.Note = printable.Escape("the domain could not be stopped: " + s.stop.problem())
	}
	if f := e.Fate; f != nil && !f.Killed {
		r.Detail.Note = printable.Escape("the process was not killed: " + f.Spared)
	}
	r = s.write(r)
	s.explainStop(e.Guard, r.ID)
	f.key, f.last, f.begin = key, r, e.When()
}

// within reports whether t lies in the window that began at begin. dom0's clock
// may be set back: then the window is over.
func within(begin, t time.Time) bool {
	d := t.Sub(begin)
	return d >= 0 && d < foldWindow
}

// budgetOwner is whose a budget is: a guard's, for violations, or for what it notes,
// which must not take the place of those.
type budgetOwner struct {
	guard policy.GuardName
	notes bool
}

// budgetOf returns a budget.
func (f *folder) budgetOf(of budgetOwner) *budget {
	b := f.budgets[of]
	if b == nil {
		if f.budgets == nil {
			f.budgets = make(map[budgetOwner]*budget)
		}
		b = new(budget)
		f.budgets[of] = b
	}
	return b
}

// affordable reports whether the guard may have another record at that time, and
// counts it.
func (s *Session) affordable(g policy.GuardName, at time.Time) bool {
	return s.fold.budgetOf(budgetOwner{guard: g}).affords(at)
}

func (b *budget) affords(at time.Time) bool {
	if !within(b.begin, at) {
		b.begin, b.records = at, 0
	}
	b.records++
	return b.records <= maxRecords
}

// suppress counts violations that have no record of their own, to be told together.
func (s *Session) suppress(g policy.GuardName, o outcome, at time.Time, n uint64) {
	b := s.fold.budgetOf(budgetOwner{g, o.action == journal.Noted})
	b.suppressed += n
	b.when, b.outcome = at, o
	if s.fold.summary == nil {
		s.fold.summary = time.NewTimer(foldWindow)
	}
}

// countOverflow takes over what found no room in the queue of evidence.
func (s *Session) countOverflow() {
	if s.set == nil {
		return
	}
	for _, a := range s.set.Armed() {
		n := a.Unrecorded.Load()
		s.countUnnoted(a)
		if n == s.fold.overflow[a] {
			continue
		}
		s.suppress(a.Guard.Name, s.outcomeOf(a.Action, nil), time.Now(), n-s.fold.overflow[a])
		if s.fold.overflow == nil {
			s.fold.overflow = make(map[*guard.Armed]uint64)
		}
		s.fold.overflow[a] = n
	}
}

// summaryDue is when summarize is due, nil if there is nothing to tell.
func (f *folder) summaryDue() <-chan time.Time {
	if f.summary == nil {
		return nil
	}
	return f.summary.C
}

// summarize records, for each guard, how many violations have no record of their
// own: one record a window at most, so that nothing is lost silently.
func (s *Session) summarize() {
	s.countOverflow()
	f := &s.fold
	if f.summary == nil {
		return
	}
	f.summary.Stop()
	f.summary = nil
	for i, g := range slices.Repeat(policy.Guards(), 2) {
		b := f.budgets[budgetOwner{g.Name, i >= len(policy.Guards())}]
		if b == nil || b.suppressed == 0 {
			continue
		}
		const many = "there were too many"
		s.write(journal.Record{
			Time: b.when, Guard: string(g.Name), Action: b.outcome.action, Prevented: b.outcome.prevented,
			Process: journal.Process{Unknown: many}, Target: journal.Target{Kind: journal.TargetSeveral},
			Before: journal.Unknown(many), Attempted: journal.Unknown(many), Detail: journal.Detail{Suppressed: b.suppressed},
		})
		b.suppressed = 0
	}
}

// flush records the repetitions gathered.
func (s *Session) flush() {
	f := &s.fold
	if f.repeats > 0 {
		f.timer.Stop()
		if !s.affordable(f.key.guard, f.when) {
			s.unrecorded.Add(f.repeats)
			s.suppress(f.key.guard, outcome{f.last.Action, f.last.Prevented}, f.when, f.repeats)
			f.repeats = 0
		}
	}
	if f.repeats > 0 {
		r := f.last
		r.ID, r.Time, r.Detail.Repeats = "", f.when, f.repeats-1
		s.write(r)
	}
	f.key, f.repeats = violationKey{}, 0
}

// flushDue is when flush is due, nil if nothing is gathered.
func (f *folder) flushDue() <-chan time.Time {
	if f.repeats == 0 {
		return nil
	}
	return f.timer.C
}

// write hands a record to the journal and to the log, and returns it as kept.
func (s *Session) write(r journal.Record) journal.Record {
	r.Domain = journal.Domain{UUID: s.info.UUID.String(), Name: printable.Escape(s.status.Load().Name), ID: uint16(s.info.ID)}
	if s.kernel != nil {
		r.Domain.Kernel = printable.Escape(s.kernel.Release)
	}
	r.Mode = s.policy.Mode.String()
	for _, g := range s.policy.Guards {
		if string(g.Name) == r.Guard {
			r.Policy = printable.Escape(g.From)
		}
	}
	if r.Action == journal.Paused {
		r.Detail.Dump = printable.Escape(s.stop.dump)
	}
	if r.Action == journal.Noted {
		r.Severity = journal.Informational
	} else if a, ok := policy.LookupAbout(policy.GuardName(r.Guard)); ok {
		r.Severity = journal.SeverityOf(r.Action, journal.Severity(a.Severity))
		r.Attack = nil
		for _, t := range a.Techniques {
			r.Attack = append(r.Attack, journal.Technique(t))
		}
	}
	r, err := s.record.Append(r)
	if err != nil {
		s.log.Error("a violation could not be written to the journal", "err", err, "violation", r.Summary())
	}
	if r.Action == journal.Noted {
		s.log.Info("noted", "id", r.ID, "guard", r.Guard, "summary", r.Summary())
		return r
	}
	s.log.Warn("violation", "id", r.ID, "guard", r.Guard, "action", r.Action, "summary", r.Summary())
	return r
}
