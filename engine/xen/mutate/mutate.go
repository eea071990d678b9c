package mutate

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/conn"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Mutator changes the state of domains.
type Mutator struct {
	h *xen.Host
	c *conn.Conn
}

// New returns a Mutator on an open host.
func New(h *xen.Host) *Mutator { return &Mutator{h: h, c: conn.Of(h)} }

func (m *Mutator) fail(op string, dom xen.DomID, err error, detail string) error {
	return m.c.Fail(op, uint16(dom), err, detail)
}

// Pause takes a pause on a domain and returns when none of its vCPUs runs.
// Pauses count, up to 255; the toolstack holds one of them until it lets the
// domain run for the first time.
//
// Undone by Unpause.
func (m *Mutator) Pause(dom xen.DomID) error {
	if err := m.c.SimpleDomctl(abi.DomctlPauseDomain, uint16(dom)); err != nil {
		return m.fail("domctl(pausedomain)", dom, err, "")
	}
	return nil
}

// Unpause drops a pause. Xen cannot tell whose it drops: one too many lets a
// domain run that its toolstack wants paused.
//
// Undone by Pause.
func (m *Mutator) Unpause(dom xen.DomID) error {
	if err := m.c.SimpleDomctl(abi.DomctlUnpauseDomain, uint16(dom)); err != nil {
		return m.fail("domctl(unpausedomain)", dom, err, "")
	}
	return nil
}

// Paused reports whether anybody holds a pause on a domain. It changes nothing: it
// is here for those who must know before they take one.
func (m *Mutator) Paused(dom xen.DomID) (bool, error) {
	info, err := m.h.Domain(dom)
	return info.Paused, err
}

// SetMaxPages sets how many pages a domain may have. Its toolstack sets it, too,
// whenever it changes the domain's memory.
//
// Undone by ReturnMaxPages with the limit from before (xen.DomainInfo.MaxPages).
func (m *Mutator) SetMaxPages(dom xen.DomID, pages uint64) error {
	const op, kibPerPage = "domctl(max_mem)", x86.PageSize >> 10
	l := m.c.Layout
	b, err := m.c.NewDomctl(abi.DomctlMaxMem, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU64(l.Domctl.U+l.MaxMem.MaxMemKB, pages*kibPerPage)
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, fmt.Sprintf("%d pages", pages))
	}
	return nil
}

// ReturnMaxPages sets a domain's limit back to was, if it still is what
// SetMaxPages made it: the toolstack may have decided for another since.
func (m *Mutator) ReturnMaxPages(dom xen.DomID, set, was uint64) error {
	info, err := m.h.Domain(dom)
	if err != nil || info.MaxPages != set {
		return err
	}
	return m.SetMaxPages(dom, was)
}

// PopulatePage puts a new page, zeroed, behind a guest frame that has none.
// The page counts against the domain's limit.
//
// Undone by ReleasePage.
func (m *Mutator) PopulatePage(dom xen.DomID, gfn x86.GFN) error {
	return m.reserve("memory_op(populate_physmap)", abi.MemPopulatePhysmap, dom, gfn, unix.ENOMEM)
}

// ReleasePage takes the page behind a guest frame away. The page is freed when
// the last reference on it goes, so a mapping of it stays valid: that is how
// the ring page is hidden from its guest. It fails with an error that matches
// xen.ErrNoPage where there is none: the guest may have taken it away itself.
//
// Undone by PopulatePage, with a new page; the old one's contents are lost.
func (m *Mutator) ReleasePage(dom xen.DomID, gfn x86.GFN) error {
	return m.reserve("memory_op(decrease_reservation)", abi.MemDecreaseReservation, dom, gfn, unix.ENOENT)
}

