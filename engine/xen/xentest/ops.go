package xentest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
)

func (h *Hypervisor) xenVersion(c *caller, a [5]uint64) (int64, error) {
	put := func(s string, size int) (int64, error) {
		p, err := c.at(a[1], size)
		if err != nil {
			return 0, err
		}
		clear(p.b)
		copy(p.b[:size-1], s)
		return 0, nil
	}
	switch a[0] {
	case abi.XenVerVersion:
		if err := h.begin("xen_version(version)", xen.NoDomain); err != nil {
			return 0, err
		}
		return int64(h.cfg.Release.Major)<<16 | int64(h.cfg.Release.Minor), nil
	case abi.XenVerExtraVersion:
		if err := h.begin("xen_version(extraversion)", xen.NoDomain); err != nil {
			return 0, err
		}
		return put(h.cfg.Release.Extra, 16)
	case abi.XenVerCommandLine:
		if err := h.begin("xen_version(commandline)", xen.NoDomain); err != nil {
			return 0, err
		}
		return put(h.cfg.CommandLine, 1024)
	}
	return 0, unix.ENOSYS
}

var domctlNames = map[uint32]string{
	abi.DomctlPauseDomain:          "domctl(pausedomain)",
	abi.DomctlUnpauseDomain:        "domctl(unpausedomain)",
	abi.DomctlGetDomainInfo:        "domctl(getdomaininfo)",
	abi.DomctlGetVCPUInfo:          "domctl(getvcpuinfo)",
	abi.DomctlGetHVMContextPartial: "domctl(gethvmcontext_partial)",
	abi.DomctlGetPageFrameInfo3:    "domctl(getpageframeinfo3)",
	abi.DomctlGetPagingMempoolSize: "domctl(get_paging_mempool_size)",
	abi.DomctlSetPagingMempoolSize: "domctl(set_paging_mempool_size)",
	abi.DomctlShadowOp:             "domctl(shadow_op)",
	abi.DomctlDebugOp:              "debug_op(single_step)",
	abi.DomctlMaxMem:               "domctl(max_mem)",
	abi.DomctlSetAccessRequired:    "domctl(set_access_required)",
}

var vmEventNames = map[uint32]string{
	abi.VMEventOpEnable:     "vm_event_op(enable)",
	abi.VMEventOpDisable:    "vm_event_op(disable)",
	abi.VMEventOpGetVersion: "vm_event_op(get_version)",
}

var monitorNames = map[uint32]string{
	abi.MonitorOpEnable:           "monitor_op(enable)",
	abi.MonitorOpDisable:          "monitor_op(disable)",
	abi.MonitorOpGetCapabilities:  "monitor_op(get_capabilities)",
	abi.MonitorOpEmulateEachRep:   "monitor_op(emulate_each_rep)",
	abi.MonitorOpControlRegisters: "monitor_op(control_registers)",
}

