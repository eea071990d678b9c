package engine

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/xen"
)

// A host runs many guests that do next to nothing, and to look into each of them as
// often as into one that works would cost more than it tells: a guest that does not
// run can't change. So Xen is asked each second how long each guest has run, and what
// is done now and then is done less often for one that has been quiet since the last
// time. One that does something is looked at as soon as it would be anyway.

const (
	// activityEvery is how often Xen is asked.
	activityEvery = time.Second
	// quietTimes is how much less often something is done for a quiet guest: each tenth
	// time, so that one which keeps quiet on purpose is looked at all the same.
	quietTimes = 10
)

// activity is what is known of how a guest runs. It is safe for concurrent use, but
// for sample.
type activity struct {
	// busy is when the guest was last seen not to be quiet, in nanoseconds since
	// began.
	busy  atomic.Int64
	began time.Time

	ran     time.Duration // at the last sample
	sampled time.Time
}

// newActivity is that of a guest of which nothing is known yet.
func newActivity(now time.Time) *activity { return &activity{began: now, sampled: now} }

// sample takes in how long the guest has run in all. It is quiet if it has not run
// for longer than quiet in each second.
func (a *activity) sample(now time.Time, ran, quiet time.Duration) {
	if most := quiet * time.Duration(now.Sub(a.sampled).Milliseconds()) / 1000; ran-a.ran > most || quiet == 0 {
		a.busy.Store(int64(now.Sub(a.began)))
	}
	a.ran, a.sampled = ran, now
}

// busySince reports whether the guest was seen busy after t.
func (a *activity) busySince(t time.Time) bool {
	return a.busy.Load() > int64(t.Sub(a.began))
}

// lazy leaves out what is due for a quiet guest.
type lazy struct {
	last    time.Time // when it was done
	skipped int       // since then
	times   int       // instead of quietTimes, unless 0
}

// due is called when it is time, and reports whether it is to be done now.
func (l *lazy) due(a *activity, now time.Time) bool {
	if !a.busySince(l.last) && l.skipped+1 < cmp.Or(l.times, quietTimes) {
		l.skipped++
		return false
	}
	l.last, l.skipped = now, 0
	return true
}

// watchActivity samples the guests of all sessions until the engine is closed, and has
// done for them what is due.
func (e *Engine) watchActivity() {
	e.clock.Each(func() bool {
		e.sample(time.Now(), func() ([]xen.DomainInfo, error) { return e.opt.Hypervisor.Domains() })
		return true
	})
}

// sample asks how long each protected guest has run, all at once, sees that no
// request of theirs was forgotten, and wakes who has something to do for one.
func (e *Engine) sample(now time.Time, list func() ([]xen.DomainInfo, error)) {
	e.mu.Lock()
	domains := slices.Collect(maps.Values(e.domains))
	e.mu.Unlock()
	type watched struct {
		*Session
		// uuid is the domain's. What else its session knows of it is that session's own.
		uuid xen.UUID
	}
	protected := map[xen.DomID]watched{}
	for _, d := range domains {
		s := d.current()
		if s == nil || s.ended() {
			continue
		}
		protected[d.info.ID] = watched{s, d.info.UUID}
		if srv := s.serverRef.Load(); srv != nil {
			srv.Recheck()
		}
	}
	if len(protected) == 0 {
		return
	}
	// What can't be told now is the next time; what is due is due all the same.
	infos, _ := list()
	for i := range infos {
		// A domain that has gone is noticed elsewhere, and so is another with its number.
		if s, ok := protected[infos[i].ID]; ok && s.uuid == infos[i].UUID {
			s.activity.sample(now, infos[i].CPUTime, e.opt.Quiet)
		}
	}
	for _, s := range protected {
		s.chores.tick(now, s.activity)
	}
}
