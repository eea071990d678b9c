package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Hidden breakpoints: see package view for what they are. Here they are put into
// Xen, and taken out of it.

const (
	// maxShadows is how many pages of a domain can have a shadow: 256 KiB of the
	// host's memory, in one block of guest frames.
	maxShadows = 64
	// shadowBase is the lowest frame of a shadow page: 4 GiB, above all devices
	// of a machine. A domain with memory there has its shadow pages above that.
	shadowBase x86.GFN = 1 << 20
	// MaxBreakpoints is how many hidden breakpoints a domain can have.
	MaxBreakpoints = 256
)

// BreakpointStatus is a hidden breakpoint of a domain.
type BreakpointStatus struct {
	// Symbol is the place, as it was asked for: "do_filp_open", "do_idle+0x10".
	Symbol  string
	Address x86.VirtAddr
	At      x86.PhysAddr
	Since   time.Time
	// Hits counts how often a vCPU came to it, Rests how often its page was executed
	// unseen for a moment, where the domain has no view.
	Hits, Rests uint64
}

// BreakpointError says why a hidden breakpoint cannot be had, and what to do.
type BreakpointError struct {
	Symbol string
	Reason string
	Fix    string
	Err    error
}

func (e *BreakpointError) Error() string {
	s := fmt.Sprintf("breakpoint at %q: %s", e.Symbol, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *BreakpointError) Unwrap() error { return e.Err }

// breakpoint is one that was asked for. It outlives a change of policy, at which
// it is placed anew.
type breakpoint struct {
	symbol string
	va     x86.VirtAddr
	point  *view.Point
	since  time.Time
	// call is the place of guards that this is for, nil for an admin's. before is what
	// point has counted that is none of the latter's.
	call   *guard.Place
	before uint64
	// trap is its page, of a domain without views.
	trap atomic.Pointer[view.Trap]
}

// shadow is a page of ours in the domain's physical memory.
type shadow struct {
	frame  x86.GFN
	mapped MappedPage
	page   *view.Page // what it stands for; nil while it is free
	lost   bool       // the guest has taken the frame out of its memory
}

// hidden is what a session has for its breakpoints. It is the session goroutine's.
type hidden struct {
	points []*breakpoint
	// shadows are all that were made, up to maxShadows.
	shadows []*shadow
	first   x86.GFN // frame of the first

	// stepping is the view made for steps, if there is one, and ready says that it
	// restricts what the one does that the domain runs in. The others are set while the
	// domain runs in a view of ours that can have breakpoints.
	stepping, running uint16
	ready             bool
	live              *view.Breakpoints

	// Of a domain without views; see trap.go.
	trapping trapping
}

// SetBreakpoint puts a hidden breakpoint at a place in the kernel's code: a symbol
// or symbol+offset. To set one that is there changes nothing.
func (s *Session) SetBreakpoint(symbol string) error {
	err := errEnded
	s.do(func() { err = s.setBreakpoint(symbol) })
	return err
}

// ClearBreakpoint takes one away.
func (s *Session) ClearBreakpoint(symbol string) error {
	err := errEnded
	s.do(func() { err = s.clearBreakpoint(symbol) })
	return err
}

func (s *Session) setBreakpoint(symbol string) error {
	if s.finished {
		return errEnded
	}
	refuse := func(reason, fix string, err error) error {
		return &BreakpointError{Symbol: symbol, Reason: reason, Fix: fix, Err: err}
	}
	switch {
	case s.set == nil:
		return refuse("the domain's guards are not armed yet", "wait until hvictl status says protecting", nil)
	case s.views == nil && s.status.Load().Tier != TierAccess:
		return refuse("it needs the tier views or access", "see the tier's reason: hvictl views "+strconv.Itoa(int(s.info.ID)), nil)
	case s.adminPoints() >= MaxBreakpoints:
		return refuse(fmt.Sprintf("the domain has %d already", MaxBreakpoints), "clear one", nil)
	}
	if s.findBreakpoint(symbol) >= 0 {
		return nil
	}
	b, err := s.locate(symbol)
	if err != nil {
		return refuse(err.Error(), "hvictl breakpoint set takes a symbol of the kernel's code, or symbol+offset", nil)
	}
	for _, other := range s.hidden.points {
		if other.call == nil && other.point.At == b.point.At {
			b.point = other.point // the same place by another name
		}
	}
	if err := s.ledger.Pause(); err != nil {
		return err
	}
	if err := s.place(b); err != nil {
		return errors.Join(refuse("it could not be placed", "clear breakpoints in other pages, or stop what else makes views of the domain; hvictl views shows what hvi has", err), s.ledger.Unpause())
	}
	s.hidden.points = append(s.hidden.points, b)
	s.showBreakpoints()
	s.log.Info("breakpoint set", "symbol", symbol, "at", b.point.At)
	return s.ledger.Unpause()
}

func (s *Session) clearBreakpoint(symbol string) error {
	if s.finished {
		return errEnded
	}
	i := s.findBreakpoint(symbol)
	if i < 0 {
		return &BreakpointError{Symbol: symbol, Reason: "there is none", Fix: "hvictl breakpoint list shows those there are"}
	}
	b := s.hidden.points[i]
	if err := s.ledger.Pause(); err != nil {
		return err
	}
	err := s.remove(b)
	s.hidden.points = slices.Delete(s.hidden.points, i, i+1)
	s.showBreakpoints()
	s.log.Info("breakpoint cleared", "symbol", symbol, "hits", b.hits())
	return errors.Join(err, s.ledger.Unpause())
}

func (s *Session) findBreakpoint(symbol string) int {
	return slices.IndexFunc(s.hidden.points, func(b *breakpoint) bool { return b.call == nil && b.symbol == symbol })
}

// adminPoints counts the breakpoints that an admin has set.
func (s *Session) adminPoints() (n int) {
	for _, b := range s.hidden.points {
		if b.call == nil {
			n++
		}
	}
	return n
}

// locate finds a place in the kernel's code.
func (s *Session) locate(symbol string) (*breakpoint, error) {
	name, offset, found := strings.Cut(symbol, "+")
	n := uint64(0)
	if found {
		var err error
		if n, err = strconv.ParseUint(offset, 0, 32); err != nil {
			return nil, fmt.Errorf("%q is no offset", offset)
		}
	}
	va, ok := s.kernel.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("the guest's kernel has no symbol %q", name)
	}
	va += x86.VirtAddr(n)
	if va < s.kernel.TextStart || va >= s.kernel.TextEnd {
		return nil, fmt.Errorf("%s is not in the kernel's code, %s to %s", va, s.kernel.TextStart, s.kernel.TextEnd)
	}
	as := s.kernel.AddressSpace()
	t, err := as.Translate(va)
	if err != nil {
		return nil, err
	}
	return &breakpoint{symbol: symbol, va: va, point: &view.Point{At: t.Phys}, since: time.Now()}, nil
}

