package xen

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/internal/conn"
	"github.com/xen-hvi/hvi/engine/xen/internal/hypercall"
)

// Registers returns the registers of a vCPU, all fields filled. Xen pauses the
// vCPU while it reads them, so they are consistent, but unless the caller
// holds a pause they are the past when they arrive. While a vCPU waits for an
// answer its RIP can be behind the instruction that caused the event, where
// the event itself still has it at the instruction.
//
// It fails with an error that matches ErrNoVCPU, or ErrVCPUOffline for one
// that has not been started.
func (h *Host) Registers(dom DomID, vcpu int) (x86.Registers, error) {
	const op = "domctl(gethvmcontext_partial)"
	if h.closed.Load() {
		return x86.Registers{}, ErrClosed
	}
	l := h.c.Layout
	b, err := h.c.NewDomctl(abi.DomctlGetHVMContextPartial, uint16(dom))
	if err != nil {
		return x86.Registers{}, h.fail(op, dom, err)
	}
	defer b.Free()
	rec, err := h.c.Alloc(l.HVMSaveLengthCPU)
	if err != nil {
		return x86.Registers{}, h.fail(op, dom, err)
	}
	defer rec.Free()

	u := l.Domctl.U
	b.PutU32(u+l.HVMContextPartial.Type, abi.HVMSaveCPU)
	b.PutU32(u+l.HVMContextPartial.Instance, uint32(vcpu))
	b.PutU64(u+l.HVMContextPartial.BufSize, uint64(l.HVMSaveLengthCPU))
	b.PutU64(u+l.HVMContextPartial.Buffer, rec.Addr())
	if err := h.c.Domctl(b); err != nil {
		if err == unix.ENOENT {
			// Xen 4.11 answers so for a vCPU that is offline, too.
			if d, e := h.Domain(dom); e == nil && vcpu >= 0 && vcpu < d.VCPUs {
				err = unix.ENODATA
			}
		}
		return x86.Registers{}, opError(h.release, op, dom, err, fmt.Sprintf("registers of vCPU %d", vcpu))
	}
	if n := b.U64(u + l.HVMContextPartial.BufSize); n < uint64(l.HVMSaveLengthCPU) {
		return x86.Registers{}, fmt.Errorf("%s on domain %d (registers of vCPU %d): record of %d bytes, want %d", op, dom, vcpu, n, l.HVMSaveLengthCPU)
	}
	return decodeCPU(l, rec), nil
}

// VCPURunning reports whether a physical processor executes a vCPU, or Xen on
// its behalf. Of a vCPU that is paused, false stays true; true says that it has
// not come to rest yet. For a domain that has no such vCPU it fails.
func (h *Host) VCPURunning(dom DomID, vcpu uint32) (bool, error) {
	const op = "domctl(getvcpuinfo)"
	if h.closed.Load() {
		return false, ErrClosed
	}
	b, err := h.c.NewDomctl(abi.DomctlGetVCPUInfo, uint16(dom))
	if err != nil {
		return false, h.fail(op, dom, err)
	}
	defer b.Free()
	u, f := h.c.Layout.Domctl.U, &h.c.Layout.GetVCPUInfo
	b.PutU32(u+f.VCPU, vcpu)
	if err := h.c.Domctl(b); err != nil {
		return false, opError(h.release, op, dom, err, fmt.Sprintf("vCPU %d", vcpu))
	}
	return b.U8(u+f.Running) != 0, nil
}

// CPU is a domain's processors as something to read registers from, and to ask
// whether they run.
type CPU struct {
	host *Host
	dom  DomID
}

// CPU returns a domain's processors. It holds nothing.
func (h *Host) CPU(dom DomID) CPU { return CPU{h, dom} }

// Registers is Host.Registers for the domain.
func (c CPU) Registers(vcpu int) (x86.Registers, error) { return c.host.Registers(c.dom, vcpu) }

// VCPURunning is Host.VCPURunning for the domain.
func (c CPU) VCPURunning(vcpu uint32) (bool, error) { return c.host.VCPURunning(c.dom, vcpu) }

