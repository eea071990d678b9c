package linux

import (
	"fmt"
	"sync"
)

// Offsets is the layout of the structures hvi reads, in bytes from the start of
// each, taken from the kernel's own type information or from a profile. A
// member is known by its presence, never by the kernel's version; [NoOffset]
// where it is absent.
type Offsets struct {
	Task TaskOffsets `c:"task_struct"`
	MM   MMOffsets   `c:"mm_struct"`
	// PCPUHot is struct pcpu_hot of 6.2 to 6.14, whose members replaced
	// per-CPU variables of their own.
	PCPUHot      PCPUHotOffsets `c:"pcpu_hot"`
	SystemStates SystemStates   `enum:"system_states"`

	Module       ModuleOffsets     `c:"module"`
	ModuleRegion ModuleAreaOffsets `c:"module_memory|module_layout"`
	ModuleMem    ModuleMemTypes    `enum:"mod_mem_type"`

	ModuleUse      ModuleUseOffsets      `c:"module_use"`
	ModuleKallsyms ModuleKallsymsOffsets `c:"mod_kallsyms"`

	Ring    RingOffsets    `c:"printk_ringbuffer"`
	Desc    DescOffsets    `c:"prb_desc"`
	LogInfo LogInfoOffsets `c:"printk_info"`
	OldLog  OldLogOffsets  `c:"printk_log"`

	BPFSymbol BPFSymbolOffsets `c:"bpf_ksym"`
	BPFPack   BPFPackOffsets   `c:"bpf_prog_pack"`
	FtraceOps FtraceOpsOffsets `c:"ftrace_ops"`
	InsnCache InsnCacheOffsets `c:"kprobe_insn_cache"`
	InsnPage  InsnPageOffsets  `c:"kprobe_insn_page"`

	Kprobe        KprobeOffsets        `c:"kprobe"`
	Kretprobe     KretprobeOffsets     `c:"kretprobe"`
	FtraceOpsHash FtraceOpsHashOffsets `c:"ftrace_ops_hash"`
	FtraceHash    FtraceHashOffsets    `c:"ftrace_hash"`
	FtraceEntry   FtraceEntryOffsets   `c:"ftrace_func_entry"`
	FtracePage    FtracePageOffsets    `c:"ftrace_page"`
	FtraceRecord  FtraceRecordOffsets  `c:"dyn_ftrace"`
	OptKprobe     OptKprobeOffsets     `c:"optimized_kprobe"`

	HookList      HookListOffsets      `c:"security_hook_list"`
	HookHeads     HookHeadsOffsets     `c:"security_hook_heads"`
	StaticHooks   StaticHooksOffsets   `c:"lsm_static_calls_table"`
	StaticHook    StaticHookOffsets    `c:"lsm_static_call"`
	StaticCallKey StaticCallKeyOffsets `c:"static_call_key"`

	Kset          KsetOffsets          `c:"kset"`
	Kobject       KobjectOffsets       `c:"kobject"`
	ModuleKobject ModuleKobjectOffsets `c:"module_kobject"`
	ModuleTree    ModuleTreeOffsets    `c:"mod_tree_node"`
	LatchTree     LatchTreeOffsets     `c:"latch_tree_root"`
	VMArea        VMAreaOffsets        `c:"vmap_area"`
	VMStruct      VMStructOffsets      `c:"vm_struct"`

	Kimage KimageOffsets `c:"kimage"`
	Page   PageOffsets   `c:"page"`

	Signal     SignalOffsets     `c:"signal_struct"`
	TaskSignal TaskSignalOffsets `c:"task_struct"`
	Caller     CallerOffsets     `c:"task_struct"`
	MMTree     MMTreeOffsets     `c:"mm_struct"`
	VMATree    VMATreeOffsets    `c:"vm_area_struct"`
	Sighand    SighandOffsets    `c:"sighand_struct"`

	Cred     CredOffsets     `c:"cred"`
	PID      PIDOffsets      `c:"pid"`
	UPID     UPIDOffsets     `c:"upid"`
	PIDTable PIDTableOffsets `c:"pid_namespace"`
	NSProxy  NSProxyOffsets  `c:"nsproxy"`

	UTSNamespace    NamespaceOffsets `c:"uts_namespace"`
	IPCNamespace    NamespaceOffsets `c:"ipc_namespace"`
	MountNamespace  NamespaceOffsets `c:"mnt_namespace"`
	NetNamespace    NamespaceOffsets `c:"net"`
	PIDNamespace    NamespaceOffsets `c:"pid_namespace"`
	TimeNamespace   NamespaceOffsets `c:"time_namespace"`
	UserNamespace   NamespaceOffsets `c:"user_namespace"`
	CGroupNamespace NamespaceOffsets `c:"cgroup_namespace"`

	CSSSet     CSSSetOffsets     `c:"css_set"`
	CGroupLink CGroupLinkOffsets `c:"cgrp_cset_link"`
	CGroup     CGroupOffsets     `c:"cgroup"`
	CGroupRoot CGroupRootOffsets `c:"cgroup_root"`
	KernFSNode KernFSNodeOffsets `c:"kernfs_node"`

	File       FileOffsets       `c:"file"`
	Backing    BackingOffsets    `c:"backing_file"`
	FS         FSOffsets         `c:"fs_struct"`
	Path       PathOffsets       `c:"path"`
	Dentry     DentryOffsets     `c:"dentry"`
	DentryOps  DentryOpsOffsets  `c:"dentry_operations"`
	Inode      InodeOffsets      `c:"inode"`
	SuperBlock SuperBlockOffsets `c:"super_block"`
	Mount      MountOffsets      `c:"mount"`
	MountList  MountListOffsets  `c:"mnt_namespace"`
	FSType     FSTypeOffsets     `c:"file_system_type"`

	UTS            UTSOffsets            `c:"uts_namespace"`
	CPUInfo        CPUInfoOffsets        `c:"cpuinfo_x86"`
	Timekeeper     TimekeeperOffsets     `c:"timekeeper"`
	TimekeeperData TimekeeperDataOffsets `c:"tk_data"`
	Seqcount       SeqcountOffsets       `c:"seqcount_raw_spinlock|seqcount"`

	VDSOImage      VDSOImageOffsets      `c:"vdso_image"`
	VMA            VMAOffsets            `c:"vm_area_struct"`
	VMOps          VMOpsOffsets          `c:"vm_operations_struct"`
	AnonName       AnonNameOffsets       `c:"anon_vma_name"`
	SpecialMapping SpecialMappingOffsets `c:"vm_special_mapping"`

	Orc OrcOffsets `c:"orc_entry"`

	RunQueue RunQueueOffsets `c:"rq"`

	Maple      MapleOffsets     `c:"maple_tree"`
	MapleNode  MapleNodeOffsets `c:"maple_node"`
	MapleTypes MapleTypes       `enum:"maple_type"`
	RBRoot     RBRootOffsets    `c:"rb_root"`
	RBNode     RBNodeOffsets    `c:"rb_node"`
	IDR        IDROffsets       `c:"idr"`
	XANode     XANodeOffsets    `c:"xa_node|radix_tree_node"`

	Sock         SockOffsets         `c:"sock"`
	SockCommon   SockCommonOffsets   `c:"sock_common"`
	TimeWaitSock TimeWaitSockOffsets `c:"inet_timewait_sock"`
	Socket       SocketOffsets       `c:"socket"`
	SocketAlloc  SocketAllocOffsets  `c:"socket_alloc"`
	UnixSock     UnixSockOffsets     `c:"unix_sock"`
	UnixAddress  UnixAddressOffsets  `c:"unix_address"`
	PacketSock   PacketSockOffsets   `c:"packet_sock"`
	NetlinkSock  NetlinkSockOffsets  `c:"netlink_sock"`
	NetDevice    NetDeviceOffsets    `c:"net_device"`

	Net          NetOffsets          `c:"net"`
	InetHash     InetHashOffsets     `c:"inet_hashinfo"`
	InetEHash    ChainHeadOffsets    `c:"inet_ehash_bucket"`
	InetLHash    ChainHeadOffsets    `c:"inet_listen_hashbucket"`
	InetBHash    ChainHeadOffsets    `c:"inet_bind_hashbucket"`
	InetBind     InetBindOffsets     `c:"inet_bind_bucket"`
	InetBind2    InetBindOffsets     `c:"inet_bind2_bucket"`
	UDPTable     UDPTableOffsets     `c:"udp_table"`
	UDPSlot      ChainHeadOffsets    `c:"udp_hslot"`
	RawHash      RawHashOffsets      `c:"raw_hashinfo"`
	NetlinkTable NetlinkTableOffsets `c:"netlink_table"`
	BucketTable  BucketTableOffsets  `c:"bucket_table"`

	TaskFiles   TaskFilesOffsets   `c:"task_struct"`
	Files       FilesOffsets       `c:"files_struct"`
	FDTable     FDTableOffsets     `c:"fdtable"`
	OpenFile    OpenFileOffsets    `c:"file"`
	SocketInode SocketInodeOffsets `c:"inode"`

	BPFProg            BPFProgOffsets       `c:"bpf_prog"`
	BPFAux             BPFAuxOffsets        `c:"bpf_prog_aux"`
	User               UserOffsets          `c:"user_struct"`
	BPFLink            BPFLinkOffsets       `c:"bpf_link"`
	BPFRawTPLink       BPFLinkToOffsets     `c:"bpf_raw_tp_link"`
	BPFCGroupLink      BPFLinkToOffsets     `c:"bpf_cgroup_link"`
	BPFNetNSLink       BPFLinkToOffsets     `c:"bpf_netns_link"`
	BPFXDPLink         BPFLinkToOffsets     `c:"bpf_xdp_link"`
	BPFTCXLink         BPFLinkToOffsets     `c:"tcx_link"`
	BPFNetkitLink      BPFLinkToOffsets     `c:"netkit_link"`
	BPFIterLink        BPFLinkToOffsets     `c:"bpf_iter_link"`
	BPFPerfLink        BPFLinkToOffsets     `c:"bpf_perf_link"`
	BPFStructOpsLink   BPFLinkToOffsets     `c:"bpf_struct_ops_link"`
	BPFSockMapLink     BPFLinkToOffsets     `c:"sockmap_link"`
	BPFKprobeMultiLink BPFLinkToOffsets     `c:"bpf_kprobe_multi_link"`
	BPFRawEvent        BPFRawEventOffsets   `c:"bpf_raw_event_map"`
	BPFIterTarget      BPFIterTargetOffsets `c:"bpf_iter_target_info"`
	BPFIterReg         BPFIterRegOffsets    `c:"bpf_iter_reg"`
	BPFMap             BPFMapOffsets        `c:"bpf_map"`
	BPFProgArray       BPFProgArrayOffsets  `c:"bpf_prog_array"`
	BPFProgItem        BPFProgItemOffsets   `c:"bpf_prog_array_item"`
	BPFProgList        BPFProgListOffsets   `c:"bpf_prog_list"`
	CGroupBPF          CGroupBPFOffsets     `c:"cgroup"`
	CGroupTop          CGroupTopOffsets     `c:"cgroup_root"`
	PerfEvent          PerfEventOffsets     `c:"perf_event"`
	TraceCall          TraceCallOffsets     `c:"trace_event_call"`
	Tracepoint         TracepointOffsets    `c:"tracepoint"`
	SkFilter           SkFilterOffsets      `c:"sk_filter"`
	XDP                XDPOffsets           `c:"net_device"`
	XDPMode            XDPModeOffsets       `c:"bpf_xdp_entity"`
}