func (h *Hypervisor) domctl(c *caller, addr uint64) error {
	l := h.layout
	op, err := c.at(addr, l.Domctl.Size)
	if err != nil {
		return err
	}
	u := handle{c, op.b[l.Domctl.U:]}
	cmd := op.u32(l.Domctl.Cmd)
	id := xen.DomID(op.u16(l.Domctl.Domain))
	name := domctlNames[cmd]
	switch cmd {
	case abi.DomctlVMEventOp:
		name = vmEventNames[u.u32(l.VMEventOp.Op)]
	case abi.DomctlMonitorOp:
		name = monitorNames[u.u32(l.MonitorOp.Op)]
	}
	if err := h.begin(name, id); err != nil {
		return err
	}
	version := l.DomctlVersion
	if h.cfg.OtherInterface {
		version++
	}
	if op.u32(l.Domctl.InterfaceVersion) != version {
		return unix.EACCES
	}
	if !zero(op.b[l.Domctl.Domain+2 : l.Domctl.U]) {
		return unix.EINVAL
	}
	if h.cfg.Unprivileged {
		return unix.EPERM
	}
	d := h.domains[id]
	if cmd == abi.DomctlGetDomainInfo {
		return h.getDomainInfo(u, op, id)
	}
	if cmd == abi.DomctlVMEventOp && id == xen.NoDomain {
		return h.vmEventOp(nil, u)
	}
	if d == nil {
		return unix.ESRCH
	}
	self := id == 0
	switch cmd {
	case abi.DomctlPauseDomain:
		if self {
			return unix.EINVAL
		}
		if d.pauses == 255 {
			return unix.EOVERFLOW
		}
		d.pauses++
		return nil
	case abi.DomctlUnpauseDomain:
		if d.pauses == 0 {
			return unix.EINVAL
		}
		d.pauses--
		return nil
	case abi.DomctlGetVCPUInfo:
		return h.getVCPUInfo(d, u)
	case abi.DomctlGetHVMContextPartial:
		return h.getContext(c, d, op, u)
	case abi.DomctlGetPageFrameInfo3:
		return h.getPageFrameInfo(c, d, u)
	case abi.DomctlGetPagingMempoolSize, abi.DomctlSetPagingMempoolSize, abi.DomctlShadowOp:
		return h.pagingPool(cmd, d, u)
	case abi.DomctlMaxMem:
		d.spec.MaxPages = u.u64(l.MaxMem.MaxMemKB) / 4
		return nil
	case abi.DomctlVMEventOp:
		return h.vmEventOp(d, u)
	case abi.DomctlMonitorOp:
		return h.monitorOp(d, u)
	case abi.DomctlDebugOp:
		v := u.u32(l.DebugOp.VCPU)
		switch {
		case v >= uint32(len(d.vcpus)) || !d.hvm():
			return unix.EINVAL
		case h.cfg.AMD:
			return unix.EOPNOTSUPP
		}
		switch u.u32(l.DebugOp.Op) {
		case abi.DebugOpSingleStepOn:
			d.vcpus[v].singleStep = true
		case abi.DebugOpSingleStepOff:
			d.vcpus[v].singleStep, d.vcpus[v].fastStep = false, false
		default:
			return unix.ENOSYS
		}
		return nil
	case abi.DomctlSetAccessRequired:
		if self {
			return unix.EPERM
		}
		if h.cfg.NoVMEvent {
			return unix.ENOSYS
		}
		d.accessRequired = u.u8(l.SetAccessRequired.AccessRequired) != 0
		return nil
	}
	return unix.ENOSYS
}

// putDomainInfo writes one getdomaininfo structure.
func (h *Hypervisor) putDomainInfo(d *Domain, u handle) {
	f := &h.layout.GetDomainInfo
	clear(u.b[:f.Size])
	var flags uint32
	set := func(on bool, bits uint32) {
		if on {
			flags |= bits
		}
	}
	set(d.hvm(), abi.DomInfHVMGuest)
	set(d.hvm() && !d.spec.NoHAP, abi.DomInfHAP)
	set(d.pauses > 0, abi.DomInfPaused)
	set(d.state == dying, abi.DomInfDying)
	set(d.shutdown, abi.DomInfShutdown|uint32(d.shutdownReason)<<abi.DomInfShutdownShift)
	online := 0
	for _, v := range d.vcpus {
		if !v.offline {
			online++
		}
	}
	u.put(f.Domain, 2, uint64(d.spec.ID))
	u.put(f.Flags, 4, uint64(flags))
	u.put(f.TotPages, 8, uint64(len(d.mem.frames)))
	u.put(f.MaxPages, 8, d.spec.MaxPages)
	u.put(f.NrOnlineVCPUs, 4, uint64(online))
	u.put(f.MaxVCPUID, 4, uint64(uint32(len(d.vcpus)-1)))
	u.put(f.CPUTime, 8, 1_500_000_000)
	u.put(f.ArchEmulationFlags, 4, uint64(d.emulation()))
	copy(u.b[f.Handle:], d.spec.UUID[:])
}

func (h *Hypervisor) getDomainInfo(u, op handle, id xen.DomID) error {
	d := h.domains[id]
	if d == nil && h.cfg.Release.Minor < 18 {
		// Old releases answer with the next one.
		for _, other := range h.ids() {
			if other >= id {
				d = h.domains[other]
				break
			}
		}
	}
	if d == nil {
		return unix.ESRCH
	}
	h.putDomainInfo(d, u)
	op.put(h.layout.Domctl.Domain, 2, uint64(d.spec.ID))
	return nil
}

