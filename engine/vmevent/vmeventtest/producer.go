// Package vmeventtest plays Xen's side of a monitor ring in memory: it puts
// requests into the shared page and takes the responses out, by the real wire
// format of a chosen release.
package vmeventtest

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Request is what to report.
type Request struct {
	VCPU   uint32
	Paused bool
	Reason uint32
	// Version overrides the release's own where it is not zero.
	Version uint32

	GFN, Offset, GLA uint64 // mem_access
	AccessFlags      uint32

	Index    uint32 // write_ctrlreg, mov_to_msr
	New, Old uint64

	RIP, CR3, GSBase, RSI, RAX, RCX uint64
}

// Response is what came back.
type Response struct {
	VCPU, Flags, Reason uint32
}

// Xen is the front end of one ring and the far end of its event channel. It
// implements vmevent.Source.
type Xen struct {
	Page   []byte
	layout *abi.Layout
	// Leaving is how often the vCPU that was stopped last is still seen running.
	Leaving atomic.Int32

	mu       sync.Mutex
	reqProd  uint32
	rspCons  uint32
	notified atomic.Uint64
	kick     chan bool // true: the channel fired; false: woken
	answered chan Response
}

// New returns a ring's far end for a release. The page is not initialised:
// that is the back end's duty.
func New(l *abi.Layout) *Xen {
	return &Xen{Page: make([]byte, x86.PageSize), layout: l, kick: make(chan bool, 1024), answered: make(chan Response, 1024)}
}

// Put puts a request into the ring and fires the channel. It reports false
// when the ring is full, as Xen would then let the vCPU sleep.
func (x *Xen) Put(r Request) bool {
	if !x.PutUnheard(r) {
		return false
	}
	x.kick <- true
	return true
}

// PutUnheard puts a request into the ring as Put does, and the channel's firing is lost.
func (x *Xen) PutUnheard(r Request) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.reqProd-x.rspCons >= abi.VMEventRingSlots {
		return false
	}
	encode(x.layout, x.slot(x.reqProd), &r)
	x.reqProd++
	atomicIndex(x.Page, x.layout.SRing.ReqProd).Store(x.reqProd)
	return true
}

// encode fills a ring's slot with a request.
func encode(layout *abi.Layout, s []byte, r *Request) {
	l := &layout.VMEvent
	clear(s)
	u32 := func(off int, v uint32) { binary.LittleEndian.PutUint32(s[off:], v) }
	u64 := func(off int, v uint64) { binary.LittleEndian.PutUint64(s[off:], v) }
	version := l.Version
	if r.Version != 0 {
		version = r.Version
	}
	u32(l.OffVersion, version)
	if r.Paused {
		u32(l.OffFlags, abi.VMEventFlagVCPUPaused)
	}
	u32(l.OffReason, r.Reason)
	u32(l.OffVCPU, r.VCPU)
	switch r.Reason {
	case abi.VMEventReasonMemAccess:
		u64(l.MemAccess.GFN, r.GFN)
		u64(l.MemAccess.Offset, r.Offset)
		u64(l.MemAccess.GLA, r.GLA)
		u32(l.MemAccess.Flags, r.AccessFlags)
	case abi.VMEventReasonWriteCtrlReg:
		u32(l.WriteCtrlReg.Index, r.Index)
		u64(l.WriteCtrlReg.New, r.New)
		u64(l.WriteCtrlReg.Old, r.Old)
	case abi.VMEventReasonMovToMSR:
		u64(l.MovToMSR.MSR, uint64(r.Index))
		u64(l.MovToMSR.New, r.New)
		u64(l.MovToMSR.Old, r.Old)
	}
	u64(l.Regs.RIP, r.RIP)
	u64(l.Regs.CR3, r.CR3)
	u64(l.Regs.GSBase, r.GSBase)
	u64(l.Regs.RSI, r.RSI)
	u64(l.Regs.RAX, r.RAX)
	u64(l.Regs.RCX, r.RCX)
}

// Answers delivers responses as Xen would take them: at a notification.
func (x *Xen) Answers() <-chan Response { return x.answered }

// Notifications is how often the back end has notified.
func (x *Xen) Notifications() uint64 { return x.notified.Load() }

// Notify takes the responses that are there.
func (x *Xen) Notify() error {
	x.notified.Add(1)
	x.mu.Lock()
	defer x.mu.Unlock()
	l := &x.layout.VMEvent
	for prod := atomicIndex(x.Page, x.layout.SRing.RspProd).Load(); x.rspCons != prod; x.rspCons++ {
		s := x.slot(x.rspCons)
		x.answered <- Response{
			VCPU:   binary.LittleEndian.Uint32(s[l.OffVCPU:]),
			Flags:  binary.LittleEndian.Uint32(s[l.OffFlags:]),
			Reason: binary.LittleEndian.Uint32(s[l.OffReason:]),
		}
	}
	return nil
}

// Wait waits until there is something to do.
func (x *Xen) Wait() { <-x.kick }

// Serve implements vmevent.Source. It ignores the interval, so that a lost
// wake-up shows as a test that hangs.
func (x *Xen) Serve(_ time.Duration, work func() (int, bool)) error {
	for {
		if _, goOn := work(); !goOn {
			return nil
		}
		x.Wait()
	}
}

// VCPURunning implements vmevent.Processors: a vCPU is asked for Leaving times
// before it has left its processor, and rests from then on.
func (x *Xen) VCPURunning(uint32) (bool, error) {
	return x.Leaving.Add(-1) >= 0, nil
}

// Wake implements vmevent.Source.
func (x *Xen) Wake() { x.kick <- false }

func (x *Xen) slot(i uint32) []byte {
	size := x.layout.VMEvent.Size
	off := x.layout.SRing.Ring + int(i%abi.VMEventRingSlots)*size
	return x.Page[off : off+size]
}