// TaskOffsets lays out struct task_struct.
type TaskOffsets struct {
	Size int // sizeof(struct task_struct)

	State      int `c:"__state|state"` // renamed in 5.14
	Flags      int `c:"flags"`
	Tasks      int `c:"tasks"`
	MM         int `c:"mm"`
	ActiveMM   int `c:"active_mm"`
	PID        int `c:"pid"`
	TGID       int `c:"tgid"`
	RealParent int `c:"real_parent"`
	Parent     int `c:"parent"`
	Cred       int `c:"cred"`
	RealCred   int `c:"real_cred"`
	Comm       int `c:"comm"`

	ExitState int `c:"exit_state"`
	// CPU moved into thread_info in 5.16.
	CPU       int `c:"thread_info.cpu|cpu"`
	StartTime int `c:"start_boottime|real_start_time"` // renamed in 5.5
	Leader    int `c:"group_leader"`
	Children  int `c:"children"`
	Sibling   int `c:"sibling"`
	Signal    int `c:"signal"`
	// ThreadNode links a thread into signal_struct.thread_head.
	ThreadNode int `c:"thread_node"`
	// ThreadPID and PIDLinks replaced pids[] in 4.19. The first of the links is
	// that of the thread's own number, then as now.
	ThreadPID  int `c:"thread_pid|pids.pid"`
	PIDLinks   int `c:"pid_links|pids"`
	FS         int `c:"fs"`
	NSProxy    int `c:"nsproxy"`
	CSSSet     int `c:"cgroups"`
	CSSSetNode int `c:"cg_list"`
	// Links into the run queues of the scheduling classes.
	FairNode     int `c:"se.group_node"`
	RealTimeNode int `c:"rt.run_list"`
	DeadlineNode int `c:"dl.rb_node"`
	// DeadlineServer marks a deadline entity that is no task (6.8).
	DeadlineServer Bits `c:"dl.dl_server"`
	ExtNode        int  `c:"scx.runnable_node"`
}