// pagingPool answers in the way of the release, and in no other.
func (h *Hypervisor) pagingPool(cmd uint32, d *Domain, u handle) error {
	l := h.layout
	switch {
	case l.Has.PagingMempool == (cmd == abi.DomctlShadowOp):
		return unix.ENOSYS
	case !d.hvm():
		return unix.EOPNOTSUPP
	case cmd == abi.DomctlGetPagingMempoolSize:
		u.put(l.PagingMempool.PoolSize, 8, d.pool)
	case cmd == abi.DomctlSetPagingMempoolSize:
		d.pool = u.u64(l.PagingMempool.PoolSize)
	case u.u32(l.ShadowOp.Op) == abi.ShadowOpGetAllocation:
		u.put(l.ShadowOp.MB, 4, d.pool>>20)
	case u.u32(l.ShadowOp.Op) == abi.ShadowOpSetAllocation:
		d.pool = uint64(u.u32(l.ShadowOp.MB)) << 20
	default:
		return unix.EINVAL
	}
	return nil
}

// getVCPUInfo has a vCPU run unless something holds it, and one that was just
// stopped by an event run a little longer.
func (h *Hypervisor) getVCPUInfo(d *Domain, u handle) error {
	f := &h.layout.GetVCPUInfo
	i := u.u32(f.VCPU)
	if i >= uint32(len(d.vcpus)) {
		return unix.EINVAL
	}
	v := d.vcpus[i]
	running := uint64(0)
	switch {
	case v.leaving > 0:
		v.leaving--
		running = 1
	case !v.offline && v.eventPause == 0 && d.pauses == 0 && !d.shutdown && d.state != dying:
		running = 1
	}
	clear(u.b[:f.Size])
	u.put(f.VCPU, 4, uint64(i))
	if !v.offline {
		u.put(f.Online, 1, 1)
	}
	u.put(f.Running, 1, running)
	return nil
}

func (h *Hypervisor) getContext(c *caller, d *Domain, op, u handle) error {
	l := h.layout
	f := &l.HVMContextPartial
	if d.spec.ID == 0 || !d.hvm() || d.state == dying || u.u32(f.Type) != abi.HVMSaveCPU {
		return unix.EINVAL
	}
	i := u.u32(f.Instance)
	if i >= uint32(len(d.vcpus)) {
		return unix.ENOENT
	}
	if d.vcpus[i].offline {
		if h.cfg.Release.Minor < 12 {
			return unix.ENOENT
		}
		return unix.ENODATA
	}
	if u.u64(f.BufSize) < uint64(l.HVMSaveLengthCPU) {
		return unix.ENOBUFS
	}
	rec, err := c.at(u.u64(f.Buffer), l.HVMSaveLengthCPU)
	if err != nil {
		return err
	}
	putCPU(l, rec, &d.vcpus[i].regs)
	u.put(f.BufSize, 8, uint64(l.HVMSaveLengthCPU))
	return nil
}

func (h *Hypervisor) getPageFrameInfo(c *caller, d *Domain, u handle) error {
	f := &h.layout.GetPageFrameInfo3
	n := u.u64(f.Num)
	if n > 1024 {
		return unix.E2BIG
	}
	for i := range n {
		e, err := c.at(u.u64(f.Array)+8*i, 8)
		if err != nil {
			return err
		}
		typ := uint64(abi.PFInfoNoTab)
		if _, ok := d.mem.frames[e.u64(0)]; !ok || d.state == dying {
			typ = abi.PFInfoXTab
		}
		e.put(0, 8, typ)
	}
	return nil
}

func (h *Hypervisor) vmEventOp(d *Domain, u handle) error {
	f := &h.layout.VMEventOp
	if h.cfg.NoVMEvent {
		return unix.ENOSYS
	}
	op := u.u32(f.Op)
	if op == abi.VMEventOpGetVersion {
		if !h.layout.Has.VMEventGetVersion {
			return unix.ENOSYS
		}
		u.put(f.Version, 4, uint64(h.layout.VMEvent.Version))
		return nil
	}
	switch {
	case d == nil:
		return unix.ESRCH
	case d.spec.ID == 0:
		return unix.EINVAL
	case d.state == dying:
		return nil
	case len(d.vcpus) == 0:
		return unix.EINVAL
	case u.u32(f.Mode) != abi.VMEventModeMonitor:
		return unix.ENOSYS
	}
	switch op {
	case abi.VMEventOpEnable:
		if !d.hvm() {
			return unix.EOPNOTSUPP
		}
		port, err := d.connect()
		if err != nil {
			return err
		}
		u.put(f.Port, 4, uint64(port))
		return nil
	case abi.VMEventOpDisable:
		switch {
		case d.ring == nil:
			return unix.EINVAL
		case d.waiters > 0:
			return unix.EBUSY
		}
		d.disconnect()
		return nil
	}
	return unix.ENOSYS
}

