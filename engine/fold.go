package engine

import (
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
	// maxRecords bounds the records of one domain in a foldWindow. Violations
	// beyond it are judged and answered as ever, and counted as unrecorded:
	// a guest must not fill dom0's journal and log by attacking in a loop.
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
	attempted string
}

func keyOf(e *guard.Evidence) violationKey {
	k := violationKey{guard: e.Guard, action: e.Action, rip: e.Regs.RIP, pid: e.Task.PID, reason: e.Reason}
	switch e.Reason {
	case vmevent.ReasonMemAccess:
		k.target = e.Mem.Phys()
		b, _ := e.Attempted() // what can't be told is the same for all
		k.attempted = string(b)
	case vmevent.ReasonWriteCtrlReg:
		k.cr = e.CR
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

	// budget is the window in which records are counted.
	budget  time.Time
	records int
}

// report records a violation, or counts it to the one before.
func (s *Session) report(e *guard.Evidence) {
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
	if !s.affordable(e.When()) {
		s.unrecorded.Add(1)
		return
	}
	r := s.write(newRecord(e, s.kernel))
	f.key, f.last, f.begin = key, r, e.When()
}

// within reports whether t lies in the window that began at begin. dom0's clock
// may be set back: then the window is over.
func within(begin, t time.Time) bool {
	d := t.Sub(begin)
	return d >= 0 && d < foldWindow
}

// affordable reports whether the domain may have another record at that time,
// and counts it.
func (s *Session) affordable(at time.Time) bool {
	f := &s.fold
	if !within(f.budget, at) {
		f.budget, f.records = at, 0
	}
	f.records++
	return f.records <= maxRecords
}

// flush records the repetitions gathered.
func (s *Session) flush() {
	f := &s.fold
	if f.repeats > 0 {
		f.timer.Stop()
		if !s.affordable(f.when) {
			s.unrecorded.Add(f.repeats)
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
	r.Mode = s.policy.Mode.String()
	r, err := s.record.Append(r)
	if err != nil {
		s.log.Error("a violation could not be written to the journal", "err", err, "violation", r.Summary())
	}
	s.log.Warn("violation", "id", r.ID, "guard", r.Guard, "action", r.Action, "summary", r.Summary())
	return r
}
