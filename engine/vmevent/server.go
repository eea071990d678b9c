package vmevent

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Source is the event channel bound to the ring.
type Source interface {
	// Serve calls work at once, and then each time that the channel has fired, Wake was
	// called or the interval has passed, until work says not to go on. Work tells how many
	// requests there were, while they come thick it may be called at any time. Serve does
	// not allocate once it has begun.
	Serve(interval time.Duration, work func() (did int, goOn bool)) error
	// Notify tells Xen that responses were published.
	Notify() error
	// Wake has work called, once more if it is under way.
	Wake()
}

// Processors says which of the guest's vCPUs run.
type Processors interface {
	// VCPURunning reports whether a physical processor executes the vCPU, or
	// Xen on its behalf.
	VCPURunning(vcpu uint32) (bool, error)
}

// Handler judges events on the ring goroutine. It must not block, allocate, lock
// or log on the paths it takes for a healthy guest.
type Handler interface {
	HandleEvent(ev *Event) Verdict
}

// pollInterval bounds how long a lost wake-up could go unnoticed where nobody calls
// [Server.Recheck]. Xen notifies for every request, so this is a safety net and not the
// way events arrive. A host has many guests that do nothing, and to wake up for each of
// them every second was most of what they cost.
const pollInterval = time.Minute

// settleLimit bounds the wait for a vCPU to leave its processor, which takes
// some microseconds.
const settleLimit = 100 * time.Millisecond

// EventsPerTurn is how many requests a server answers before it lets others have the
// processor, and sees to what is asked of it. Without such a bound a guest whose ring
// is never empty would keep a processor until Go's scheduler takes it away, after 10 ms
// (forcePreemptNS, runtime/proc.go), and others, of which a host has many more than
// dom0 has processors, would wait that long for each. With fewer, what a turn begins
// with, which is to bring a guest's data into the processor's cache, would be a
// noticeable part of it (docs/performance.md).
const EventsPerTurn = 1024

// Stats is a snapshot of a server's counters.
type Stats struct {
	// Events is the number of requests read, by reason.
	Events map[Reason]uint64
	// Total is the number of requests read.
	Total uint64
	// Malformed counts requests of an unexpected interface version.
	Malformed uint64
	// Held is the number of requests now waiting for Release.
	Held int
	// Served is about how long the ring goroutine has worked for its guest, and Peak
	// how many requests were found at once at most.
	Served time.Duration
	Peak   int
	// Unsettled counts denials that were given although Xen was not seen to
	// be ready for them, so that the write may have landed.
	Unsettled uint64
}

// Server reads requests, asks its handler and answers, until Stop.
type Server struct {
	ring    *Ring
	source  Source
	cpus    Processors
	handler Handler
	pulse   *atomic.Uint64

	counts [numReasons]atomic.Uint64
	held   atomic.Int32
	late   atomic.Uint64
	// served counts nanoseconds of the batches that are timed, of which batches
	// knows; peak is the largest.
	served  atomic.Int64
	batches uint
	peak    atomic.Int32
	// attention is set when another goroutine left something in mailbox.
	attention atomic.Bool
	mailbox   struct {
		sync.Mutex
		release []release
		noSteps bool
		stop    bool
		// over says that Run has returned, so that the ring may be gone.
		over bool
		// seen is what Recheck found the last time.
		seen uint32
	}
	waiting []*Event // held requests, owned by the ring goroutine
	done    chan struct{}
	err     error
}

type release struct {
	vcpu    uint32
	verdict Verdict
}

// NewServer returns a server that has not started. It takes neither ring nor
// source over: close them after Run has returned.
//
// The ring goroutine tells of itself by pulse, which may lie in memory that another
// process watches: it is odd while there are requests in its hands, and changes
// with each of them. One that stays odd and the same is a thread that hangs, and
// with it a vCPU.
func NewServer(ring *Ring, source Source, cpus Processors, handler Handler, pulse *atomic.Uint64) *Server {
	return &Server{ring: ring, source: source, cpus: cpus, handler: handler, pulse: pulse, done: make(chan struct{})}
}