// capabilities returns the events that can be monitored for a domain.
func (h *Hypervisor) capabilities(d *Domain) uint32 {
	if !d.hvm() {
		return 0
	}
	caps := uint32(1<<abi.MonitorEventWriteCtrlReg | 1<<abi.MonitorEventMovToMSR |
		1<<abi.MonitorEventSoftwareBreakpoint | 1<<abi.MonitorEventGuestRequest |
		1<<abi.MonitorEventDebugException | 1<<abi.MonitorEventCPUID | 1<<abi.MonitorEventInterrupt |
		1<<abi.MonitorEventDescAccess | 1<<abi.MonitorEventEmulUnimplemented)
	if !h.cfg.AMD {
		caps |= 1 << abi.MonitorEventSingleStep
	}
	has := h.layout.Has
	for _, x := range []struct {
		on    bool
		event int
	}{{has.InguestPagefault, abi.MonitorEventInguestPagefault}, {has.MonitorVMExit, abi.MonitorEventVMExit}, {has.MonitorIO, abi.MonitorEventIO}} {
		if x.on {
			caps |= 1 << x.event
		}
	}
	return caps
}

func (h *Hypervisor) monitorOp(d *Domain, u handle) error {
	f := &h.layout.MonitorOp
	if h.cfg.NoVMEvent {
		return unix.ENOSYS
	}
	if d.spec.ID == 0 {
		return unix.EPERM
	}
	op, event := u.u32(f.Op), u.u32(f.Event)
	switch op {
	case abi.MonitorOpGetCapabilities:
		u.put(f.Event, 4, uint64(h.capabilities(d)))
		return nil
	case abi.MonitorOpEmulateEachRep:
		if d.ring == nil {
			return unix.EINVAL
		}
		d.eachRep = event != 0
		return nil
	case abi.MonitorOpControlRegisters:
		if !h.layout.Has.MonitorControlRegisters {
			return unix.EOPNOTSUPP
		}
		d.deferRegisters = true
		return nil
	case abi.MonitorOpEnable, abi.MonitorOpDisable:
	default:
		return unix.EOPNOTSUPP
	}
	if event > 31 {
		return unix.EINVAL
	}
	if h.capabilities(d)&(1<<event) == 0 {
		return unix.EOPNOTSUPP
	}
	st := MonitorState{Event: int(event)}
	key := fmt.Sprint(event)
	switch event {
	case abi.MonitorEventWriteCtrlReg:
		st.Register = u.u8(f.MovToCRIndex)
		if st.Register > abi.VMEventX86XCR0 || !zero(u.b[f.MovToCROnChangeOnly+1:f.MovToCRBitmask]) {
			return unix.EINVAL
		}
		st.Sync = u.u8(f.MovToCRSync) != 0
		st.OnChangeOnly = u.u8(f.MovToCROnChangeOnly) != 0
		st.IgnoreBits = u.u64(f.MovToCRBitmask)
		key += fmt.Sprintf(" %d", st.Register)
	case abi.MonitorEventMovToMSR:
		st.MSR = u.u32(f.MovToMSRMSR)
		if d.ring == nil {
			return unix.ENXIO // the bitmap comes and goes with the ring
		}
		switch st.MSR &^ 0x1fff {
		case 0, 0x4000_0000, 0xc000_0000:
		default:
			return unix.EINVAL
		}
		st.OnChangeOnly = u.u8(f.MovToMSROnChangeOnly) != 0
		key += fmt.Sprintf(" %d", st.MSR)
	case abi.MonitorEventGuestRequest:
		st.Sync = u.u8(f.GuestRequestSync) != 0
		st.AllowUserspace = u.u8(f.GuestRequestAllowUserspace) != 0
	case abi.MonitorEventDebugException:
		st.Sync = u.u8(f.DebugExceptionSync) != 0
	case abi.MonitorEventVMExit:
		st.Sync = u.u8(f.VMExitSync) != 0
	}
	_, on := d.monitored[key]
	if on == (op == abi.MonitorOpEnable) {
		return unix.EEXIST
	}
	if on {
		delete(d.monitored, key)
	} else {
		d.monitored[key] = st
	}
	return nil
}