// decodeCPU reads a CPU record.
func decodeCPU(l *abi.Layout, b *hypercall.Buffer) x86.Registers {
	f := &l.HVMHWCPU
	return x86.Registers{
		RAX: b.U64(f.RAX), RBX: b.U64(f.RBX), RCX: b.U64(f.RCX), RDX: b.U64(f.RDX),
		RSI: b.U64(f.RSI), RDI: b.U64(f.RDI), RBP: b.U64(f.RBP), RSP: b.U64(f.RSP),
		R8: b.U64(f.R8), R9: b.U64(f.R9), R10: b.U64(f.R10), R11: b.U64(f.R11),
		R12: b.U64(f.R12), R13: b.U64(f.R13), R14: b.U64(f.R14), R15: b.U64(f.R15),
		RIP: b.U64(f.RIP), RFLAGS: b.U64(f.RFLAGS),
		CR0: b.U64(f.CR0), CR2: b.U64(f.CR2), CR3: b.U64(f.CR3), CR4: b.U64(f.CR4),
		EFER:   b.U64(f.MSREFER),
		FSBase: b.U64(f.FSBase), GSBase: b.U64(f.GSBase), KernelGSBase: b.U64(f.ShadowGS),
		STAR: b.U64(f.MSRSTAR), LSTAR: b.U64(f.MSRLSTAR), CSTAR: b.U64(f.MSRCSTAR), SFMask: b.U64(f.MSRSyscallMask),
		SysenterCS: b.U64(f.SysenterCS), SysenterESP: b.U64(f.SysenterESP), SysenterEIP: b.U64(f.SysenterEIP),
		IDTBase: b.U64(f.IDTRBase), GDTBase: b.U64(f.GDTRBase),
		IDTLimit: b.U32(f.IDTRLimit), GDTLimit: b.U32(f.GDTRLimit),
		CS: uint16(b.U32(f.CSSel)), SS: uint16(b.U32(f.SSSel)),
		CPL: uint8(b.U32(f.SSArBytes) >> 5 & 3),
	}
}

// HVMParam returns a parameter of an HVM or PVH domain, abi.HVMParam*.
func (h *Host) HVMParam(dom DomID, param uint32) (uint64, error) {
	const op = "hvm_op(get_param)"
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := &h.c.Layout.HVMParam
	b, err := h.c.Alloc(l.Size)
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	b.PutU16(l.DomID, uint16(dom))
	b.PutU32(l.Index, param)
	if err := h.c.HVMOp(abi.HVMOpGetParam, b); err != nil {
		return 0, opError(h.release, op, dom, err, fmt.Sprintf("parameter %d", param))
	}
	return b.U64(l.Value), nil
}

// MaxGFN returns the highest guest frame that holds something. A guest can
// make it grow.
func (h *Host) MaxGFN(dom DomID) (x86.GFN, error) {
	const op = "memory_op(maximum_gpfn)"
	if h.closed.Load() {
		return 0, ErrClosed
	}
	b, err := h.c.Alloc(8)
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	b.PutU16(0, uint16(dom)) // domid_t
	n, err := h.c.MemoryOp(abi.MemMaximumGPFN, b)
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	return x86.GFN(n), nil
}

// OnDemand returns how many frames of a domain get a page only when they are
// touched first: those of a guest that was started with less memory than it may
// have. PV domains have none, and Xen refuses the question (EINVAL).
func (h *Host) OnDemand(dom DomID) (uint64, error) {
	const op = "memory_op(get_pod_target)"
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := &h.c.Layout.PoDTarget
	b, err := h.c.Alloc(l.Size)
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	b.PutU16(l.DomID, uint16(dom))
	if _, err := h.c.MemoryOp(abi.MemGetPoDTarget, b); err != nil {
		return 0, h.fail(op, dom, err)
	}
	return b.U64(l.PoDEntries), nil
}

// PageType is what lies behind a guest frame.
type PageType uint32

