package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/tick"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Declaration is what the toolstack's configuration says about a domain.
type Declaration struct {
	Spec policy.Spec
	// Source is where it was found, for people, or where it was looked for in
	// vain: "xl config /etc/xen/web.cfg".
	Source string
	// From is the kind of source, one word: it is passed on to the status.
	From string
}

// Resolver finds what was declared for a domain. found is false when nothing
// was. An error means that something was and cannot be honoured; if that, as far
// as it can be understood, says require_attach, so does d.Spec, which is empty
// but for it.
type Resolver func(info xen.DomainInfo, name string) (d Declaration, found bool, err error)

// Options is what an Engine works with.
type Options struct {
	Hypervisor Hypervisor
	Mutator    ledger.Mutator
	// LedgerDir is where ledgers are kept; ledger.DefaultDir in production.
	LedgerDir string
	Recorder  Recorder
	Resolve   Resolver
	Log       *slog.Logger
	// Identify is what kernels are identified with, besides their memory.
	Identify linux.Options
	// Permitted returns the host's exceptions; nil means that there are none.
	Permitted Permitted
	// FirstLook is within what time of their arming the guards that look into the
	// guest now and then do so first, and not before half of it; 0 is forty seconds.
	FirstLook time.Duration
	// TakeCode is how long after its guard was armed the kernel's code is read, so that what
	// is patched in it can be compared: 0 is half a minute, and with less the guest stays
	// paused for it.
	TakeCode time.Duration
	// Ended is told of each session that makes room for another one, or whose
	// domain has gone, with its last counters. It must return soon and not call
	// the engine. It may be nil.
	Ended func(Status)
	// Quiet is how long the processors of a guest may run in a second, together, for
	// it to be quiet; with 0 no guest is. A kernel's own timers take about a
	// millisecond; to start a program takes several, and to load a module more.
	Quiet time.Duration
	// Dumps is where the memory of domains goes that a guard has paused; nil for
	// nowhere.
	Dumps *Dumps
	// Budget is how long a guard's decision may take before the guard is degraded; 0 is
	// any time.
	Budget time.Duration
	// Pulse gives a ring goroutine what it tells of itself by, see
	// [vmevent.NewServer], and what gives that back. It is nil where nobody
	// watches.
	Pulse func() (pulse *atomic.Uint64, release func())
}

// Engine holds the sessions of all domains.
type Engine struct {
	opt Options

	mu      sync.Mutex
	domains map[xen.DomID]*domain
	changed chan struct{} // closed and replaced when a domain comes in
	closing bool
	// clock has watcher sample how the guests run, until all are let go.
	clock   *tick.Ticker
	watcher sync.WaitGroup

	attaches, attachFailures atomic.Uint64
	attachTime               atomic.Int64

	// readers holds a token for each guest that is being looked into.
	readers chan struct{}
	dumper  *dumper
}

// Stats counts what an engine did since it was made.
type Stats struct {
	// Attaches counts sessions that began to serve a ring, AttachFailures those
	// that could not.
	Attaches, AttachFailures uint64
	// AttachTime is the sum of the times they took: from the domain's
	// appearance, or the request, until it could run on.
	AttachTime time.Duration
}

// Stats returns the counts of this moment.
func (e *Engine) Stats() Stats {
	return Stats{e.attaches.Load(), e.attachFailures.Load(), time.Duration(e.attachTime.Load())}
}

// domain is one domain hvi knows of, protected or not.
type domain struct {
	// busy serialises what is done to the domain: appearing, attaching,
	// detaching, going.
	busy   lock
	info   xen.DomainInfo
	since  time.Time      // it was seen, or asked for
	ledger *ledger.Ledger // while held, and handed to a session then
	// over says that the domain has shut down or gone: nothing new begins.
	over bool
	// resume is what to attach with if the domain, which is shut down, runs on;
	// nil if it was not protected.
	resume *Declaration
	// decided is closed when the domain's start is no longer held up by us, or
	// is for good; decide closes it once.
	decided chan struct{}
	decide  sync.Once
	// waiting is over, for who does not hold busy.
	waiting atomic.Bool
	// left is closed when the domain is gone: who looks into it lets go.
	left  chan struct{}
	leave sync.Once
	// kernel is what was found when somebody looked into a guest that no
	// session has identified.
	kernel atomic.Pointer[linux.Kernel]

	mu      sync.Mutex // guards the fields below
	status  Status     // when there is no session
	session *Session
	// declared is what was put in force last.
	declared *Declaration
}

