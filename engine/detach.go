package engine

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/xen"
)

const (
	// quietLimit bounds the wait for a domain's last events.
	quietLimit = 500 * time.Millisecond
	// disableTries bounds how often a ring is disabled that Xen says is
	// busy: a vCPU sleeps on it until there is room.
	disableTries = 20
)

// detach withdraws from a living domain, and holds it if asked to.
func (s *Session) detach(hold bool) error {
	if s.finished {
		return nil
	}
	s.setState(StateDetaching)
	return s.withdraw(StateDetached, hold)
}

// withdraw undoes everything, in the order that leaves nothing behind at any
// moment: first what makes events, then, with the domain running, the answers
// to those under way are given time to be acted upon, then the ring, last the
// pause references. It does not stop at an error, ends the session and leaves
// it in the given state. With hold the domain does not run in between if it is held,
// and one pause reference is kept: beside the word on what is to be done when hvid
// fails it is the only entry of a ledger that is then left open, for whoever decides
// over the domain, see [Session.takeLedger]. So is one that a guard has taken, in any
// case.
func (s *Session) withdraw(final State, hold bool) error {
	if s.finished {
		return nil
	}
	s.finished = true
	s.stopLooks()
	s.stopTaking()
	if s.gone() {
		return s.forget(final)
	}
	var errs []error
	if s.server != nil {
		s.stages.set(letPass{})
	}
	s.unwatchView()
	// The views first, with the breakpoints in them: once those are not reported
	// any more, the guest would take them for its own.
	errs = append(errs, s.ledger.Undo(ledger.OpViews), s.ledger.Undo(ledger.OpAccess, ledger.OpMonitor))
	s.closeBreakpoints()
	s.update(func(st *Status) { st.Views, st.points = nil, nil })
	if s.server != nil {
		for _, m := range s.heldMoments() {
			s.server.Release(m.vcpu, vmevent.Continue)
		}
		s.releaseGone()
		s.killRest()
		if !hold {
			// A domain that is to stay held has either not run a moment with the
			// ring, or is shut down: nobody waits to act upon an answer.
			errs = append(errs, s.ledger.Undo(ledger.OpPause))
		}
		ctx, cancel := context.WithTimeout(context.Background(), quietLimit)
		s.waitQuiet(ctx)
		cancel()
		errs = append(errs, s.closeRing())
	} else {
		errs = append(errs, s.ledger.Undo(ledger.OpSteps, ledger.OpRing))
	}
	s.recordRest()
	errs = append(errs, s.ledger.Undo(ledger.OpDeferWrites, ledger.OpAllowViews, ledger.OpPagingPool, ledger.OpShadow, ledger.OpMaxPages, ledger.OpRingPage), s.unmap())
	hold = hold && errors.Join(errs...) == nil
	if hold {
		errs = append(errs, s.holdOn())
	} else {
		errs = append(errs, s.ledger.Undo(ledger.OpFailClosed), s.ledger.Undo(ledger.OpPause))
	}
	if s.gone() {
		return s.forget(final)
	}
	if (hold || s.ledger.Has(ledger.OpGuardPause)) && errors.Join(errs...) == nil {
		s.left = s.ledger
	} else {
		errs = append(errs, s.ledger.Close())
	}
	err := errors.Join(errs...)
	switch {
	case final == StateFailed: // it says why already
	case err != nil:
		s.fail("detach", "restart hvid: it undoes what is left", err)
	default:
		s.setState(final)
	}
	return err
}

// holdOn leaves exactly one pause reference.
func (s *Session) holdOn() error {
	n := 0
	for _, e := range s.ledger.Outstanding() {
		if e.Op == ledger.OpPause {
			n++
		}
	}
	if n == 0 {
		return s.ledger.Pause()
	}
	var errs []error
	for ; n > 1; n-- {
		errs = append(errs, s.ledger.Unpause())
	}
	return errors.Join(errs...)
}

// takeLedger returns the ledger of a session that ended holding its domain,
// once, and nil otherwise. It may be called when the session has ended.
func (s *Session) takeLedger() *ledger.Ledger {
	l := s.left
	s.left = nil
	return l
}

