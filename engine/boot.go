package engine

import (
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/ledger"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

// msrLSTAR is the event that tells of the kernel's entry.
var msrLSTAR = ledger.MonitorOp{Event: abi.MonitorEventMovToMSR, MSR: x86.MSRLSTAR}

// cr3Write is the event that tells of a change of address space.
var cr3Write = ledger.MonitorOp{Event: abi.MonitorEventWriteCtrlReg, Register: abi.VMEventX86CR3, Sync: true, OnChangeOnly: true}

// choose looks whether the guest's kernel is up already and goes on from
// there.
func (s *Session) choose() error {
	regs, err := s.hv.Registers(s.info.ID, 0)
	if err != nil {
		s.fail("read the guest's registers", "", err)
		return err
	}
	if x86.VirtAddr(regs.LSTAR).KernelHalf() {
		return s.adopt(regs)
	}
	return s.awaitKernel()
}

func (s *Session) awaitKernel() error {
	s.entry = &kernelEntry{moment: make(chan moment, 1)}
	s.stages.set(s.entry)
	if err := s.ledger.Monitor(msrLSTAR); err != nil {
		s.fail("watch for the guest's kernel", "", err)
		return err
	}
	return nil
}

// adopt takes over a guest whose kernel runs already.
func (s *Session) adopt(regs x86.Registers) error {
	s.setState(StateIdentifying)
	if err := s.identify(regs); err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		return err
	}
	running, err := s.kernel.Running()
	if err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		return err
	}
	if !running {
		return s.awaitBootEnd()
	}
	return s.arm()
}

const identifyFix = "hvi reads Linux kernels with kallsyms and BTF (CONFIG_KALLSYMS_ALL, CONFIG_DEBUG_INFO_BTF), or a profile of the kernel in /etc/hvi/profiles in place of BTF; other guests cannot be protected by this version"

// kernelEntered runs with the vCPU held at its first write of LSTAR.
func (s *Session) kernelEntered(m moment) {
	entry := s.entry
	s.entry, s.held = nil, &m
	s.setState(StateIdentifying)
	err := s.identify(m.regs)
	if err == nil {
		err = s.ledger.Unmonitor(msrLSTAR)
	}
	if err == nil {
		err = s.awaitBootEnd()
	} else if s.tries++; s.tries < maxTries {
		// A boot loader, or a kernel hvi does not know: the next kernel to
		// come up gets its chance.
		s.update(func(st *Status) {
			st.Failure = &Failure{Stage: "identify the guest's kernel", Err: err, Fix: identifyFix}
		})
		s.log.Warn("no known kernel at this entry, waiting for the next", "lstar", x86.VirtAddr(m.regs.LSTAR), "err", err)
		entry.seen.Store(false)
		s.entry = entry
		s.setState(StateAttached)
		s.letRun(m)
		return
	}
	if err != nil {
		s.fail("identify the guest's kernel", identifyFix, err)
		if err := s.withdraw(StateFailed, false); err != nil {
			s.log.Error("withdraw", "err", err)
		}
		return
	}
	s.letRun(m)
}

func (s *Session) identify(regs x86.Registers) error {
	begin := time.Now()
	k, err := linux.IdentifyWith(s.memory, regs, s.identifyWith)
	if err != nil {
		return err
	}
	if k.Types != report.TypesBTF && k.Types != report.TypesISF {
		return k.BTFError
	}
	s.kernel = k
	took := time.Since(begin)
	s.update(func(st *Status) {
		st.Failure = nil
		st.Kernel = &KernelStatus{Release: k.Release, Banner: k.Banner, Base: k.Base, Symbols: k.Symbols.Len()}
	})
	s.log.Info("kernel identified", "release", k.Release, "base", k.Base, "symbols", k.Symbols.Len(),
		"types", k.Types, "profile", k.Profile, "cached", k.Cached, "took", took)
	return nil
}

func (s *Session) awaitBootEnd() error {
	const stage = "watch for the end of the guest's boot"
	state, err := s.kernel.SystemStateAddr()
	if err != nil {
		s.fail(stage, identifyFix, err)
		return err
	}
	s.boot = &bootEnd{kernel: s.kernel, state: state, moment: make(chan moment, 1)}
	s.stages.set(s.boot)
	if s.Status().Tier == TierRegisters {
		err = s.ledger.Monitor(cr3Write)
	} else {
		err = s.ledger.Restrict(xen.AccessRX, state.GFN(), 1)
	}
	if err != nil {
		s.fail(stage, "", err)
	}
	return err
}

// bootEnded runs with the vCPU held at the end of its kernel's boot.
func (s *Session) bootEnded(m moment) {
	s.boot, s.held = nil, &m
	err := s.ledger.Unmonitor(cr3Write)
	if err == nil {
		err = s.ledger.Undo(ledger.OpAccess)
	}
	if err == nil {
		err = s.arm()
	}
	if err != nil {
		s.log.Error("arm", "err", err)
		if err := s.withdraw(StateFailed, false); err != nil {
			s.log.Error("withdraw", "err", err)
		}
		return
	}
	s.letRun(m)
}

// letRun lets a held vCPU go on.
func (s *Session) letRun(m moment) {
	s.held = nil
	s.server.Release(m.vcpu, vmevent.Continue)
}