// place puts a breakpoint into the view that the domain runs in. The domain is
// paused. What an error leaves behind is of no consequence to the guest.
func (s *Session) place(b *breakpoint) error {
	if s.views == nil {
		return s.trap(b)
	}
	if err := s.openBreakpoints(); err != nil {
		return err
	}
	s.shareWithGuards(b)
	gfn := b.point.At.GFN()
	sh := s.shadowOf(gfn)
	if sh == nil {
		var err error
		if sh, err = s.makeShadow(); err != nil {
			return err
		}
		if err := s.shadowPage(sh, gfn); err != nil {
			return err
		}
	}
	return s.hidden.live.Set(sh.page, b.point)
}

// openBreakpoints readies the domain's views, once: there is one more to make
// steps in, with the same restrictions.
func (s *Session) openBreakpoints() error {
	h := &s.hidden
	if h.live != nil {
		return nil
	}
	if err := s.openStepping(); err != nil {
		return err
	}
	h.running = s.views.current().ID
	for _, sh := range h.shadows {
		if sh.lost {
			continue
		}
		if err := s.conceal(sh.frame); err != nil {
			return err
		}
	}
	// Last, since it cannot be asked for twice.
	if err := s.ledger.Monitor(ledger.MonitorOp{Event: abi.MonitorEventSoftwareBreakpoint}); err != nil {
		return err
	}
	h.live = view.New(h.running, h.stepping, s.info.VCPUs, s.memory, s.ledger.ReturnBreakpoint)
	s.set.UseBreakpoints(h.live)
	s.showBreakpoints()
	return nil
}