// MMOffsets lays out struct mm_struct.
type MMOffsets struct {
	Size    int // sizeof(struct mm_struct)
	PGD     int `c:"pgd"`
	ExeFile int `c:"exe_file"`
	// Maple is the tree of mappings from 6.1 on; before, First begins their
	// list.
	Maple      int `c:"mm_mt"`
	First      int `c:"mmap"`
	Count      int `c:"map_count"`
	StartBrk   int `c:"start_brk"`
	Brk        int `c:"brk"`
	StartStack int `c:"start_stack"`
}

// PCPUHotOffsets lays out struct pcpu_hot.
type PCPUHotOffsets struct {
	CurrentTask  int `c:"current_task"`
	CPUNumber    int `c:"cpu_number"`
	PreemptCount int `c:"preempt_count"`
}

// SystemStates are constants of enum system_states.
type SystemStates struct {
	// Running is SYSTEM_RUNNING, NoOffset if unknown.
	Running int `c:"SYSTEM_RUNNING"`
}

// nothing is a source that knows no type.
type nothing struct{}

func (nothing) structure(string) int            { return 0 }
func (nothing) enumeration(string) int          { return 0 }
func (nothing) size(int) int                    { return 0 }
func (nothing) members(int, func(typeMember))   {}
func (nothing) element(int) (int, int)          { return 0, 0 }
func (nothing) value(int, string) (int64, bool) { return 0, false }

// noOffsets is the layout of a kernel without type information.
var noOffsets = sync.OnceValue(func() Offsets {
	var o Offsets
	// A source that knows nothing has nothing implausible.
	_ = fillOffsets(nothing{}, &o)
	return o
})

// offsetsFrom makes Offsets from a source. Without what every reader needs it
// is an error.
func offsetsFrom(src typeSource) (Offsets, error) {
	var o Offsets
	if err := fillOffsets(src, &o); err != nil {
		return noOffsets(), err
	}
	if t := o.Task; t.PID < 0 || t.TGID < 0 || t.Comm < 0 || t.MM < 0 || t.Comm > t.Size-16 {
		return noOffsets(), fmt.Errorf("%w: no struct task_struct with pid, tgid, mm and comm", errTypes)
	}
	if o.MM.PGD < 0 {
		return noOffsets(), fmt.Errorf("%w: no struct mm_struct with pgd", errTypes)
	}
	return o, nil
}