// reserve issues one of the two reservation operations on one page. Xen
// answers with the number of pages done and no reason, so failed stands for
// "none".
func (m *Mutator) reserve(op string, cmd uint64, dom xen.DomID, gfn x86.GFN, failed unix.Errno) error {
	l := &m.c.Layout.MemoryReservation
	b, err := m.c.Alloc(l.Size + 8)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU64(l.Size, uint64(gfn))
	b.PutU64(l.ExtentStart, b.Addr()+uint64(l.Size))
	b.PutU64(l.NrExtents, 1)
	b.PutU16(l.DomID, uint16(dom))
	n, err := m.c.MemoryOp(cmd, b)
	if err == nil && n != 1 {
		err = failed
		if _, e := m.h.Domain(dom); e != nil {
			return e
		}
	}
	if err != nil {
		return m.fail(op, dom, err, "gfn "+gfn.String())
	}
	return nil
}

// VMEventEnable connects the monitor ring of a domain, which must lie, empty,
// behind the frame that xen.Host.RingFrame names, and returns the port to
// bind. One listener at a time can be connected: it matches xen.ErrRingTaken
// if there is one, and xen.ErrNoDomain if the domain is dying. From here on, a listener that does not answer halts the
// guest.
//
// Undone by VMEventDisable.
func (m *Mutator) VMEventEnable(dom xen.DomID) (port uint32, err error) {
	const op = "vm_event_op(enable)"
	l := m.c.Layout
	v, err := m.h.VMEventVersion()
	if err != nil {
		return 0, err
	}
	if v != l.VMEvent.Version {
		return 0, fmt.Errorf("%s on domain %d: Xen %v speaks version %d of the ring, and this hvi version %d for that release",
			op, dom, m.h.Release(), v, l.VMEvent.Version)
	}
	b, err := m.c.NewDomctl(abi.DomctlVMEventOp, uint16(dom))
	if err != nil {
		return 0, m.fail(op, dom, err, "")
	}
	defer b.Free()
	u := l.Domctl.U
	b.PutU32(u+l.VMEventOp.Op, abi.VMEventOpEnable)
	b.PutU32(u+l.VMEventOp.Mode, abi.VMEventModeMonitor)
	if err := m.c.Domctl(b); err != nil {
		return 0, m.fail(op, dom, err, "")
	}
	if port = b.U32(u + l.VMEventOp.Port); port == 0 {
		// Xen does nothing on a dying domain and calls that a success.
		return 0, m.fail(op, dom, unix.ESRCH, "the domain is dying")
	}
	return port, nil
}

// VMEventDisable disconnects the monitor ring of a domain. It also switches
// every monitored event off and forgets what answers left to be done: vCPUs
// that wait for one stay paused, so answer them first, and a deferred register
// write of a vCPU that has not run since its answer is lost. Accesses, views and
// single-stepping stay as they are. Switch events off with Monitor before it:
// Xen forgets them here without telling the processors, which then go on to
// exit for control registers and descriptor tables to no purpose. It fails
// with EBUSY while vCPUs wait for room in the ring, and matches xen.ErrNoRing
// if none is connected. On a dying domain it does nothing.
//
// Undone by VMEventEnable, with a ring set up anew.
func (m *Mutator) VMEventDisable(dom xen.DomID) error {
	const op = "vm_event_op(disable)"
	l := m.c.Layout
	b, err := m.c.NewDomctl(abi.DomctlVMEventOp, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU32(l.Domctl.U+l.VMEventOp.Op, abi.VMEventOpDisable)
	b.PutU32(l.Domctl.U+l.VMEventOp.Mode, abi.VMEventModeMonitor)
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, "")
	}
	return nil
}