// openStepping readies the view for steps, once.
func (s *Session) openStepping() error {
	h := &s.hidden
	if h.ready {
		return nil
	}
	if err := s.growPool(translations + uint64(len(s.declaredViews())) + 1); err != nil {
		return err
	}
	if h.stepping == noView {
		var err error
		if h.stepping, err = s.ledger.CreateView(); err != nil {
			return err
		}
	}
	if err := s.restrictStepping(nil, s.views.current().Restricted); err != nil {
		return err
	}
	h.ready = true
	return nil
}

// restrictStepping has the stepping view restrict what another view does than before.
func (s *Session) restrictStepping(before, now []RestrictedFrames) error {
	for _, r := range before {
		if err := s.ledger.RestrictView(s.hidden.stepping, xen.AccessRWX, r.First, r.Count); err != nil {
			return err
		}
	}
	for _, r := range now {
		if err := s.ledger.RestrictView(s.hidden.stepping, stepAccess(r.Access), r.First, r.Count); err != nil {
			return err
		}
	}
	return nil
}

// liftBreakpoints takes all shadow pages out of the view that the domain, which is
// paused, runs in. The breakpoints are to be placed again, there or elsewhere.
func (s *Session) liftBreakpoints() error {
	var errs []error
	for _, sh := range s.hidden.shadows {
		if sh.page != nil {
			errs = append(errs, s.unshadowPage(sh))
		}
	}
	return errors.Join(errs...)
}

// moveBreakpoints puts all breakpoints, which were lifted, into the view that the
// domain has been switched to. Those that can't be had there are lost: guards come
// first.
func (s *Session) moveBreakpoints(from ViewStatus) {
	h := &s.hidden
	if !h.ready {
		return
	}
	to := s.views.current()
	err := s.restrictStepping(from.Restricted, to.Restricted)
	if err != nil {
		h.ready = false
		s.readsLost(err)
	}
	if h.live == nil {
		s.showBreakpoints()
		return
	}
	h.running = to.ID
	h.live = h.live.MovedTo(to.ID)
	s.set.UseBreakpoints(h.live)
	for _, sh := range h.shadows {
		if err == nil && !sh.lost {
			err = s.concealInViews(sh.frame)
		}
	}
	if err != nil {
		s.log.Error("breakpoints are lost: there is no view for steps over them", "count", len(h.points), "err", err)
		for _, b := range h.points {
			s.lose(b, err)
		}
		h.points = nil
		s.set.UseBreakpoints(nil)
		h.live = nil // the next one readies the view anew
		err = s.ledger.Unmonitor(ledger.MonitorOp{Event: abi.MonitorEventSoftwareBreakpoint})
		if err != nil {
			s.log.Error("breakpoints are still reported", "err", err)
		}
	}
	s.placeAgain()
}

// shadowOf returns the shadow of a frame, or nil.
func (s *Session) shadowOf(gfn x86.GFN) *shadow {
	for _, sh := range s.hidden.shadows {
		if sh.page != nil && sh.page.GFN == gfn {
			return sh
		}
	}
	return nil
}

// makeShadow returns a page of ours that stands for none of the guest's.
func (s *Session) makeShadow() (*shadow, error) {
	h := &s.hidden
	for _, sh := range h.shadows {
		if sh.page == nil && !sh.lost {
			return sh, s.mapShadow(sh)
		}
	}
	if len(h.shadows) == maxShadows {
		return nil, fmt.Errorf("%d pages have a shadow already, which is as many as can have", maxShadows)
	}
	if len(h.shadows) == 0 {
		top, err := s.hv.MaxGFN(s.info.ID)
		if err != nil {
			return nil, err
		}
		h.first = max(top+1, shadowBase)
	}
	if !s.ledger.Has(ledger.OpMaxPages) {
		now, err := s.hv.Domain(s.info.ID)
		if err != nil {
			return nil, err
		}
		if err := s.ledger.RaiseMaxPages(now.MaxPages, now.MaxPages+maxShadows); err != nil {
			return nil, err
		}
	}
	sh := &shadow{frame: h.first + x86.GFN(len(h.shadows))}
	if err := s.ledger.PopulateShadow(sh.frame); err != nil {
		return nil, err
	}
	// It is the session's from here on, in whatever state.
	h.shadows = append(h.shadows, sh)
	return sh, s.mapShadow(sh)
}