// Present reports whether there is a page that can be mapped.
func (t PageType) Present() bool {
	return t != abi.PFInfoXTab && t != abi.PFInfoXAlloc && t != abi.PFInfoBroken
}

// String names the type.
func (t PageType) String() string {
	switch t {
	case abi.PFInfoNoTab:
		return "page"
	case abi.PFInfoXTab:
		return "none"
	case abi.PFInfoXAlloc:
		return "unallocated"
	case abi.PFInfoBroken:
		return "broken"
	}
	return fmt.Sprintf("page table %#x", uint32(t))
}

// PageFrameType returns what lies behind a guest frame, without mapping it.
func (h *Host) PageFrameType(dom DomID, gfn x86.GFN) (PageType, error) {
	var t PageType
	// Not in one statement with the return, in which t may be read before the call.
	err := h.pageFrameTypes(dom, gfn, 1, func(got PageType) { t = got })
	return t, err
}

// AnyPage reports whether there is a page behind any of n guest frames, without mapping
// them: a call for a thousand of them, where a read is one for each.
func (h *Host) AnyPage(dom DomID, first x86.GFN, n int) (any bool, err error) {
	for n > 0 && !any && err == nil {
		part := min(n, maxFrameTypes)
		err = h.pageFrameTypes(dom, first, part, func(t PageType) { any = any || t.Present() })
		first, n = first+x86.GFN(part), n-part
	}
	return any, err
}

// maxFrameTypes is how many frames Xen tells of at once (GET_PAGE_FRAME_INFO's limit in
// xen/arch/x86/domctl.c).
const maxFrameTypes = 1024

// pageFrameTypes calls each with what lies behind n frames in turn, maxFrameTypes at most.
func (h *Host) pageFrameTypes(dom DomID, first x86.GFN, n int, each func(PageType)) error {
	const op = "domctl(getpageframeinfo3)"
	if h.closed.Load() {
		return ErrClosed
	}
	l := h.c.Layout
	b, err := h.c.NewDomctl(abi.DomctlGetPageFrameInfo3, uint16(dom))
	if err != nil {
		return h.fail(op, dom, err)
	}
	defer b.Free()
	arr, err := h.c.Alloc(8 * n)
	if err != nil {
		return h.fail(op, dom, err)
	}
	defer arr.Free()
	for i := range n {
		arr.PutU64(8*i, uint64(first)+uint64(i))
	}
	b.PutU64(l.Domctl.U+l.GetPageFrameInfo3.Num, uint64(n))
	b.PutU64(l.Domctl.U+l.GetPageFrameInfo3.Array, arr.Addr())
	if err := h.c.Domctl(b); err != nil {
		return opError(h.release, op, dom, err, "gfn "+first.String())
	}
	for i := range n {
		each(PageType(arr.U64(8*i) & abi.PFInfoTypeMask))
	}
	return nil
}

// Access is what a guest may do with a page, as mem_access sets it.
type Access uint8

// Accesses. AccessDefault stands for what the domain's default is; its number
// in Xen differs between releases, so this one is hvi's own.
const (
	AccessN       Access = abi.AccessN
	AccessR       Access = abi.AccessR
	AccessW       Access = abi.AccessW
	AccessRW      Access = abi.AccessRW
	AccessX       Access = abi.AccessX
	AccessRX      Access = abi.AccessRX
	AccessWX      Access = abi.AccessWX
	AccessRWX     Access = abi.AccessRWX
	AccessRX2RW   Access = abi.AccessRX2RW // r-x, and rw- after the first write
	AccessN2RWX   Access = abi.AccessN2RWX // ---, and rwx after the first access
	AccessRPW     Access = abi.AccessRPW   // r--, page-table walks may set bits; 4.20 and later
	AccessDefault Access = 0xff
	// AccessUnknown is that of a frame without a page, where many are asked after.
	AccessUnknown Access = 0xfe
)