// MonitorOp says which event to monitor, or to stop monitoring. It is plain
// data, so that it can be written down.
type MonitorOp struct {
	// Event is one of abi.MonitorEvent*.
	Event int `json:"event"`
	// On says whether to monitor it.
	On bool `json:"on"`
	// Sync makes the vCPU wait for the answer. It applies to writes of
	// control registers, guest requests, debug exceptions and VM exits;
	// other events always wait.
	Sync bool `json:"sync,omitempty"`
	// Register is the control register, abi.VMEventX86*, for
	// abi.MonitorEventWriteCtrlReg.
	Register uint8 `json:"register,omitempty"`
	// IgnoreBits are bits of the control register whose change alone is not
	// worth an event.
	IgnoreBits uint64 `json:"ignore_bits,omitempty"`
	// OnChangeOnly leaves out writes of the value that is there already. It
	// applies to control registers and MSRs.
	OnChangeOnly bool `json:"on_change_only,omitempty"`
	// MSR is the register for abi.MonitorEventMovToMSR.
	MSR uint32 `json:"msr,omitempty"`
	// AllowUserspace accepts guest requests from the guest's user mode.
	AllowUserspace bool `json:"allow_userspace,omitempty"`
}

// Inverse returns the operation that undoes this one.
func (o MonitorOp) Inverse() MonitorOp {
	o.On = !o.On
	return o
}

// String names the operation, as in "enable mov-to-msr LSTAR".
func (o MonitorOp) String() string {
	s := "disable "
	if o.On {
		s = "enable "
	}
	s += xen.MonitorEventName(o.Event)
	switch o.Event {
	case abi.MonitorEventWriteCtrlReg:
		s += " " + ctrlRegName(o.Register)
	case abi.MonitorEventMovToMSR:
		if name := x86.MSRName(o.MSR); name != "" {
			s += " " + name
		} else {
			s += fmt.Sprintf(" %#x", o.MSR)
		}
	}
	return s
}

func ctrlRegName(r uint8) string {
	switch r {
	case abi.VMEventX86CR0:
		return "CR0"
	case abi.VMEventX86CR3:
		return "CR3"
	case abi.VMEventX86CR4:
		return "CR4"
	case abi.VMEventX86XCR0:
		return "XCR0"
	}
	return fmt.Sprintf("register %d", r)
}

// Monitor switches an event on or off. It fails with EEXIST if it is in that
// state already, and matches xen.ErrNotSupported if the machine cannot do it,
// and xen.ErrNoRing if it is an MSR and no ring is connected. For a control register that is switched off, Sync and OnChangeOnly are not
// looked at.
//
// Undone by Monitor with o.Inverse(); VMEventDisable undoes all of them.
func (m *Mutator) Monitor(dom xen.DomID, o MonitorOp) error {
	l := m.c.Layout
	f, u := &l.MonitorOp, l.Domctl.U
	op := "monitor_op(" + o.String() + ")"
	if o.Event < 0 || o.Event > 31 ||
		o.Event == abi.MonitorEventVMExit && !l.Has.MonitorVMExit ||
		o.Event == abi.MonitorEventIO && !l.Has.MonitorIO ||
		o.Event == abi.MonitorEventInguestPagefault && !l.Has.InguestPagefault {
		return m.fail(op, dom, unix.EOPNOTSUPP, "")
	}
	b, err := m.c.NewDomctl(abi.DomctlMonitorOp, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU32(u+f.Op, abi.MonitorOpDisable)
	if o.On {
		b.PutU32(u+f.Op, abi.MonitorOpEnable)
	}
	b.PutU32(u+f.Event, uint32(o.Event))
	switch o.Event {
	case abi.MonitorEventWriteCtrlReg:
		b.PutU8(u+f.MovToCRIndex, o.Register)
		b.PutBool(u+f.MovToCRSync, o.Sync)
		b.PutBool(u+f.MovToCROnChangeOnly, o.OnChangeOnly)
		b.PutU64(u+f.MovToCRBitmask, o.IgnoreBits)
	case abi.MonitorEventMovToMSR:
		b.PutU32(u+f.MovToMSRMSR, o.MSR)
		b.PutBool(u+f.MovToMSROnChangeOnly, o.OnChangeOnly)
	case abi.MonitorEventGuestRequest:
		b.PutBool(u+f.GuestRequestSync, o.Sync)
		b.PutBool(u+f.GuestRequestAllowUserspace, o.AllowUserspace)
	case abi.MonitorEventDebugException:
		b.PutBool(u+f.DebugExceptionSync, o.Sync)
	case abi.MonitorEventVMExit:
		b.PutBool(u+f.VMExitSync, o.Sync)
	}
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, "")
	}
	return nil
}