// New returns an engine that knows no domain. Recover first if a ledger may be
// left from an earlier run.
func New(opt Options) *Engine {
	e := &Engine{
		opt: opt, domains: make(map[xen.DomID]*domain), changed: make(chan struct{}),
		readers: make(chan struct{}, maxReaders), dumper: newDumper(opt.Dumps), clock: tick.New(activityEvery),
	}
	e.watcher.Go(e.watchActivity)
	return e
}

// ErrClosing is returned for operations after Close has begun.
var ErrClosing = errors.New("hvid is stopping")

// Gate takes a pause reference on a domain that has just appeared, so that it
// cannot run before its policy is known. It is called from the watcher, before
// anything else is looked up, and returns at once. existing says that the
// domain was there before hvid: it is not held up, unless it is still being
// built and so has not run yet, or an earlier hvid left it held.
func (e *Engine) Gate(info xen.DomainInfo, existing bool) {
	hold := (!existing || info.OnlineVCPUs == 0) && info.Type != xen.PV
	d := &domain{busy: newLock(), info: info, since: time.Now(), status: Status{Info: info, State: StateGated}, decided: make(chan struct{}), left: make(chan struct{})}
	if !hold {
		d.status.State = StateUnprotected
	}
	// Whoever finds the domain from here on waits until it is held.
	d.busy.Lock()
	defer d.busy.Unlock()
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return
	}
	before := e.domains[info.ID]
	e.domains[info.ID] = d
	close(e.changed)
	e.changed = make(chan struct{})
	e.mu.Unlock()
	if before != nil {
		// The number was used again before the old domain's end was seen.
		go e.end(before)
	}
	kept, err := e.kept(info)
	if err != nil {
		e.opt.Log.Error("take over a domain that an earlier hvid held", "domid", info.ID, "uuid", info.UUID, "err", err)
	}
	if kept != nil {
		d.ledger = kept
		d.setStatus(func(st *Status) { st.State = StateGated })
		d.setHeld(heldBefore)
		if kept.Has(ledger.OpFailClosed) {
			d.setHeld(heldFailed)
		}
		if why, paused := kept.GuardPaused(); paused {
			d.setHeld(why)
		}
		return
	}
	if !hold {
		return
	}
	l, err := e.hold(info)
	if err != nil {
		e.opt.Log.Error("hold a new domain", "domid", info.ID, "uuid", info.UUID, "err", err)
		return
	}
	d.ledger = l
}

