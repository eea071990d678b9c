package scenario

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// leftovers is what of a domain's state Xen itself says.
type leftovers struct {
	paused     bool // by a toolstack or hvi
	frames     int  // looked at
	restricted int  // of them, those that may not be read, written and executed
}

// paused asks Xen whether a domain is paused, by a toolstack or by hvi.
func (t *T) paused(id int) (bool, error) {
	h, err := xen.Open()
	if err != nil {
		return false, err
	}
	defer h.Close()
	info, err := h.Domain(xen.DomID(id))
	return info.Paused, err
}

// leftovers asks Xen about a domain, as a listener of its own: where another is
// still connected it fails with xen.ErrRingTaken.
func (t *T) leftovers(id int) (left leftovers, err error) {
	h, err := xen.Open()
	if err != nil {
		return left, err
	}
	defer h.Close()
	dom := xen.DomID(id)
	info, err := h.Domain(dom)
	if err != nil {
		return left, err
	}
	left.paused = info.Paused
	disconnect, err := t.connectRing(h, info)
	if err != nil {
		return left, err
	}
	// A PVH guest's memory lies in one piece from frame 0 on; the few special
	// frames above it are nobody's code.
	frames := info.Pages
	if h.ProbeMemAccess(dom) != nil {
		frames = 0 // no page can be restricted here
	}
	for gfn := range x86.GFN(frames) {
		access, err := h.MemAccess(dom, gfn)
		if errors.Is(err, xen.ErrNoPage) {
			continue
		}
		if err != nil {
			return left, errors.Join(err, disconnect())
		}
		left.frames++
		if access != xen.AccessRWX {
			left.restricted++
		}
	}
	return left, disconnect()
}

// occupyRing connects to a domain's monitor ring as another program would, and
// returns what disconnects again.
func (t *T) occupyRing(id int) (release func() error, err error) {
	h, err := xen.Open()
	if err != nil {
		return nil, err
	}
	info, err := h.Domain(xen.DomID(id))
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	disconnect, err := t.connectRing(h, info)
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return func() error { return errors.Join(disconnect(), h.Close()) }, nil
}

// connectRing enables the monitor ring of a domain. Nothing is monitored, so
// nothing needs an answer.
func (t *T) connectRing(h *xen.Host, info xen.DomainInfo) (disconnect func() error, err error) {
	dir, err := t.TempDir()
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(dir, info.ID, info.UUID, mutate.New(h))
	if err != nil {
		return nil, err
	}
	undo := func() error { return errors.Join(l.Undo(ledger.OpRing, ledger.OpRingPage), l.Close()) }
	page, err := placeRing(h, l, info.ID)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("place a ring of our own: %w", err), undo())
	}
	if _, err = vmevent.NewRing(page.Bytes(), h.Layout()); err == nil {
		_, err = l.EnableRing()
	}
	if err == nil {
		err = l.ReleaseRingPage()
	}
	if err != nil {
		return nil, errors.Join(err, undo(), page.Close())
	}
	return func() error { return errors.Join(undo(), page.Close()) }, nil
}

// placeRing maps the frame of the monitor ring, which is put into the guest's
// memory if it is not there.
func placeRing(h *xen.Host, l *ledger.Ledger, dom xen.DomID) (*xen.RingMapping, error) {
	var gfn x86.GFN
	gfn, err := h.RingFrame(dom)
	if err != nil {
		return nil, err
	}
	kind, err := h.PageFrameType(dom, gfn)
	if err != nil {
		return nil, err
	}
	if kind.Present() {
		err = l.AdoptRingPage(gfn)
	} else {
		err = l.PopulateRingPage(gfn)
	}
	if err != nil {
		return nil, err
	}
	return h.MapRing(dom, gfn)
}
