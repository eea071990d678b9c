package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// A kernel patches its own code: 277 stores to switch a static key, 107,000 to switch
// the function tracer on. The guard of the code sees to it that they are the kernel's
// own, and this to what they come to. Each page that was patched is compared soon
// afterwards with what it was and what may be patched into it, as all of the code is
// where there is no page access.
//
// An event for each store would have the guest crawl while the tracer is switched. So
// while the kernel patches page after page, those pages, and the next ones, are opened:
// they may be written for a moment without an event. Then they are closed, and compared.
// What somebody else has written meanwhile is found by that, reported, and undone where
// the guard prevents: a copy of each open page is kept for it. Pages of which
// a guard watches a part, and such as have a hidden breakpoint, stay closed.

const (
	// patchTick is how often what has been patched is seen to while the kernel patches,
	// and so how long it is before a page is opened, and how exactly one is closed.
	patchTick = 20 * time.Millisecond
	// patchRest is how long a page is left alone after it was patched: the kernel is in
	// the middle of it at first. One that is patched all the time is compared after
	// mostRest anyway, but for what it has of patches that are under way.
	patchRest = time.Second
	mostRest  = 10 * time.Second
	// A run of patches is over when there was none for patchGap. Pages are opened when of
	// rowSpan that follow each other rowPages have been patched in one: whoever patches
	// all functions does so in order, 256 of some twenty pages at first. The places of
	// one static key are farther apart, but for a few keys that are switched at boot.
	patchGap = time.Second
	rowSpan  = 16
	rowPages = 12
	// openFor is how long a page is open, and openLonger how long one is to which the
	// kernel has not come yet. It goes three times over 256 places of some twenty pages
	// before it goes on to the next, so openBehind pages behind the last are in use.
	openFor    = 200 * time.Millisecond
	openLonger = time.Second
	openBehind = 32
	// openAhead is how many pages are opened ahead of the last that was patched, and
	// maxOpen how many at a time.
	openAhead = 64
	maxOpen   = 512
	// patchBudget bounds what one tick may take for comparing of a processor of dom0,
	// which is a quarter of it; runBudget does while page after page is patched, which
	// shall not take longer for it. What is not done by then is the next tick's.
	patchBudget = patchTick / 4
	runBudget   = patchTick / 20
)

// patching follows what the kernel patches. It is the session goroutine's.
type patching struct {
	// armed is the guard that lets it, and patched what it has let; nil where there is
	// none, or where its result can't be judged.
	armed   *guard.Armed
	patched *guard.Patched
	// scan compares pages; it is the same for as long as the kernel is. It is nil while
	// the kernel's code is not known yet, and taking is how that becomes known.
	scan   *scan
	taking *textTaking
	kernel *linux.Kernel

	timer *time.Timer // nil while there is nothing to see to
	// reader is what the kernel's pages are compared with while there is something to see
	// to, and returnReader gives back what it borrowed. refreshed is when the scanner was.
	reader       *linux.Reader
	returnReader func()
	refreshed    time.Time
	// moved is what the guard of modules has let; nil where there is none.
	moved *guard.PatchedMoving
	// modules are those whose code is known, and code has the frames of it.
	modules map[moduleKey]*moduleCode
	code    map[x86.GFN]modulePage

	// pages are those that were patched or opened and are not known to be right since.
	pages map[x86.GFN]*patchedPage
	open  int // how many of them are open
	// run are the pages that were patched in this run, the last of them at last; row
	// says that many of them follow each other, and front is the foremost.
	run   map[int]struct{}
	last  time.Time
	row   bool
	front int
	// eager says that the last pages were opened, so that there are few events, and lull
	// that none was patched since the last tick.
	eager, lull bool

	// spare are buffers of pages that are known to be right, for the next ones; none is
	// kept once there is nothing to see to.
	spare []*[x86.PageSize]byte

	count PatchingStatus
	// closed says that none is opened any more, since that failed.
	closed bool
}

