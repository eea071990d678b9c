package vmeventtest

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Storm is the far end of the ring of a guest that makes events as fast as they are
// answered: while it rages, the ring is full again the moment that an answer is
// taken. It implements vmevent.Source, and has the methods of a mapped ring page,
// so that it can stand for both. It neither allocates nor shares anything with other
// storms.
type Storm struct {
	page   []byte
	layout *abi.Layout
	event  []byte // as it stands in a slot

	mu      sync.Mutex // of the far end's indices
	reqProd uint32
	rspCons uint32

	raging   atomic.Bool
	answered atomic.Uint64
	kick     chan struct{} // the channel has fired, or the listener is to wake
	answer   chan struct{}
}

// NewStorm returns one that is over, of a guest that makes the same event again and
// again.
func NewStorm(l *abi.Layout, event Request) *Storm {
	s := &Storm{
		page: make([]byte, x86.PageSize), layout: l, event: make([]byte, l.VMEvent.Size),
		kick: make(chan struct{}, 1), answer: make(chan struct{}, 1),
	}
	encode(l, s.event, &event)
	return s
}

// Begin fills the ring and keeps it full.
func (s *Storm) Begin() {
	s.raging.Store(true)
	s.mu.Lock()
	s.fill(abi.VMEventRingSlots)
	s.mu.Unlock()
	s.Wake()
}

// End makes no more events. Those in the ring are still answered.
func (s *Storm) End() { s.raging.Store(false) }

// Once makes one event, if there is room for it, and returns when it is answered.
func (s *Storm) Once() {
	before := s.Answered()
	s.mu.Lock()
	s.fill(s.reqProd - s.rspCons + 1)
	s.mu.Unlock()
	s.Wake()
	for s.Answered() == before {
		<-s.answer
	}
}

// Answered returns how many events were answered.
func (s *Storm) Answered() uint64 { return s.answered.Load() }

// fill has n requests be in the ring, as far as there is room.
func (s *Storm) fill(n uint32) {
	for s.reqProd-s.rspCons < min(n, abi.VMEventRingSlots) {
		copy(s.slot(s.reqProd), s.event)
		s.reqProd++
	}
	atomicIndex(s.page, s.layout.SRing.ReqProd).Store(s.reqProd)
}

func (s *Storm) slot(i uint32) []byte {
	size := s.layout.VMEvent.Size
	off := s.layout.SRing.Ring + int(i%abi.VMEventRingSlots)*size
	return s.page[off : off+size]
}

// Notify takes the answers that are there, and makes as many events anew.
func (s *Storm) Notify() error {
	s.mu.Lock()
	prod := atomicIndex(s.page, s.layout.SRing.RspProd).Load()
	s.answered.Add(uint64(prod - s.rspCons))
	s.rspCons = prod
	if s.raging.Load() {
		s.fill(abi.VMEventRingSlots)
	}
	s.mu.Unlock()
	select {
	case s.answer <- struct{}{}:
	default:
	}
	if s.raging.Load() {
		s.Wake()
	}
	return nil
}

// Serve implements vmevent.Source. It ignores the interval, so that a lost wake-up
// shows as a test that hangs.
func (s *Storm) Serve(_ time.Duration, work func() (int, bool)) error {
	for {
		if _, goOn := work(); !goOn {
			return nil
		}
		<-s.kick
	}
}

// Wake implements vmevent.Source.
func (s *Storm) Wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Bytes returns the ring's page.
func (s *Storm) Bytes() []byte { return s.page }

// Close does nothing: the memory is Go's.
func (s *Storm) Close() error { return nil }