// Run serves the ring on the calling goroutine until Stop. Before it returns it
// answers everything that is pending or held.
func (s *Server) Run() error {
	defer close(s.done)
	s.err = s.serve()
	s.mailbox.Lock()
	s.mailbox.over = true
	s.mailbox.Unlock()
	return s.err
}

// Done is closed when Run has returned.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stop makes Run answer what is pending, return, and waits for that. With the
// domain paused before, nothing can be pending in Xen afterwards.
func (s *Server) Stop() error {
	s.mailbox.Lock()
	s.mailbox.stop = true
	s.mailbox.Unlock()
	s.attention.Store(true)
	s.source.Wake()
	<-s.done
	return s.err
}

// Release answers the held request of a vCPU with a verdict. It does nothing
// when none is held.
func (s *Server) Release(vcpu uint32, v Verdict) {
	s.mailbox.Lock()
	s.mailbox.release = append(s.mailbox.release, release{vcpu, v &^ Hold})
	s.mailbox.Unlock()
	s.attention.Store(true)
	s.source.Wake()
}

// ForgetSteps says that no vCPU is in a step any more, since all have been ended
// by other means than an answer. The domain is paused and quiet.
func (s *Server) ForgetSteps() {
	s.mailbox.Lock()
	s.mailbox.noSteps = true
	s.mailbox.Unlock()
	s.attention.Store(true)
	s.source.Wake()
}

// Recheck has the ring goroutine look again if the ring has held the same requests since
// the last call and none has been read: what a wake-up that was lost would leave. It may
// be called at any time, and reads a word of the ring's page otherwise.
func (s *Server) Recheck() {
	s.mailbox.Lock()
	defer s.mailbox.Unlock()
	if s.mailbox.over {
		return
	}
	// Each request is counted once, and both indices begin at zero.
	prod := s.ring.reqProd.Load()
	if prod == s.mailbox.seen && prod != uint32(s.Total()) {
		s.source.Wake()
	}
	s.mailbox.seen = prod
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{Events: make(map[Reason]uint64), Malformed: s.ring.Malformed(), Held: int(s.held.Load()), Unsettled: s.late.Load()}
	st.Served, st.Peak = s.Served()
	for i := range s.counts {
		if n := s.counts[i].Load(); n != 0 {
			st.Events[Reason(i)] = n
			st.Total += n
		}
	}
	return st
}

// timedBatch is which batch of requests is timed: each one would cost a clock's
// reading of what Xen and the guest wait for.
const timedBatch = 32

// epoch is what times are counted from. To read all of the clock takes twice as long as to
// read what has passed, which in a paravirtualized dom0 can be a system call.
var epoch = time.Now()

// Served returns about how long the ring goroutine has worked for its guest, and how
// many requests it found at once at most.
func (s *Server) Served() (time.Duration, int) {
	return timedBatch * time.Duration(s.served.Load()), int(s.peak.Load())
}

// Total returns the number of requests read so far.
func (s *Server) Total() uint64 {
	var n uint64
	for i := range s.counts {
		n += s.counts[i].Load()
	}
	return n
}

func (s *Server) serve() error {
	ev := new(Event)
	var err error
	if lost := s.source.Serve(pollInterval, func() (did int, goOn bool) {
		var stop bool
		did, stop, err = s.work(ev)
		return did, !stop
	}); lost != nil {
		return errors.Join(fmt.Errorf("wait for the monitor ring's event channel: %w", lost), s.answerHeld())
	}
	return err
}

// work sees to what other goroutines asked for and answers the requests there are, of
// which it says how many those were. It reports whether to stop.
func (s *Server) work(ev *Event) (did int, stop bool, err error) {
	for {
		stop := s.attention.Load() && s.attention.CompareAndSwap(true, false) && s.readMailbox()
		s.pulse.Add(1)
		n, more, err := s.drain(ev)
		s.pulse.Add(1)
		did += n
		switch {
		case err != nil:
			return did, true, err
		case stop && !more:
			return did, true, s.answerHeld()
		case !more:
			return did, false, nil
		case stop:
			s.attention.Store(true)
		}
		// The turn of others, of which there may be more than processors.
		runtime.Gosched()
	}
}