// String returns the access as in "r-x".
func (a Access) String() string {
	switch {
	case a <= AccessRWX:
		s := []byte("---")
		for i, c := range []byte("rwx") {
			if a>>i&1 != 0 {
				s[i] = c
			}
		}
		return string(s)
	case a == AccessRX2RW:
		return "r-x>rw-"
	case a == AccessN2RWX:
		return "--->rwx"
	case a == AccessRPW:
		return "r-pw"
	case a == AccessDefault:
		return "default"
	case a == AccessUnknown:
		return "unknown"
	}
	return fmt.Sprintf("Access(%d)", uint8(a))
}

// EncodeAccess returns the number a release has for an access. It fails for
// one the release does not have: some numbers mean something else there.
func EncodeAccess(l *abi.Layout, a Access) (uint8, error) {
	switch {
	case a == AccessDefault:
		return l.AccessDefault, nil
	case a <= AccessN2RWX, a == AccessRPW && l.Has.AccessRPW:
		return uint8(a), nil
	}
	return 0, &NotSupportedError{Feature: "access " + a.String(), Needs: "Xen 4.20 or later"}
}

// decodeAccess is EncodeAccess's inverse.
func decodeAccess(l *abi.Layout, v uint8) Access {
	if v == l.AccessDefault {
		return AccessDefault
	}
	return Access(v)
}

// MemAccess returns the access of a frame in the host's view. It needs a
// connected monitor ring (ENODEV) and Intel VT-x with HAP (EINVAL), and
// matches ErrNoPage where no page is.
func (h *Host) MemAccess(dom DomID, gfn x86.GFN) (Access, error) {
	v, err := h.memAccess(dom, uint64(gfn))
	if err != nil {
		if err == unix.ESRCH {
			return 0, h.noPage(opGetAccess, dom, "gfn "+gfn.String())
		}
		return 0, opError(h.release, opGetAccess, dom, err, "gfn "+gfn.String())
	}
	return decodeAccess(h.c.Layout, v), nil
}

// MemAccesses puts the access of frames from first on in the host's view into access, as
// MemAccess tells it of each, and AccessUnknown where that is ErrNoPage. It asks Xen after
// many of them at a time.
func (h *Host) MemAccesses(dom DomID, first x86.GFN, access []Access) error {
	if h.closed.Load() {
		return ErrClosed
	}
	b, err := h.c.NewMemAccessBatch()
	if err != nil {
		return h.fail(opGetAccess, dom, err)
	}
	defer b.Free()
	l := &h.c.Layout.MemAccessOp
	return h.accesses(opGetAccess, dom, first, access, b, accessBatch{
		put:    func(ops *hypercall.Buffer, at int, gfn x86.GFN) { h.c.PutMemAccess(ops, at, uint16(dom), uint64(gfn)) },
		get:    func(ops *hypercall.Buffer, at int) uint8 { return ops.U8(at + l.Access) },
		where:  func(gfn x86.GFN) string { return "gfn " + gfn.String() },
		failed: func(err error, detail string) error { return opError(h.release, opGetAccess, dom, err, detail) },
	})
}

const opGetAccess = "mem_access(get)"

// accessBatch is how the access of many frames is asked after.
type accessBatch struct {
	put    func(ops *hypercall.Buffer, at int, gfn x86.GFN) // the question for one
	get    func(ops *hypercall.Buffer, at int) uint8        // and the answer
	where  func(x86.GFN) string
	failed func(err error, detail string) error
}

// accesses puts the access of frames from first on into access, AccessUnknown where there
// is no page.
func (h *Host) accesses(op string, dom DomID, first x86.GFN, access []Access, b *conn.Batch, how accessBatch) error {
	missing := false
	for len(access) > 0 {
		n := min(len(access), b.Cap())
		b.Reset(n)
		for i := range n {
			ops, at := b.Op(i)
			how.put(ops, at, first+x86.GFN(i))
		}
		if err := b.Do(); err != nil {
			return opError(h.release, op, dom, err, how.where(first))
		}
		for i := range n {
			ops, at := b.Op(i)
			switch err := b.Err(i); err {
			case nil:
				access[i] = decodeAccess(h.c.Layout, how.get(ops, at))
			case unix.ESRCH:
				access[i], missing = AccessUnknown, true
			default:
				return how.failed(err, how.where(first+x86.GFN(i)))
			}
		}
		first, access = first+x86.GFN(n), access[n:]
	}
	if !missing {
		return nil
	}
	// Xen says the same of a page and of a domain that is not there.
	if _, err := h.Domain(dom); err != nil {
		return opError(h.release, op, dom, unix.ESRCH, "frames from "+how.where(first)+" on")
	}
	return nil
}

