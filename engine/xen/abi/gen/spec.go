package main

// A structSpec names one public Xen structure, or one union member inside it,
// and the fields hvi uses. Offsets of nested groups are counted from the start
// of the outermost structure, which is what encoders and decoders need.
type structSpec struct {
	name   string // Go type name
	field  string // Go field name in the enclosing type; defaults to name
	xen    string // C name, "" for a group
	doc    string // sentence that follows the type's name
	sized  bool   // whether to record the structure's size
	fields []fieldSpec
	groups []structSpec
	values []valueSpec
}

// A fieldSpec maps a Go name to a C field path. Where Xen renamed a field,
// path lists the alternatives, separated by "|". Every release that has the
// field must have it with this width.
type fieldSpec struct {
	name  string
	path  string
	width int
	doc   string
}

// A valueSpec is a constant that differs between releases and is therefore
// part of the layout.
type valueSpec struct {
	name string
	typ  string
	xen  string
	doc  string
}

// A constSpec is a constant with one value in all releases that define it.
type constSpec struct {
	name string
	xen  string
}

type constGroup struct {
	doc    string
	consts []constSpec
}

// A featureSpec is true in the releases that define a constant.
type featureSpec struct {
	name string
	xen  string
	doc  string
}

var structs = []structSpec{
	{
		name: "Domctl", xen: "struct xen_domctl", sized: true,
		doc: "is the envelope of every domain control operation. U is where the operation's own structure starts.",
		fields: []fieldSpec{
			{"Cmd", "cmd", 4, ""},
			{"InterfaceVersion", "interface_version", 4, ""},
			{"Domain", "domain", 2, ""},
			{"U", "u", 128, "the union"},
		},
	},
	{
		name: "GetDomainInfo", xen: "struct xen_domctl_getdomaininfo", sized: true,
		doc: "is XEN_DOMCTL_getdomaininfo's answer and, with Size as the stride, one element of XEN_SYSCTL_getdomaininfolist's.",
		fields: []fieldSpec{
			{"Domain", "domain", 2, "the domain described, which before 4.18 may be a later one than asked for"},
			{"Flags", "flags", 4, "DomInf* bits"},
			{"TotPages", "tot_pages", 8, ""},
			{"MaxPages", "max_pages", 8, ""},
			{"OutstandingPages", "outstanding_pages", 8, ""},
			{"ShrPages", "shr_pages", 8, ""},
			{"PagedPages", "paged_pages", 8, ""},
			{"SharedInfoFrame", "shared_info_frame", 8, ""},
			{"CPUTime", "cpu_time", 8, "nanoseconds"},
			{"NrOnlineVCPUs", "nr_online_vcpus", 4, ""},
			{"MaxVCPUID", "max_vcpu_id", 4, ""},
			{"SSIDRef", "ssidref", 4, ""},
			{"Handle", "handle", 16, "the UUID, 16 bytes"},
			{"CPUPool", "cpupool", 4, ""},
			{"GPAddrBits", "gpaddr_bits", 1, ""},
			{"ArchEmulationFlags", "arch_config.emulation_flags", 4, "X86Emu* bits"},
			{"ArchMiscFlags", "arch_config.misc_flags", 4, ""},
		},
	},
	{
		name: "GetVCPUInfo", xen: "struct xen_domctl_getvcpuinfo", sized: true,
		doc: "is XEN_DOMCTL_getvcpuinfo.",
		fields: []fieldSpec{
			{"VCPU", "vcpu", 4, ""},
			{"Online", "online", 1, ""},
			{"Blocked", "blocked", 1, ""},
			{"Running", "running", 1, ""},
			{"CPUTime", "cpu_time", 8, "nanoseconds"},
			{"CPU", "cpu", 4, ""},
		},
	},
	{
		name: "VMEventOp", xen: "struct xen_domctl_vm_event_op", sized: true,
		doc: "is XEN_DOMCTL_vm_event_op.",
		fields: []fieldSpec{
			{"Op", "op", 4, ""},
			{"Mode", "mode", 4, ""},
			{"Port", "u.enable.port|port", 4, "out, after VMEventOpEnable"},
			{"Version", "u.version", 4, "out, after VMEventOpGetVersion"},
		},
	},
	{
		name: "MonitorOp", xen: "struct xen_domctl_monitor_op", sized: true,
		doc: "is XEN_DOMCTL_monitor_op.",
		fields: []fieldSpec{
			{"Op", "op", 4, ""},
			{"Event", "event", 4, "MonitorEvent* in; capability bits out after MonitorOpGetCapabilities"},
			{"MovToCRIndex", "u.mov_to_cr.index", 1, ""},
			{"MovToCRSync", "u.mov_to_cr.sync", 1, ""},
			{"MovToCROnChangeOnly", "u.mov_to_cr.onchangeonly", 1, ""},
			{"MovToCRBitmask", "u.mov_to_cr.bitmask", 8, ""},
			{"MovToMSRMSR", "u.mov_to_msr.msr", 4, ""},
			{"MovToMSROnChangeOnly", "u.mov_to_msr.onchangeonly", 1, ""},
			{"GuestRequestSync", "u.guest_request.sync", 1, ""},
			{"GuestRequestAllowUserspace", "u.guest_request.allow_userspace", 1, ""},
			{"DebugExceptionSync", "u.debug_exception.sync", 1, ""},
			{"VMExitSync", "u.vmexit.sync", 1, ""},
		},
	},
	{
		name: "DebugOp", xen: "struct xen_domctl_debug_op", sized: true,
		doc: "is XEN_DOMCTL_debug_op.",
		fields: []fieldSpec{
			{"Op", "op", 4, ""},
			{"VCPU", "vcpu", 4, ""},
		},
	},
	{
		name: "SetAccessRequired", xen: "struct xen_domctl_set_access_required", sized: true,
		doc: "is XEN_DOMCTL_set_access_required.",
		fields: []fieldSpec{
			{"AccessRequired", "access_required", 1, ""},
		},
	},
	{
		name: "HVMContext", xen: "struct xen_domctl_hvmcontext", sized: true,
		doc: "is XEN_DOMCTL_gethvmcontext and sethvmcontext.",
		fields: []fieldSpec{
			{"BufSize", "size", 4, "in and out, bytes"},
			{"Buffer", "buffer", 8, "guest handle"},
		},
	},
	{
		name: "HVMContextPartial", xen: "struct xen_domctl_hvmcontext_partial", sized: true,
		doc: "is XEN_DOMCTL_gethvmcontext_partial. The record it yields has no descriptor in front.",
		fields: []fieldSpec{
			{"Type", "type", 4, "HVMSave*"},
			{"Instance", "instance", 4, "the vCPU for a per-vCPU record"},
			{"BufSize", "bufsz", 8, "in and out, bytes"},
			{"Buffer", "buffer", 8, "guest handle"},
		},
	},
	{
		name: "GetPageFrameInfo3", xen: "struct xen_domctl_getpageframeinfo3", sized: true,
		doc: "is XEN_DOMCTL_getpageframeinfo3. The array holds frame numbers in and types out, 8 bytes each.",
		fields: []fieldSpec{
			{"Num", "num", 8, ""},
			{"Array", "array", 8, "guest handle"},
		},
	},
	{
		name: "MaxMem", xen: "struct xen_domctl_max_mem", sized: true,
		doc: "is XEN_DOMCTL_max_mem.",
		fields: []fieldSpec{
			{"MaxMemKB", "max_memkb", 8, "KiB"},
		},
	},
	{
		name: "PauseVCPU", xen: "struct xen_domctl_gdbsx_pauseunp_vcpu", sized: true,
		doc: "is XEN_DOMCTL_gdbsx_pausevcpu and gdbsx_unpausevcpu.",
		fields: []fieldSpec{
			{"VCPU", "vcpu", 4, ""},
		},
	},
	{
		name: "PagingMempool", xen: "struct xen_domctl_paging_mempool", sized: true,
		doc: "is XEN_DOMCTL_get_paging_mempool_size and set_paging_mempool_size.",
		fields: []fieldSpec{
			{"PoolSize", "size", 8, "bytes"},
		},
	},
	{
		name: "ShadowOp", xen: "struct xen_domctl_shadow_op", sized: true,
		doc: "is XEN_DOMCTL_shadow_op.",
		fields: []fieldSpec{
			{"Op", "op", 4, ""},
			{"MB", "mb", 4, "the paging pool in MiB, with ShadowOp*Allocation"},
		},
	},
	{
		name: "GetDomainState", xen: "struct xen_domctl_get_domain_state", sized: true,
		doc: "is XEN_DOMCTL_get_domain_state, the one operation with interface version 0.",
		fields: []fieldSpec{
			{"State", "state", 2, ""},
			{"Caps", "caps", 2, ""},
			{"UniqueID", "unique_id", 8, "never reused, unlike a domain id"},
		},
	},
	{
		name: "Sysctl", xen: "struct xen_sysctl", sized: true,
		doc: "is the envelope of every system control operation.",
		fields: []fieldSpec{
			{"Cmd", "cmd", 4, ""},
			{"InterfaceVersion", "interface_version", 4, ""},
			{"U", "u", 128, "the union"},
		},
	},
	{
		name: "GetDomainInfoList", xen: "struct xen_sysctl_getdomaininfolist", sized: true,
		doc: "is XEN_SYSCTL_getdomaininfolist.",
		fields: []fieldSpec{
			{"FirstDomain", "first_domain", 2, ""},
			{"MaxDomains", "max_domains", 4, ""},
			{"Buffer", "buffer", 8, "guest handle"},
			{"NumDomains", "num_domains", 4, "out"},
		},
	},
	{
		name: "PhysInfo", xen: "struct xen_sysctl_physinfo", sized: true,
		doc: "is XEN_SYSCTL_physinfo.",
		fields: []fieldSpec{
			{"ThreadsPerCore", "threads_per_core", 4, ""},
			{"CoresPerSocket", "cores_per_socket", 4, ""},
			{"NrCPUs", "nr_cpus", 4, ""},
			{"MaxCPUID", "max_cpu_id", 4, ""},
			{"NrNodes", "nr_nodes", 4, ""},
			{"CPUKHz", "cpu_khz", 4, ""},
			{"Capabilities", "capabilities", 4, "PhysCap* bits"},
			{"ArchCapabilities", "arch_capabilities", 4, ""},
			{"TotalPages", "total_pages", 8, ""},
			{"FreePages", "free_pages", 8, ""},
			{"HWCap", "hw_cap", 32, "eight 4-byte CPUID words"},
		},
	},
	{
		name: "HVMParam", xen: "struct xen_hvm_param", sized: true,
		doc: "is HVMOP_set_param and HVMOP_get_param.",
		fields: []fieldSpec{
			{"DomID", "domid", 2, ""},
			{"Index", "index", 4, ""},
			{"Value", "value", 8, ""},
		},
	},
	{
		name: "AltP2MOp", xen: "struct xen_hvm_altp2m_op", sized: true,
		doc: "is HVMOP_altp2m.",
		fields: []fieldSpec{
			{"Version", "version", 4, ""},
			{"Cmd", "cmd", 4, ""},
			{"Domain", "domain", 2, ""},
			{"DomainState", "u.domain_state.state", 1, ""},
			{"ViewView", "u.view.view", 2, ""},
			{"ViewDefaultAccess", "u.view.hvmmem_default_access", 2, "ignored by Xen before 4.14"},
			{"MemAccessView", "u.mem_access.view|u.set_mem_access.view", 2, ""},
			{"MemAccessAccess", "u.mem_access.access|u.set_mem_access.hvmmem_access", 2, ""},
			{"MemAccessGFN", "u.mem_access.gfn|u.set_mem_access.gfn", 8, ""},
			{"MemAccessMultiView", "u.set_mem_access_multi.view", 2, ""},
			{"MemAccessMultiNr", "u.set_mem_access_multi.nr", 4, ""},
			{"MemAccessMultiOpaque", "u.set_mem_access_multi.opaque", 8, "continuation, zero at first"},
			{"MemAccessMultiPFNList", "u.set_mem_access_multi.pfn_list", 8, "guest handle"},
			{"MemAccessMultiAccessList", "u.set_mem_access_multi.access_list", 8, "guest handle"},
			{"ChangeGFNView", "u.change_gfn.view", 2, ""},
			{"ChangeGFNOld", "u.change_gfn.old_gfn", 8, ""},
			{"ChangeGFNNew", "u.change_gfn.new_gfn", 8, ""},
			{"GetVCPUP2MIdxVCPU", "u.get_vcpu_p2m_idx.vcpu_id", 4, ""},
			{"GetVCPUP2MIdx", "u.get_vcpu_p2m_idx.altp2m_idx", 2, ""},
			{"SetVisibilityIdx", "u.set_visibility.altp2m_idx", 2, ""},
			{"SetVisibilityVisible", "u.set_visibility.visible", 1, ""},
			{"SuppressVEView", "u.suppress_ve.view", 2, ""},
			{"SuppressVESuppress", "u.suppress_ve.suppress_ve", 1, ""},
			{"SuppressVEGFN", "u.suppress_ve.gfn", 8, ""},
		},
	},
	{
		name: "MemAccessOp", xen: "struct xen_mem_access_op", sized: true,
		doc: "is XENMEM_access_op.",
		fields: []fieldSpec{
			{"Op", "op", 1, ""},
			{"Access", "access", 1, ""},
			{"DomID", "domid", 2, ""},
			{"Nr", "nr", 4, ""},
			{"PFN", "pfn", 8, "all ones means the domain's default access"},
			{"PFNList", "pfn_list", 8, "guest handle"},
			{"AccessList", "access_list", 8, "guest handle"},
		},
	},
	{
		name: "MemoryReservation", xen: "struct xen_memory_reservation", sized: true,
		doc: "is XENMEM_populate_physmap and XENMEM_decrease_reservation.",
		fields: []fieldSpec{
			{"ExtentStart", "extent_start", 8, "guest handle to frame numbers"},
			{"NrExtents", "nr_extents", 8, ""},
			{"ExtentOrder", "extent_order", 4, ""},
			{"MemFlags", "mem_flags", 4, ""},
			{"DomID", "domid", 2, ""},
		},
	},
	{
		name: "PoDTarget", xen: "struct xen_pod_target", sized: true,
		doc: "is XENMEM_get_pod_target.",
		fields: []fieldSpec{
			{"PoDEntries", "pod_entries", 8, "frames that get a page when they are touched first"},
			{"DomID", "domid", 2, ""},
		},
	},
	{
		name: "DMOp", xen: "struct xen_dm_op", sized: true,
		doc: "is the envelope of every device model operation.",
		fields: []fieldSpec{
			{"Op", "op", 4, ""},
			{"U", "u", 24, "the union"},
		},
	},
	{
		name: "DMOpInjectEvent", xen: "struct xen_dm_op_inject_event", sized: true,
		doc: "is XEN_DMOP_inject_event.",
		fields: []fieldSpec{
			{"VCPUID", "vcpuid", 4, ""},
			{"Vector", "vector", 1, ""},
			{"Type", "type", 1, "DMOpEvent*"},
			{"InsnLen", "insn_len", 1, ""},
			{"ErrorCode", "error_code", 4, "all ones means none"},
			{"CR2", "cr2", 8, ""},
		},
	},
	{
		name: "DMOpRemoteShutdown", xen: "struct xen_dm_op_remote_shutdown", sized: true,
		doc: "is XEN_DMOP_remote_shutdown.",
		fields: []fieldSpec{
			{"Reason", "reason", 4, "Shutdown*"},
		},
	},
	{
		name: "HVMSaveDescriptor", xen: "struct hvm_save_descriptor", sized: true,
		doc: "precedes each record of a whole saved HVM context.",
		fields: []fieldSpec{
			{"TypeCode", "typecode", 2, ""},
			{"Instance", "instance", 2, ""},
			{"Length", "length", 4, "bytes of the record that follows"},
		},
	},
	{
		name: "HVMHWCPU", xen: "struct hvm_hw_cpu", sized: true,
		doc: "is the saved state of one vCPU, record type HVMSaveCPU.",
		fields: []fieldSpec{
			{"RAX", "rax", 8, ""}, {"RBX", "rbx", 8, ""}, {"RCX", "rcx", 8, ""}, {"RDX", "rdx", 8, ""},
			{"RBP", "rbp", 8, ""}, {"RSI", "rsi", 8, ""}, {"RDI", "rdi", 8, ""}, {"RSP", "rsp", 8, ""},
			{"R8", "r8", 8, ""}, {"R9", "r9", 8, ""}, {"R10", "r10", 8, ""}, {"R11", "r11", 8, ""},
			{"R12", "r12", 8, ""}, {"R13", "r13", 8, ""}, {"R14", "r14", 8, ""}, {"R15", "r15", 8, ""},
			{"RIP", "rip", 8, ""}, {"RFLAGS", "rflags", 8, ""},
			{"CR0", "cr0", 8, ""}, {"CR2", "cr2", 8, ""}, {"CR3", "cr3", 8, ""}, {"CR4", "cr4", 8, ""},
			{"DR6", "dr6", 8, ""}, {"DR7", "dr7", 8, ""},
			{"CSSel", "cs_sel", 4, ""}, {"SSSel", "ss_sel", 4, ""},
			{"IDTRLimit", "idtr_limit", 4, ""}, {"GDTRLimit", "gdtr_limit", 4, ""},
			{"CSBase", "cs_base", 8, ""}, {"FSBase", "fs_base", 8, ""}, {"GSBase", "gs_base", 8, ""},
			{"TRBase", "tr_base", 8, ""},
			{"IDTRBase", "idtr_base", 8, ""}, {"GDTRBase", "gdtr_base", 8, ""},
			{"CSArBytes", "cs_arbytes", 4, "access rights"}, {"SSArBytes", "ss_arbytes", 4, "access rights; the DPL in bits 5 and 6 is the privilege level"},
			{"SysenterCS", "sysenter_cs", 8, ""}, {"SysenterESP", "sysenter_esp", 8, ""}, {"SysenterEIP", "sysenter_eip", 8, ""},
			{"ShadowGS", "shadow_gs", 8, ""},
			{"MSRLSTAR", "msr_lstar", 8, ""}, {"MSRSTAR", "msr_star", 8, ""}, {"MSRCSTAR", "msr_cstar", 8, ""},
			{"MSRSyscallMask", "msr_syscall_mask", 8, ""}, {"MSREFER", "msr_efer", 8, ""},
			{"TSC", "tsc", 8, ""},
			{"PendingEvent", "pending_event", 4, ""}, {"ErrorCode", "error_code", 4, ""},
			{"Flags", "flags", 4, ""},
		},
	},
	{
		name: "SRing", xen: "struct vm_event_sring",
		doc: "is the header of the shared ring page; entries start at Ring, VMEvent.Size apart.",
		fields: []fieldSpec{
			{"ReqProd", "req_prod", 4, ""},
			{"ReqEvent", "req_event", 4, ""},
			{"RspProd", "rsp_prod", 4, ""},
			{"RspEvent", "rsp_event", 4, ""},
			{"Ring", "ring", -1, "first entry"},
		},
	},
	{
		name: "VMEvent", xen: "struct vm_event_st", sized: true,
		doc: "is one entry of the monitor ring, request and response alike. Size is the ring's stride. All offsets, nested ones too, count from the start of the entry.",
		values: []valueSpec{
			{"Version", "uint32", "VM_EVENT_INTERFACE_VERSION", "the value every entry carries in its version field"},
		},
		fields: []fieldSpec{
			{"OffVersion", "version", 4, ""},
			{"OffFlags", "flags", 4, "VMEventFlag* bits"},
			{"OffReason", "reason", 4, "VMEventReason*"},
			{"OffVCPU", "vcpu_id", 4, ""},
			{"OffAltP2MIdx", "altp2m_idx", 2, "meaningful with VMEventFlagAlternateP2M"},
			{"OffU", "u", 32, "the union of per-reason members"},
			{"OffData", "data", -1, "the union of registers and emulation data"},
			{"OffEmulReadSize", "data.emul.read.size", 4, "bytes used of the emulated read data"},
			{"OffEmulReadData", "data.emul.read.data", -1, ""},
			{"OffEmulInsnData", "data.emul.insn.data", 16, ""},
		},
		groups: []structSpec{
			{name: "VMEventMemAccess", field: "MemAccess", doc: "is the member for VMEventReasonMemAccess.", fields: []fieldSpec{
				{"GFN", "u.mem_access.gfn", 8, ""},
				{"Offset", "u.mem_access.offset", 8, "within the frame"},
				{"GLA", "u.mem_access.gla", 8, "valid with MemAccessGLAValid"},
				{"Flags", "u.mem_access.flags", 4, "MemAccess* bits"},
			}},
			{name: "VMEventWriteCtrlReg", field: "WriteCtrlReg", doc: "is the member for VMEventReasonWriteCtrlReg.", fields: []fieldSpec{
				{"Index", "u.write_ctrlreg.index", 4, "VMEventX86CR*"},
				{"New", "u.write_ctrlreg.new_value", 8, ""},
				{"Old", "u.write_ctrlreg.old_value", 8, ""},
			}},
			{name: "VMEventMovToMSR", field: "MovToMSR", doc: "is the member for VMEventReasonMovToMSR.", fields: []fieldSpec{
				{"MSR", "u.mov_to_msr.msr", 8, ""},
				{"New", "u.mov_to_msr.new_value", 8, ""},
				{"Old", "u.mov_to_msr.old_value", 8, ""},
			}},
			{name: "VMEventSingleStep", field: "SingleStep", doc: "is the member for VMEventReasonSingleStep.", fields: []fieldSpec{
				{"GFN", "u.singlestep.gfn", 8, ""},
			}},
			{name: "VMEventFastSingleStep", field: "FastSingleStep", doc: "is read from a response that has VMEventFlagFastSingleStep.", fields: []fieldSpec{
				{"P2MIdx", "u.fast_singlestep.p2midx", 2, "the view to return to after the step"},
			}},
			{name: "VMEventDebug", field: "Debug", doc: "is the member for VMEventReasonSoftwareBreakpoint and VMEventReasonDebugException, which share one shape.", fields: []fieldSpec{
				{"GFN", "u.software_breakpoint.gfn", 8, ""},
				{"PendingDbg", "u.software_breakpoint.pending_dbg", 8, ""},
				{"InsnLength", "u.software_breakpoint.insn_length", 4, ""},
				{"Type", "u.software_breakpoint.type", 1, "DMOpEvent*, to hand back when reinjecting"},
			}},
			{name: "VMEventDescAccess", field: "DescAccess", doc: "is the member for VMEventReasonDescriptorAccess.", fields: []fieldSpec{
				{"VMXInstrInfo", "u.desc_access.arch.vmx.instr_info", 4, ""},
				{"VMXExitQualification", "u.desc_access.arch.vmx.exit_qualification", 8, ""},
				{"Descriptor", "u.desc_access.descriptor", 1, "VMEventDesc*"},
				{"IsWrite", "u.desc_access.is_write", 1, ""},
			}},
			{name: "VMEventCPUID", field: "CPUID", doc: "is the member for VMEventReasonCPUID.", fields: []fieldSpec{
				{"InsnLength", "u.cpuid.insn_length", 4, ""},
				{"Leaf", "u.cpuid.leaf", 4, ""},
				{"Subleaf", "u.cpuid.subleaf", 4, ""},
			}},
			{name: "VMEventInterrupt", field: "Interrupt", doc: "is the member for VMEventReasonInterrupt.", fields: []fieldSpec{
				{"Vector", "u.interrupt.x86.vector", 4, ""},
				{"Type", "u.interrupt.x86.type", 4, ""},
				{"ErrorCode", "u.interrupt.x86.error_code", 4, ""},
				{"CR2", "u.interrupt.x86.cr2", 8, ""},
			}},
			{name: "VMEventVMExit", field: "VMExit", doc: "is the member for VMEventReasonVMExit.", fields: []fieldSpec{
				{"Reason", "u.vmexit.arch.vmx.reason", 8, ""},
				{"Qualification", "u.vmexit.arch.vmx.qualification", 8, ""},
			}},
			{name: "VMEventIO", field: "IO", doc: "is the member for VMEventReasonIOInstruction.", fields: []fieldSpec{
				{"Bytes", "u.io.bytes", 4, ""},
				{"Port", "u.io.port", 2, ""},
				{"In", "u.io.in", 1, ""},
				{"Str", "u.io.str", 1, ""},
			}},
			{name: "VMEventRegs", field: "Regs", doc: "is the register file that a request carries and a response with VMEventFlagSetRegisters sets in part (general registers, RIP, RFLAGS).", fields: []fieldSpec{
				{"RAX", "data.regs.x86.rax", 8, ""}, {"RCX", "data.regs.x86.rcx", 8, ""},
				{"RDX", "data.regs.x86.rdx", 8, ""}, {"RBX", "data.regs.x86.rbx", 8, ""},
				{"RSP", "data.regs.x86.rsp", 8, ""}, {"RBP", "data.regs.x86.rbp", 8, ""},
				{"RSI", "data.regs.x86.rsi", 8, ""}, {"RDI", "data.regs.x86.rdi", 8, ""},
				{"R8", "data.regs.x86.r8", 8, ""}, {"R9", "data.regs.x86.r9", 8, ""},
				{"R10", "data.regs.x86.r10", 8, ""}, {"R11", "data.regs.x86.r11", 8, ""},
				{"R12", "data.regs.x86.r12", 8, ""}, {"R13", "data.regs.x86.r13", 8, ""},
				{"R14", "data.regs.x86.r14", 8, ""}, {"R15", "data.regs.x86.r15", 8, ""},
				{"RFLAGS", "data.regs.x86.rflags", 8, ""},
				{"DR6", "data.regs.x86.dr6", 8, ""}, {"DR7", "data.regs.x86.dr7", 8, ""},
				{"RIP", "data.regs.x86.rip", 8, ""},
				{"CR0", "data.regs.x86.cr0", 8, ""}, {"CR2", "data.regs.x86.cr2", 8, ""},
				{"CR3", "data.regs.x86.cr3", 8, ""}, {"CR4", "data.regs.x86.cr4", 8, ""},
				{"SysenterCS", "data.regs.x86.sysenter_cs", 8, ""},
				{"SysenterESP", "data.regs.x86.sysenter_esp", 8, ""},
				{"SysenterEIP", "data.regs.x86.sysenter_eip", 8, ""},
				{"MSREFER", "data.regs.x86.msr_efer", 8, ""},
				{"MSRSTAR", "data.regs.x86.msr_star", 8, ""},
				{"MSRLSTAR", "data.regs.x86.msr_lstar", 8, ""},
				{"GDTRBase", "data.regs.x86.gdtr_base", 8, ""},
				{"NPTBase", "data.regs.x86.npt_base", 8, ""},
				{"VMTracePos", "data.regs.x86.vmtrace_pos", 8, ""},
				{"CSBase", "data.regs.x86.cs_base", 4, ""}, {"SSBase", "data.regs.x86.ss_base", 4, ""},
				{"DSBase", "data.regs.x86.ds_base", 4, ""}, {"ESBase", "data.regs.x86.es_base", 4, ""},
				{"FSBase", "data.regs.x86.fs_base", 8, ""}, {"GSBase", "data.regs.x86.gs_base", 8, ""},
				{"CS", "data.regs.x86.cs", 4, "limit in bits 0 to 19, access rights in 20 to 31; see SegmentDPL"},
				{"SS", "data.regs.x86.ss", 4, "as CS"},
				{"DS", "data.regs.x86.ds", 4, "as CS"}, {"ES", "data.regs.x86.es", 4, "as CS"},
				{"FS", "data.regs.x86.fs", 4, "as CS"}, {"GS", "data.regs.x86.gs", 4, "as CS"},
				{"ShadowGS", "data.regs.x86.shadow_gs", 8, ""},
				{"GDTRLimit", "data.regs.x86.gdtr_limit", 2, ""},
				{"CSSel", "data.regs.x86.cs_sel", 2, ""}, {"SSSel", "data.regs.x86.ss_sel", 2, ""},
				{"DSSel", "data.regs.x86.ds_sel", 2, ""}, {"ESSel", "data.regs.x86.es_sel", 2, ""},
				{"FSSel", "data.regs.x86.fs_sel", 2, ""}, {"GSSel", "data.regs.x86.gs_sel", 2, ""},
				{"CSArBytes", "data.regs.x86.cs_arbytes", 4, "4.11 only: access rights of CS, its DPL in bits 5 and 6"},
			}},
		},
	},
}

