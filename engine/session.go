package engine

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Recorder takes the record of a violation. *journal.Journal is the real one.
type Recorder interface {
	Append(journal.Record) (journal.Record, error)
}

// Session is one domain under hvi's care, from the pause reference taken when
// it appeared to the last thing undone when it goes.
type Session struct {
	hv     Hypervisor
	ledger *ledger.Ledger
	record Recorder
	log    *slog.Logger

	info xen.DomainInfo
	// identifyWith is what the kernel is identified with, besides its memory.
	identifyWith linux.Options
	// permitted are the host's exceptions, nil for none.
	permitted Permitted
	// now is the clock of what is to be done when some time has passed since another
	// thing was.
	now func() time.Time
	// firstLook is Options.FirstLook.
	firstLook time.Duration
	// takeTextAfter is Options.TakeCode.
	takeTextAfter time.Duration
	// budget is Options.Budget.
	budget time.Duration
	// holdOnFailure keeps the domain held if it cannot be attached to.
	holdOnFailure bool

	activity *activity
	chores   chores
	chore    chan struct{} // wakes the session for its own

	commands chan func()
	quit     chan struct{} // closed when the goroutine has ended

	// Owned by the session's goroutine.
	policy   policy.Effective
	arming   x86.Registers  // vCPU 0's when the guards were armed first
	armedAt  bool           // arming is set
	left     *ledger.Ledger // of a domain that is held; see takeLedger
	stages   stages
	ring     *vmevent.Ring
	page     MappedPage
	channel  Channel
	server   *vmevent.Server
	memory   GuestMemory
	kernel   *linux.Kernel
	set      *guard.Set
	scans    []*scan
	scanning *chore // nil for none
	patching patching
	checking checking
	// describer reads what is told of who made a violation, nil before the first.
	describer *linux.Reader
	looks     *looks
	// slow has what the guards were that are slow now.
	slow   map[policy.GuardName]GuardStatus
	moving moving
	// loaded are the modules of the last look, nil before the first.
	loaded map[moduleKey]journal.ModuleTarget
	entry  *kernelEntry
	boot   *bootEnd
	tries  int
	fold   folder
	stop   stop
	// dumper writes memory dumps, nil for none; dump is the one under way.
	dumper *dumper
	dump   *dumping
	// fates are what is decided of the tasks that were to be killed, the latest last.
	fates []*guard.Fate
	held  *moment // the vCPU that is held now
	// views is set while the domain runs in a view of ours, viewCheck while its pages are
	// restricted, there or in the host's.
	views     viewsStatus
	viewCheck *chore
	// viewName is the declared view that the domain was switched to, empty for none.
	viewName string
	hidden   hidden // breakpoints
	finished bool
	// newPulse gives the ring goroutine what it tells of itself by; dropPulse gives
	// it back.
	newPulse  func() (*atomic.Uint64, func())
	pulse     *atomic.Uint64
	dropPulse func()

	// unrecorded counts violations beyond maxRecords.
	unrecorded atomic.Uint64

	status    atomic.Pointer[Status]
	statusMu  sync.Mutex // serialises updates
	serverRef atomic.Pointer[vmevent.Server]
	setRef    atomic.Pointer[guard.Set]
	kernelRef atomic.Pointer[linux.Kernel]
	// exceptions are those in force, nil before the guards are armed.
	exceptions atomic.Pointer[guard.Exceptions]
}

// maxTries bounds how often a kernel entry is examined: a guest that is not
// Linux may set LSTAR again and again.
const maxTries = 4

func newSession(hv Hypervisor, l *ledger.Ledger, rec Recorder, log *slog.Logger, info xen.DomainInfo, name string, decl Declaration) *Session {
	p := decl.Spec.Effective()
	s := &Session{
		hv: hv, ledger: l, record: rec, info: info, policy: p,
		log:      log.With("domid", info.ID, "domain", name, "uuid", info.UUID),
		activity: newActivity(time.Now()), commands: make(chan func()), chore: make(chan struct{}, 1), quit: make(chan struct{}), newPulse: unwatched, now: time.Now,
	}
	st := Status{Info: info, Name: name, State: StateDeclared, Decided: true, Policy: p, PolicySource: decl.Source, PolicyFrom: decl.From}
	st.Guards = pendingGuards(p)
	st.Held, _ = l.GuardPaused()
	s.status.Store(&st)
	return s
}

