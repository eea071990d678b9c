package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// errEnded says that a session ended while something was asked of it.
var errEnded = errors.New("the domain's session has ended")

// Apply puts another policy in force, and returns when it is. The guest keeps
// what it has until then: guards that are armed are exchanged with the domain
// paused.
func (s *Session) Apply(decl Declaration) error {
	err := errEnded
	s.do(func() { err = s.apply(decl) })
	return err
}

func (s *Session) apply(decl Declaration) error {
	if s.finished {
		return errEnded
	}
	before := s.Status()
	s.policy = decl.Spec.Effective()
	s.update(func(st *Status) {
		st.Policy, st.PolicySource, st.PolicyFrom = s.policy, decl.Source, decl.From
		st.Guards = pendingGuards(s.policy)
		for i := range st.Guards {
			for _, was := range before.Guards {
				if g := &st.Guards[i]; was.Name == g.Name {
					g.Passed, g.Violations, g.Blocked, g.Found, g.Allowed = was.Passed, was.Violations, was.Blocked, was.Found, was.Allowed
					g.Decisions, g.Busy, g.OverBudget = was.Decisions, was.Busy, was.OverBudget
				}
			}
		}
		if s.set != nil {
			st.Stray, st.Unrecorded = before.Stray, before.Unrecorded-s.unrecorded.Load()
			st.Stepped, st.Emulated = before.Stepped, before.Emulated
		}
	})
	s.log.Info("new policy", "mode", s.policy.Mode.String(), "source", decl.Source)
	var err error
	if s.policy.OnEngineFailure == policy.Pause {
		err = s.ledger.FailClosed()
	} else {
		err = s.ledger.Undo(ledger.OpFailClosed)
	}
	if err != nil {
		return err
	}
	s.probe()
	if s.set == nil {
		return nil // what is armed later is armed by it
	}
	return s.rearm()
}

// rearm takes the guards down and arms those of the policy now in force. The
// domain is paused in between, so that there is no moment without protection.
func (s *Session) rearm() error {
	fail := func(err error) error {
		s.fail("exchange the guards", "run: hvictl detach, then hvictl attach", err)
		return errors.Join(fmt.Errorf("exchange the guards: %w", err), s.withdraw(StateFailed, false))
	}
	if err := s.ledger.Pause(); err != nil {
		return fail(err)
	}
	s.unwatchView()
	// From here on the old set's counters are in the status.
	s.setRef.Store(nil)
	if err := errors.Join(s.ledger.Undo(ledger.OpViews), s.ledger.Undo(ledger.OpAccess, ledger.OpMonitor)); err != nil {
		return fail(err)
	}
	s.set.UseView(noView)
	// Events that were under way when the domain was paused are still the old
	// set's to judge.
	ctx, cancel := context.WithTimeout(context.Background(), quietLimit)
	s.waitQuiet(ctx)
	cancel()
	s.releaseGone()
	s.killRest()
	s.recordRest()
	if err := s.ledger.Undo(ledger.OpSteps); err != nil {
		return fail(err)
	}
	s.server.ForgetSteps()
	s.closeBreakpoints()
	s.dropCalls()
	if err := s.arm(); err != nil {
		return errors.Join(err, s.withdraw(StateFailed, false))
	}
	s.placeAgain()
	if err := s.ledger.Unpause(); err != nil {
		return fail(err)
	}
	return nil
}

// count adds what an armed guard has seen.
func (g *GuardStatus) count(a *guard.Armed) {
	g.Passed += a.Passed.Load()
	g.Violations += a.Violations.Load()
	g.Blocked += a.Blocked.Load()
	g.Allowed += a.Allowed.Load()
	n, took := a.Decisions()
	g.Decisions += n
	g.Busy += took
	g.OverBudget += a.OverBudget()
}

// Apply puts another policy in force for a domain: it attaches, detaches or
// exchanges the guards, whatever that takes. A domain that is shut down gets it
// when it is resumed. ctx is as for Attach.
func (e *Engine) Apply(ctx context.Context, info xen.DomainInfo, decl Declaration) error {
	d := e.lookup(info)
	if d == nil {
		return fmt.Errorf("domain %d: %w", info.ID, xen.ErrNoDomain)
	}
	if err := d.busy.lockWithin(ctx); err != nil {
		return fmt.Errorf("domain %d: %w", info.ID, err)
	}
	defer d.busy.Unlock()
	if e.isClosing() {
		return ErrClosing
	}
	switch s := d.current(); {
	case d.over:
		return e.applyOver(d, decl)
	case !d.isDecided():
		return fmt.Errorf("domain %d: %w", info.ID, ErrTooEarly)
	case decl.Spec.Mode == policy.ModeOff:
		var err error
		if s != nil && !s.ended() {
			err = s.Detach()
		}
		err = errors.Join(err, e.letGo(d))
		e.setUnprotected(d, decl)
		return err
	case s == nil || s.ended():
		d.since = time.Now()
		return e.attach(d, decl)
	default:
		d.mu.Lock()
		d.declared = &decl
		d.mu.Unlock()
		return s.Apply(decl)
	}
}

// applyOver notes what a domain that is shut down gets if it runs on. The caller
// holds d.busy.
func (e *Engine) applyOver(d *domain, decl Declaration) error {
	if decl.Spec.Mode == policy.ModeOff {
		d.resume = nil
		err := e.letGo(d)
		e.setUnprotected(d, decl)
		return err
	}
	d.resume = &decl
	d.mu.Lock()
	defer d.mu.Unlock()
	d.declared = &decl
	return nil
}
