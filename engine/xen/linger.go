package xen

import (
	"runtime"
	"sync/atomic"
	"time"
)

// An event that comes while nobody waits in the kernel costs a guest a fraction of one that
// wakes a thread: no interrupt of the control domain, no wake-up, no clock set anew. So while
// events come thick, the ring's goroutine looks for the next one by itself, and between two
// looks lets Xen give its processor to others, of which the guest may be one.
const (
	// quickEvents events within quickTime are thick: a thousand a second.
	quickEvents = 16
	quickTime   = quickEvents * time.Millisecond
	// lingerLooks in vain, or lingerTime without an event, end it. Where nobody wants the
	// processor a look takes about a microsecond.
	lingerLooks = 32
	lingerTime  = time.Millisecond
	// lingerTurn is how many events are answered before the thread waits in the kernel
	// once, so that others of the control domain come to run: to its scheduler, which
	// doesn't know of Xen's, the thread works all the time.
	lingerTurn = 64
	// lingerPays is how many events make lingering worth it. After one that had fewer, it
	// takes twice as many events as before until it is tried again, at most pauseMax.
	lingerPays = 16
	pauseMax   = 1024
)

// pace says whether events come thick.
type pace struct {
	clock  func() time.Time
	thick  bool
	events int       // since then
	since  time.Time // when they began to be counted
	wanted int       // how many it takes until thick is decided anew; at least quickEvents
}

// answered counts events that were waited for in the kernel. It reads the clock now and then.
func (p *pace) answered(n int) {
	if p.events += n; p.events < max(p.wanted, quickEvents) {
		return
	}
	now := p.clock()
	p.thick = now.Sub(p.since) < quickTime*time.Duration(p.events)/quickEvents
	p.events, p.since = 0, now
}

// lingered takes note of how many events came while that was tried.
func (p *pace) lingered(n int) {
	switch {
	case n >= lingerTurn: // and so they do still
	case n >= lingerPays:
		*p = pace{clock: p.clock, since: p.clock()}
	default:
		*p = pace{clock: p.clock, since: p.clock(), wanted: min(2*max(p.wanted, quickEvents), pauseMax)}
	}
}

// lingering is how many goroutines linger.
var lingering atomic.Int32

// mayLinger is how many goroutines may: one fewer than may run at once, since to the runtime
// one that lingers is one that works.
func mayLinger() int32 { return int32(runtime.GOMAXPROCS(0)) - 1 }

// linger calls work again and again while that finds something to do, and reports whether to
// go on. The port stays masked meanwhile, so it fires once more when it is unmasked although
// nothing has come.
func (e *EventChannel) linger(work func() (int, bool)) (goOn bool) {
	defer lingering.Add(-1)
	if lingering.Add(1) > e.mayLinger {
		return true
	}
	events := 0
	var in vain
	for events < lingerTurn {
		did, goOn := work()
		if !goOn {
			return false
		}
		if events += did; events == 0 || e.woken.Load() || e.gate.IsShut() {
			return true // with nothing to be learnt of how thick they come
		}
		if in.look(did) || e.host.c.Yield() != nil {
			break
		}
	}
	e.pace.lingered(events)
	return true
}

// vain is what was looked for in vain since the last event.
type vain struct {
	looks int
	since time.Time // the second of them
}

// look takes note of a look, and reports whether it was the last. It reads no clock while
// each finds something.
func (v *vain) look(did int) (last bool) {
	if did > 0 {
		v.looks = 0
		return false
	}
	switch v.looks++; v.looks {
	case 1:
		return false
	case 2:
		v.since = time.Now()
		return false
	}
	return v.looks >= lingerLooks || time.Since(v.since) > lingerTime
}
