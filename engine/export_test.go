package engine

import (
	"time"

	"context"
	"errors"
	"log/slog"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/xen"
)

// ConnectForTest enables the ring of a ledger's domain as a session does, and
// serves it with nobody.
func ConnectForTest(hv Hypervisor, l *ledger.Ledger) (MappedPage, error) {
	gfn, err := placeRing(hv, l)
	if err != nil {
		return nil, err
	}
	page, err := hv.MapPage(l.Domain(), gfn)
	if err != nil {
		return nil, err
	}
	_, err = vmevent.NewRing(page.Bytes(), hv.Layout())
	_, enableErr := l.EnableRing()
	return page, errors.Join(err, enableErr, l.ReleaseRingPage())
}

// CheckView looks at a domain's view, as its session does now and then.
func (e *Engine) CheckView(dom xen.DomID) {
	if s := e.byID(dom).current(); s != nil {
		s.do(s.checkView)
	}
}

// Reporter is a session reduced to its reports.
type Reporter struct{ s Session }

// NewReporter returns one for a guest with that kernel.
func NewReporter(rec Recorder, k *linux.Kernel) *Reporter {
	r := &Reporter{Session{record: rec, kernel: k, log: slog.New(slog.DiscardHandler)}}
	r.s.status.Store(&Status{Name: "web"})
	return r
}

func (r *Reporter) Report(e guard.Evidence) { r.s.report(&e) }
func (r *Reporter) Flush()                  { r.s.flush() }
func (r *Reporter) Summarize()              { r.s.summarize() }
func (r *Reporter) Unrecorded() uint64      { return r.s.unrecorded.Load() }

// ScanForTest has the session of a domain scan as in n ticks, in which the guest works.
func (e *Engine) ScanForTest(id xen.DomID, n int) {
	s := e.byID(id).current()
	s.do(func() {
		for range n {
			s.activity.busy.Store(int64(time.Since(s.activity.began)))
			s.scanSome()
		}
	})
}

// PatchingRestsForTest reports whether the session of a domain has nothing to see to of
// what its kernel has patched.
func (e *Engine) PatchingRestsForTest(id xen.DomID) (rests bool) {
	s := e.byID(id).current()
	s.do(func() { rests = s.patching.timer == nil })
	return rests
}

// FollowPatchingForTest has the session of a domain see to what the kernel has patched,
// at a time at which its clock stands from then on. With run, page after page was
// patched just before.
func (e *Engine) FollowPatchingForTest(id xen.DomID, now time.Time, run bool) {
	s := e.byID(id).current()
	s.do(func() {
		if run {
			s.patching.row, s.patching.last = true, now
		}
		s.now = func() time.Time { return now }
		s.followPatching(now)
	})
}

// FollowCheckingForTest has the session of a domain see to what of its code the kernel has
// read, at a time at which its clock stands from then on. With run, page after page was
// read just before.
func (e *Engine) FollowCheckingForTest(id xen.DomID, now time.Time, run bool) {
	s := e.byID(id).current()
	s.do(func() {
		if run {
			s.checking.readRun = readRun{pages: rowPages, front: 1, last: now}
		}
		s.now = func() time.Time { return now }
		s.followChecking(now)
	})
}

// LookForTest has the session of a domain look for one guard.
func (e *Engine) LookForTest(id xen.DomID, name policy.GuardName) {
	s := e.byID(id).current()
	s.do(func() {
		for _, g := range guard.All() {
			if g.Name == name {
				r := lookResult{guard: name}
				r.verdict, r.err = lookOnce(context.Background(), s.hv, s.info, s.kernel, howRead(g.Look), g.Look.Finding(s.policy))
				s.tell(r)
			}
		}
	})
}

// FollowMovingForTest has the session of a domain look for what is to be guarded
// now.
func (e *Engine) FollowMovingForTest(id xen.DomID) {
	s := e.byID(id).current()
	s.do(s.followMoving)
}

// What a crash's record is made of.
var (
	CrashReason = crashReason
	CrashLog    = crashLog
)

// HoldDumpsForTest has memory dumps wait until the function it returns is called.
func (e *Engine) HoldDumpsForTest() (let func()) {
	e.dumper.turn <- struct{}{}
	return func() { <-e.dumper.turn }
}

// ErrEnded is what Apply answers while a session ends by itself.
var ErrEnded = errEnded

// SampleForTest takes a sample of how long the protected guests have run.
func (e *Engine) SampleForTest(list func() ([]xen.DomainInfo, error)) { e.sample(time.Now(), list) }

// TakeTextForTest has the kernel's code of a domain read now, if it is not known yet.
func (e *Engine) TakeTextForTest(id xen.DomID) {
	s := e.byID(id).current()
	var result <-chan takenText
	s.do(func() {
		if t := s.patching.taking; t != nil {
			t.hurryUp()
			result = t.result
		}
	})
	for known := result == nil; !known; <-time.After(time.Millisecond) {
		s.do(func() { known = s.patching.taking == nil })
	}
}