// conceal makes a page of ours inaccessible to the guest where it lies, in every
// view. A view that has no entry for a page takes it from the host's with the
// access of that up to some release and with its own default in later ones (4.20),
// so each is told.
func (s *Session) conceal(frame x86.GFN) error {
	if err := s.ledger.Restrict(xen.AccessN, frame, 1); err != nil {
		return err
	}
	return s.concealInViews(frame)
}

// concealInViews does so in the views alone. What Xen drops there again and again
// must not fill the ledger.
func (s *Session) concealInViews(frame x86.GFN) error {
	for _, v := range []uint16{s.hidden.running, s.hidden.stepping} {
		if err := s.ledger.RestrictView(v, xen.AccessN, frame, 1); err != nil {
			return err
		}
	}
	return nil
}

// mapShadow conceals a new page of ours and maps it for us.
func (s *Session) mapShadow(sh *shadow) error {
	if sh.mapped != nil {
		return nil
	}
	if err := s.conceal(sh.frame); err != nil {
		return err
	}
	var err error
	sh.mapped, err = s.hv.MapPage(s.info.ID, sh.frame)
	return err
}

// shadowPage has the running view lead to the shadow of a frame.
func (s *Session) shadowPage(sh *shadow, gfn x86.GFN) error {
	h := &s.hidden
	s.closePatchedFrame(gfn) // that of the guest's is to be restricted, whenever it is led to again
	page := view.NewPage(gfn, sh.frame, sh.mapped.Bytes())
	if err := h.live.Shadow(page); err != nil {
		return err
	}
	sh.page = page
	if err := s.lead(sh); err != nil {
		return errors.Join(err, s.unshadowPage(sh))
	}
	return nil
}

// lead makes a shadow page executable, and nothing else, at the place of the
// guest's page.
func (s *Session) lead(sh *shadow) error {
	if err := s.ledger.Remap(s.hidden.running, sh.page.GFN, sh.frame); err != nil {
		return err
	}
	return s.ledger.RestrictView(s.hidden.running, xen.AccessX, sh.page.GFN, 1)
}

// unshadowPage has the running view lead to the guest's own page again, with the
// restrictions it has there.
func (s *Session) unshadowPage(sh *shadow) error {
	gfn := sh.page.GFN
	err := s.ledger.Unmap(s.hidden.running, gfn)
	if access, restricted := s.views.access(s.hidden.running, gfn); restricted {
		err = errors.Join(err, s.ledger.RestrictView(s.hidden.running, access, gfn, 1))
	}
	s.hidden.live.Unshadow(sh.page)
	sh.page = nil
	return err
}

// remove takes a breakpoint out of the view, and the shadow of its page with the
// last one. The domain is paused.
func (s *Session) remove(b *breakpoint) error {
	if s.hidden.trapping.traps != nil {
		return s.untrap(b)
	}
	if s.hidden.live == nil {
		return nil
	}
	sh := s.shadowOf(b.point.At.GFN())
	if sh == nil {
		return nil
	}
	for _, other := range s.hidden.points {
		if other != b && other.point == b.point {
			return nil
		}
	}
	err := s.hidden.live.Clear(sh.page, b.point)
	for _, other := range s.hidden.points {
		if other != b && other.point.At.GFN() == sh.page.GFN {
			return err
		}
	}
	return errors.Join(err, s.unshadowPage(sh))
}

// closeBreakpoints forgets the views, which are gone. The shadow pages stay until
// the session ends.
func (s *Session) closeBreakpoints() {
	h := &s.hidden
	if s.set != nil {
		s.set.UseBreakpoints(nil)
	}
	s.closeTraps()
	h.live, h.stepping, h.ready = nil, noView, false
	for _, sh := range h.shadows {
		sh.page = nil
	}
}

// placeAgain puts all breakpoints into the views that were made anew. The domain
// is paused.
func (s *Session) placeAgain() {
	points := s.hidden.points
	s.hidden.points = nil
	// Those of guards first: others share theirs.
	slices.SortStableFunc(points, func(a, b *breakpoint) int { return cmp.Compare(kind(a), kind(b)) })
	for _, b := range points {
		if s.views == nil && s.status.Load().Tier != TierAccess {
			s.lose(b, errNoView)
			continue
		}
		if err := s.place(b); err != nil {
			s.lose(b, err)
			continue
		}
		s.hidden.points = append(s.hidden.points, b)
	}
	s.showBreakpoints()
}

