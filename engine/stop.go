package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// A guard's action may be to stop the domain: to pause it, so that somebody can look
// at it, or to shut it down. The ring goroutine answers the violation as it would
// otherwise and says that there was one; the session's goroutine stops the domain,
// before it records anything. The pause reference has an entry of its own in the
// ledger, with the reason, so that neither hvid's end nor its next start lets the
// domain run: an admin does.

// stop is what a session has done to stop its domain. It is the session goroutine's.
type stop struct {
	// last is what came of the last attempt: journal.Paused, journal.ShutDown, or
	// nothing, with err.
	last journal.Action
	err  error
	// by is the guard for whose violation it was done, unexplained says that the event
	// of that is not known yet.
	by          policy.GuardName
	unexplained bool
	// dump is where the domain's memory is written, nothing for nowhere.
	dump string
}

// problem is why nothing came of the last attempt.
func (s *stop) problem() string {
	if s.err == nil {
		return "it was let run on meanwhile"
	}
	return s.err.Error()
}

// outcome is what was done about a violation, as a record tells it.
type outcome struct {
	action    journal.Action
	prevented bool
}

// outcomeOf is that of a violation that was seen when it took place, with what a guard
// has done, and what became of the task if the guard kills.
func (s *Session) outcomeOf(a policy.Action, f *guard.Fate) outcome {
	switch {
	case f != nil && f.Killed:
		return outcome{journal.Killed, false}
	case a.Stops() && s.stop.last != "":
		return outcome{s.stop.last, true}
	case a.Prevents():
		return outcome{journal.Blocked, false}
	}
	return outcome{journal.Alerted, false}
}

// outcomeFound is that of a violation that was found afterwards. The domain is stopped
// first, if that is the guard's action.
func (s *Session) outcomeFound(name policy.GuardName) outcome {
	if a := s.policy.Action(name); a.Stops() {
		s.stopDomain(name, a)
		if s.stop.last != "" {
			return outcome{s.stop.last, false}
		}
	}
	return outcome{journal.Found, false}
}

// in puts it into a record.
func (o outcome) in(r journal.Record) journal.Record {
	r.Action, r.Prevented = o.action, o.prevented
	return r
}

// stops delivers when stopIfDue has something to do.
func (s *Session) stops() <-chan struct{} {
	if s.set == nil {
		return nil
	}
	return s.set.Stops()
}

// stopIfDue stops the domain if there was a violation for which that is to be done.
func (s *Session) stopIfDue() {
	if s.set == nil {
		return
	}
	var due *guard.Armed
	for _, a := range s.set.Armed() {
		if a.TakeStop() && (due == nil || a.Action > due.Action) {
			due = a
		}
	}
	if due != nil {
		s.stopDomain(due.Guard.Name, due.Action)
	}
}

// stopDomain pauses the domain, and shuts it down if that is the action. What is done
// already is not done twice.
func (s *Session) stopDomain(by policy.GuardName, a policy.Action) {
	if s.stop.last == journal.ShutDown {
		return
	}
	if s.ledger.Has(ledger.OpGuardPause) {
		// By the hvid before this one, perhaps.
		if s.stop.last = journal.Paused; a == policy.ActionPause {
			return
		}
	} else if s.stop = (stop{err: s.ledger.GuardPause(whyStopped(by, journal.Paused, "")), by: by, unexplained: true}); s.stop.err == nil {
		s.stop.last = journal.Paused
		if a == policy.ActionPause {
			s.stop.dump = s.startDump()
		}
	}
	if a == policy.ActionShutdown {
		// Nothing of it runs between the two. If the pause has failed this is done all
		// the more.
		s.stop.by, s.stop.unexplained = by, true
		if err := s.shutDown(); err != nil {
			s.stop.err = errors.Join(s.stop.err, err)
		} else {
			s.stop.last = journal.ShutDown
		}
	}
	if s.stop.err != nil {
		s.log.Error("stop the domain for a violation", "guard", string(by), "action", a.String(), "err", s.stop.err)
	} else {
		s.log.Warn("the domain is stopped for a violation", "guard", string(by), "action", a.String())
	}
	s.explainStop(by, "")
}