// unwatched is a pulse that nobody looks at.
func unwatched() (*atomic.Uint64, func()) { return new(atomic.Uint64), func() {} }

// pendingGuards is what a policy makes of each guard before anything is armed.
func pendingGuards(p policy.Effective) []GuardStatus {
	var out []GuardStatus
	for _, g := range p.Guards {
		state := GuardPending
		if g.Action == policy.ActionOff {
			state = GuardOff
		}
		out = append(out, GuardStatus{Name: g.Name, Action: g.Action, State: state})
	}
	return out
}

// start begins the session's goroutine, which attaches, and returns when the
// ring is served or the attempt has failed. The domain runs on when it
// returns, unless somebody else paused it.
func (s *Session) start() error {
	attached := make(chan error, 1)
	go s.run(attached)
	return <-attached
}

// Status returns a snapshot with the counters of this moment.
func (s *Session) Status() Status {
	st := *s.status.Load()
	st.Guards = append([]GuardStatus(nil), st.Guards...)
	if srv := s.serverRef.Load(); srv != nil {
		st.Events = srv.Total()
		st.Served, st.RingPeak = srv.Served()
	}
	st.Breakpoints = nil
	for _, b := range st.points {
		if b.call != nil {
			continue
		}
		bs := BreakpointStatus{Symbol: b.symbol, Address: b.va, At: b.point.At, Since: b.since, Hits: b.hits()}
		if p := b.trap.Load(); p != nil {
			bs.Rests = p.Rests.Load()
		}
		st.Breakpoints = append(st.Breakpoints, bs)
	}
	if st.hidden != nil {
		st.Hidden = st.hidden.Counters()
	}
	st.Exceptions = s.exceptions.Load().Uses()
	if set := s.setRef.Load(); set != nil {
		st.Stray += set.Stray()
		st.Unrecorded += set.Unrecorded() + s.unrecorded.Load()
		st.Stepped += set.Stepped()
		st.Emulated += set.Emulated()
		for _, a := range set.Armed() {
			for i := range st.Guards {
				if g := &st.Guards[i]; g.Name == a.Guard.Name {
					g.count(a)
				}
			}
		}
	}
	return st
}

func (s *Session) update(f func(*Status)) {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	st := *s.status.Load()
	st.Guards = append([]GuardStatus(nil), st.Guards...)
	f(&st)
	s.status.Store(&st)
}

func (s *Session) setState(state State) {
	s.update(func(st *Status) { st.State = state })
	s.log.Info("session", "state", string(state))
}

// settle sets the state that the guards' states amount to.
func (s *Session) settle() {
	state := StateProtecting
	for _, g := range s.Status().Guards {
		if g.State == GuardDegraded || g.State == GuardUnavailable || g.State == GuardScanning {
			state = StateDegraded
		}
	}
	if s.Status().State != state {
		s.setState(state)
	}
}

func (s *Session) fail(stage, fix string, err error) {
	s.update(func(st *Status) {
		st.State = StateFailed
		st.Failure = &Failure{Stage: stage, Err: err, Fix: fix}
	})
	s.log.Error("session failed", "stage", stage, "err", err)
}

func (s *Session) setGuard(name policy.GuardName, state GuardState, reason string) {
	s.update(func(st *Status) {
		for i := range st.Guards {
			if st.Guards[i].Name == name {
				st.Guards[i].State, st.Guards[i].Reason = state, reason
			}
		}
	})
}

// do runs f on the session's goroutine and waits for it. It reports false when
// the session has ended.
func (s *Session) do(f func()) bool {
	done := make(chan struct{})
	select {
	case s.commands <- func() { f(); close(done) }:
		<-done
		return true
	case <-s.quit:
		return false
	}
}

