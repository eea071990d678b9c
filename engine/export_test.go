package engine

import (
	"errors"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
)

// ConnectForTest enables the ring of a ledger's domain as a session does, and
// serves it with nobody.
func ConnectForTest(hv Hypervisor, l *ledger.Ledger) (RingPage, error) {
	gfn, err := placeRing(hv, l)
	if err != nil {
		return nil, err
	}
	page, err := hv.MapRing(l.Domain(), gfn)
	if err != nil {
		return nil, err
	}
	_, err = vmevent.NewRing(page.Bytes(), hv.Layout())
	_, enableErr := l.EnableRing()
	return page, errors.Join(err, enableErr, l.ReleaseRingPage())
}