// allFrames stands for the domain's default access.
const allFrames = ^uint64(0)

func (h *Host) memAccess(dom DomID, pfn uint64) (uint8, error) {
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := &h.c.Layout.MemAccessOp
	b, err := h.c.Alloc(l.Size)
	if err != nil {
		return 0, err
	}
	defer b.Free()
	h.c.PutMemAccess(b, 0, uint16(dom), pfn)
	if _, err := h.c.MemoryOp(abi.MemAccessOpCmd, b); err != nil {
		return 0, err
	}
	return b.U8(l.Access), nil
}

// ProbeMemAccess reports whether page access can be restricted for a domain:
// nil, or an error that matches ErrNotSupported and says what is missing. It
// needs no ring and changes nothing.
func (h *Host) ProbeMemAccess(dom DomID) error {
	_, err := h.memAccess(dom, allFrames)
	switch err {
	case nil, unix.ENODEV: // ENODEV: all is there but the ring
		return nil
	case unix.EINVAL, unix.ENOSYS:
		e := h.fail(opGetAccess, dom, err)
		needs := "an HVM or PVH domain on Intel VT-x with HAP"
		if err == unix.ENOSYS {
			needs = "a Xen built with CONFIG_VM_EVENT (before 4.21 CONFIG_MEM_ACCESS)"
		} else if d, e2 := h.Domain(dom); e2 != nil {
			return e2
		} else if d.Type == PV {
			needs = "an HVM or PVH domain, and this one is PV"
		} else if !d.HAP {
			needs = "HAP, and this domain runs without"
		} else if p, e3 := h.PhysInfo(); e3 == nil && !p.VMX {
			needs = "Intel VT-x, and this machine has none"
		}
		return &NotSupportedError{Feature: "mem_access", Needs: needs, Err: e}
	}
	return h.fail(opGetAccess, dom, err)
}

// Listened reports whether a monitor ring of the domain is connected, by
// whomever. It changes nothing. Where mem_access does not work (see
// ProbeMemAccess) Xen does not tell, and the error says why.
func (h *Host) Listened(dom DomID) (bool, error) {
	_, err := h.memAccess(dom, allFrames)
	switch err {
	case nil:
		return true, nil
	case unix.ENODEV:
		return false, nil
	}
	return false, h.fail(opGetAccess, dom, err)
}

// PagingPool returns the size in bytes of the pool of memory that Xen takes a
// domain's page tables from, those of altp2m views included. Before Xen 4.17 it
// is known to the MiB.
func (h *Host) PagingPool(dom DomID) (uint64, error) {
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := h.c.Layout
	op, cmd := "domctl(get_paging_mempool_size)", uint32(abi.DomctlGetPagingMempoolSize)
	if !l.Has.PagingMempool {
		op, cmd = "domctl(shadow_op get_allocation)", abi.DomctlShadowOp
	}
	b, err := h.c.NewDomctl(cmd, uint16(dom))
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	if !l.Has.PagingMempool {
		b.PutU32(l.Domctl.U+l.ShadowOp.Op, abi.ShadowOpGetAllocation)
	}
	if err := h.c.Domctl(b); err != nil {
		return 0, h.fail(op, dom, err)
	}
	if !l.Has.PagingMempool {
		return uint64(b.U32(l.Domctl.U+l.ShadowOp.MB)) << 20, nil
	}
	return b.U64(l.Domctl.U + l.PagingMempool.PoolSize), nil
}

// MonitorCaps is the set of events that can be monitored for a domain: bit
// 1<<abi.MonitorEvent* for each.
type MonitorCaps uint32

