package xentest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// ErrRingFull says that the listener has to answer before another event fits.
var ErrRingFull = errors.New("the monitor ring is full")

// looksToLeave is how often Xen is asked whether a vCPU runs until one that has
// reported an event does not.
const looksToLeave = 3

// ring is Xen's side of a monitor ring.
type ring struct {
	page      []byte
	port      uint32 // the domain's port
	reqProd   uint32
	rspCons   uint32
	bound     *port
	pending   bool // fired before it was bound
	responses [][]byte
	answered  chan struct{}
}

// connect sets the ring up behind the frame of the parameter.
func (d *Domain) connect() (uint32, error) {
	gfn := d.params[abi.HVMParamMonitorRingPFN]
	switch {
	case d.ring != nil:
		return 0, unix.EBUSY
	case gfn == 0:
		return 0, unix.EOPNOTSUPP
	}
	page, err := d.mem.mapPage(gfn)
	if err != nil {
		return 0, err
	}
	d.h.nextPort++
	d.ring = &ring{page: page, port: d.h.nextPort, answered: make(chan struct{}, 1)}
	return d.ring.port, nil
}

// Connect connects a listener that is not a host of the test, and returns the
// port to bind.
func (d *Domain) Connect() (uint32, error) {
	defer d.lock()()
	return d.connect()
}

// disconnect does what vm_event_disable and arch_monitor_cleanup_domain do.
func (d *Domain) disconnect() {
	if d.ring == nil {
		return
	}
	_ = unix.Munmap(d.ring.page)
	d.ring = nil
	clear(d.monitored)
	d.deferRegisters, d.eachRep = false, false
	for _, v := range d.vcpus {
		v.endWrite(true) // what waits for its answer is lost
	}
}

// RingConnected reports whether a listener is connected.
func (d *Domain) RingConnected() bool {
	defer d.lock()()
	return d.ring != nil
}

// LoseChannel breaks the listener's end of the ring's event channel: its file hangs up,
// and is readable no more.
func (d *Domain) LoseChannel() error {
	defer d.lock()()
	if d.ring == nil || d.ring.bound == nil {
		return errors.New("no channel is bound")
	}
	return unix.Shutdown(d.ring.bound.far, unix.SHUT_RDWR)
}

// SetRingWaiters says how many vCPUs wait for room in the ring, which keeps
// the ring from being disconnected.
func (d *Domain) SetRingWaiters(n int) {
	defer d.lock()()
	d.waiters = n
}

// Send puts an event into the ring, as Xen does, and fires the channel. Entry
// is a vm_event_st of the release; its version is filled in. With
// abi.VMEventFlagVCPUPaused the vCPU waits for the answer. It fails with
// ErrRingFull, or where no listener is connected.
func (d *Domain) Send(entry []byte) error {
	defer d.lock()()
	return d.send(entry)
}

func (d *Domain) send(entry []byte) error {
	l, r := d.h.layout, d.ring
	if r == nil {
		return errors.New("no listener is connected")
	}
	if len(entry) != l.VMEvent.Size {
		return fmt.Errorf("an entry of %d bytes, want %d", len(entry), l.VMEvent.Size)
	}
	if r.reqProd-r.rspCons >= abi.VMEventRingSlots {
		return ErrRingFull
	}
	slot := r.page[l.SRing.Ring+int(r.reqProd%abi.VMEventRingSlots)*l.VMEvent.Size:][:l.VMEvent.Size]
	copy(slot, entry)
	putLE(slot[l.VMEvent.OffVersion:], 4, uint64(l.VMEvent.Version))
	if le(entry[l.VMEvent.OffFlags:], 4)&abi.VMEventFlagVCPUPaused != 0 {
		v := le(entry[l.VMEvent.OffVCPU:], 4)
		if v >= uint64(len(d.vcpus)) {
			return fmt.Errorf("no vCPU %d", v)
		}
		d.vcpus[v].eventPause++
		if d.vcpus[v].fastStep {
			d.vcpus[v].singleStep, d.vcpus[v].fastStep = false, false
		}
		d.vcpus[v].leaving = looksToLeave
	}
	r.reqProd++
	index(r.page, l.SRing.ReqProd).Store(r.reqProd)
	r.fire()
	return nil
}

func (r *ring) fire() {
	if r.bound == nil {
		r.pending = true
		return
	}
	r.bound.fire()
}

