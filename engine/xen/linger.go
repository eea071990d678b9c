package xen

import (
	"runtime"
	"sync/atomic"
	"time"
)

// An event that comes while nobody waits in the kernel costs a guest two thirds of one that
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
	// lingerPays is how many events make lingering worth it. After one that had fewer, or that
	// answered them no quicker than waiting did, it takes twice as many events as before
	// until it is tried again, at most pauseMax.
	lingerPays = 16
	pauseMax   = 1024
)

// pace says whether events come thick, and whether to linger pays.
type pace struct {
	clock  func() time.Time
	thick  bool
	events int           // since then
	since  time.Time     // when they began to be counted
	wanted int           // how many it takes until thick is decided anew; at least quickEvents
	each   time.Duration // how long one took that was waited for, when that was decided
}

// answered counts events that were waited for in the kernel. It reads the clock now and then.
func (p *pace) answered(n int) {
	if p.events += n; p.events < max(p.wanted, quickEvents) {
		return
	}
	now := p.clock()
	p.each = now.Sub(p.since) / time.Duration(p.events)
	p.thick = p.each < quickTime/quickEvents
	p.events, p.since = 0, now
}

// lingered takes note of how many events came while that was tried, and how long it was until
// the last of them. Where other domains are queued for the processor that is given away, it
// comes back late, and later than it would to a thread that waits and is woken.
func (p *pace) lingered(n int, took time.Duration) {
	switch pays := n >= lingerPays && took <= time.Duration(n)*p.each; {
	case pays && n >= lingerTurn: // and so they do still
		return
	case pays:
		p.wanted = 0
	default:
		p.wanted = min(2*max(p.wanted, quickEvents), pauseMax)
	}
	p.thick, p.events, p.since = false, 0, p.clock()
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
	events, began := 0, e.pace.clock()
	in := vain{clock: e.pace.clock}
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
	ended := in.since
	if in.looks == 0 {
		ended = e.pace.clock()
	}
	e.pace.lingered(events, ended.Sub(began))
	return true
}

// vain is what was looked for in vain since the last event.
type vain struct {
	clock func() time.Time
	looks int
	since time.Time // the first of them
}

// look takes note of a look, and reports whether it was the last. It reads no clock while
// each finds something.
func (v *vain) look(did int) (last bool) {
	if did > 0 {
		v.looks = 0
		return false
	}
	now := v.clock()
	if v.looks++; v.looks == 1 {
		v.since = now
	}
	return v.looks >= lingerLooks || now.Sub(v.since) > lingerTime
}