// patchedPage is a page of the kernel's code that was patched, or may have been.
type patchedPage struct {
	// scan compares it, as its part, nil while that isn't known; module is whose it is, nil
	// of the kernel's.
	scan   *scan
	part   int
	module *moduleCode
	// due is when it is to be compared; since is since when it was not.
	due, since time.Time
	// open says that it may be written, since opened.
	open   bool
	opened time.Time
	// was is what it was before it was opened, nil of one that never was.
	was *[x86.PageSize]byte
}

// PatchingStatus is what has become of the kernel's patching of its own code.
type PatchingStatus struct {
	// Compared counts pages that were compared with what they may be, Opened those
	// that were writable for a moment, and Undone changes that were not the kernel's
	// own and are undone.
	Compared, Opened, Undone uint64
	// Unknown says why what is patched is not compared; empty if it is.
	Unknown string
}

// startPatching begins to follow what the guards that have just been armed let the
// kernel patch. The domain must be paused.
func (s *Session) startPatching() {
	p := &s.patching
	a, patched := s.set.Patched()
	moved := s.set.PatchedMoving()
	if a == nil && moved == nil {
		s.stopPatching()
		return
	}
	if p.kernel != s.kernel {
		s.stopPatching()
		p.kernel, p.pages, p.run = s.kernel, make(map[x86.GFN]*patchedPage), make(map[int]struct{})
	}
	p.armed, p.patched, p.moved, p.closed = nil, nil, moved, false
	if a != nil && s.scanPatched(a, patched) {
		p.armed, p.patched = a, patched
	} else {
		s.stopTaking()
		clear(p.run) // nobody would say that it is over
		p.row, p.front = false, 0
	}
	s.wakePatching()
}

// scanPatched readies the comparison of the kernel's code. It reports false, and the
// status says why, if that can't be.
func (s *Session) scanPatched(a *guard.Armed, patched *guard.Patched) bool {
	p := &s.patching
	if p.scan != nil {
		return true
	}
	if s.takeTextAfter >= 0 {
		s.takeText(a, patched)
		return true
	}
	scanner, err := a.Guard.Scan(&guard.Target{Kernel: s.kernel, Boot: s.arming, Actions: s.actions()})
	if err != nil {
		s.patchingUnknown(a, err)
		return false
	}
	p.scan = s.patchingScan(a, scanner)
	return true
}

func (s *Session) patchingScan(a *guard.Armed, scanner guard.Scanner) *scan {
	return &scan{guard: a.Guard.Name, scanner: scanner, suspects: make(map[int]suspicion), undo: s.undoPatch}
}

// patchingUnknown says why what the kernel patches is not compared.
func (s *Session) patchingUnknown(a *guard.Armed, err error) {
	s.log.Warn("what the kernel patches can't be compared", "guard", string(a.Guard.Name), "err", err)
	s.patching.count.Unknown = err.Error()
	s.update(func(st *Status) { st.Patching = s.patching.count })
}

// stopPatching ends that.
func (s *Session) stopPatching() {
	if s.patching.timer != nil {
		s.patching.timer.Stop()
	}
	s.stopTaking()
	s.patching.dropReader()
	s.patching = patching{}
}

// dropReader gives back what is needed to compare.
func (p *patching) dropReader() {
	if p.reader != nil {
		p.returnReader()
		p.reader, p.returnReader = nil, nil
	}
}

// patchedMore delivers when the kernel begins to patch its code.
func (s *Session) patchedMore() <-chan struct{} {
	p := &s.patching
	if p.patched == nil || p.timer != nil && !p.eager && !p.lull {
		return nil // the next tick is soon enough: there may be an event for each store
	}
	return p.patched.More()
}

// patchingDue is when to see to it the next time, nil for never.
func (s *Session) patchingDue() <-chan time.Time {
	if s.patching.timer == nil {
		return nil
	}
	return s.patching.timer.C
}

// patchedInRow takes in a page of this run, and whether it makes a row with others.
func (p *patching) patchedInRow(page int) {
	if _, known := p.run[page]; known || p.row {
		p.run[page] = struct{}{}
		return
	}
	p.run[page] = struct{}{}
	n := 0 // of those in the span that ends at the page looked at
	for at := page - rowSpan + 1; at < page+rowSpan; at++ {
		if _, too := p.run[at]; too {
			n++
		}
		if _, too := p.run[at-rowSpan]; too && at-rowSpan > page-rowSpan {
			n--
		}
		p.row = p.row || n >= rowPages
	}
}