// shutDown shuts the domain down as crashed: that takes effect at once, also where a
// vCPU waits for its device model, and what its configuration says for it (on_crash)
// can be something else than for a guest that has powered off.
func (s *Session) shutDown() error {
	if err := s.ledger.ShutDown(); err != nil {
		return err
	}
	info, err := s.hv.Domain(s.info.ID)
	switch {
	case errors.Is(err, xen.ErrNoDomain):
		return nil // it is quick
	case err != nil:
		return err
	case !info.Shutdown:
		return fmt.Errorf("domain %d has not shut down", s.info.ID)
	case info.ShutdownReason != abi.ShutdownCrash:
		// The toolstack does what it does for that reason, but we keep it paused.
		s.log.Warn("the guest had announced another reason for its end", "reason", info.ShutdownReason)
	}
	return nil
}

// explainStop says why the domain is stopped, in the status and in the ledger, if it
// is and that was for a violation of the guard. event is that of one; it may be empty,
// and a later one doesn't replace one that was given.
func (s *Session) explainStop(by policy.GuardName, event journal.ID) {
	if !s.stop.unexplained || s.stop.last == "" || s.stop.by != by {
		return
	}
	why := whyStopped(by, s.stop.last, event)
	if err := s.ledger.Explain(why); err != nil {
		s.log.Error("note why the domain is stopped", "err", err)
	}
	s.update(func(st *Status) { st.Held = why })
	s.stop.unexplained = event == ""
}

// whyStopped says so for people.
func whyStopped(by policy.GuardName, done journal.Action, event journal.ID) string {
	why := fmt.Sprintf("guard %s ", by)
	if done == journal.ShutDown {
		why += "shut it down"
	} else {
		why += "paused it"
	}
	if event != "" {
		why += ", event " + string(event)
	} else {
		why += " at " + time.Now().UTC().Format(time.RFC3339)
	}
	if done != journal.ShutDown {
		why += "; hvictl resume lets it run on"
	}
	return why
}

// staysHeld reports whether a domain stays held when hvid ends.
func staysHeld(l *ledger.Ledger) bool { return l.Has(ledger.OpHold) || l.Has(ledger.OpGuardPause) }

// ErrNotPaused says that no guard has paused the domain.
var ErrNotPaused = errors.New("no guard has paused the domain")

// Resume has a domain run on that a guard has paused. What else holds it is not
// touched. ctx is as for Attach.
func (e *Engine) Resume(ctx context.Context, id xen.DomID) error {
	d, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer d.busy.Unlock()
	if s := d.current(); s != nil && !s.ended() {
		return s.resume()
	}
	d.adopt()
	if d.ledger == nil || !d.ledger.Has(ledger.OpGuardPause) {
		return fmt.Errorf("domain %d: %w", id, ErrNotPaused)
	}
	if err := d.ledger.Undo(ledger.OpGuardPause); err != nil {
		return err
	}
	e.opt.Log.Warn("the domain runs on", "domid", id, "uuid", d.info.UUID)
	switch {
	case d.ledger.Has(ledger.OpHold):
		d.setHeld(heldUnattached)
		return nil
	case d.over:
		d.setHeld("")
		return nil // what becomes of it is decided when its toolstack has acted
	}
	return e.letGo(d)
}

// resume is Engine.Resume for a session that lives.
func (s *Session) resume() error {
	err := errEnded
	s.do(func() {
		if !s.ledger.Has(ledger.OpGuardPause) {
			err = fmt.Errorf("domain %d: %w", s.info.ID, ErrNotPaused)
			return
		}
		s.stopDump() // what it reads from now on is no moment's memory
		if err = s.ledger.Undo(ledger.OpGuardPause); err != nil {
			return
		}
		s.stop = stop{}
		s.update(func(st *Status) { st.Held = "" })
		s.log.Warn("the domain runs on")
	})
	return err
}