// DeferRegisterWrites makes Xen hold back a monitored write of a control
// register or MSR until the answer, so that the answer can deny it. Before
// 4.14 it always does, and this does nothing. The write happens when the vCPU
// next runs after the answer, not with it: until then xen.Host.Registers shows
// the old value, and disconnecting loses the write. So switch it on only to
// deny.
//
// Undone only by VMEventDisable.
func (m *Mutator) DeferRegisterWrites(dom xen.DomID) error {
	if !m.c.Layout.Has.MonitorControlRegisters {
		return nil
	}
	return m.monitorArch("monitor_op(control_registers)", dom, abi.MonitorOpControlRegisters, 0)
}

// EmulateEachRep makes every iteration of an emulated string instruction
// report its own access. It needs a connected ring.
//
// Undone by EmulateEachRep with the opposite value.
func (m *Mutator) EmulateEachRep(dom xen.DomID, on bool) error {
	var event uint32
	if on {
		event = 1
	}
	return m.monitorArch("monitor_op(emulate_each_rep)", dom, abi.MonitorOpEmulateEachRep, event)
}

func (m *Mutator) monitorArch(op string, dom xen.DomID, cmd, event uint32) error {
	l := m.c.Layout
	b, err := m.c.NewDomctl(abi.DomctlMonitorOp, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU32(l.Domctl.U+l.MonitorOp.Op, cmd)
	b.PutU32(l.Domctl.U+l.MonitorOp.Event, event)
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, "")
	}
	return nil
}

// SingleStep makes a vCPU report each instruction, if abi.MonitorEventSingleStep
// is monitored, or stops that. It needs Intel's monitor trap flag.
//
// Undone by SingleStep with the opposite value.
func (m *Mutator) SingleStep(dom xen.DomID, vcpu int, on bool) error {
	const op = "debug_op(single_step)"
	l := m.c.Layout
	b, err := m.c.NewDomctl(abi.DomctlDebugOp, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU32(l.Domctl.U+l.DebugOp.Op, abi.DebugOpSingleStepOff)
	if on {
		b.PutU32(l.Domctl.U+l.DebugOp.Op, abi.DebugOpSingleStepOn)
	}
	b.PutU32(l.Domctl.U+l.DebugOp.VCPU, uint32(vcpu))
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, fmt.Sprintf("vCPU %d", vcpu))
	}
	return nil
}

// SetAccessRequired says what happens to a restricted access while no listener
// is connected: with true Xen crashes the domain, with false, which is the
// default, it lifts the restriction of that page and goes on.
//
// Undone by SetAccessRequired with the opposite value.
func (m *Mutator) SetAccessRequired(dom xen.DomID, required bool) error {
	const op = "domctl(set_access_required)"
	l := m.c.Layout
	b, err := m.c.NewDomctl(abi.DomctlSetAccessRequired, uint16(dom))
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutBool(l.Domctl.U+l.SetAccessRequired.AccessRequired, required)
	if err := m.c.Domctl(b); err != nil {
		return m.fail(op, dom, err, "")
	}
	return nil
}