// drain answers the requests there are, those of one turn at most, and notifies Xen
// once per batch. It says how many there were, and whether there may be more.
func (s *Server) drain(ev *Event) (did int, more bool, err error) {
	for did < EventsPerTurn {
		began := time.Duration(-1)
		n := int32(0)
		for s.ring.Next(ev) {
			if n++; n == 1 {
				if s.batches++; s.batches%timedBatch == 0 {
					began = time.Since(epoch)
				}
			}
			s.counts[min(ev.Reason, numReasons-1)].Add(1)
			s.pulse.Add(2)
			v := s.handler.HandleEvent(ev)
			if v&Hold != 0 && ev.Paused {
				s.hold(ev)
				continue
			}
			s.respond(ev, v)
		}
		did += int(n)
		if !s.ring.Publish() {
			return did, false, nil
		}
		if err := s.source.Notify(); err != nil {
			return did, false, fmt.Errorf("notify Xen of responses on the monitor ring: %w", err)
		}
		if n > s.peak.Load() {
			s.peak.Store(n)
		}
		if began >= 0 {
			s.served.Add(int64(time.Since(epoch) - began))
		}
	}
	return did, true, nil
}

// respond queues the answer to a request.
//
// From Xen 4.14 on, a vCPU whose write to a register was reported marks that
// write as outstanding after the report is in the ring (hvm_msr_write_intercept,
// hvm_set_cr0 and their like in xen/arch/x86/hvm/hvm.c). A denial takes the mark
// away, so one that another processor gives in between is lost, and the write
// lands. Xen has made the mark once the vCPU has left its processor.
//
// No other answer can be overtaken like that. A violation is reported as the last
// thing of its exit, with the p2m's locks dropped (hvm_hap_nested_page_fault, and
// hvm_monitor_debug for the end of a step), and monitor_traps pauses the vCPU
// before the report is in the ring. What an answer sets is read when the vCPU is
// next resumed: the emulation by hvm_do_resume, the step's trap flag by
// vmx_intr_assist. The scheduler comes first, since the pause has asked for it,
// also if the vCPU is let go before it has come that far. A change of view waits
// by itself until the vCPU has left its processor (vmx_vmcs_enter). Read in 4.11,
// 4.14, 4.17 and 4.20.
func (s *Server) respond(ev *Event, v Verdict) {
	if v&Deny != 0 && ev.Paused && !s.settle(ev.VCPU) {
		s.late.Add(1)
	}
	s.ring.Respond(ev, v)
}

// settle waits until a vCPU that Xen has paused has left its processor, and
// reports whether it was seen to.
func (s *Server) settle(vcpu uint32) bool {
	var start time.Time
	for {
		running, err := s.cpus.VCPURunning(vcpu)
		if err != nil || !running {
			return err == nil
		}
		switch now := time.Now(); {
		case start.IsZero():
			start = now
		case now.Sub(start) > settleLimit:
			return false
		}
	}
}

// hold keeps a copy of the request. It allocates: a guest's vCPU is held only
// at the few moments of its life when the engine must act first.
func (s *Server) hold(ev *Event) {
	held := *ev
	s.waiting = append(s.waiting, &held)
	s.held.Store(int32(len(s.waiting)))
}

// readMailbox carries out what other goroutines asked for and reports whether
// to stop.
func (s *Server) readMailbox() bool {
	s.mailbox.Lock()
	released, stop, noSteps := s.mailbox.release, s.mailbox.stop, s.mailbox.noSteps
	s.mailbox.release, s.mailbox.noSteps = nil, false
	s.mailbox.Unlock()
	if noSteps {
		s.ring.ForgetSteps()
	}
	for _, r := range released {
		for i, ev := range s.waiting {
			if ev.VCPU == r.vcpu {
				s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
				s.respond(ev, r.verdict)
				break
			}
		}
	}
	s.held.Store(int32(len(s.waiting)))
	return stop
}

// answerHeld lets every held vCPU go on: nothing may stay stopped because of
// a server that is gone.
func (s *Server) answerHeld() error {
	for _, ev := range s.waiting {
		s.ring.Respond(ev, Continue)
	}
	s.waiting = nil
	s.held.Store(0)
	if s.ring.Publish() {
		if err := s.source.Notify(); err != nil {
			return fmt.Errorf("notify Xen of the last responses on the monitor ring: %w", err)
		}
	}
	return nil
}