func (h *Hypervisor) sysctl(c *caller, addr uint64) error {
	l := h.layout
	op, err := c.at(addr, l.Sysctl.Size)
	if err != nil {
		return err
	}
	cmd := op.u32(l.Sysctl.Cmd)
	name := map[uint32]string{abi.SysctlPhysInfo: "sysctl(physinfo)", abi.SysctlGetDomainInfoList: "sysctl(getdomaininfolist)"}[cmd]
	if err := h.begin(name, xen.NoDomain); err != nil {
		return err
	}
	version := l.SysctlVersion
	if h.cfg.OtherInterface {
		version++
	}
	if op.u32(l.Sysctl.InterfaceVersion) != version {
		return unix.EACCES
	}
	if h.cfg.Unprivileged {
		return unix.EPERM
	}
	u := handle{c, op.b[l.Sysctl.U:]}
	switch cmd {
	case abi.SysctlGetDomainInfoList:
		f := &l.GetDomainInfoList
		n := uint32(0)
		for _, id := range h.ids() {
			if id < xen.DomID(u.u16(f.FirstDomain)) || n == u.u32(f.MaxDomains) {
				continue
			}
			e, err := c.at(u.u64(f.Buffer)+uint64(n)*uint64(l.GetDomainInfo.Size), l.GetDomainInfo.Size)
			if err != nil {
				return err
			}
			h.putDomainInfo(h.domains[id], e)
			n++
		}
		u.put(f.NumDomains, 4, uint64(n))
		return nil
	case abi.SysctlPhysInfo:
		f := &l.PhysInfo
		clear(u.b[:f.Size])
		u.put(f.ThreadsPerCore, 4, 2)
		u.put(f.NrCPUs, 4, 8)
		u.put(f.NrNodes, 4, 1)
		u.put(f.CPUKHz, 4, 2_600_000)
		u.put(f.TotalPages, 8, 4<<20)
		u.put(f.FreePages, 8, h.free)
		caps := uint64(abi.PhysCapHVM)
		if l.Has.PhysCapHAP {
			caps |= abi.PhysCapHAP
		}
		u.put(f.Capabilities, 4, caps)
		if h.cfg.AMD {
			u.put(f.HWCap+12, 4, 1<<2) // leaf 0x80000001 ECX: SVM
		} else {
			u.put(f.HWCap+4, 4, 1<<5) // leaf 1 ECX: VMX
		}
		return nil
	}
	return unix.ENOSYS
}

func (h *Hypervisor) memoryOp(c *caller, cmd, addr uint64) (int64, error) {
	l := h.layout
	switch cmd {
	case abi.MemMaximumGPFN:
		p, err := c.at(addr, 2)
		if err != nil {
			return 0, err
		}
		id := xen.DomID(p.u16(0))
		if err := h.begin("memory_op(maximum_gpfn)", id); err != nil {
			return 0, err
		}
		d, err := h.live(id)
		if err != nil {
			return 0, err
		}
		return int64(d.mem.max), nil
	case abi.MemGetPoDTarget:
		p, err := c.at(addr, l.PoDTarget.Size)
		if err != nil {
			return 0, err
		}
		id := xen.DomID(p.u16(l.PoDTarget.DomID))
		if err := h.begin("memory_op(get_pod_target)", id); err != nil {
			return 0, err
		}
		d, err := h.live(id)
		if err != nil {
			return 0, err
		}
		if !d.hvm() {
			return 0, unix.EINVAL
		}
		p.put(l.PoDTarget.PoDEntries, 8, d.spec.OnDemand)
		return 0, nil
	case abi.MemPopulatePhysmap, abi.MemDecreaseReservation:
		f := &l.MemoryReservation
		p, err := c.at(addr, f.Size)
		if err != nil {
			return 0, nil // Xen: nothing done
		}
		id := xen.DomID(p.u16(f.DomID))
		name := "memory_op(populate_physmap)"
		if cmd == abi.MemDecreaseReservation {
			name = "memory_op(decrease_reservation)"
		}
		if err := h.begin(name, id); err != nil {
			return 0, err
		}
		d := h.domains[id]
		if d == nil || d.state == dying || h.cfg.Unprivileged || p.u32(f.ExtentOrder) != 0 {
			return 0, nil
		}
		for i := range p.u64(f.NrExtents) {
			e, err := c.at(p.u64(f.ExtentStart)+8*i, 8)
			if err != nil {
				return int64(i), nil
			}
			gfn := e.u64(0)
			if cmd == abi.MemDecreaseReservation {
				if !d.mem.remove(gfn) {
					return int64(i), nil
				}
				continue
			}
			if uint64(len(d.mem.frames)) >= d.spec.MaxPages || h.free == 0 {
				return int64(i), nil
			}
			h.free--
			d.mem.populate(gfn)
		}
		return int64(p.u64(f.NrExtents)), nil
	case abi.MemAccessOpCmd:
		return 0, h.memAccess(c, addr)
	}
	return 0, unix.ENOSYS
}

