package engine

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Recovered is what Recover found of a domain and did about it.
type Recovered struct {
	Domain xen.DomID
	UUID   xen.UUID
	// Undone counts changes, and Held says that the domain was left held.
	Undone int
	Held   bool
	// Why it is held, if a guard has paused it; empty where its policy says so.
	Why string
}

// String says so for people, on one line.
func (r Recovered) String() string {
	s := fmt.Sprintf("domain %d (%s): %d changes of an earlier run undone", r.Domain, r.UUID, r.Undone)
	switch {
	case r.Why != "":
		s += "; it stays held: " + r.Why
	case r.Held:
		s += "; it stays held, since its policy requires protection: hvid recover lets it go"
	}
	return s
}

// Recover undoes what a dead hvid left in Xen, from its ledgers alone, and
// resumes every vCPU that was waiting for its answer. A domain that was held
// because its policy requires protection stays held, for the next hvid, and so does
// one that a guard has paused, unless release is set.
func Recover(hv Hypervisor, m ledger.Mutator, dir string, release bool, log *slog.Logger) ([]Recovered, error) {
	ledgers, err := ledger.Load(dir, m)
	errs := []error{err}
	var done []Recovered
	for _, l := range ledgers {
		r := Recovered{Domain: l.Domain(), UUID: l.UUID()}
		held := 0
		for _, e := range l.Outstanding() {
			switch e.Op {
			case ledger.OpHold, ledger.OpGuardPause:
				held++
			case ledger.OpFailClosed: // nothing to undo
			default:
				r.Undone++
			}
		}
		why, _ := l.GuardPaused()
		var err error
		if r.Held, err = recoverDomain(hv, l, release); err != nil {
			errs = append(errs, fmt.Errorf("recover domain %d (%s): %w", l.Domain(), l.UUID(), err))
			continue
		}
		if r.Held {
			r.Why = why
		} else {
			r.Undone += held
		}
		log.Warn("recovered", "domid", r.Domain, "uuid", r.UUID, "changes", r.Undone, "held", r.Held)
		done = append(done, r)
	}
	return done, errors.Join(errs...)
}

// recoverDomain undoes what one ledger has, and ends it. held says that the domain
// is left held, which it never is with release.
func recoverDomain(hv Hypervisor, l *ledger.Ledger, release bool) (held bool, err error) {
	info, err := hv.Domain(l.Domain())
	if errors.Is(err, xen.ErrNoDomain) || err == nil && (info.Dying || info.UUID != l.UUID()) {
		return false, errors.Join(l.Forget(), l.Close())
	}
	if err != nil {
		return false, errors.Join(err, l.Leave())
	}
	if err := l.Settle(); err != nil {
		return false, errors.Join(err, l.Leave())
	}
	err = undoDead(hv, l, info, !release)
	if staysHeld(l) && !release {
		return true, errors.Join(err, l.Leave())
	}
	return false, errors.Join(err, l.Undo(ledger.OpFailClosed), l.Undo(ledger.OpHold, ledger.OpGuardPause), l.Close())
}

// undoDead undoes everything in a ledger whose ring nobody serves any more. The
// domain is paused meanwhile: pages are put into its memory and taken out.
//
// The order matters. With the old ring still connected pages can be freed, which
// needs a ring; then the ring is exchanged for one we can answer on, and every
// vCPU is told to go on. That they wait is written down before the old ring
// goes, so that a death in between is recovered from as well.
//
// With hold a domain that may not run when hvid fails is left held.
func undoDead(hv Hypervisor, l *ledger.Ledger, info xen.DomainInfo, hold bool) error {
	// Not without the pause: a guest that runs could write the ring's page while
	// it is in its memory.
	if err := l.Pause(); err != nil {
		return err
	}
	var errs []error
	if l.Has(ledger.OpRing) && !l.Has(ledger.OpResume) {
		errs = append(errs, l.OweResume())
	}
	errs = append(errs, l.Undo(ledger.OpViews), l.Undo(ledger.OpAccess, ledger.OpAllowViews, ledger.OpMonitor, ledger.OpDeferWrites),
		l.Undo(ledger.OpSteps), l.Undo(ledger.OpPagingPool, ledger.OpShadow, ledger.OpMaxPages), l.Undo(ledger.OpRing, ledger.OpRingPage))
	if l.Has(ledger.OpResume) {
		err := resumeAll(hv, l, info)
		if err == nil {
			err = l.Undo(ledger.OpResume)
		}
		errs = append(errs, err, l.Undo(ledger.OpRing, ledger.OpRingPage))
	}
	if hold && l.Has(ledger.OpFailClosed) {
		return errors.Join(append(errs, longHold(l))...)
	}
	return errors.Join(append(errs, l.Undo(ledger.OpPause))...)
}

// resumeAll connects a fresh ring and answers, on it, for every vCPU.
func resumeAll(hv Hypervisor, l *ledger.Ledger, info xen.DomainInfo) error {
	gfn, err := placeRing(hv, l)
	if err != nil {
		return err
	}
	page, err := hv.MapPage(info.ID, gfn)
	if err != nil {
		return err
	}
	err = answerAll(hv, l, info, page)
	return errors.Join(err, page.Close())
}

func answerAll(hv Hypervisor, l *ledger.Ledger, info xen.DomainInfo, page MappedPage) error {
	ring, err := vmevent.NewRing(page.Bytes(), hv.Layout())
	if err != nil {
		return err
	}
	port, err := l.EnableRing()
	if err != nil {
		return err
	}
	channel, err := hv.BindInterdomain(info.ID, port)
	if err != nil {
		return err
	}
	// In batches: the ring holds fewer answers than a domain may have vCPUs,
	// and Xen takes them all at each notification.
	for vcpu := range uint32(info.VCPUs) {
		ring.RespondBlind(vcpu)
		if (vcpu+1)%uint32(ring.Slots()) == 0 || vcpu+1 == uint32(info.VCPUs) {
			ring.Publish()
			err = errors.Join(err, channel.Notify())
		}
	}
	return errors.Join(err, l.ReleaseRingPage(), channel.Close())
}
