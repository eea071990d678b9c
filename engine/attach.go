package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// attach connects to the domain. It is called with the domain paused by a
// reference in the ledger, and drops that reference at the end.
func (s *Session) attach() error {
	err := s.connect()
	if err == nil {
		err = s.choose()
	}
	if err == nil && s.policy.OnEngineFailure != policy.Pause {
		err = s.ledger.Undo(ledger.OpFailClosed)
	}
	if err == nil {
		err = s.ledger.Undo(ledger.OpPause)
	}
	if err != nil {
		if s.Status().State != StateFailed {
			// The guards may be armed already, and are not to be shown as in force.
			s.fail("let the guest run", "run: hvictl attach "+s.info.UUID.String(), err)
		}
		return errors.Join(err, s.withdraw(StateFailed, s.holdOnFailure))
	}
	return nil
}

// connect sets the monitor ring up, in the order Xen wants it: the frame is in
// the guest's memory while the ring is enabled and out of it afterwards, where
// the guest can't write it.
func (s *Session) connect() error {
	const stage = "attach to the monitor ring"
	fail := func(fix string, err error) error {
		s.fail(stage, fix, err)
		return fmt.Errorf("%s: %w", stage, err)
	}
	if s.info.Type == xen.PV {
		return fail("run the guest as HVM or PVH (type=\"pvh\" in its xl config): Xen offers no introspection of PV guests",
			errors.New("the domain is a PV guest"))
	}
	gfn, err := placeRing(s.hv, s.ledger)
	if err != nil {
		return fail("", err)
	}
	if s.page, err = s.hv.MapPage(s.info.ID, gfn); err != nil {
		return fail("", err)
	}
	if s.ring, err = vmevent.NewRing(s.page.Bytes(), s.hv.Layout()); err != nil {
		return fail("", err)
	}
	port, err := s.ledger.EnableRing()
	if err != nil {
		return fail(enableFix(err), err)
	}
	if err := s.lookAgain(); err != nil {
		return fail("", err)
	}
	if err := s.ledger.ReleaseRingPage(); err != nil {
		return fail("", err)
	}
	if s.channel, err = s.hv.BindInterdomain(s.info.ID, port); err != nil {
		return fail("", err)
	}
	s.stages.set(letPass{})
	s.serve()

	s.memory = s.hv.OpenMemory(s.info.ID)
	regs, err := s.hv.Registers(s.info.ID, 0)
	if err != nil {
		return fail("", err)
	}
	s.update(func(st *Status) {
		st.AttachedAt, st.AttachPC = time.Now(), x86.VirtAddr(regs.RIP)
	})
	s.probe()
	s.setState(StateAttached)
	return nil
}

// lookAgain asks Xen anew what the domain is like. It may have been seen first
// when its toolstack had given it neither vCPUs nor memory; a domain to whose
// ring one can connect is whole.
func (s *Session) lookAgain() error {
	now, err := s.hv.Domain(s.info.ID)
	if err != nil {
		return err
	}
	if now.UUID != s.info.UUID {
		return fmt.Errorf("domain %d: %w", s.info.ID, xen.ErrNoDomain)
	}
	s.info = now
	s.update(func(st *Status) { st.Info = now })
	return nil
}

func (s *Session) serve() {
	if s.pulse == nil {
		s.pulse, s.dropPulse = s.newPulse()
	}
	s.server = vmevent.NewServer(s.ring, s.channel, s.hv.CPU(s.info.ID), &s.stages, s.pulse)
	s.serverRef.Store(s.server)
	go s.server.Run() // its error is the server's Stop's, or ringLost's
}

func enableFix(err error) string {
	if errors.Is(err, xen.ErrRingTaken) {
		return "another program listens to this domain's monitor ring: stop it (LibVMI, DRAKVUF, xen-access, a second hvid), then run: hvictl attach"
	}
	return ""
}

// placeRing puts a new page behind the frame set aside for the monitor ring,
// where it must be while the ring is enabled. A page that is there is taken
// away first: a guest that has run may have put one there that it can reach by
// another way too, and who can write the ring can answer in our name, and worse.
// The domain must be paused.
func placeRing(hv Hypervisor, l *ledger.Ledger) (x86.GFN, error) {
	gfn, err := hv.RingFrame(l.Domain())
	if err != nil {
		return 0, err
	}
	t, err := hv.PageFrameType(l.Domain(), gfn)
	if err != nil {
		return 0, err
	}
	if t.Present() {
		if err := errors.Join(l.AdoptRingPage(gfn), l.ReleaseRingPage()); err != nil {
			return 0, err
		}
	}
	return gfn, l.PopulateRingPage(gfn)
}

// Probe finds the best tier a domain can have, and why it is not a better one.
func Probe(hv Hypervisor, info xen.DomainInfo) (tier Tier, reason string) {
	if info.Type == xen.PV {
		return TierNone, "Xen offers no introspection of PV guests"
	}
	if err := hv.ProbeMemAccess(info.ID); err != nil {
		return TierRegisters, err.Error()
	}
	a, err := hv.AltP2M(info.ID)
	switch {
	case err != nil:
		return TierAccess, err.Error()
	case a.Mode == xen.AltP2MDisabled && !hv.Layout().Has.AltP2MFixedAtCreate:
		// We may set it ourselves, but for a domain for which toolstacks refuse it.
		switch n, err := hv.OnDemand(info.ID); {
		case err != nil:
			return TierAccess, err.Error()
		case n > 0:
			return TierAccess, fmt.Sprintf("%d pages of the domain are populated on demand, which does not go with altp2m: set memory and maxmem alike", n)
		}
		return TierViews, ""
	case a.Mode != xen.AltP2MExternal:
		return TierAccess, fmt.Sprintf("altp2m of the domain is %s: set altp2m=\"external\" in its xl config", a.Mode)
	}
	return TierViews, ""
}

// probe finds the domain's tier and marks the guards that can't be had with it.
func (s *Session) probe() {
	tier, reason := Probe(s.hv, s.info)
	s.update(func(st *Status) { st.Tier, st.TierReason = tier, reason })
	missing := make(map[guard.Need]string)
	if tier == TierRegisters {
		missing[guard.NeedMemAccess] = "needs per-page access control (Intel VT-x with HAP): " + reason
	}
	caps, err := s.hv.MonitorCapabilities(s.info.ID)
	for need, event := range map[guard.Need]int{
		guard.NeedMSRWrite:     abi.MonitorEventMovToMSR,
		guard.NeedCtrlRegWrite: abi.MonitorEventWriteCtrlReg,
	} {
		if err != nil {
			missing[need] = "needs events of register writes: " + err.Error()
		} else if !caps.Has(event) {
			missing[need] = "needs events of register writes, which Xen does not offer for this domain"
		}
	}
	for _, g := range guard.All() {
		for need, why := range missing {
			if g.Needs&need != 0 && s.policy.Action(g.Name) != policy.ActionOff {
				s.setGuard(g.Name, GuardUnavailable, why)
			}
		}
	}
}