// SetHVMParam sets a parameter, abi.HVMParam*, of an HVM or PVH domain.
//
// Undone by SetHVMParam with the value from before (xen.Host.HVMParam), where
// Xen lets it be set again: abi.HVMParamAltP2M can be set once, and not at all
// from 4.19 on (EEXIST).
func (m *Mutator) SetHVMParam(dom xen.DomID, param uint32, value uint64) error {
	op := "hvm_op(set_param)"
	if param == abi.HVMParamAltP2M {
		op = "hvm_op(set_param altp2m)"
	}
	l := &m.c.Layout.HVMParam
	b, err := m.c.Alloc(l.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU16(l.DomID, uint16(dom))
	b.PutU32(l.Index, param)
	b.PutU64(l.Value, value)
	if err := m.c.HVMOp(abi.HVMOpSetParam, b); err != nil {
		return m.fail(op, dom, err, fmt.Sprintf("parameter %d to %#x", param, value))
	}
	return nil
}

// Event is an interrupt or exception to inject.
type Event struct {
	VCPU   int
	Vector uint8
	// Type is one of abi.DMOpEvent*.
	Type uint8
	// InsnLen is the length of the instruction that raised it, bytes, for
	// software interrupts and exceptions.
	InsnLen uint8
	// ErrorCode is pushed if HasErrorCode is set.
	HasErrorCode bool
	ErrorCode    uint32
	// CR2 is the address of a page fault.
	CR2 uint64
}

// noErrorCode is X86_EVENT_NO_EC.
const noErrorCode = ^uint32(0)

// InjectEvent makes a vCPU take an event when it next runs. One can be pending
// per vCPU: another fails with EBUSY.
//
// Nothing undoes it.
func (m *Mutator) InjectEvent(dom xen.DomID, e Event) error {
	const op = "dm_op(inject_event)"
	l := m.c.Layout
	b, err := m.c.Alloc(l.DMOp.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	u, f := l.DMOp.U, &l.DMOpInjectEvent
	b.PutU32(l.DMOp.Op, abi.DMOpInjectEventCmd)
	b.PutU32(u+f.VCPUID, uint32(e.VCPU))
	b.PutU8(u+f.Vector, e.Vector)
	b.PutU8(u+f.Type, e.Type)
	b.PutU8(u+f.InsnLen, e.InsnLen)
	b.PutU32(u+f.ErrorCode, noErrorCode)
	if e.HasErrorCode {
		b.PutU32(u+f.ErrorCode, e.ErrorCode)
	}
	b.PutU64(u+f.CR2, e.CR2)
	if err := m.c.DMOp(uint16(dom), b); err != nil {
		return m.fail(op, dom, err, fmt.Sprintf("vector %d on vCPU %d", e.Vector, e.VCPU))
	}
	return nil
}

// ShutDown stops a domain for one of abi.Shutdown*, as if its guest had done so
// itself: its toolstack hears of it, and does what the domain's configuration says
// for that reason. With abi.ShutdownCrash no vCPU runs when it returns; with another
// one that waits for its device model goes on until that has answered, and a paused
// one waits for ever. A reason that the guest has announced before (SCHEDOP_shutdown_code)
// goes before the one given (domain_shutdown in xen/common/domain.c, 4.11 to 4.22).
// One that is shut down already stays as it is.
//
// Nothing undoes it.
func (m *Mutator) ShutDown(dom xen.DomID, reason uint32) error {
	const op = "dm_op(remote_shutdown)"
	l := m.c.Layout
	b, err := m.c.Alloc(l.DMOp.Size)
	if err != nil {
		return m.fail(op, dom, err, "")
	}
	defer b.Free()
	b.PutU32(l.DMOp.Op, abi.DMOpRemoteShutdownCmd)
	b.PutU32(l.DMOp.U+l.DMOpRemoteShutdown.Reason, reason)
	if err := m.c.DMOp(uint16(dom), b); err != nil {
		return m.fail(op, dom, err, xen.ShutdownReason(reason).String())
	}
	return nil
}

// retryFor bounds how long an operation is repeated that Xen asks to repeat.
const retryFor = time.Second

// memAccess issues the access operation in b, again while Xen asks for it. A
// long one that Xen interrupts in favour of other work continues by itself.
func (m *Mutator) memAccess(b *hypercall.Buffer) error {
	var deadline time.Time
	for {
		_, err := m.c.Hypercall(abi.HypercallMemoryOp, [5]uint64{abi.MemAccessOpCmd, b.Addr()})
		if err != unix.EAGAIN {
			return err
		}
		now := time.Now()
		if deadline.IsZero() {
			deadline = now.Add(retryFor)
		} else if now.After(deadline) {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
}