// Has reports whether an event, abi.MonitorEvent*, can be monitored.
func (c MonitorCaps) Has(event int) bool { return event >= 0 && event < 32 && c>>event&1 != 0 }

var monitorEventNames = [...]string{
	abi.MonitorEventWriteCtrlReg:       "write-ctrlreg",
	abi.MonitorEventMovToMSR:           "mov-to-msr",
	abi.MonitorEventSingleStep:         "singlestep",
	abi.MonitorEventSoftwareBreakpoint: "software-breakpoint",
	abi.MonitorEventGuestRequest:       "guest-request",
	abi.MonitorEventDebugException:     "debug-exception",
	abi.MonitorEventCPUID:              "cpuid",
	abi.MonitorEventPrivilegedCall:     "privileged-call",
	abi.MonitorEventInterrupt:          "interrupt",
	abi.MonitorEventDescAccess:         "desc-access",
	abi.MonitorEventEmulUnimplemented:  "emul-unimplemented",
	abi.MonitorEventInguestPagefault:   "inguest-pagefault",
	abi.MonitorEventVMExit:             "vmexit",
	abi.MonitorEventIO:                 "io",
}

// MonitorEventName returns the name of a monitor event, abi.MonitorEvent*.
func MonitorEventName(event int) string {
	if event >= 0 && event < len(monitorEventNames) {
		return monitorEventNames[event]
	}
	return fmt.Sprintf("event %d", event)
}

// String lists the names of the events.
func (c MonitorCaps) String() string {
	var names []string
	for i := range 32 {
		if c.Has(i) {
			names = append(names, MonitorEventName(i))
		}
	}
	return strings.Join(names, ",")
}

// MonitorCapabilities returns the events that can be monitored for a domain:
// none for PV. It fails with an error that matches ErrNotSupported where Xen
// was built without vm_event.
func (h *Host) MonitorCapabilities(dom DomID) (MonitorCaps, error) {
	const op = "monitor_op(get_capabilities)"
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := h.c.Layout
	b, err := h.c.NewDomctl(abi.DomctlMonitorOp, uint16(dom))
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	b.PutU32(l.Domctl.U+l.MonitorOp.Op, abi.MonitorOpGetCapabilities)
	if err := h.c.Domctl(b); err != nil {
		return 0, h.fail(op, dom, err)
	}
	return MonitorCaps(b.U32(l.Domctl.U + l.MonitorOp.Event)), nil
}

// VMEventVersion returns the version of the monitor ring's entries that Xen
// speaks: asked for from 4.13 on, known by the release before.
func (h *Host) VMEventVersion() (uint32, error) {
	const op = "vm_event_op(get_version)"
	if h.closed.Load() {
		return 0, ErrClosed
	}
	l := h.c.Layout
	if !l.Has.VMEventGetVersion {
		return l.VMEvent.Version, nil
	}
	b, err := h.c.NewDomctl(abi.DomctlVMEventOp, uint16(NoDomain))
	if err != nil {
		return 0, h.fail(op, NoDomain, err)
	}
	defer b.Free()
	b.PutU32(l.Domctl.U+l.VMEventOp.Op, abi.VMEventOpGetVersion)
	b.PutU32(l.Domctl.U+l.VMEventOp.Mode, abi.VMEventModeMonitor)
	if err := h.c.Domctl(b); err != nil {
		return 0, h.fail(op, NoDomain, err)
	}
	return b.U32(l.Domctl.U + l.VMEventOp.Version), nil
}

// AltP2MMode says who may use alternative views of a domain's memory.
type AltP2MMode uint8

// Modes of altp2m. Introspection from outside needs AltP2MExternal.
const (
	AltP2MDisabled AltP2MMode = abi.AltP2MModeDisabled
	AltP2MMixed    AltP2MMode = abi.AltP2MModeMixed
	AltP2MExternal AltP2MMode = abi.AltP2MModeExternal
	AltP2MLimited  AltP2MMode = abi.AltP2MModeLimited
)