// heldMoments takes what the ring goroutine has reported and nobody has acted on.
func (s *Session) heldMoments() []moment {
	var out []moment
	if s.held != nil {
		out, s.held = append(out, *s.held), nil
	}
	if s.entry != nil {
		select {
		case m := <-s.entry.moment:
			out = append(out, m)
		default:
		}
	}
	if s.boot != nil {
		select {
		case m := <-s.boot.moment:
			out = append(out, m)
		default:
		}
	}
	return out
}

// closeRing disables the ring with the domain paused and everything answered.
func (s *Session) closeRing() error {
	for try := 1; ; try++ {
		before := s.server.Total()
		if err := s.ledger.Pause(); err != nil {
			return err
		}
		stopErr := s.server.Stop()
		// What was answered after the pause has not been acted upon: its
		// vCPU must run once more, or the answer goes with the ring.
		late := s.server.Total() != before && try < disableTries
		var err error
		if !late {
			// Steps last: those under way have ended with the answers.
			err = errors.Join(s.ledger.Undo(ledger.OpSteps), s.ledger.Undo(ledger.OpRing))
			if err == nil || !errors.Is(err, syscall.EBUSY) || try == disableTries {
				return errors.Join(stopErr, err)
			}
		}
		// A vCPU may also wait for room in the ring: it must run to leave its
		// event.
		s.serve()
		if err := s.ledger.Unpause(); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), quietLimit)
		s.waitQuiet(ctx)
		cancel()
	}
}

// release lets go of a domain that is gone.
func (s *Session) release() error {
	if s.finished {
		return nil
	}
	s.finished = true
	return s.forget(StateDetached)
}

// gone reports whether the domain is being destroyed or has been.
func (s *Session) gone() bool { return gone(s.hv, s.info) }

// gone reports whether a domain is being destroyed, has been, or its number is
// another's now.
func gone(hv Hypervisor, was xen.DomainInfo) bool {
	now, err := hv.Domain(was.ID)
	return errors.Is(err, xen.ErrNoDomain) || err == nil && (now.Dying || now.UUID != was.UUID)
}

// forget drops everything of ours without asking Xen to undo what the domain
// took with it.
func (s *Session) forget(final State) error {
	var errs []error
	s.stopLooks()
	s.stopTaking()
	s.unwatchView()
	if s.server != nil {
		// Stop's error is that of a channel whose other end is gone.
		_ = s.server.Stop()
	}
	s.recordRest()
	errs = append(errs, s.unmap(), s.ledger.Forget(), s.ledger.Close())
	if final != StateFailed {
		s.setState(final)
	}
	return errors.Join(errs...)
}

// unmap gives back the event channel, the ring and the guest's memory.
func (s *Session) unmap() error {
	var errs []error
	if s.server != nil {
		// However we came here, nobody may serve what is unmapped now. The
		// error is one that the server's user has had already.
		_ = s.server.Stop()
		if n := s.server.Stats().Unsettled; n > 0 {
			s.log.Warn("register writes were denied before Xen was seen to wait for the answer: they may have landed", "count", n)
		}
	}
	if s.dropPulse != nil {
		s.dropPulse()
		s.pulse, s.dropPulse = nil, nil
	}
	if s.channel != nil {
		errs = append(errs, s.channel.Close())
		s.channel = nil
	}
	if s.page != nil {
		errs = append(errs, s.page.Close())
		s.page = nil
	}
	errs = append(errs, s.releaseShadows())
	if s.memory != nil {
		errs = append(errs, s.memory.Close())
		s.memory = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("let go of domain %d's memory: %w", s.info.ID, err)
	}
	return nil
}

// recordRest records the violations still queued.
func (s *Session) recordRest() {
	if s.set == nil {
		return
	}
	s.stopIfDue()
	for {
		select {
		case e := <-s.set.Violations():
			s.report(&e)
		case e := <-s.notes():
			s.noteCall(&e)
		case e := <-s.kills():
			e.Fate = &guard.Fate{Spared: "the domain was let go of before"}
			s.report(&e)
		default:
			s.flush()
			s.summarize()
			return
		}
	}
}

// waitQuiet returns when no event has arrived for a while with the domain
// running, so that every answer given has been acted upon, or when ctx ends.
func (s *Session) waitQuiet(ctx context.Context) {
	const calm = 20 * time.Millisecond
	last := s.server.Total()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(calm):
		}
		if now := s.server.Total(); now == last {
			return
		} else {
			last = now
		}
	}
}