// hold opens the domain's ledger and takes a pause reference.
func (e *Engine) hold(info xen.DomainInfo) (*ledger.Ledger, error) {
	l, err := ledger.Open(e.opt.LedgerDir, info.ID, info.UUID, e.opt.Mutator)
	if err != nil {
		return nil, err
	}
	if err := l.Pause(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// holdAgain is hold for a domain of which no session lives. If the last one could
// not undo all that it had changed, that is undone first, as after a crash.
func (e *Engine) holdAgain(info xen.DomainInfo) (*ledger.Ledger, error) {
	l, err := e.hold(info)
	if !errors.Is(err, os.ErrExist) {
		return l, err
	}
	left, loadErr := ledger.Reopen(e.opt.LedgerDir, info.ID, info.UUID, e.opt.Mutator)
	if loadErr != nil {
		return nil, errors.Join(err, loadErr)
	}
	// What a guard has paused stays so.
	held, err := recoverDomain(e.opt.Hypervisor, left, !left.Has(ledger.OpGuardPause))
	if err != nil {
		return nil, fmt.Errorf("undo what the last session left: %w", err)
	}
	if held {
		return e.kept(info)
	}
	return e.hold(info)
}

// Appeared looks up what is declared for a domain and protects it accordingly.
// It returns when the domain is attached, or is let go.
func (e *Engine) Appeared(info xen.DomainInfo, name string) {
	d := e.lookup(info)
	if d == nil {
		return
	}
	d.busy.Lock()
	defer d.busy.Unlock()
	e.appeared(d, info, name)
}

// appeared is Appeared with d.busy held.
func (e *Engine) appeared(d *domain, info xen.DomainInfo, name string) {
	if d.over {
		return
	}
	defer d.decide.Do(func() { close(d.decided) })
	d.setStatus(func(st *Status) { st.Name, st.Info = name, info })
	log := e.opt.Log.With("domid", info.ID, "domain", name, "uuid", info.UUID)

	decl, found, err := e.opt.Resolve(info, name)
	switch {
	case err != nil:
		d.setStatus(func(st *Status) {
			st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateFailed, decl.Source, decl.From, true
			st.Policy.RequireAttach = decl.Spec.RequireAttach
			st.Failure = &Failure{Stage: "read the declared policy", Err: err, Fix: "correct the configuration, then run: hvictl attach " + info.UUID.String() + ", or start the guest anew"}
		})
		if d.ledger != nil && (decl.Spec.RequireAttach || d.ledger.Has(ledger.OpHold)) {
			e.keepHeld(d, heldUnread)
			log.Error("the declared policy cannot be honoured; the guest is held", "err", err)
			return
		}
		log.Error("the declared policy cannot be honoured; the guest runs unprotected", "err", err)
	case !found || decl.Spec.Mode == policy.ModeOff:
		e.setUnprotected(d, decl)
		log.Info("no protection asked for", "source", decl.Source)
	default:
		if err := e.attach(d, decl); err != nil {
			if held := d.snapshot().Held; held != "" {
				log.Error("attach; the guest is held", "err", err, "why", held)
				return
			}
			log.Error("attach; the guest runs unprotected", "err", err)
		}
		return
	}
	if err := e.letGo(d); err != nil {
		log.Error("let the domain run", "err", err)
	}
}

// setUnprotected notes that a policy asks for nothing. The caller holds d.busy.
func (e *Engine) setUnprotected(d *domain, decl Declaration) {
	e.tellEnded(d)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil {
		d.status = d.session.Status()
		d.session = nil
	}
	d.declared = &decl
	st := &d.status
	st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateUnprotected, decl.Source, decl.From, true
	st.Policy, st.Guards, st.Failure = decl.Spec.Effective(), nil, nil
}

// tellEnded tells of the session that is about to be dropped, if there is one:
// what it counted is not seen any more.
func (e *Engine) tellEnded(d *domain) {
	if s := d.current(); s != nil && e.opt.Ended != nil {
		e.opt.Ended(s.Status())
	}
}

// letGo drops the pause references by which a domain is held, which go with the
// domain if that has gone. One that a guard has taken stays, and the ledger with it.
func (e *Engine) letGo(d *domain) error {
	d.adopt()
	if d.ledger == nil {
		return nil
	}
	l, isGone := d.ledger, gone(e.opt.Hypervisor, d.info)
	if why, paused := l.GuardPaused(); paused && !isGone {
		d.setHeld(why)
		return errors.Join(l.Undo(ledger.OpFailClosed), l.Undo(ledger.OpPause, ledger.OpHold))
	}
	d.ledger = nil
	d.setHeld("")
	var err error
	if isGone {
		err = l.Forget()
	} else {
		err = errors.Join(l.Undo(ledger.OpFailClosed), l.Undo(ledger.OpPause, ledger.OpHold))
	}
	return errors.Join(err, l.Close())
}

func (d *domain) setStatus(f func(*Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.status)
}

// inForce is what was put in force last.
func (d *domain) inForce() *Declaration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.declared
}

// setHeld says why a domain is held, in whichever status is shown.
func (d *domain) setHeld(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Held = why
	if d.session != nil {
		d.session.update(func(st *Status) { st.Held = why })
	}
}

// snapshot is the domain's status as it is shown.
func (d *domain) snapshot() Status {
	d.mu.Lock()
	st, s := d.status, d.session
	d.mu.Unlock()
	if s != nil {
		st = s.Status()
	}
	return st
}

// attach starts a session. The caller holds d.busy.
func (e *Engine) attach(d *domain, decl Declaration) error {
	d.adopt()
	held := d.ledger != nil
	mustProtect := held && (decl.Spec.RequireAttach || decl.Spec.OnEngineFailure == policy.Pause && d.ledger.Has(ledger.OpHold))
	if e.isClosing() {
		// Close lets the domain go, unless that must not be.
		if mustProtect {
			d.setStatus(func(st *Status) {
				st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateFailed, decl.Source, decl.From, true
				st.Policy = decl.Spec.Effective()
				st.Failure = &Failure{Stage: "attach to the monitor ring", Err: ErrClosing, Fix: "start hvid again"}
			})
			e.keepHeld(d, heldUnattached)
		}
		return ErrClosing
	}
	if !held {
		l, err := e.holdAgain(d.info)
		if err != nil {
			d.setStatus(func(st *Status) {
				st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateFailed, decl.Source, decl.From, true
				st.Failure = &Failure{Stage: "hold the domain", Err: err}
			})
			return err
		}
		d.ledger = l
	}
	if mustProtect || decl.Spec.OnEngineFailure == policy.Pause {
		// Before it may run, and in force if hvid dies on the way.
		if err := d.ledger.FailClosed(); err != nil {
			d.setStatus(func(st *Status) {
				st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateFailed, decl.Source, decl.From, true
				st.Failure = &Failure{Stage: "hold the domain", Err: err}
			})
			if mustProtect {
				e.keepHeld(d, heldUnattached)
				return err
			}
			return errors.Join(err, e.letGo(d))
		}
	}
	if err := shortHold(d.ledger); err != nil {
		d.setStatus(func(st *Status) {
			st.State, st.PolicySource, st.PolicyFrom, st.Decided = StateFailed, decl.Source, decl.From, true
			st.Failure = &Failure{Stage: "hold the domain", Err: err}
		})
		return err
	}
	e.tellEnded(d)
	s := newSession(e.opt.Hypervisor, d.ledger, e.opt.Recorder, e.opt.Log, d.info, d.snapshot().Name, decl)
	s.identifyWith, s.permitted = e.opt.Identify, e.opt.Permitted
	s.budget = e.opt.Budget
	s.dumper = e.dumper
	s.firstLook = cmp.Or(e.opt.FirstLook, firstLook)
	s.takeTextAfter = cmp.Or(e.opt.TakeCode, takeTextAfter)
	if e.opt.Pulse != nil {
		s.newPulse = e.opt.Pulse
	}
	// Who runs already is not stopped for it.
	s.holdOnFailure = mustProtect
	d.ledger = nil
	d.mu.Lock()
	d.session, d.declared = s, &decl
	d.status.Held = s.status.Load().Held
	d.mu.Unlock()
	err := s.start()
	e.attachTime.Add(int64(time.Since(d.since)))
	if err == nil {
		e.attaches.Add(1)
	} else {
		e.attachFailures.Add(1)
		<-s.quit
		if d.ledger = s.takeLedger(); d.ledger != nil && mustProtect {
			e.keepHeld(d, heldUnattached)
		}
	}
	return err
}

// ShutDown withdraws from a domain that has shut down and waits to be
// destroyed, restarted or resumed by its toolstack. A protected domain that may
// be resumed as it is, because it was suspended or asked for a soft reset, is
// held, so that it does not run before hvi is attached again.
func (e *Engine) ShutDown(info xen.DomainInfo) {
	d := e.lookup(info)
	if d == nil {
		return
	}
	d.busy.Lock()
	defer d.busy.Unlock()
	if d.over {
		return
	}
	s := d.current()
	if s == nil || s.ended() {
		e.finish(d, nil)
		return
	}
	if r := info.ShutdownReason; r != abi.ShutdownSuspend && r != abi.ShutdownSoftReset {
		if r == abi.ShutdownCrash {
			s.ReportCrash()
		}
		e.finish(d, (*Session).Detach)
		d.resume = d.inForce()
		return
	}
	d.over, d.resume = true, d.inForce()
	d.waiting.Store(true)
	if err := s.Suspend(); err != nil {
		e.opt.Log.Error("withdraw from a suspended domain", "domid", info.ID, "err", err)
	}
	if d.ledger = s.takeLedger(); d.ledger != nil && !d.ledger.Has(ledger.OpGuardPause) {
		d.setHeld("it is shut down (" + info.ShutdownReason.String() + "), and is attached to again before it runs on")
	}
}

// Gone drops a domain that Xen no longer has, or is destroying.
func (e *Engine) Gone(info xen.DomainInfo) {
	d := e.lookup(info)
	if d == nil {
		return
	}
	e.end(d)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.domains[info.ID] == d {
		delete(e.domains, info.ID)
	}
}

// Resumed takes a domain up again that had shut down and runs on: a snapshot
// was taken of it, a migration was called off, or it was reset. It gets the
// protection it had.
func (e *Engine) Resumed(info xen.DomainInfo, name string) {
	d := e.lookup(info)
	if d == nil {
		return
	}
	d.busy.Lock()
	defer d.busy.Unlock()
	d.over, d.since = false, time.Now()
	d.waiting.Store(false)
	decl := d.resume
	d.resume = nil
	var err error
	switch {
	case decl != nil:
		err = e.attach(d, *decl)
	case !d.snapshot().Decided:
		e.appeared(d, info, name)
	default:
		err = e.letGo(d)
	}
	if err != nil {
		e.opt.Log.Error("take up a domain that runs on", "domid", info.ID, "err", err)
	}
}

// Waiting reports whether a domain has shut down and may yet run on, which Xen
// does not announce.
func (e *Engine) Waiting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.domains {
		if d.waiting.Load() {
			return true
		}
	}
	return false
}