// String returns the mode's name in xl's configuration.
func (m AltP2MMode) String() string {
	switch m {
	case AltP2MDisabled:
		return "disabled"
	case AltP2MMixed:
		return "mixed"
	case AltP2MExternal:
		return "external"
	case AltP2MLimited:
		return "limited"
	}
	return fmt.Sprintf("AltP2MMode(%d)", uint8(m))
}

// AltP2M is the state of altp2m for a domain.
type AltP2M struct {
	Mode AltP2MMode
	// Active says that views are in use.
	Active bool
}

// AltP2M returns the state of altp2m for a domain. It fails with an error that
// matches ErrNotSupported where Xen runs without altp2m.
func (h *Host) AltP2M(dom DomID) (AltP2M, error) {
	const op = "altp2m(get_domain_state)"
	mode, err := h.HVMParam(dom, abi.HVMParamAltP2M)
	if err != nil {
		return AltP2M{}, err
	}
	st := AltP2M{Mode: AltP2MMode(mode)}
	b, err := h.c.NewAltP2M(abi.AltP2MGetDomainState, uint16(dom))
	if err != nil {
		return AltP2M{}, h.fail(op, dom, err)
	}
	defer b.Free()
	switch err := h.c.AltP2M(b); err {
	case nil:
		st.Active = b.U8(h.c.Layout.AltP2MOp.DomainState) != 0
	case unix.EINVAL:
		if st.Mode != AltP2MDisabled {
			return AltP2M{}, h.fail(op, dom, err)
		}
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return AltP2M{}, &NotSupportedError{
			Feature: "altp2m", Needs: "altp2m=1 on Xen's command line and Intel VT-x", Err: h.fail(op, dom, err),
		}
	default:
		return AltP2M{}, h.fail(op, dom, err)
	}
	return st, nil
}

// ViewAccess returns the access of a frame in one of the domain's views; 0 is the
// host's. It matches ErrNoPage where no page is, or where no vCPU in the view has
// touched the page yet nor its access been set, so that the host's entry counts,
// and ErrNotSupported before Xen 4.12 and while the domain has no views.
func (h *Host) ViewAccess(dom DomID, view uint16, gfn x86.GFN) (Access, error) {
	const op = "altp2m(get_mem_access)"
	l := h.c.Layout
	if !l.Has.AltP2MGetMemAccess {
		return 0, &NotSupportedError{Feature: "to read the access of a view", Needs: "Xen 4.12 or later"}
	}
	b, err := h.c.NewAltP2M(abi.AltP2MGetMemAccess, uint16(dom))
	if err != nil {
		return 0, h.fail(op, dom, err)
	}
	defer b.Free()
	b.PutU16(l.AltP2MOp.MemAccessView, view)
	b.PutU64(l.AltP2MOp.MemAccessGFN, uint64(gfn))
	if err := h.c.AltP2M(b); err != nil {
		return 0, h.viewAccessError(op, dom, err, frameInView(gfn, view))
	}
	return decodeAccess(l, uint8(b.U16(l.AltP2MOp.MemAccessAccess))), nil
}

// ViewAccesses puts the access of frames from first on in one of the domain's views into
// access, as ViewAccess tells it of each, and AccessUnknown where that is ErrNoPage. It
// asks Xen after many of them at a time, since each restricted frame of a guest is asked
// after, again and again.
func (h *Host) ViewAccesses(dom DomID, view uint16, first x86.GFN, access []Access) error {
	const op = "altp2m(get_mem_access)"
	l := h.c.Layout
	if !l.Has.AltP2MGetMemAccess {
		return &NotSupportedError{Feature: "to read the access of a view", Needs: "Xen 4.12 or later"}
	}
	b, err := h.c.NewAltP2MBatch()
	if err != nil {
		return h.fail(op, dom, err)
	}
	defer b.Free()
	return h.accesses(op, dom, first, access, b, accessBatch{
		put: func(ops *hypercall.Buffer, at int, gfn x86.GFN) {
			h.c.PutAltP2M(ops, at, abi.AltP2MGetMemAccess, uint16(dom))
			ops.PutU16(at+l.AltP2MOp.MemAccessView, view)
			ops.PutU64(at+l.AltP2MOp.MemAccessGFN, uint64(gfn))
		},
		get:    func(ops *hypercall.Buffer, at int) uint8 { return uint8(ops.U16(at + l.AltP2MOp.MemAccessAccess)) },
		where:  func(gfn x86.GFN) string { return frameInView(gfn, view) },
		failed: func(err error, detail string) error { return h.viewAccessError(op, dom, err, detail) },
	})
}