// wakePatching has followPatching called at the next tick, if there is anything to see
// to.
func (s *Session) wakePatching() {
	p := &s.patching
	wait := time.Duration(0)
	switch {
	case p.open > 0 || len(p.run) > 0 && !p.lull:
		wait = patchTick
	case len(p.run) > 0:
		wait = max(patchGap-s.now().Sub(p.last), patchTick)
	case p.comparable():
		wait = patchRest / 4
	}
	switch {
	case wait == 0 && p.timer != nil:
		p.timer.Stop()
		p.timer, p.spare = nil, nil
		p.dropReader()
	case wait == 0:
	case p.timer == nil:
		p.timer = time.NewTimer(wait)
	default:
		p.timer.Reset(wait)
	}
}

// comparable reports whether there are pages that can be compared when they are due.
func (p *patching) comparable() bool {
	if p.scan != nil || p.moved == nil {
		return p.scan != nil && len(p.pages) > 0
	}
	for _, o := range p.pages {
		if o.scan != nil {
			return true
		}
	}
	return false
}

// noticePatching opens what the kernel has come to just now. There may be thousands of
// pages to be closed and compared, so that is the ticks' alone.
func (s *Session) noticePatching(now time.Time) {
	lull := s.patching.lull
	if s.patching.patched != nil {
		s.takePatched(now)
	}
	if s.patching.timer == nil || lull {
		s.wakePatching()
	}
}

// followPatching sees to what was patched since the last time.
func (s *Session) followPatching(now time.Time) {
	p := &s.patching
	s.takeMoved(now)
	if p.patched != nil {
		s.takePatched(now)
		running := p.row && now.Sub(p.last) <= patchGap
		s.closePatched(now, func(o *patchedPage) bool {
			age := now.Sub(o.opened)
			return age >= openLonger || age >= openFor && (!running || o.part < p.front-openBehind)
		})
	}
	budget := patchBudget
	if p.row {
		budget = runBudget
	}
	if p.scan != nil && (p.reader == nil || now.Sub(p.refreshed) >= patchRest) {
		if p.reader == nil {
			var tlb *guest.TLB
			tlb, p.returnReader = borrowTLB()
			p.reader = s.kernel.NewReaderWith(tlb, nil)
		}
		// What of the guest is code takes long to tell.
		p.refreshed = now
		p.scan.scanner.Refresh(p.reader)
	}
	until := time.Now().Add(budget)
	ofModules := false
	for gfn, o := range p.pages {
		switch {
		case o.scan == nil || o.open || now.Before(o.due) || !time.Now().Before(until):
		case o.module != nil:
			ofModules = true
		default:
			s.comparePatched(p.reader, gfn, now)
		}
	}
	if ofModules {
		s.compareModulePages(now, until)
	}
	if p.count != s.status.Load().Patching {
		s.update(func(st *Status) { st.Patching = p.count })
	}
	s.wakePatching()
}

// takePatched takes in which pages were patched, and opens what that asks for.
func (s *Session) takePatched(now time.Time) {
	p := &s.patching
	p.eager = false
	if now.Sub(p.last) > patchGap {
		clear(p.run)
		p.row, p.front = false, 0
	}
	var pages []int
	p.patched.Take(func(page int) { pages = append(pages, page) })
	p.lull = len(pages) == 0 && !p.row && p.open == 0
	for _, page := range pages {
		p.patchedInRow(page)
		p.last = now
		if gfn, ok := p.patched.Frame(page); ok {
			s.patchedPage(gfn, p.scan, page, now).rest(now)
		}
	}
	if p.taking != nil && (!p.taking.originals.Grow() || p.row) {
		p.taking.hurryUp()
	}
	if !p.row || p.closed || p.scan == nil {
		return
	}
	patched := len(pages)
	if patched == 0 {
		p.eager = true
		return
	}
	p.eager = s.openPatched(p.around(pages), now) >= patched
}

