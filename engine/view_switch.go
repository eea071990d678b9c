package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/xen"
)

// A policy may declare several views. They are all made when the guards are armed;
// to switch from one to another takes all vCPUs from the one into the other, with the
// domain paused. Nothing of it is in the ledger: what undoes the views undoes this,
// whichever the vCPUs are in.

// ViewError says why a domain cannot be switched to a view, and what to do.
type ViewError struct {
	View   string
	Reason string
	Fix    string
	Err    error
}

func (e *ViewError) Error() string {
	s := fmt.Sprintf("switch to view %s: %s", policy.Quote(e.View), e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *ViewError) Unwrap() error { return e.Err }

// SwitchView has a domain run in another view that its policy declares. by is who
// asked for it, for the record. ctx is as for Attach.
func (e *Engine) SwitchView(ctx context.Context, id xen.DomID, name string, by journal.Peer) error {
	d, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer d.busy.Unlock()
	s := d.current()
	if s == nil || s.ended() {
		return fmt.Errorf("domain %d: %w", id, ErrNotAttached)
	}
	return s.SwitchView(name, by)
}

// SwitchView is Engine.SwitchView. To switch to the view that the domain is in changes
// nothing.
func (s *Session) SwitchView(name string, by journal.Peer) error {
	err := errEnded
	s.do(func() { err = s.switchView(name, by) })
	return err
}

func (s *Session) switchView(name string, by journal.Peer) error {
	if s.finished {
		return errEnded
	}
	refuse := func(reason, fix string, err error) error {
		s.log.Warn("a switch of views is refused", "view", name, "reason", reason, "uid", by.UID, "pid", by.PID)
		return &ViewError{View: name, Reason: reason, Fix: fix, Err: err}
	}
	decl, err := s.policy.LookupView(name)
	switch {
	case err != nil:
		return refuse(err.Error(), "the views are declared in the policy that the domain names; hvictl views shows them", nil)
	case s.set == nil:
		return refuse("the domain's guards are not armed yet", "wait until hvictl status says protecting", nil)
	case s.views == nil:
		st := s.Status()
		why := st.TierReason
		if why == "" {
			why = "its views are lost, see hvictl status"
		}
		return refuse(fmt.Sprintf("it needs the tier views, and the domain's is %s", st.Tier), "what view "+s.currentView().Name+" declares holds; "+why, nil)
	}
	from := s.views.current()
	if from.Name == name {
		return nil
	}
	if decl.Switch == policy.SwitchNobody {
		return refuse("the policy lets nobody do that", "see "+decl.Origin.String(), nil)
	}
	if err := s.ledger.Pause(); err != nil {
		return err
	}
	was := from.Name
	if err := s.runIn(name); err != nil {
		return errors.Join(&ViewError{View: name, Reason: "it failed", Fix: "the domain stays in view " + s.views.currentName() + "; see hvictl status", Err: err}, s.ledger.Unpause())
	}
	s.viewName = name
	s.showHolding(s.views)
	s.settle()
	s.write(viewRecord(journal.ViewTarget{From: was, To: name, By: by}))
	return s.ledger.Unpause()
}

// currentName is the name of the current view; there may be none any more.
func (v viewsStatus) currentName() string {
	if len(v) == 0 {
		return "0"
	}
	return v.current().Name
}

// runIn takes all vCPUs into the view of a name. The domain is paused. With an error
// it runs in the view that it was in, or the guards are said to be lost.
func (s *Session) runIn(name string) error {
	// What has happened in the view so far is judged by what holds in it.
	ctx, cancel := context.WithTimeout(context.Background(), quietLimit)
	s.waitQuiet(ctx)
	cancel()
	s.recordRest()
	s.closeAllPatched()
	if s.views == nil {
		return errors.New("the view that it runs in is lost")
	}
	from, to := *s.views.current(), s.views.named(name)
	if err := s.liftBreakpoints(); err != nil {
		s.placeAgain()
		return err
	}
	// A step ends in the view that it was begun from, so none may be left. The
	// instruction is then begun anew.
	err := s.ledger.StopSteps(s.info.VCPUs)
	s.server.ForgetSteps()
	if err != nil {
		// Nobody knows what view its vCPUs will be in.
		return s.viewsLost(&from, err)
	}
	s.set.UseView(to.ID)
	if err := s.ledger.SwitchView(to.ID); err != nil {
		// vCPUs whose step was stopped are in the view in which it was made.
		s.set.UseView(from.ID)
		if back := s.ledger.SwitchView(from.ID); back != nil {
			return s.viewsLost(&from, errors.Join(err, back))
		}
		s.placeAgain()
		return err
	}
	s.views = s.views.switched(to.ID)
	s.moveBreakpoints(from)
	s.update(func(st *Status) { st.Views = s.views })
	s.log.Info("the domain runs in another view", "view", name, "before", from.Name)
	return nil
}

// viewsLost says so of all guards that hold in a view, and returns why.
func (s *Session) viewsLost(v *ViewStatus, err error) error {
	for _, name := range policy.MemoryGuards() {
		if v.holds(name) && s.policy.Action(name) != policy.ActionOff {
			s.viewLost(name, err)
		}
	}
	return err
}

// named returns the declared view of a name, which there is.
func (v viewsStatus) named(name string) ViewStatus {
	for _, s := range v {
		if s.Name == name && !s.Steps {
			return s
		}
	}
	return *v.current()
}

// switched returns the views with another one that the vCPUs run in.
func (v viewsStatus) switched(id uint16) viewsStatus {
	out := append(viewsStatus(nil), v...)
	for i := range out {
		out[i].Current = out[i].ID == id
		out[i].Shadows = nil
	}
	return out
}

// declared reports whether a guard holds in any view of the policy, or the policy
// declares none.
func (s *Session) declared(name policy.GuardName) bool {
	return len(s.policy.Views) == 0 || slices.ContainsFunc(s.policy.Views, func(v policy.View) bool { return v.Holds(name) })
}

// showHolding says of each guard that is armed, or not for that reason alone, whether
// it holds in the view that the domain runs in.
func (s *Session) showHolding(views viewsStatus) {
	current := views.current()
	state, why := GuardInactive, ""
	if current.ID == noView {
		// What the policy asks for in its other views can't be had.
		state, why = GuardUnavailable, ", and no other can be had on this tier"
	}
	place := func(g *GuardStatus) {
		switch holds := current.holds(g.Name); {
		case g.Reason == nothingToDo:
		case g.State == GuardInactive && holds:
			g.State, g.Reason = GuardArmed, ""
		case g.State == GuardArmed && !s.declared(g.Name):
			// The policy's views were changed since the domain asked for the guard.
			g.State, g.Reason = GuardUnavailable, notInView(current.Name, s.policy.Views, g.Name)
		case g.State == GuardArmed && !holds:
			g.State, g.Reason = state, notInView(current.Name, s.policy.Views, g.Name)+why
		case g.State == GuardInactive:
			g.Reason = notInView(current.Name, s.policy.Views, g.Name)
		}
	}
	if s.moving.blind != nil {
		place(s.moving.blind)
	}
	s.update(func(st *Status) {
		for i := range st.Guards {
			place(&st.Guards[i])
		}
	})
}

// notInView says that a guard does not hold in a view, and in which it does.
func notInView(view string, all []policy.View, name policy.GuardName) string {
	var in []string
	for _, v := range all {
		if v.Holds(name) {
			in = append(in, v.Name)
		}
	}
	s := "it does not hold in view " + view + ", in which the domain runs"
	if len(in) == 0 {
		return s + ", nor in another of its policy"
	}
	return s + "; it holds in " + strings.Join(in, ", ")
}

// viewRecord is the record of a switch.
func viewRecord(t journal.ViewTarget) journal.Record {
	const none = "it is hvi's own doing"
	return journal.Record{
		Time: time.Now(), Action: journal.Noted, Process: journal.Process{Unknown: none},
		Target: journal.Target{Kind: journal.TargetView, View: &t},
		Before: journal.Unknown(none), Attempted: journal.Unknown(none),
	}
}
