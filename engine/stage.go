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
	if ev.Reason == vmevent.ReasonMemAccess {
		return vmevent.Emulate
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

// bootEnd waits for the first change of address space after the kernel has
// declared its boot over, which is init's, and holds that vCPU: the kernel has
// sealed its text and init has not run yet.
type bootEnd struct {
	letPass
	kernel *linux.Kernel
	seen   atomic.Bool
	moment chan moment // capacity one
}

func (b *bootEnd) HandleEvent(ev *vmevent.Event) vmevent.Verdict {
	if ev.Reason != vmevent.ReasonWriteCtrlReg || ev.CR.Reg != vmevent.CR3 || b.seen.Load() {
		return b.letPass.HandleEvent(ev)
	}
	if running, err := b.kernel.Running(); err != nil || !running {
		return vmevent.Continue
	}
	if b.seen.Swap(true) {
		return vmevent.Continue
	}
	b.moment <- moment{vcpu: ev.VCPU, regs: ev.Regs}
	return vmevent.Hold
}