// Undecided reports whether a domain was seen of which nothing is decided yet. One that
// its toolstack doesn't come to build ends without a word: xenstored, which tells of
// ends, was never told that it began.
func (e *Engine) Undecided() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.domains {
		if !d.isDecided() {
			return true
		}
	}
	return false
}

// end drops a domain that Xen no longer has.
func (e *Engine) end(d *domain) {
	d.leave.Do(func() { close(d.left) })
	d.busy.Lock()
	defer d.busy.Unlock()
	e.finish(d, (*Session).Release)
	e.tellEnded(d)
}

// finish ends what is done for a domain that has shut down or is gone. The
// caller holds d.busy.
func (e *Engine) finish(d *domain, end func(*Session) error) {
	d.over = true
	d.waiting.Store(true)
	d.decide.Do(func() { close(d.decided) })
	if s := d.current(); s != nil && end != nil {
		if err := end(s); err != nil {
			e.opt.Log.Error("end session", "domid", d.info.ID, "err", err)
		}
	}
	if err := e.letGo(d); err != nil {
		e.opt.Log.Error("end gate", "domid", d.info.ID, "err", err)
	}
}

// Wait waits until it is decided what becomes of a domain's start: until hvi is
// attached, has failed to, or lets the domain go. The domain may be one the
// engine does not know yet. The error is ctx's, with a status as far as there is
// one.
func (e *Engine) Wait(ctx context.Context, id xen.DomID) (Status, error) {
	for {
		e.mu.Lock()
		d, changed := e.domains[id], e.changed
		e.mu.Unlock()
		var decided <-chan struct{}
		if d != nil {
			decided = d.decided
		}
		select {
		case <-decided:
			return d.snapshot(), nil
		case <-changed:
		case <-ctx.Done():
			if d == nil {
				return Status{}, fmt.Errorf("domain %d: %w", id, xen.ErrNoDomain)
			}
			return d.snapshot(), ctx.Err()
		}
	}
}