var features = []featureSpec{
	{"VMEventGetVersion", "XEN_VM_EVENT_GET_VERSION", "the vm_event interface version can be asked for"},
	{"MonitorControlRegisters", "XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS", "register writes are deferred to the response only after MonitorOpControlRegisters; where it is false they always are"},
	{"InguestPagefault", "XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT", "MonitorEventInguestPagefault exists"},
	{"MonitorVMExit", "XEN_DOMCTL_MONITOR_EVENT_VMEXIT", "MonitorEventVMExit exists"},
	{"MonitorIO", "XEN_DOMCTL_MONITOR_EVENT_IO", "MonitorEventIO exists"},
	{"FastSingleStep", "VM_EVENT_FLAG_FAST_SINGLESTEP", "VMEventFlagFastSingleStep works"},
	{"AltP2MGetMemAccess", "HVMOP_altp2m_get_mem_access", "AltP2MGetMemAccess exists"},
	{"AltP2MGetP2MIdx", "HVMOP_altp2m_get_p2m_idx", "AltP2MGetP2MIdx exists"},
	{"AltP2MSetVisibility", "HVMOP_altp2m_set_visibility", "AltP2MSetVisibility exists"},
	{"AltP2MFixedAtCreate", "XEN_DOMCTL_ALTP2M_mixed", "the altp2m mode is fixed when a domain is created and HVMParamAltP2M cannot be written"},
	{"PhysCapHAP", "XEN_SYSCTL_PHYSCAP_hap", "physinfo tells whether hardware assisted paging is there"},
	{"PagingMempool", "XEN_DOMCTL_set_paging_mempool_size", "the paging pool's size can be set in bytes"},
	{"DomainState", "XEN_DOMCTL_get_domain_state", "domains have an id that is never reused"},
	{"AccessRPW", "XENMEM_access_r_pw", "access 10 means read-only with page-table walks allowed to write; before it meant the default"},
}