// validAccess reports whether a release knows a number for an access.
func (h *Hypervisor) validAccess(a uint8) bool {
	return a <= abi.AccessN2RWX || a == h.layout.AccessDefault || h.layout.Has.AccessRPW && a == abi.AccessRPW
}

func (h *Hypervisor) memAccess(c *caller, addr uint64) error {
	f := &h.layout.MemAccessOp
	p, err := c.at(addr, f.Size)
	if err != nil {
		return err
	}
	id, op, pfn := xen.DomID(p.u16(f.DomID)), p.u8(f.Op), p.u64(f.PFN)
	all := pfn == ^uint64(0)
	name := map[uint8]string{abi.MemAccessOpSet: "mem_access(set)", abi.MemAccessOpGet: "mem_access(get)", abi.MemAccessOpSetMulti: "mem_access(set_multi)"}[op]
	if op == abi.MemAccessOpSet && all {
		name = "mem_access(set default)"
	}
	if err := h.begin(name, id); err != nil {
		return err
	}
	if h.cfg.NoVMEvent {
		return unix.ENOSYS
	}
	d := h.domains[id]
	switch {
	case d == nil:
		return unix.ESRCH
	case id == 0:
		return unix.EPERM
	case d.state == dying || !d.hvm() || h.cfg.AMD || d.spec.NoHAP:
		return unix.EINVAL
	case d.ring == nil:
		return unix.ENODEV
	}
	set := func(gfn uint64, a uint8) {
		if a == h.layout.AccessDefault {
			a = d.defaultAccess
		}
		if a == abi.AccessRWX {
			delete(d.access, gfn)
		} else {
			d.access[gfn] = a
		}
	}
	switch op {
	case abi.MemAccessOpSet:
		nr, a := uint64(p.u32(f.Nr)), p.u8(f.Access)
		if !h.validAccess(a) {
			return unix.EINVAL
		}
		if all {
			if a != h.layout.AccessDefault {
				d.defaultAccess = a
			}
			return nil
		}
		if pfn+nr-1 < pfn || pfn+nr-1 > d.mem.max {
			return unix.EINVAL
		}
		for i := range nr {
			set(pfn+i, a)
		}
		return nil
	case abi.MemAccessOpSetMulti:
		for i := range uint64(p.u32(f.Nr)) {
			g, err := c.at(p.u64(f.PFNList)+8*i, 8)
			if err != nil {
				return err
			}
			a, err := c.at(p.u64(f.AccessList)+i, 1)
			if err != nil {
				return err
			}
			if !h.validAccess(a.u8(0)) {
				return unix.EINVAL
			}
			set(g.u64(0), a.u8(0))
		}
		return nil
	case abi.MemAccessOpGet:
		if all {
			p.put(f.Access, 1, uint64(d.defaultAccess))
			return nil
		}
		if pfn > d.mem.max {
			return unix.EINVAL
		}
		if _, ok := d.mem.frames[pfn]; !ok {
			return unix.ESRCH
		}
		p.put(f.Access, 1, uint64(d.accessOf(pfn)))
		return nil
	}
	return unix.ENOSYS
}