// Detach withdraws from a domain that goes on living. It is safe to call more
// than once.
func (s *Session) Detach() error {
	var err error
	if s.do(func() { err = s.detach(false) }) {
		<-s.quit
	}
	return err
}

// Suspend withdraws from a domain that is shut down and may be resumed, and
// leaves it held, so that it can't run a moment without us.
func (s *Session) Suspend() error {
	var err error
	if s.do(func() { err = s.detach(true) }) {
		<-s.quit
	}
	return err
}

// Release lets go of a domain that is gone: its state in Xen went with it, and
// what keeps it a zombie is only our mappings.
func (s *Session) Release() error {
	var err error
	if s.do(func() { err = s.release() }) {
		<-s.quit
	}
	return err
}

func (s *Session) run(attached chan<- error) {
	defer close(s.quit)
	defer s.stopScans()
	defer s.stopPatching()
	defer s.stopChecking()
	defer s.stopLooks()
	defer s.stopDump()
	err := s.attach()
	attached <- err
	if err != nil {
		return
	}
	for !s.finished {
		var entry, boot <-chan moment
		var violations <-chan guard.Evidence
		if s.entry != nil {
			entry = s.entry.moment
		}
		if s.boot != nil {
			boot = s.boot.moment
		}
		if s.set != nil {
			violations = s.set.Violations()
		}
		s.stopIfDue()
		select {
		case <-s.stops(): // it is due now
		case f := <-s.commands:
			s.stopIfDue() // before an admin's word on it
			f()
		case m := <-entry:
			s.kernelEntered(m)
		case m := <-boot:
			s.bootEnded(m)
		case <-s.paces():
			s.heedPaces()
		case e := <-s.kills():
			s.kill(&e)
		case e := <-violations:
			s.report(&e)
		case e := <-s.notes():
			s.noteCall(&e)
		case <-s.fold.flushDue():
			s.flush()
		case <-s.fold.summaryDue():
			s.summarize()
		case <-s.patchedMore():
			s.noticePatching(s.now())
		case <-s.movedMore():
			s.followPatching(s.now())
		case <-s.patchingDue():
			s.followPatching(s.now())
		case <-s.checkedMore():
			s.followChecking(s.now())
		case <-s.checkingDue():
			s.followChecking(s.now())
		case r := <-s.textTaken():
			s.useText(r)
		case l := <-s.found():
			s.tell(l)
		case <-s.chore:
			if s.scanning.taken() {
				s.scanSome()
			}
			if s.viewCheck.taken() {
				s.checkView()
			}
			if s.moving.chore.taken() {
				s.followMoving()
			}
		case r := <-s.restsAsked():
			s.rest(r)
		case <-s.restOver():
			s.endRests(time.Now())
		case g := <-s.goneFrames():
			s.letGoOf(g)
		case <-s.server.Done():
			s.ringLost()
		}
	}
}

// ringLost handles a ring server that ended by itself: the event channel is
// broken, so nothing more will be answered.
func (s *Session) ringLost() {
	err := s.server.Stop()
	info, infoErr := s.hv.Domain(s.info.ID)
	if errors.Is(infoErr, xen.ErrNoDomain) || infoErr == nil && info.Dying {
		if err := s.release(); err != nil {
			s.log.Error("release", "err", err)
		}
		return
	}
	s.fail("serve the monitor ring", "restart hvid; the guest goes on unprotected until then", err)
	s.finished = true
	s.unwatchView()
	s.stopLooks()
	s.stopTaking()
	s.recordRest()
	err = errors.Join(s.unmap(), undoDead(s.hv, s.ledger, s.info, true))
	if staysHeld(s.ledger) {
		if why, paused := s.ledger.GuardPaused(); paused {
			s.update(func(st *Status) { st.Held = why })
		} else {
			s.update(func(st *Status) { st.Held = heldLost })
		}
		s.left = s.ledger
	} else {
		err = errors.Join(err, s.ledger.Undo(ledger.OpFailClosed), s.ledger.Close())
	}
	if err != nil {
		s.log.Error("withdraw", "err", err)
	}
}