// Declared returns what is in force for a domain, or was when its session
// ended. ok is false for a domain the engine does not know, or has not decided
// about.
func (e *Engine) Declared(info xen.DomainInfo) (decl Declaration, ok bool) {
	d := e.lookup(info)
	if d == nil {
		return decl, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.declared == nil {
		return decl, false
	}
	return *d.declared, true
}

// Rename notes a domain's new name.
func (e *Engine) Rename(id xen.DomID, name string) {
	d := e.byID(id)
	if d == nil || d.snapshot().Name == name {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Name = name
	if d.session != nil {
		d.session.update(func(st *Status) { st.Name = name })
	}
}

func (d *domain) current() *Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session
}

// lookup returns the domain of that number and UUID, nil if it is not known.
func (e *Engine) lookup(info xen.DomainInfo) *domain {
	if d := e.byID(info.ID); d != nil && d.info.UUID == info.UUID {
		return d
	}
	return nil
}

func (e *Engine) byID(id xen.DomID) *domain {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.domains[id]
}

// Status returns every known domain's, by domid.
func (e *Engine) Status() []Status {
	e.mu.Lock()
	ds := make([]*domain, 0, len(e.domains))
	for _, d := range e.domains {
		ds = append(ds, d)
	}
	e.mu.Unlock()
	out := make([]Status, 0, len(ds))
	for _, d := range ds {
		out = append(out, d.snapshot())
	}
	slices.SortFunc(out, func(a, b Status) int { return int(a.Info.ID) - int(b.Info.ID) })
	return out
}

// ErrAttached says that the domain has a session already.
var ErrAttached = errors.New("already attached")

// ErrNotAttached says that the domain has no session.
var ErrNotAttached = errors.New("not attached")

// ErrTooEarly says that the domain is still being made. What is declared for it
// is looked for when it is built.
var ErrTooEarly = errors.New("the domain is still being made")

// isDecided reports whether it was decided what becomes of the domain's start.
func (d *domain) isDecided() bool {
	select {
	case <-d.decided:
		return true
	default:
		return false
	}
}

// lock takes a domain for what is to be done to it: the caller unlocks busy. The error
// matches xen.ErrNoDomain, or ErrBusy and ctx's.
func (e *Engine) lock(ctx context.Context, id xen.DomID) (*domain, error) {
	d := e.byID(id)
	if d == nil {
		return nil, fmt.Errorf("domain %d: %w", id, xen.ErrNoDomain)
	}
	if err := d.busy.lockWithin(ctx); err != nil {
		return nil, fmt.Errorf("domain %d: %w", id, err)
	}
	return d, nil
}

// Attach protects a domain as asked for by hand. ctx bounds the wait for what
// else is done to the domain; see ErrBusy.
func (e *Engine) Attach(ctx context.Context, id xen.DomID, decl Declaration) error {
	d, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer d.busy.Unlock()
	if s := d.current(); s != nil && !s.ended() {
		return fmt.Errorf("domain %d: %w", id, ErrAttached)
	}
	if d.over {
		return fmt.Errorf("domain %d has shut down: %w", id, xen.ErrNoDomain)
	}
	if !d.isDecided() {
		return fmt.Errorf("domain %d: %w", id, ErrTooEarly)
	}
	d.adopt()
	if d.ledger != nil && d.ledger.Has(ledger.OpHold) {
		// Held for want of protection, which an attempt that fails doesn't bring,
		// whatever it asked for.
		decl.Spec.RequireAttach = true
	}
	d.since = time.Now()
	return e.attach(d, decl)
}

// Detach withdraws from a domain, which goes on unprotected. A domain that is
// held because hvi could not attach is let go; one that a guard has paused is not, see
// Resume. ctx is as for Attach.
func (e *Engine) Detach(ctx context.Context, id xen.DomID) error {
	d, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer d.busy.Unlock()
	d.resume = nil
	d.adopt()
	if l := d.ledger; l != nil && (l.Has(ledger.OpHold) || l.Has(ledger.OpPause)) {
		return e.letGo(d)
	}
	s := d.current()
	if s == nil || s.ended() {
		return fmt.Errorf("domain %d: %w", id, ErrNotAttached)
	}
	err = s.Detach()
	d.adopt()
	return err
}

func (e *Engine) isClosing() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing
}