// resume takes answers from the ring, as vm_event_resume does when the
// listener fires its end.
func (d *Domain) resume() {
	l, r := d.h.layout, d.ring
	if r == nil {
		return
	}
	prod := index(r.page, l.SRing.RspProd).Load()
	for ; r.rspCons != prod; r.rspCons++ {
		slot := r.page[l.SRing.Ring+int(r.rspCons%abi.VMEventRingSlots)*l.VMEvent.Size:][:l.VMEvent.Size]
		rsp := append([]byte(nil), slot...)
		if uint32(le(rsp[l.VMEvent.OffVersion:], 4)) != l.VMEvent.Version {
			continue // Xen logs it and goes on
		}
		r.responses = append(r.responses, rsp)
		v := le(rsp[l.VMEvent.OffVCPU:], 4)
		if v >= uint64(len(d.vcpus)) {
			continue
		}
		if le(rsp[l.VMEvent.OffFlags:], 4)&abi.VMEventFlagVCPUPaused != 0 && d.vcpus[v].eventPause > 0 {
			d.vcpus[v].eventPause--
			// Releases that wait for an answer because they were told to
			// begin to wait after they have asked.
			denied := le(rsp[l.VMEvent.OffFlags:], 4)&abi.VMEventFlagDeny != 0
			if denied && d.deferRegisters && d.vcpus[v].leaving > 0 {
				d.lostDenials++
				denied = false
			}
			d.vcpus[v].endWrite(denied)
			if le(rsp[l.VMEvent.OffFlags:], 4)&abi.VMEventFlagToggleSingleStep != 0 {
				d.vcpus[v].singleStep = !d.vcpus[v].singleStep
			}
			// Such a step has ended when the vCPU is next heard of.
			if le(rsp[l.VMEvent.OffFlags:], 4)&abi.VMEventFlagFastSingleStep != 0 {
				d.vcpus[v].singleStep, d.vcpus[v].fastStep = true, true
			}
		}
	}
	select {
	case r.answered <- struct{}{}:
	default:
	}
}

// Responses returns the answers the listener gave since the last call.
func (d *Domain) Responses() [][]byte {
	defer d.lock()()
	if d.ring == nil {
		return nil
	}
	out := d.ring.responses
	d.ring.responses = nil
	return out
}

// Answered returns a channel that receives after the listener gave answers.
// It is of the ring that is connected now.
func (d *Domain) Answered() <-chan struct{} {
	defer d.lock()()
	if d.ring == nil {
		return nil
	}
	return d.ring.answered
}

// binder implements hypercall.EventBinder.
type binder struct {
	h *Hypervisor
	c *caller
}

// BindInterdomain implements hypercall.EventBinder for ports of rings.
func (b binder) BindInterdomain(dom uint16, remotePort uint32) (hypercall.EventPort, error) {
	h := b.h
	h.mu.Lock()
	defer h.mu.Unlock()
	h.by(b.c)
	if err := h.begin("evtchn(bind_interdomain)", xen.DomID(dom)); err != nil {
		return nil, err
	}
	d := h.domains[xen.DomID(dom)]
	if d == nil {
		return nil, unix.ESRCH
	}
	if d.ring == nil || d.ring.port != remotePort || d.ring.bound != nil {
		return nil, unix.EINVAL
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	h.nextPort++
	p := &port{owner: b.c, d: d, local: h.nextPort, near: fds[0], far: fds[1]}
	d.ring.bound = p
	if d.ring.pending {
		d.ring.pending = false
		p.fire()
	}
	return p, nil
}

// port is the listener's end of a channel: near is its file descriptor, what
// is written to far is what it reads.
type port struct {
	owner     *caller
	d         *Domain
	local     uint32
	near, far int
}

// fire makes the descriptor readable, unless it is and was not unmasked.
func (p *port) fire() {
	var b [4]byte
	for { // what the listener unmasked
		if n, err := unix.Read(p.far, b[:]); n <= 0 || err != nil {
			break
		}
	}
	putLE(b[:], 4, uint64(p.local))
	_, _ = unix.Write(p.far, b[:])
}

func (p *port) FD() int      { return p.near }
func (p *port) Port() uint32 { return p.local }

func (p *port) Notify() error {
	defer p.d.lock()()
	if d := p.owner.death; d != nil && d.dead {
		return unix.EBADF // closed, and a ring goroutine does not wait for ever
	}
	p.d.h.calling = p.owner
	if err := p.d.h.begin("evtchn(notify)", p.d.spec.ID); err != nil {
		return err
	}
	if p.d.ring != nil && p.d.ring.bound == p {
		p.d.resume()
	}
	return nil
}

func (p *port) Close() error {
	defer p.d.lock()()
	if p.d.ring != nil && p.d.ring.bound == p {
		p.d.ring.bound = nil
	}
	_ = unix.Close(p.far)
	return unix.Close(p.near)
}