// around returns pages of a run, which are in order, with those before and behind them
// that the kernel is about to patch.
func (p *patching) around(pages []int) []int {
	front := pages[len(pages)-1]
	if front <= p.front && front >= p.front-openBehind {
		return pages // behind the foremost
	}
	p.front = front // it has come farther, or has begun anew
	for page := front - openBehind; page <= front+openAhead; page++ {
		if _, patched := p.run[page]; patched && page < front || page > front {
			pages = append(pages, page)
		}
	}
	return pages
}

// patchedPage returns what is known of a page, from now on.
func (s *Session) patchedPage(gfn x86.GFN, sc *scan, part int, now time.Time) *patchedPage {
	o := s.patching.pages[gfn]
	if o == nil {
		o = &patchedPage{scan: sc, part: part, since: now, due: now.Add(patchRest)}
		s.patching.pages[gfn] = o
	}
	return o
}

// rest has a page that was patched just now be left alone for a while.
func (o *patchedPage) rest(now time.Time) {
	o.due = now.Add(patchRest)
	if limit := o.since.Add(mostRest); o.due.After(limit) {
		o.due = limit
	}
}

// openPatched lets pages be written without an event, as far as nothing is against it,
// and returns how many.
func (s *Session) openPatched(pages []int, now time.Time) int {
	p := &s.patching
	var gfns []x86.GFN
	for _, page := range pages {
		if _, suspect := p.scan.suspects[page]; suspect || p.open >= maxOpen {
			continue
		}
		gfn, ok := p.patched.Frame(page)
		if !ok || s.isOpen(gfn) || !s.set.Alone(p.armed, gfn) || s.shadowOf(gfn) != nil || s.isTrapped(gfn) {
			continue
		}
		// Nobody but the kernel has written here until now.
		o := s.patchedPage(gfn, p.scan, page, now)
		if o.was == nil {
			was := p.copyBuffer()
			if err := s.memory.ReadPhys(gfn.Addr(), was[:]); err != nil {
				p.spare = append(p.spare, was)
				continue
			}
			o.was = was
		}
		o.open, o.opened = true, now
		p.open++
		gfns = append(gfns, gfn)
	}
	slices.Sort(gfns)
	if err := s.permitPatched(gfns, xen.AccessRWX); err != nil {
		if !s.gone() {
			s.log.Warn("pages that the kernel patches can't be opened", "err", err)
		}
		p.closed = true // and what was opened is closed when its time is over
		return 0
	}
	p.count.Opened += uint64(len(gfns))
	return len(gfns)
}

// copyBuffer returns room for a page, which is given back to spare.
func (p *patching) copyBuffer() *[x86.PageSize]byte {
	n := len(p.spare) - 1
	if n < 0 {
		return new([x86.PageSize]byte)
	}
	b := p.spare[n]
	p.spare = p.spare[:n]
	return b
}

// isOpen reports whether a frame is of a page that is open.
func (s *Session) isOpen(gfn x86.GFN) bool {
	o := s.patching.pages[gfn]
	return o != nil && o.open
}

// closePatched closes those open pages that it is said of. They are compared when the
// kernel, which may be in the middle of them, has left them alone.
func (s *Session) closePatched(now time.Time, which func(*patchedPage) bool) {
	p := &s.patching
	var gfns []x86.GFN
	for gfn, o := range p.pages {
		if o.open && which(o) {
			o.open, o.due = false, now.Add(patchRest)
			p.open--
			gfns = append(gfns, gfn)
			delete(s.checking.open, gfn) // which is closed as a whole
		}
	}
	if len(gfns) == 0 {
		return
	}
	slices.Sort(gfns)
	// Where reads are watched, most permit less.
	var readable, unreadable []x86.GFN
	for _, gfn := range gfns {
		if s.isUnreadable(gfn) {
			unreadable = append(unreadable, gfn)
		} else {
			readable = append(readable, gfn)
		}
	}
	if err := errors.Join(s.permitPatched(readable, p.armed.Watch.Access), s.permitPatched(unreadable, xen.AccessX)); err != nil && !s.gone() {
		s.viewLost(p.armed.Guard.Name, err)
	}
}

