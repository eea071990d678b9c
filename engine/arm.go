package engine

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// arm puts the guards in force. The domain is paused meanwhile so that no vCPU
// runs between the first page restricted and the last.
func (s *Session) arm() error {
	const stage = "arm the guards"
	fail := func(err error) error {
		s.fail(stage, "", err)
		return fmt.Errorf("%s: %w", stage, err)
	}
	if err := s.ledger.Pause(); err != nil {
		return fail(err)
	}
	if !s.armedAt {
		// The registers of this moment are the right ones, also for guards
		// that are armed later: a change since may have been an attack.
		var err error
		if s.arming, err = s.hv.Registers(s.info.ID, 0); err != nil {
			return fail(err)
		}
		s.armedAt = true
	}
	actions := make(map[policy.GuardName]policy.Action)
	for _, g := range s.Status().Guards {
		if g.State == GuardPending {
			actions[g.Name] = g.Action
		}
	}
	now, err := s.processors()
	if err != nil {
		return fail(err)
	}
	set, err := guard.NewSet(&guard.Target{Kernel: s.kernel, Boot: s.arming, Now: now, Actions: s.actions(), Policy: s.policy}, s.memory, actions)
	for _, e := range prepareErrors(err) {
		s.setGuard(e.Guard, GuardDegraded, e.Err.Error())
	}
	s.set, s.fold.overflow, s.fold.unnoted = set, nil, nil
	s.slow = make(map[policy.GuardName]GuardStatus)
	set.UseBudget(s.budget)
	set.UseFates(s.fates)
	s.useExceptions()
	s.setRef.Store(set)
	s.keepOriginals() // before it answers what is in the ring already
	s.stages.set(set)
	for _, a := range set.Armed() {
		if a.Action.Prevents() && a.Watch.DefersWrites() && !s.ledger.Has(ledger.OpDeferWrites) {
			// Before the first write can be denied.
			if err := s.ledger.DeferRegisterWrites(); err != nil {
				return fail(err)
			}
			break
		}
	}
	views := s.openViews(set)
	restrict := map[policy.GuardName]guard.Restriction{} // in the host's view
	if views == nil {
		s.viewName = "" // what the initial view declares holds
		host := newView(noView, s.currentView())
		host.Current = true
		views = viewsStatus{host}
		set.UseViews(views.holding())
		holds := func(name policy.GuardName) bool { return host.holds(name) && !unreadable(set, name) }
		for _, r := range set.Restrictions(holds) {
			restrict[r.Guard] = r
		}
	}
	for _, a := range set.Armed() {
		r := restrict[a.Guard.Name]
		if err := s.enforce(a, r); err != nil {
			s.setGuard(a.Guard.Name, GuardDegraded, err.Error())
			continue
		}
		views.current().restrict(r)
		s.setGuard(a.Guard.Name, GuardArmed, "")
	}
	s.showHolding(views)
	s.startScans()
	s.startLooks()
	s.update(func(st *Status) { st.Views = views })
	s.watchView(views)
	s.startPatching()
	s.letRead(set)
	s.placeCalls(set)
	s.startMoving()
	if err := s.ledger.Unpause(); err != nil {
		return fail(err)
	}
	s.settle()
	return nil
}

// enforce asks Xen for what a guard watches: pages that are to be restricted in the
// host's view, and registers.
func (s *Session) enforce(a *guard.Armed, r guard.Restriction) error {
	for _, f := range r.Frames {
		if err := s.ledger.Restrict(r.Access, f.First, f.N); err != nil {
			return err
		}
	}
	for _, msr := range a.Watch.MSRs {
		op := ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: msr, OnChangeOnly: true}
		if err := s.ledger.Monitor(op); err != nil {
			return err
		}
	}
	for _, r := range a.Watch.CtrlRegs {
		op := ledger.MonitorOp{
			Event: abi.MonitorEventWriteCtrlReg, Register: uint8(r.Reg),
			Sync: true, OnChangeOnly: true, IgnoreBits: ^r.Bits,
		}
		if err := s.ledger.Monitor(op); err != nil {
			return err
		}
	}
	return nil
}

// processors returns the registers of each vCPU, zero for one that is not up.
func (s *Session) processors() ([]x86.Registers, error) {
	all := make([]x86.Registers, s.info.VCPUs)
	for i := range all {
		r, err := s.hv.Registers(s.info.ID, i)
		if err != nil && !errors.Is(err, xen.ErrVCPUOffline) {
			return nil, err
		}
		if err == nil {
			all[i] = r
		}
	}
	return all, nil
}

// prepareErrors lists the guards guard.NewSet could not prepare.
func prepareErrors(err error) []*guard.PrepareError {
	var out []*guard.PrepareError
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	for _, e := range joined.Unwrap() {
		var p *guard.PrepareError
		if errors.As(e, &p) {
			out = append(out, p)
		}
	}
	return out
}