// viewAccessError is what an answer to the question for a frame's access means.
func (h *Host) viewAccessError(op string, dom DomID, err error, detail string) error {
	switch err {
	case unix.ESRCH:
		return h.noPage(op, dom, detail)
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return &NotSupportedError{Feature: "altp2m", Needs: "altp2m=1 on Xen's command line, Intel VT-x, and views that are switched on", Err: h.fail(op, dom, err)}
	default:
		return opError(h.release, op, dom, err, detail)
	}
}

// frameInView is what an error says of one. It is put together for errors alone: each
// restricted frame of a guest is asked after, again and again.
func frameInView(gfn x86.GFN, view uint16) string {
	return fmt.Sprintf("gfn %s in view %d", gfn, view)
}

// noPage says of ESRCH whether the page is missing or the domain.
func (h *Host) noPage(op string, dom DomID, detail string) error {
	if _, err := h.Domain(dom); err != nil {
		return opError(h.release, op, dom, unix.ESRCH, detail)
	}
	return &OpError{Op: op, Domain: dom, Errno: unix.ESRCH, Release: h.release, Meaning: "no page at this frame", Detail: detail, is: ErrNoPage}
}

// PhysInfo is what Xen says of the machine.
type PhysInfo struct {
	CPUs, Nodes    int
	ThreadsPerCore int
	// MHz is the processor's base frequency.
	MHz int
	// Memory, in pages of 4 KiB.
	TotalPages, FreePages uint64
	// VMX is Intel's, SVM AMD's hardware virtualization.
	VMX, SVM bool
	// HVM says that Xen can run HVM and PVH domains.
	HVM bool
	// HAP says that Xen has hardware assisted paging. HAPKnown is false
	// before 4.13, which does not tell; DomainInfo.HAP tells per domain.
	HAP, HAPKnown bool
}

// PhysInfo returns what Xen says of the machine.
func (h *Host) PhysInfo() (PhysInfo, error) {
	const op = "sysctl(physinfo)"
	if h.closed.Load() {
		return PhysInfo{}, ErrClosed
	}
	l := h.c.Layout
	b, err := h.c.NewSysctl(abi.SysctlPhysInfo)
	if err != nil {
		return PhysInfo{}, h.fail(op, NoDomain, err)
	}
	defer b.Free()
	if err := h.c.Sysctl(b); err != nil {
		return PhysInfo{}, h.fail(op, NoDomain, err)
	}
	u, f := l.Sysctl.U, &l.PhysInfo
	caps := b.U32(u + f.Capabilities)
	// hw_cap is the beginning of Xen's feature words; 1 is CPUID leaf 1's
	// ECX, 3 leaf 0x80000001's (public/arch-x86/cpufeatureset.h).
	word := func(i int) uint32 { return b.U32(u + f.HWCap + 4*i) }
	return PhysInfo{
		CPUs: int(b.U32(u + f.NrCPUs)), Nodes: int(b.U32(u + f.NrNodes)),
		ThreadsPerCore: int(b.U32(u + f.ThreadsPerCore)),
		MHz:            int(b.U32(u+f.CPUKHz) / 1000),
		TotalPages:     b.U64(u + f.TotalPages), FreePages: b.U64(u + f.FreePages),
		VMX: word(1)>>5&1 != 0, SVM: word(3)>>2&1 != 0,
		HVM: caps&abi.PhysCapHVM != 0,
		HAP: l.Has.PhysCapHAP && caps&abi.PhysCapHAP != 0, HAPKnown: l.Has.PhysCapHAP,
	}, nil
}
