package engine

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/xen"
)

// Why a domain is held because its policy does not let it run without protection.
const (
	heldLost       = "its policy says on_engine_failure = pause, and its monitor ring was lost"
	heldFailed     = "its policy does not let it run without hvi, and the hvid before this one failed"
	heldUnattached = "its policy says require_attach, and hvi could not attach"
	heldUnread     = "its policy says require_attach, and cannot be honoured"
	heldBefore     = "its policy said require_attach, and the hvid before this one could not attach"
)

// keepHeld has a domain stay held beyond this hvid: not even its death may let
// the guest run unprotected. The caller holds d.busy, and the domain by d.ledger.
func (e *Engine) keepHeld(d *domain, why string) {
	if by, paused := d.ledger.GuardPaused(); paused {
		why = by + "; besides, " + why
	}
	d.setHeld(why)
	if err := errors.Join(longHold(d.ledger), d.ledger.Undo(ledger.OpFailClosed)); err != nil {
		// It is held all the same, as long as this hvid lives.
		e.opt.Log.Error("have a domain stay held", "domid", d.info.ID, "uuid", d.info.UUID, "err", err)
	}
}

// adopt takes over a domain that its session ended with, and left held. The caller
// holds d.busy.
func (d *domain) adopt() {
	if s := d.current(); d.ledger == nil && s != nil && s.ended() {
		d.ledger = s.takeLedger()
	}
}

// longHold makes the pause references of a ledger one that recovery respects, and
// shortHold makes it an ordinary one again, and takes one where a guard alone has the
// domain paused. The domain is held all the while.
func longHold(l *ledger.Ledger) error {
	if !l.Has(ledger.OpHold) {
		if err := l.Hold(); err != nil {
			return err
		}
	}
	return l.Undo(ledger.OpPause)
}

func shortHold(l *ledger.Ledger) error {
	if !l.Has(ledger.OpPause) {
		if err := l.Pause(); err != nil {
			return err
		}
	}
	return l.Undo(ledger.OpHold)
}

// kept returns the ledger by which an earlier hvid left a domain held, nil if it
// did not.
func (e *Engine) kept(info xen.DomainInfo) (*ledger.Ledger, error) {
	l, err := ledger.Reopen(e.opt.LedgerDir, info.ID, info.UUID, e.opt.Mutator)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := l.Settle(); err != nil {
		return nil, errors.Join(err, l.Leave())
	}
	if !staysHeld(l) {
		return nil, errors.Join(fmt.Errorf("domain %d: what an earlier hvid changed is not undone", info.ID), l.Leave())
	}
	return l, nil
}