// multicall carries out n calls, and leaves with each what came of it.
func (h *Hypervisor) multicall(c *caller, addr, n uint64) error {
	if h.cfg.NoMulticall {
		return unix.ENOSYS
	}
	const size, result, firstArg = 64, 8, 16
	for i := range n {
		e, err := c.at(addr+i*size, size)
		if err != nil {
			return err
		}
		var a [5]uint64
		for j := range a {
			a[j] = e.u64(firstArg + 8*j)
		}
		r, err := h.call(c, e.u64(0), a)
		var errno unix.Errno
		if errors.As(err, &errno) {
			r = -int64(errno)
		}
		e.put(result, 8, uint64(r))
	}
	return nil
}

func (h *Hypervisor) hvmOp(c *caller, op, addr uint64) error {
	l := h.layout
	switch op {
	case abi.HVMOpGetParam, abi.HVMOpSetParam:
		f := &l.HVMParam
		p, err := c.at(addr, f.Size)
		if err != nil {
			return err
		}
		id, index, value := xen.DomID(p.u16(f.DomID)), p.u32(f.Index), p.u64(f.Value)
		name := "hvm_op(get_param)"
		if op == abi.HVMOpSetParam {
			name = "hvm_op(set_param)"
			if index == abi.HVMParamAltP2M {
				name = "hvm_op(set_param altp2m)"
			}
		}
		if err := h.begin(name, id); err != nil {
			return err
		}
		d, err := h.live(id)
		if err != nil {
			return err
		}
		if !d.hvm() || index > 40 {
			return unix.EINVAL
		}
		if op == abi.HVMOpGetParam {
			p.put(f.Value, 8, d.params[index])
			return nil
		}
		if index == abi.HVMParamAltP2M {
			switch {
			case l.Has.AltP2MFixedAtCreate, d.params[index] != 0 && d.params[index] != value:
				return unix.EEXIST
			case value > abi.AltP2MModeLimited:
				return unix.EINVAL
			}
		}
		d.params[index] = value
		return nil
	case abi.HVMOpAltP2M:
		f := &l.AltP2MOp
		p, err := c.at(addr, f.Size)
		if err != nil {
			return err
		}
		id, cmd := xen.DomID(p.u16(f.Domain)), p.u32(f.Cmd)
		name := altP2MNames[cmd]
		if err := h.begin(name, id); err != nil {
			return err
		}
		if !h.cfg.AltP2M || h.cfg.AMD {
			return unix.EOPNOTSUPP
		}
		if p.u32(f.Version) != abi.AltP2MInterfaceVersion || !zero(p.b[f.Domain+2:f.DomainState]) {
			return unix.EINVAL
		}
		d, err := h.live(id)
		if err != nil {
			return err
		}
		if !d.hvm() {
			return unix.EOPNOTSUPP
		}
		if d.params[abi.HVMParamAltP2M] == abi.AltP2MModeDisabled {
			return unix.EINVAL
		}
		return d.altP2M(c, cmd, p)
	}
	return unix.ENOSYS
}

var altP2MNames = map[uint32]string{
	abi.AltP2MGetDomainState:    "altp2m(get_domain_state)",
	abi.AltP2MSetDomainState:    "altp2m(set_domain_state)",
	abi.AltP2MCreateP2M:         "altp2m(create_p2m)",
	abi.AltP2MSwitchP2M:         "altp2m(switch_p2m)",
	abi.AltP2MSetMemAccessMulti: "altp2m(set_mem_access_multi)",
	abi.AltP2MGetMemAccess:      "altp2m(get_mem_access)",
	abi.AltP2MChangeGFN:         "altp2m(change_gfn)",
}

// maxViews is MAX_ALTP2M, with the host's.
const maxViews = 10

