package engine

import (
	"sync/atomic"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// stages is the handler of a session's ring: it asks whichever stage is
// current. The session's goroutine changes the stage while the ring is served.
type stages struct {
	current atomic.Pointer[vmevent.Handler]
}

func (s *stages) set(h vmevent.Handler) { s.current.Store(&h) }

// HandleEvent implements vmevent.Handler.
func (s *stages) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	return (*s.current.Load()).HandleEvent(ev)
}

// letPass is the stage of a session that has nothing armed: whatever still
// arrives happens.
type letPass struct{}

func (letPass) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	switch ev.Reason {
	case vmevent.ReasonMemAccess:
		return vmevent.Emulate
	case vmevent.ReasonSingleStep:
		return vmevent.EndStep // to the host's view: there is no other
	}
	return vmevent.Continue
}

// moment is a stopped vCPU at a point of the guest's life the session waited
// for.
type moment struct {
	vcpu uint32
	regs x86.Registers
}

// kernelEntry waits for the guest's kernel to set up its system call entry
// and holds the vCPU that does. The kernel's image is whole by then (a
// compressed or randomised one has been unpacked and relocated), and no user
// code has run.
type kernelEntry struct {
	letPass
	seen   atomic.Bool
	moment chan moment // capacity one
}

func (k *kernelEntry) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	if ev.Reason != vmevent.ReasonMovToMSR || ev.MSR.MSR != x86.MSRLSTAR || !x86.VirtAddr(ev.MSR.New).KernelHalf() {
		return k.letPass.HandleEvent(ev)
	}
	if k.seen.Swap(true) {
		return vmevent.Continue
	}
	m := moment{vcpu: ev.VCPU, regs: ev.Regs}
	m.regs.LSTAR = ev.MSR.New
	k.moment <- m
	return vmevent.Hold
}

// bootEnd waits for the end of the kernel's boot and holds the vCPU there: the
// kernel has sealed its text and init has not run yet.
//
// Where pages can be guarded it is the store that makes system_state
// SYSTEM_RUNNING, seen as a write to its page, which little else writes. Where
// they cannot, it is the first change of address space after that store, which
// is init's; it costs an event for each of the many changes before.
type bootEnd struct {
	letPass
	kernel *linux.Kernel
	// state is the physical address of system_state, 4 bytes.
	state  x86.PhysAddr
	seen   atomic.Bool
	moment chan moment // capacity one
}

func (b *bootEnd) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	if b.seen.Load() || !b.reached(ev) || b.seen.Swap(true) {
		return b.letPass.HandleEvent(ev)
	}
	b.moment <- moment{vcpu: ev.VCPU, regs: ev.Regs}
	return vmevent.Hold
}

func (b *bootEnd) reached(ev *vmevent.Event) bool {
	switch {
	case ev.Reason == vmevent.ReasonWriteCtrlReg && ev.CR.Reg == vmevent.CR3:
		running, err := b.kernel.Running()
		return err == nil && running
	case ev.Reason == vmevent.ReasonMemAccess && ev.Mem.Phys() == b.state && ev.Mem.Flags&vmevent.AccessWrite != 0:
		// The states are entered one after the other, so what is stored
		// now is the next.
		s, err := b.kernel.SystemState()
		return err == nil && int(s)+1 == b.kernel.Offsets.SystemStates.Running
	}
	return false
}