// checkShadows conceals shadow pages again, and has the running view lead to each
// that it should lead to, where Xen has dropped that, and returns how many frames
// those were. Where that can't be, since the guest has taken the frame of the shadow
// out of its memory, the breakpoints of the page are given up, and it is restricted
// as any other.
func (s *Session) checkShadows() (restored uint64, err error) {
	h := &s.hidden
	if h.live == nil {
		return 0, nil
	}
	h.live.Follow()
	// What Xen does not tell is done again without looking.
	told := s.hv.Layout().Has.AltP2MGetMemAccess
	holds := func(view uint16, gfn x86.GFN, want xen.Access) bool {
		access, err := s.hv.ViewAccess(s.info.ID, view, gfn)
		return told && err == nil && access == want
	}
	count := func() {
		if told {
			restored++
		}
	}
	for _, sh := range h.shadows {
		if sh.lost {
			continue
		}
		var failed error
		if !holds(h.running, sh.frame, xen.AccessN) || !holds(h.stepping, sh.frame, xen.AccessN) {
			count()
			failed = s.concealInViews(sh.frame)
		}
		if failed == nil && sh.page != nil && !holds(h.running, sh.page.GFN, xen.AccessX) {
			count()
			if failed = s.lead(sh); failed == nil && told {
				s.doubt(sh.page.GFN)
			}
		}
		if failed != nil {
			err = errors.Join(err, s.giveUp(sh, failed))
		}
	}
	return restored, err
}

// giveUp takes the breakpoints of a page away whose shadow is lost.
func (s *Session) giveUp(sh *shadow, why error) error {
	sh.lost = true
	if sh.page == nil {
		return nil
	}
	gfn := sh.page.GFN
	s.hidden.points = slices.DeleteFunc(s.hidden.points, func(b *breakpoint) bool {
		lost := b.point.At.GFN() == gfn
		if lost {
			s.lose(b, why)
		}
		return lost
	})
	s.log.Error("breakpoints are lost: their page's shadow is", "gfn", gfn, "err", why)
	err := s.unshadowPage(sh)
	s.showBreakpoints()
	return err
}

// releaseShadows unmaps the shadow pages.
func (s *Session) releaseShadows() error {
	var errs []error
	for _, sh := range s.hidden.shadows {
		if sh.mapped != nil {
			errs = append(errs, sh.mapped.Close())
		}
	}
	s.hidden.shadows, s.hidden.points = nil, nil
	return errors.Join(errs...)
}

// showBreakpoints puts the breakpoints, and the view for their steps, into the
// status.
func (s *Session) showBreakpoints() {
	h := &s.hidden
	points := slices.Clone(h.points)
	slices.SortFunc(points, func(a, b *breakpoint) int { return cmp.Compare(a.va, b.va) })
	var shadows []ShadowPage
	for _, sh := range h.shadows {
		if sh.page == nil {
			continue
		}
		n := 0
		for _, b := range points {
			if b.point.At.GFN() == sh.page.GFN {
				n++
			}
		}
		shadows = append(shadows, ShadowPage{GFN: sh.page.GFN, Shadow: sh.frame, Breakpoints: n})
	}
	if s.views != nil && h.ready {
		s.views = s.views.withStepping(h.stepping, shadows)
	}
	views := s.views
	if views == nil {
		views = s.withTraps(s.status.Load().Views, points)
	}
	s.update(func(st *Status) { st.points, st.hidden, st.Views = points, h.live, views })
}

// SetBreakpoint puts a hidden breakpoint into a domain's kernel, or takes it away
// where on is false. ctx is as for Attach.
func (e *Engine) SetBreakpoint(ctx context.Context, id xen.DomID, symbol string, on bool) error {
	d, err := e.lock(ctx, id)
	if err != nil {
		return err
	}
	defer d.busy.Unlock()
	s := d.current()
	if s == nil || s.ended() {
		return fmt.Errorf("domain %d: %w", id, ErrNotAttached)
	}
	if on {
		return s.SetBreakpoint(symbol)
	}
	return s.ClearBreakpoint(symbol)
}