// altP2M does what the domain's views are for, once they may be used.
func (d *Domain) altP2M(c *caller, cmd uint32, p handle) error {
	f := &d.h.layout.AltP2MOp
	switch cmd {
	case abi.AltP2MGetDomainState:
		p.put(f.DomainState, 1, 0)
		if d.altp2mActive {
			p.put(f.DomainState, 1, 1)
		}
		return nil
	case abi.AltP2MSetDomainState:
		d.altp2mActive = p.u8(f.DomainState) != 0
		d.views, d.view = []*view{nil}, 0
		return nil
	}
	if !d.altp2mActive {
		return unix.EOPNOTSUPP
	}
	switch cmd {
	case abi.AltP2MCreateP2M:
		if len(d.views) >= maxViews {
			return unix.EINVAL
		}
		d.views = append(d.views, &view{access: map[uint64]uint8{}, leads: map[uint64]uint64{}})
		p.put(f.ViewView, 2, uint64(len(d.views)-1))
		return nil
	case abi.AltP2MSwitchP2M:
		if int(p.u16(f.ViewView)) >= len(d.views) {
			return unix.EINVAL
		}
		d.view = p.u16(f.ViewView)
		return nil
	case abi.AltP2MGetMemAccess:
		i, pfn := int(p.u16(f.MemAccessView)), p.u64(f.MemAccessGFN)
		if i >= len(d.views) {
			return unix.EINVAL
		}
		access, set := d.accessOf(pfn), true
		if i > 0 {
			// A page that nobody has touched in the view is not in it.
			access, set = d.views[i].access[pfn]
		}
		if _, ok := d.mem.frames[pfn]; !ok || !set {
			return unix.ESRCH
		}
		p.put(f.MemAccessAccess, 2, uint64(access))
		return nil
	case abi.AltP2MChangeGFN:
		i, from, to := int(p.u16(f.ChangeGFNView)), p.u64(f.ChangeGFNOld), p.u64(f.ChangeGFNNew)
		if i == 0 || i >= len(d.views) {
			return unix.EINVAL
		}
		if to == ^uint64(0) {
			delete(d.views[i].leads, from)
			delete(d.views[i].access, from)
			return nil
		}
		for _, gfn := range []uint64{from, to} {
			if _, ok := d.mem.frames[gfn]; !ok {
				return unix.ESRCH
			}
		}
		d.views[i].leads[from], d.views[i].access[from] = to, d.accessOf(to)
		return nil
	case abi.AltP2MSetMemAccessMulti:
		i, n := int(p.u16(f.MemAccessMultiView)), int(p.u32(f.MemAccessMultiNr))
		if i == 0 || i >= len(d.views) {
			return unix.EINVAL
		}
		pfns, err := c.at(p.u64(f.MemAccessMultiPFNList), 8*n)
		if err != nil {
			return err
		}
		access, err := c.at(p.u64(f.MemAccessMultiAccessList), n)
		if err != nil {
			return err
		}
		for k := range n {
			pfn := pfns.u64(8 * k)
			if _, ok := d.mem.frames[pfn]; !ok {
				return unix.ESRCH
			}
			d.views[i].access[pfn] = access.u8(k)
		}
		return nil
	}
	return unix.EOPNOTSUPP
}

var dmOpNames = map[uint32]string{
	abi.DMOpInjectEventCmd:    "dm_op(inject_event)",
	abi.DMOpRemoteShutdownCmd: "dm_op(remote_shutdown)",
}

func (h *Hypervisor) dmOp(id xen.DomID, p handle) error {
	l := h.layout
	if len(p.b) < l.DMOp.Size {
		return unix.EFAULT
	}
	cmd := p.u32(l.DMOp.Op)
	if err := h.begin(dmOpNames[cmd], id); err != nil {
		return err
	}
	d, err := h.live(id)
	if err != nil {
		return err
	}
	u := handle{p.c, p.b[l.DMOp.U:]}
	switch {
	case !d.hvm():
		return unix.EINVAL
	case cmd == abi.DMOpRemoteShutdownCmd:
		d.shutDown(u.u32(l.DMOpRemoteShutdown.Reason))
		return nil
	case cmd != abi.DMOpInjectEventCmd:
		return unix.EINVAL
	}
	f := &l.DMOpInjectEvent
	i := u.u32(f.VCPUID)
	if i >= uint32(len(d.vcpus)) {
		return unix.EINVAL
	}
	if d.vcpus[i].injected != nil {
		return unix.EBUSY
	}
	d.vcpus[i].injected = &Injected{
		Vector: u.u8(f.Vector), Type: u.u8(f.Type), InsnLen: u.u8(f.InsnLen),
		ErrorCode: u.u32(f.ErrorCode), CR2: u.u64(f.CR2),
	}
	return nil
}