func (s *Session) ended() bool {
	select {
	case <-s.quit:
		return true
	default:
		return false
	}
}

// Close withdraws from every domain, all at once, and refuses new work. A domain
// that is held because its policy requires protection stays so, and one that a guard
// has paused, and its ledger tells the next engine, and Recover.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closing = true
	ds := make([]*domain, 0, len(e.domains))
	for _, d := range e.domains {
		ds = append(ds, d)
	}
	e.mu.Unlock()
	errs := make([]error, len(ds))
	var wg sync.WaitGroup
	for i, d := range ds {
		wg.Go(func() {
			d.busy.Lock()
			defer d.busy.Unlock()
			d.decide.Do(func() { close(d.decided) })
			if s := d.current(); s != nil {
				errs[i] = s.Detach()
			}
			d.adopt()
			if d.ledger != nil && staysHeld(d.ledger) {
				errs[i] = errors.Join(errs[i], d.ledger.Leave())
				d.ledger = nil
				e.opt.Log.Warn("the guest stays held; hvid recover lets it go", "domid", d.info.ID, "uuid", d.info.UUID, "why", d.snapshot().Held)
				return
			}
			errs[i] = errors.Join(errs[i], e.letGo(d))
		})
	}
	wg.Wait()
	e.clock.Close()
	e.watcher.Wait()
	return errors.Join(errs...)
}