// closePatchedFrame closes a page, if it is open.
func (s *Session) closePatchedFrame(gfn x86.GFN) {
	if o := s.patching.pages[gfn]; o != nil && o.open {
		s.closePatched(s.now(), func(other *patchedPage) bool { return other == o })
	}
}

// closeAllPatched closes all that are open.
func (s *Session) closeAllPatched() {
	s.closePatched(s.now(), func(*patchedPage) bool { return true })
	s.closeChecked(func(int, time.Time) bool { return true })
}

// forgetOpen says that no page is open any more, since what was restricted is not. They
// are compared later, if there is somebody who does.
func (s *Session) forgetOpen() {
	p := &s.patching
	for _, o := range p.pages {
		if o.open {
			o.open, o.due = false, s.now()
		}
	}
	p.open = 0
	clear(s.checking.open)
}

// permitPatched permits access to frames, which are in order, where the domain runs.
func (s *Session) permitPatched(gfns []x86.GFN, access xen.Access) error {
	for i := 0; i < len(gfns); {
		n := 1
		for i+n < len(gfns) && gfns[i+n] == gfns[i]+x86.GFN(n) {
			n++
		}
		var err error
		if s.views != nil {
			err = s.ledger.RestrictView(s.views.current().ID, access, gfns[i], uint64(n))
		} else {
			err = s.ledger.Adjust(access, gfns[i], uint64(n))
		}
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// comparePatched compares a page, and forgets it if it is right.
func (s *Session) comparePatched(r *linux.Reader, gfn x86.GFN, now time.Time) {
	p := &s.patching
	o := p.pages[gfn]
	busy := now.Sub(o.since) >= mostRest
	o.since, o.due = now, now.Add(patchRest) // unless it is right
	changes, err := o.scan.scanner.Compare(r, o.part)
	if err != nil {
		s.log.Debug("compare what was patched", "gfn", gfn, "err", err)
		return
	}
	p.count.Compared++
	if busy {
		changes = slices.DeleteFunc(changes, underWay)
	}
	s.judgeChanges(o.scan, o.part, changes)
	if _, suspect := o.scan.suspects[o.part]; !suspect && !busy {
		if o.was != nil {
			p.spare = append(p.spare, o.was)
		}
		delete(p.pages, gfn)
	}
}

// undoPatch undoes a change of a page that was open, if the guard is to prevent it, and
// says what came of that; nothing if there was nothing to do.
func (s *Session) undoPatch(page int, c guard.Change) (note string, undone bool) {
	p := &s.patching
	gfn, _ := p.patched.Frame(page)
	o := p.pages[gfn]
	if o == nil || o.was == nil || !s.policy.Action(p.scan.guard).Prevents() {
		return "", false
	}
	todo := p.scan.scanner.Undo(c, o.was)
	if len(todo) == 0 {
		return "it could not be undone: what was there is not known", false
	}
	if err := s.putBack(gfn, c, todo); err != nil {
		s.log.Error("a change of the kernel's code could not be undone", "address", c.Addr, "err", err)
		return "it could not be undone: " + err.Error(), false
	}
	p.count.Undone++
	return "it was undone", true
}

// errChangedAgain says that the guest has changed what was to be undone.
var errChangedAgain = errors.New("the guest has changed it again")

// putBack writes into the guest's code what was there, with the domain paused. The page
// is the one that was compared, whatever the guest's page tables say now.
func (s *Session) putBack(gfn x86.GFN, c guard.Change, todo []linux.Bytes) (err error) {
	if err := s.ledger.Pause(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.ledger.Unpause()) }()
	page, err := s.hv.MapPage(s.info.ID, gfn)
	if err != nil {
		return fmt.Errorf("map the page: %w", err)
	}
	defer func() { err = errors.Join(err, page.Close()) }()
	code := page.Bytes()
	if at := c.Addr & x86.PageMask; string(code[at:min(int(at)+len(c.Now), x86.PageSize)]) != string(c.Now[:min(len(c.Now), x86.PageSize-int(at))]) {
		return errChangedAgain
	}
	for _, b := range todo {
		copy(code[b.Addr&x86.PageMask:], b.Bytes)
	}
	return nil
}
