package vmevent

import (
	"encoding/binary"
	"fmt"
	"maps"
	"sync/atomic"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// Ring is the back end's side of one monitor ring: it consumes requests and
// produces responses. It is used by one goroutine at a time.
type Ring struct {
	page   []byte
	layout *abi.VMEvent
	sring  *abi.SRing
	slots  uint32 // a power of two
	// fastSteps says that Xen can end a step without an event, from 4.14 on.
	fastSteps bool
	// toggled are the vCPUs whose step ends in an event: for those Xen's flag
	// means to end the step, for others to begin one.
	toggled map[uint32]struct{}
	// fast are the vCPUs that made a step which Xen ends by itself, stale those of them
	// of which Xen may still take the next for one.
	fast, stale map[uint32]struct{}

	reqProd, reqEvent, rspProd, rspEvent *atomic.Uint32

	reqCons    uint32
	rspProdPvt uint32

	// malformed counts requests whose version is not the release's own;
	// they are answered and otherwise ignored.
	malformed atomic.Uint64
}

// steppingVCPUs is how many vCPUs can be in a step at once without the ring
// thread allocating for it.
const steppingVCPUs = 64

// NewRing takes the shared page, which must stay mapped while the Ring is
// used, and initialises it: both indices zero, both events one, as
// SHARED_RING_INIT does. Call it before the ring is enabled in Xen.
func NewRing(page []byte, xen *abi.Layout) (*Ring, error) {
	layout, sring := &xen.VMEvent, &xen.SRing
	if len(page) != x86.PageSize {
		return nil, fmt.Errorf("vmevent: ring page has %d bytes, want %d", len(page), x86.PageSize)
	}
	if layout.Size <= 0 || layout.Size > maxSlot {
		return nil, fmt.Errorf("vmevent: ring slot of %d bytes is outside 1..%d", layout.Size, maxSlot)
	}
	slots := uint32(1)
	for int(slots)*2*layout.Size+sring.Ring <= len(page) {
		slots *= 2
	}
	r := &Ring{
		page: page, layout: layout, sring: sring, slots: slots,
		reqProd: index(page, sring.ReqProd), reqEvent: index(page, sring.ReqEvent),
		rspProd: index(page, sring.RspProd), rspEvent: index(page, sring.RspEvent),
	}
	r.fastSteps = xen.Has.FastSingleStep
	r.toggled = make(map[uint32]struct{}, steppingVCPUs)
	r.fast = make(map[uint32]struct{}, steppingVCPUs)
	r.stale = make(map[uint32]struct{}, steppingVCPUs)
	clear(page)
	r.reqEvent.Store(1)
	r.rspEvent.Store(1)
	return r, nil
}

// Slots returns how many requests the ring holds.
func (r *Ring) Slots() int { return int(r.slots) }

// Malformed returns how many requests carried a version other than the
// release's own.
func (r *Ring) Malformed() uint64 { return r.malformed.Load() }

func (r *Ring) slot(i uint32) []byte {
	off := r.sring.Ring + int(i&(r.slots-1))*r.layout.Size
	return r.page[off : off+r.layout.Size]
}

// Next copies the oldest unread request into ev and reports whether there was
// one. The slot is free for Xen's next request or our response afterwards.
func (r *Ring) Next(ev *Event) bool {
	prod := r.reqProd.Load()
	if prod == r.reqCons {
		return false
	}
	copy(ev.slot[:], r.slot(r.reqCons))
	r.reqCons++
	r.reqEvent.Store(r.reqCons + 1)
	r.decode(ev)
	return true
}

// Pending reports whether a request waits to be read.
func (r *Ring) Pending() bool { return r.reqProd.Load() != r.reqCons }

// Respond queues the answer to ev. Xen sees it after Publish.
//
// Everything but the flags goes back as it came. VCPU_PAUSED is what makes Xen
// resume the vCPU, and must not be there for a request that paused none.
func (r *Ring) Respond(ev *Event, v Verdict) {
	s := r.slot(r.rspProdPvt)
	copy(s, ev.slot[:r.layout.Size])
	flags := v.responseFlags()
	if ev.Paused {
		flags |= abi.VMEventFlagVCPUPaused
	}
	flags |= r.step(s, ev, v)
	if v&ReadOnes != 0 {
		r.readOnes(s)
	}
	if v&Skip != 0 {
		r.leave(s, &ev.Leave)
	}
	binary.LittleEndian.PutUint32(s[r.layout.OffFlags:], flags)
	r.rspProdPvt++
}

// step fills in what Step and EndStep need in a response and returns its flags.
//
// A step that ends by itself is asked for each time anew. One that ends in an
// event is switched on and off by the same flag, so that it must be known which
// it is: a vCPU in such a step may meet another access to be stepped over.
func (r *Ring) step(s []byte, ev *Event, v Verdict) uint32 {
	if v&(Step|EndStep|Return) == 0 {
		return 0
	}
	l, in := r.layout, ev.StepIn
	flags := uint32(abi.VMEventFlagAlternateP2M)
	_, toggled := r.toggled[ev.VCPU]
	_, stale := r.stale[ev.VCPU]
	switch {
	case v&Return != 0:
		in = ev.ReturnTo
	case v&EndStep != 0:
		in = ev.ReturnTo
		flags |= abi.VMEventFlagToggleSingleStep
		delete(r.toggled, ev.VCPU)
	case toggled: // it goes on
	case v&Report != 0 && !stale || !r.fastSteps:
		flags |= abi.VMEventFlagToggleSingleStep
		r.toggled[ev.VCPU] = struct{}{}
	default:
		flags |= abi.VMEventFlagFastSingleStep
		r.fast[ev.VCPU] = struct{}{}
		delete(r.stale, ev.VCPU)
		binary.LittleEndian.PutUint16(s[l.FastSingleStep.P2MIdx:], ev.ReturnTo)
	}
	binary.LittleEndian.PutUint16(s[l.OffAltP2MIdx:], in)
	return flags
}

// ForgetSteps is to be called when steps have been ended by other means than an
// answer.
//
// Up to 4.18 Xen keeps, of a step that it would have ended by itself, that it is one
// and in which view it ends, until the next step of the vCPU is over: neither ending it
// nor beginning one that is reported changes that (hvm_debug_op, hvm_toggle_singlestep
// and hvm_monitor_debug in 4.17; 4.19 fixed the first). So the next step of each vCPU
// that ever made such a one is another of them, also where a report was asked for.
func (r *Ring) ForgetSteps() {
	clear(r.toggled)
	maps.Copy(r.stale, r.fast)
	clear(r.fast)
}

// readOnes fills a response with the data that the emulator is to read, in the
// place of the registers.
func (r *Ring) readOnes(s []byte) {
	l := r.layout
	data := s[l.OffEmulReadData:l.Size]
	for i := range data {
		data[i] = 0xff
	}
	binary.LittleEndian.PutUint32(s[l.OffEmulReadSize:], uint32(len(data)))
}

// leave fills in the registers that a vCPU goes on with. Xen takes all general ones, RIP
// and RFLAGS from the response, in which the others are as the request had them
// (hvm_vm_event_set_registers, xen/arch/x86/hvm/vm_event.c).
func (r *Ring) leave(s []byte, to *Leave) {
	d := &r.layout.Regs
	binary.LittleEndian.PutUint64(s[d.RAX:], to.RAX)
	binary.LittleEndian.PutUint64(s[d.RSP:], to.RSP)
	binary.LittleEndian.PutUint64(s[d.RIP:], to.RIP)
}

// RespondBlind queues an answer that resumes a vCPU no request is known of:
// the cure for a listener that died between a request and its answer. Xen does
// not match responses to requests and resumes only a vCPU it had paused
// (vm_event_resume, xen/common/vm_event.c), so it is harmless for the others.
func (r *Ring) RespondBlind(vcpu uint32) {
	s := r.slot(r.rspProdPvt)
	clear(s)
	binary.LittleEndian.PutUint32(s[r.layout.OffVersion:], r.layout.Version)
	binary.LittleEndian.PutUint32(s[r.layout.OffFlags:], abi.VMEventFlagVCPUPaused)
	binary.LittleEndian.PutUint32(s[r.layout.OffReason:], uint32(ReasonUnknown))
	binary.LittleEndian.PutUint32(s[r.layout.OffVCPU:], vcpu)
	r.rspProdPvt++
}

// Publish makes the queued responses visible to Xen and reports whether there
// were any: the caller then kicks the event channel once for all of them.
func (r *Ring) Publish() bool {
	if r.rspProd.Load() == r.rspProdPvt {
		return false
	}
	r.rspProd.Store(r.rspProdPvt)
	return true
}

func (r *Ring) decode(ev *Event) {
	l, s := r.layout, ev.slot[:r.layout.Size]
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(s[off:]) }
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(s[off:]) }

	ev.VCPU = u32(l.OffVCPU)
	ev.StepIn, ev.ReturnTo = 0, 0
	ev.Paused = u32(l.OffFlags)&abi.VMEventFlagVCPUPaused != 0
	ev.Reason = Reason(u32(l.OffReason))
	ev.View = binary.LittleEndian.Uint16(s[l.OffAltP2MIdx:])
	if u32(l.OffVersion) != l.Version {
		r.malformed.Add(1)
		ev.Reason = ReasonUnknown
		return
	}
	switch ev.Reason {
	case ReasonMemAccess:
		ev.Mem = MemAccess{
			GFN:    x86.GFN(u64(l.MemAccess.GFN)),
			Offset: u64(l.MemAccess.Offset) & x86.PageMask,
			GLA:    x86.VirtAddr(u64(l.MemAccess.GLA)),
			Flags:  u32(l.MemAccess.Flags),
		}
	case ReasonSoftwareBreakpoint:
		ev.Stop = Breakpoint{
			GFN: x86.GFN(u64(l.Debug.GFN)), InsnLen: uint8(u32(l.Debug.InsnLength)),
		}
	case ReasonWriteCtrlReg:
		ev.CR = CtrlRegWrite{
			Reg: CtrlReg(u32(l.WriteCtrlReg.Index)),
			New: u64(l.WriteCtrlReg.New), Old: u64(l.WriteCtrlReg.Old),
		}
	case ReasonMovToMSR:
		ev.MSR = MSRWrite{
			MSR: uint32(u64(l.MovToMSR.MSR)),
			New: u64(l.MovToMSR.New), Old: u64(l.MovToMSR.Old),
		}
	}
	g, d := &ev.Regs, &l.Regs
	g.RAX, g.RCX, g.RDX, g.RBX = u64(d.RAX), u64(d.RCX), u64(d.RDX), u64(d.RBX)
	g.RSP, g.RBP, g.RSI, g.RDI = u64(d.RSP), u64(d.RBP), u64(d.RSI), u64(d.RDI)
	g.R8, g.R9, g.R10, g.R11 = u64(d.R8), u64(d.R9), u64(d.R10), u64(d.R11)
	g.R12, g.R13, g.R14, g.R15 = u64(d.R12), u64(d.R13), u64(d.R14), u64(d.R15)
	g.RFLAGS, g.RIP = u64(d.RFLAGS), u64(d.RIP)
	g.CR0, g.CR2, g.CR3, g.CR4 = u64(d.CR0), u64(d.CR2), u64(d.CR3), u64(d.CR4)
	g.EFER, g.STAR, g.LSTAR = u64(d.MSREFER), u64(d.MSRSTAR), u64(d.MSRLSTAR)
	g.FSBase, g.GSBase = u64(d.FSBase), u64(d.GSBase)
	if d.SS >= 0 {
		g.KernelGSBase = u64(d.ShadowGS)
		g.CPL = abi.SegmentDPL(u32(d.SS))
		ev.Long = abi.SegmentLong(u32(d.CS))
	} else {
		// 4.11 has neither the shadow GS base nor SS, but CS's access rights.
		g.KernelGSBase = 0
		g.CPL = uint8(u32(d.CSArBytes) >> 5 & 3)
		ev.Long = u32(d.CSArBytes)>>9&1 != 0
	}
}