var values = []valueSpec{
	{"DomctlVersion", "uint32", "XEN_DOMCTL_INTERFACE_VERSION", "interface version of domain controls"},
	{"SysctlVersion", "uint32", "XEN_SYSCTL_INTERFACE_VERSION", "interface version of system controls"},
	{"AccessDefault", "uint8", "XENMEM_access_default", "memory access that stands for the domain's default: 10, and 11 from 4.20 on, where 10 makes pages read-only"},
	{"HVMSaveLengthCPU", "int", "HVM_SAVE_LENGTH_CPU", "bytes of a CPU record"},
}

var constants = []constGroup{
	{"Hypercall numbers.", []constSpec{
		{"HypercallMemoryOp", "__HYPERVISOR_memory_op"},
		{"HypercallMulticall", "__HYPERVISOR_multicall"},
		{"HypercallXenVersion", "__HYPERVISOR_xen_version"},
		{"HypercallSchedOp", "__HYPERVISOR_sched_op"},
		{"HypercallHVMOp", "__HYPERVISOR_hvm_op"},
		{"HypercallSysctl", "__HYPERVISOR_sysctl"},
		{"HypercallDomctl", "__HYPERVISOR_domctl"},
		{"HypercallDMOp", "__HYPERVISOR_dm_op"},
	}},
	{"Reserved domain ids.", []constSpec{
		{"DomIDFirstReserved", "DOMID_FIRST_RESERVED"},
		{"DomIDSelf", "DOMID_SELF"},
		{"DomIDInvalid", "DOMID_INVALID"},
	}},
	{"Commands of xen_version.", []constSpec{
		{"XenVerVersion", "XENVER_version"},
		{"XenVerExtraVersion", "XENVER_extraversion"},
		{"XenVerCapabilities", "XENVER_capabilities"},
		{"XenVerCommandLine", "XENVER_commandline"},
	}},
	{"Domain controls.", []constSpec{
		{"DomctlPauseDomain", "XEN_DOMCTL_pausedomain"},
		{"DomctlUnpauseDomain", "XEN_DOMCTL_unpausedomain"},
		{"DomctlGetDomainInfo", "XEN_DOMCTL_getdomaininfo"},
		{"DomctlShadowOp", "XEN_DOMCTL_shadow_op"},
		{"DomctlMaxMem", "XEN_DOMCTL_max_mem"},
		{"DomctlGetVCPUInfo", "XEN_DOMCTL_getvcpuinfo"},
		{"DomctlGetHVMContext", "XEN_DOMCTL_gethvmcontext"},
		{"DomctlSetHVMContext", "XEN_DOMCTL_sethvmcontext"},
		{"DomctlDebugOp", "XEN_DOMCTL_debug_op"},
		{"DomctlGetHVMContextPartial", "XEN_DOMCTL_gethvmcontext_partial"},
		{"DomctlVMEventOp", "XEN_DOMCTL_vm_event_op"},
		{"DomctlGetPageFrameInfo3", "XEN_DOMCTL_getpageframeinfo3"},
		{"DomctlSetAccessRequired", "XEN_DOMCTL_set_access_required"},
		{"DomctlMonitorOp", "XEN_DOMCTL_monitor_op"},
		{"DomctlGetPagingMempoolSize", "XEN_DOMCTL_get_paging_mempool_size"},
		{"DomctlSetPagingMempoolSize", "XEN_DOMCTL_set_paging_mempool_size"},
		{"DomctlGetDomainState", "XEN_DOMCTL_get_domain_state"},
		{"DomctlPauseVCPU", "XEN_DOMCTL_gdbsx_pausevcpu"},
		{"DomctlUnpauseVCPU", "XEN_DOMCTL_gdbsx_unpausevcpu"},
	}},
	{"Operations of DomctlShadowOp.", []constSpec{
		{"ShadowOpGetAllocation", "XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION"},
		{"ShadowOpSetAllocation", "XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION"},
	}},
	{"Bits of GetDomainInfo.Flags.", []constSpec{
		{"DomInfDying", "XEN_DOMINF_dying"},
		{"DomInfHVMGuest", "XEN_DOMINF_hvm_guest"},
		{"DomInfShutdown", "XEN_DOMINF_shutdown"},
		{"DomInfPaused", "XEN_DOMINF_paused"},
		{"DomInfBlocked", "XEN_DOMINF_blocked"},
		{"DomInfRunning", "XEN_DOMINF_running"},
		{"DomInfDebugged", "XEN_DOMINF_debugged"},
		{"DomInfXSDomain", "XEN_DOMINF_xs_domain"},
		{"DomInfHAP", "XEN_DOMINF_hap"},
		{"DomInfShutdownMask", "XEN_DOMINF_shutdownmask"},
		{"DomInfShutdownShift", "XEN_DOMINF_shutdownshift"},
	}},
	{"Reasons for which a domain shut down.", []constSpec{
		{"ShutdownPoweroff", "SHUTDOWN_poweroff"},
		{"ShutdownReboot", "SHUTDOWN_reboot"},
		{"ShutdownSuspend", "SHUTDOWN_suspend"},
		{"ShutdownCrash", "SHUTDOWN_crash"},
		{"ShutdownWatchdog", "SHUTDOWN_watchdog"},
		{"ShutdownSoftReset", "SHUTDOWN_soft_reset"},
	}},
	{"Bits of GetDomainInfo.ArchEmulationFlags: the devices Xen emulates for an HVM domain. PVH has at most the local APIC.", []constSpec{
		{"X86EmuLAPIC", "XEN_X86_EMU_LAPIC"},
		{"X86EmuHPET", "XEN_X86_EMU_HPET"},
		{"X86EmuPM", "XEN_X86_EMU_PM"},
		{"X86EmuRTC", "XEN_X86_EMU_RTC"},
		{"X86EmuIOAPIC", "XEN_X86_EMU_IOAPIC"},
		{"X86EmuPIC", "XEN_X86_EMU_PIC"},
		{"X86EmuVGA", "XEN_X86_EMU_VGA"},
		{"X86EmuIOMMU", "XEN_X86_EMU_IOMMU"},
		{"X86EmuPIT", "XEN_X86_EMU_PIT"},
		{"X86EmuUsePIRQ", "XEN_X86_EMU_USE_PIRQ"},
		{"X86EmuVPCI", "XEN_X86_EMU_VPCI"},
	}},
	{"Values of VMEventOp.Op and VMEventOp.Mode.", []constSpec{
		{"VMEventOpEnable", "XEN_VM_EVENT_ENABLE"},
		{"VMEventOpDisable", "XEN_VM_EVENT_DISABLE"},
		{"VMEventOpResume", "XEN_VM_EVENT_RESUME"},
		{"VMEventOpGetVersion", "XEN_VM_EVENT_GET_VERSION"},
		{"VMEventModePaging", "XEN_DOMCTL_VM_EVENT_OP_PAGING"},
		{"VMEventModeMonitor", "XEN_DOMCTL_VM_EVENT_OP_MONITOR"},
		{"VMEventModeSharing", "XEN_DOMCTL_VM_EVENT_OP_SHARING"},
	}},
	{"Values of MonitorOp.Op.", []constSpec{
		{"MonitorOpEnable", "XEN_DOMCTL_MONITOR_OP_ENABLE"},
		{"MonitorOpDisable", "XEN_DOMCTL_MONITOR_OP_DISABLE"},
		{"MonitorOpGetCapabilities", "XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES"},
		{"MonitorOpEmulateEachRep", "XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP"},
		{"MonitorOpControlRegisters", "XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS"},
	}},
	{"Values of MonitorOp.Event. A domain's capabilities have bit 1<<event for each event it supports.", []constSpec{
		{"MonitorEventWriteCtrlReg", "XEN_DOMCTL_MONITOR_EVENT_WRITE_CTRLREG"},
		{"MonitorEventMovToMSR", "XEN_DOMCTL_MONITOR_EVENT_MOV_TO_MSR"},
		{"MonitorEventSingleStep", "XEN_DOMCTL_MONITOR_EVENT_SINGLESTEP"},
		{"MonitorEventSoftwareBreakpoint", "XEN_DOMCTL_MONITOR_EVENT_SOFTWARE_BREAKPOINT"},
		{"MonitorEventGuestRequest", "XEN_DOMCTL_MONITOR_EVENT_GUEST_REQUEST"},
		{"MonitorEventDebugException", "XEN_DOMCTL_MONITOR_EVENT_DEBUG_EXCEPTION"},
		{"MonitorEventCPUID", "XEN_DOMCTL_MONITOR_EVENT_CPUID"},
		{"MonitorEventPrivilegedCall", "XEN_DOMCTL_MONITOR_EVENT_PRIVILEGED_CALL"},
		{"MonitorEventInterrupt", "XEN_DOMCTL_MONITOR_EVENT_INTERRUPT"},
		{"MonitorEventDescAccess", "XEN_DOMCTL_MONITOR_EVENT_DESC_ACCESS"},
		{"MonitorEventEmulUnimplemented", "XEN_DOMCTL_MONITOR_EVENT_EMUL_UNIMPLEMENTED"},
		{"MonitorEventInguestPagefault", "XEN_DOMCTL_MONITOR_EVENT_INGUEST_PAGEFAULT"},
		{"MonitorEventVMExit", "XEN_DOMCTL_MONITOR_EVENT_VMEXIT"},
		{"MonitorEventIO", "XEN_DOMCTL_MONITOR_EVENT_IO"},
	}},
	{"Values of DebugOp.Op.", []constSpec{
		{"DebugOpSingleStepOff", "XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_OFF"},
		{"DebugOpSingleStepOn", "XEN_DOMCTL_DEBUG_OP_SINGLE_STEP_ON"},
	}},
	{"Page types that getpageframeinfo3 yields, in bits 28 to 31 of each element.", []constSpec{
		{"PFInfoNoTab", "XEN_DOMCTL_PFINFO_NOTAB"},
		{"PFInfoBroken", "XEN_DOMCTL_PFINFO_BROKEN"},
		{"PFInfoXAlloc", "XEN_DOMCTL_PFINFO_XALLOC"},
		{"PFInfoXTab", "XEN_DOMCTL_PFINFO_XTAB"},
		{"PFInfoTypeMask", "XEN_DOMCTL_PFINFO_LTAB_MASK"},
	}},
	{"System controls.", []constSpec{
		{"SysctlPhysInfo", "XEN_SYSCTL_physinfo"},
		{"SysctlGetDomainInfoList", "XEN_SYSCTL_getdomaininfolist"},
	}},
	{"Bits of PhysInfo.Capabilities.", []constSpec{
		{"PhysCapHVM", "XEN_SYSCTL_PHYSCAP_hvm"},
		{"PhysCapHAP", "XEN_SYSCTL_PHYSCAP_hap"},
		{"PhysCapShadow", "XEN_SYSCTL_PHYSCAP_shadow"},
	}},
	{"HVM operations and parameters.", []constSpec{
		{"HVMOpSetParam", "HVMOP_set_param"},
		{"HVMOpGetParam", "HVMOP_get_param"},
		{"HVMOpAltP2M", "HVMOP_altp2m"},
		{"HVMParamStorePFN", "HVM_PARAM_STORE_PFN"},
		{"HVMParamIOReqPFN", "HVM_PARAM_IOREQ_PFN"},
		{"HVMParamConsolePFN", "HVM_PARAM_CONSOLE_PFN"},
		{"HVMParamNestedHVM", "HVM_PARAM_NESTEDHVM"},
		{"HVMParamPagingRingPFN", "HVM_PARAM_PAGING_RING_PFN"},
		{"HVMParamMonitorRingPFN", "HVM_PARAM_MONITOR_RING_PFN"},
		{"HVMParamSharingRingPFN", "HVM_PARAM_SHARING_RING_PFN"},
		{"HVMParamAltP2M", "HVM_PARAM_ALTP2M"},
	}},
	{"Values of HVMParamAltP2M.", []constSpec{
		{"AltP2MModeDisabled", "XEN_ALTP2M_disabled"},
		{"AltP2MModeMixed", "XEN_ALTP2M_mixed"},
		{"AltP2MModeExternal", "XEN_ALTP2M_external"},
		{"AltP2MModeLimited", "XEN_ALTP2M_limited"},
	}},
	{"Interface version and commands of HVMOpAltP2M.", []constSpec{
		{"AltP2MInterfaceVersion", "HVMOP_ALTP2M_INTERFACE_VERSION"},
		{"AltP2MGetDomainState", "HVMOP_altp2m_get_domain_state"},
		{"AltP2MSetDomainState", "HVMOP_altp2m_set_domain_state"},
		{"AltP2MCreateP2M", "HVMOP_altp2m_create_p2m"},
		{"AltP2MDestroyP2M", "HVMOP_altp2m_destroy_p2m"},
		{"AltP2MSwitchP2M", "HVMOP_altp2m_switch_p2m"},
		{"AltP2MSetMemAccess", "HVMOP_altp2m_set_mem_access"},
		{"AltP2MChangeGFN", "HVMOP_altp2m_change_gfn"},
		{"AltP2MSetMemAccessMulti", "HVMOP_altp2m_set_mem_access_multi"},
		{"AltP2MSetSuppressVE", "HVMOP_altp2m_set_suppress_ve"},
		{"AltP2MGetSuppressVE", "HVMOP_altp2m_get_suppress_ve"},
		{"AltP2MGetMemAccess", "HVMOP_altp2m_get_mem_access"},
		{"AltP2MGetP2MIdx", "HVMOP_altp2m_get_p2m_idx"},
		{"AltP2MSetVisibility", "HVMOP_altp2m_set_visibility"},
	}},
	{"Memory operations.", []constSpec{
		{"MemDecreaseReservation", "XENMEM_decrease_reservation"},
		{"MemPopulatePhysmap", "XENMEM_populate_physmap"},
		{"MemMaximumGPFN", "XENMEM_maximum_gpfn"},
		{"MemGetPoDTarget", "XENMEM_get_pod_target"},
		{"MemAccessOpCmd", "XENMEM_access_op"},
		{"MemAccessOpSet", "XENMEM_access_op_set_access"},
		{"MemAccessOpGet", "XENMEM_access_op_get_access"},
		{"MemAccessOpSetMulti", "XENMEM_access_op_set_access_multi"},
	}},
	{"Memory accesses. The default access differs between releases: see Layout.AccessDefault.", []constSpec{
		{"AccessN", "XENMEM_access_n"},
		{"AccessR", "XENMEM_access_r"},
		{"AccessW", "XENMEM_access_w"},
		{"AccessRW", "XENMEM_access_rw"},
		{"AccessX", "XENMEM_access_x"},
		{"AccessRX", "XENMEM_access_rx"},
		{"AccessWX", "XENMEM_access_wx"},
		{"AccessRWX", "XENMEM_access_rwx"},
		{"AccessRX2RW", "XENMEM_access_rx2rw"},
		{"AccessN2RWX", "XENMEM_access_n2rwx"},
		{"AccessRPW", "XENMEM_access_r_pw"},
	}},
	{"Device model operations and the event types they inject.", []constSpec{
		{"DMOpInjectEventCmd", "XEN_DMOP_inject_event"},
		{"DMOpRemoteShutdownCmd", "XEN_DMOP_remote_shutdown"},
		{"DMOpEventExtInt", "XEN_DMOP_EVENT_ext_int"},
		{"DMOpEventNMI", "XEN_DMOP_EVENT_nmi"},
		{"DMOpEventHWExc", "XEN_DMOP_EVENT_hw_exc"},
		{"DMOpEventSWInt", "XEN_DMOP_EVENT_sw_int"},
		{"DMOpEventPriSWExc", "XEN_DMOP_EVENT_pri_sw_exc"},
		{"DMOpEventSWExc", "XEN_DMOP_EVENT_sw_exc"},
	}},
	{"Types of saved HVM records.", []constSpec{
		{"HVMSaveHeader", "HVM_SAVE_CODE_HEADER"},
		{"HVMSaveCPU", "HVM_SAVE_CODE_CPU"},
		{"HVMSaveLAPIC", "HVM_SAVE_CODE_LAPIC"},
		{"HVMSaveMTRR", "HVM_SAVE_CODE_MTRR"},
		{"HVMSaveCPUMSR", "CPU_MSR_CODE"},
	}},
	{"Bits of VMEvent.OffFlags.", []constSpec{
		{"VMEventFlagVCPUPaused", "VM_EVENT_FLAG_VCPU_PAUSED"},
		{"VMEventFlagForeign", "VM_EVENT_FLAG_FOREIGN"},
		{"VMEventFlagEmulate", "VM_EVENT_FLAG_EMULATE"},
		{"VMEventFlagEmulateNoWrite", "VM_EVENT_FLAG_EMULATE_NOWRITE"},
		{"VMEventFlagToggleSingleStep", "VM_EVENT_FLAG_TOGGLE_SINGLESTEP"},
		{"VMEventFlagSetEmulReadData", "VM_EVENT_FLAG_SET_EMUL_READ_DATA"},
		{"VMEventFlagDeny", "VM_EVENT_FLAG_DENY"},
		{"VMEventFlagAlternateP2M", "VM_EVENT_FLAG_ALTERNATE_P2M"},
		{"VMEventFlagSetRegisters", "VM_EVENT_FLAG_SET_REGISTERS"},
		{"VMEventFlagSetEmulInsnData", "VM_EVENT_FLAG_SET_EMUL_INSN_DATA"},
		{"VMEventFlagGetNextInterrupt", "VM_EVENT_FLAG_GET_NEXT_INTERRUPT"},
		{"VMEventFlagFastSingleStep", "VM_EVENT_FLAG_FAST_SINGLESTEP"},
		{"VMEventFlagNestedP2M", "VM_EVENT_FLAG_NESTED_P2M"},
		{"VMEventFlagResetVMTrace", "VM_EVENT_FLAG_RESET_VMTRACE"},
		{"VMEventFlagResetForkState", "VM_EVENT_FLAG_RESET_FORK_STATE"},
		{"VMEventFlagResetForkMemory", "VM_EVENT_FLAG_RESET_FORK_MEMORY"},
	}},
	{"Values of VMEvent.OffReason.", []constSpec{
		{"VMEventReasonUnknown", "VM_EVENT_REASON_UNKNOWN"},
		{"VMEventReasonMemAccess", "VM_EVENT_REASON_MEM_ACCESS"},
		{"VMEventReasonMemSharing", "VM_EVENT_REASON_MEM_SHARING"},
		{"VMEventReasonMemPaging", "VM_EVENT_REASON_MEM_PAGING"},
		{"VMEventReasonWriteCtrlReg", "VM_EVENT_REASON_WRITE_CTRLREG"},
		{"VMEventReasonMovToMSR", "VM_EVENT_REASON_MOV_TO_MSR"},
		{"VMEventReasonSoftwareBreakpoint", "VM_EVENT_REASON_SOFTWARE_BREAKPOINT"},
		{"VMEventReasonSingleStep", "VM_EVENT_REASON_SINGLESTEP"},
		{"VMEventReasonGuestRequest", "VM_EVENT_REASON_GUEST_REQUEST"},
		{"VMEventReasonDebugException", "VM_EVENT_REASON_DEBUG_EXCEPTION"},
		{"VMEventReasonCPUID", "VM_EVENT_REASON_CPUID"},
		{"VMEventReasonPrivilegedCall", "VM_EVENT_REASON_PRIVILEGED_CALL"},
		{"VMEventReasonInterrupt", "VM_EVENT_REASON_INTERRUPT"},
		{"VMEventReasonDescriptorAccess", "VM_EVENT_REASON_DESCRIPTOR_ACCESS"},
		{"VMEventReasonEmulUnimplemented", "VM_EVENT_REASON_EMUL_UNIMPLEMENTED"},
		{"VMEventReasonVMExit", "VM_EVENT_REASON_VMEXIT"},
		{"VMEventReasonIOInstruction", "VM_EVENT_REASON_IO_INSTRUCTION"},
	}},
	{"Values of VMEventWriteCtrlReg.Index and MonitorOp.MovToCRIndex.", []constSpec{
		{"VMEventX86CR0", "VM_EVENT_X86_CR0"},
		{"VMEventX86CR3", "VM_EVENT_X86_CR3"},
		{"VMEventX86CR4", "VM_EVENT_X86_CR4"},
		{"VMEventX86XCR0", "VM_EVENT_X86_XCR0"},
	}},
	{"Values of VMEventDescAccess.Descriptor.", []constSpec{
		{"VMEventDescIDTR", "VM_EVENT_DESC_IDTR"},
		{"VMEventDescGDTR", "VM_EVENT_DESC_GDTR"},
		{"VMEventDescLDTR", "VM_EVENT_DESC_LDTR"},
		{"VMEventDescTR", "VM_EVENT_DESC_TR"},
	}},
	{"Bits of VMEventMemAccess.Flags. On VMX a write is reported as R|W.", []constSpec{
		{"MemAccessR", "MEM_ACCESS_R"},
		{"MemAccessW", "MEM_ACCESS_W"},
		{"MemAccessX", "MEM_ACCESS_X"},
		{"MemAccessGLAValid", "MEM_ACCESS_GLA_VALID"},
		{"MemAccessFaultWithGLA", "MEM_ACCESS_FAULT_WITH_GLA"},
		{"MemAccessFaultInGPT", "MEM_ACCESS_FAULT_IN_GPT"},
	}},
	{"Entries of a one-page ring in every known release.", []constSpec{
		{"VMEventRingSlots", "VM_EVENT_RING_SLOTS_4096"},
	}},
	{"Requests of Linux's /dev/xen/privcmd and /dev/xen/evtchn.", []constSpec{
		{"IoctlPrivcmdHypercall", "IOCTL_PRIVCMD_HYPERCALL"},
		{"IoctlPrivcmdMmapBatchV2", "IOCTL_PRIVCMD_MMAPBATCH_V2"},
		{"IoctlPrivcmdDMOp", "IOCTL_PRIVCMD_DM_OP"},
		{"IoctlEvtchnBindInterdomain", "IOCTL_EVTCHN_BIND_INTERDOMAIN"},
		{"IoctlEvtchnUnbind", "IOCTL_EVTCHN_UNBIND"},
		{"IoctlEvtchnNotify", "IOCTL_EVTCHN_NOTIFY"},
	}},
	{"Xenstore wire protocol: message types.", []constSpec{
		{"XSDirectory", "XS_DIRECTORY"},
		{"XSRead", "XS_READ"},
		{"XSGetPerms", "XS_GET_PERMS"},
		{"XSWatch", "XS_WATCH"},
		{"XSUnwatch", "XS_UNWATCH"},
		{"XSTransactionStart", "XS_TRANSACTION_START"},
		{"XSTransactionEnd", "XS_TRANSACTION_END"},
		{"XSGetDomainPath", "XS_GET_DOMAIN_PATH"},
		{"XSWrite", "XS_WRITE"},
		{"XSMkdir", "XS_MKDIR"},
		{"XSRm", "XS_RM"},
		{"XSSetPerms", "XS_SET_PERMS"},
		{"XSWatchEvent", "XS_WATCH_EVENT"},
		{"XSError", "XS_ERROR"},
		{"XSDirectoryPart", "XS_DIRECTORY_PART"},
	}},
	{"Xenstore wire protocol: limits, in bytes.", []constSpec{
		{"XenstorePayloadMax", "XENSTORE_PAYLOAD_MAX"},
		{"XenstoreAbsPathMax", "XENSTORE_ABS_PATH_MAX"},
		{"XenstoreRelPathMax", "XENSTORE_REL_PATH_MAX"},
	}},
}
