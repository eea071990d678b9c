package scenario

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/mutate"
)

// leftovers is what of a domain's state Xen itself says.
type leftovers struct {
	paused     bool   // by a toolstack or hvi
	frames     int    // looked at
	restricted int    // of them, those that may not be read, written and executed
	views      bool   // the domain's views are switched on
	pool       uint64 // the paging pool, in bytes
	// steps is how many instructions its vCPUs reported one by one, in a moment
	// in which nobody had asked them to. It says something of a guest that works.
	steps uint64
}

// lookForSteps is how long leftovers looks for steps. A vCPU that steps and runs
// reports one at once.
const lookForSteps = 300 * time.Millisecond

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
	if a, err := h.AltP2M(dom); err == nil {
		left.views = a.Active
	} else if !errors.Is(err, xen.ErrNotSupported) {
		return left, err
	}
	if left.pool, err = h.PagingPool(dom); err != nil {
		return left, err
	}
	if left.steps, err = t.steps(h, info); err != nil {
		return left, err
	}
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

// letSteps answers what a vCPU reports that was left stepping, without ending it.
type letSteps struct{}

func (letSteps) HandleEvent(*vmevent.Event) vmevent.Verdict { return vmevent.Continue }

// steps has single steps reported, asks for none, and returns how many come.
func (t *T) steps(h *xen.Host, info xen.DomainInfo) (uint64, error) {
	r, err := t.openRing(h, info)
	if errors.Is(err, xen.ErrNotSupported) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	channel, err := h.BindInterdomain(info.ID, r.port)
	if err != nil {
		return 0, errors.Join(err, r.close())
	}
	server := vmevent.NewServer(r.ring, channel, h.CPU(info.ID), letSteps{}, new(atomic.Uint64))
	go server.Run()
	stepped := ledger.MonitorOp{Event: abi.MonitorEventSingleStep}
	err = r.ledger.Monitor(stepped)
	if errors.Is(err, xen.ErrNotSupported) || errors.Is(err, syscall.EOPNOTSUPP) {
		err = nil // where Xen can make none, none is left
	} else if err == nil {
		select {
		case <-time.After(lookForSteps):
		case <-t.ctx.Done():
		}
		err = r.ledger.Unmonitor(stepped)
	}
	return server.Total(), errors.Join(err, server.Stop(), channel.Close(), r.close())
}

// stepsIfLeft returns what steps sees of a domain whose vCPU 0 was left stepping.
// Afterwards it steps no more.
func (t *T) stepsIfLeft(h *xen.Host, id int) (n uint64, err error) {
	info, err := h.Domain(xen.DomID(id))
	if err != nil {
		return 0, err
	}
	m := mutate.New(h)
	if err := m.SingleStep(info.ID, 0, true); err != nil {
		return 0, err
	}
	n, err = t.steps(h, info)
	return n, errors.Join(err, m.SingleStep(info.ID, 0, false))
}

// touch writes the entry of a frame in the host's view anew, as it is: any access
// permitted.
func (t *T) touch(h *xen.Host, id int, gfn x86.GFN) error {
	info, err := h.Domain(xen.DomID(id))
	if err != nil {
		return err
	}
	dir, err := t.TempDir()
	if err != nil {
		return err
	}
	l, err := ledger.Open(dir, info.ID, info.UUID, mutate.New(h))
	if err != nil {
		return err
	}
	return errors.Join(l.Restrict(xen.AccessRWX, gfn, 1), l.Undo(ledger.OpAccess), l.Close())
}

// connectRing enables the monitor ring of a domain. Nothing is monitored, so
// nothing needs an answer.
func (t *T) connectRing(h *xen.Host, info xen.DomainInfo) (disconnect func() error, err error) {
	r, err := t.openRing(h, info)
	if err != nil {
		return nil, err
	}
	return r.close, nil
}

// ownRing is a monitor ring of the scenario's own.
type ownRing struct {
	ledger *ledger.Ledger
	page   *xen.PageMapping
	ring   *vmevent.Ring
	port   uint32
}

func (r *ownRing) close() error {
	err := errors.Join(r.ledger.Undo(ledger.OpRing, ledger.OpRingPage), r.ledger.Close())
	if r.page != nil {
		err = errors.Join(err, r.page.Close())
	}
	return err
}

// openRing enables the monitor ring of a domain.
func (t *T) openRing(h *xen.Host, info xen.DomainInfo) (*ownRing, error) {
	dir, err := t.TempDir()
	if err != nil {
		return nil, err
	}
	r := &ownRing{}
	if r.ledger, err = ledger.Open(dir, info.ID, info.UUID, mutate.New(h)); err != nil {
		return nil, err
	}
	if r.page, err = placeRing(h, r.ledger, info.ID); err != nil {
		return nil, errors.Join(fmt.Errorf("place a ring of our own: %w", err), r.close())
	}
	if r.ring, err = vmevent.NewRing(r.page.Bytes(), h.Layout()); err == nil {
		r.port, err = r.ledger.EnableRing()
	}
	if err == nil {
		err = r.ledger.ReleaseRingPage()
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// placeRing maps the frame of the monitor ring, which is put into the guest's
// memory if it is not there.
func placeRing(h *xen.Host, l *ledger.Ledger, dom xen.DomID) (*xen.PageMapping, error) {
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
	return h.MapPage(dom, gfn)
}

// takeViews makes views of a domain until Xen can have no more, and returns how
// many those were. They go with the domain's others.
func (t *T) takeViews(id int) (n int, err error) {
	const most = 1024
	h, err := xen.Open()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	m := mutate.New(h)
	for ; n < most; n++ {
		if _, err := m.CreateView(xen.DomID(id)); err != nil {
			t.Logf("after %d views: %v", n, err)
			return n, nil
		}
	}
	return n, fmt.Errorf("%d views were made, and there was no end of them", n)
}
