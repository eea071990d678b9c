package linux

import "fmt"

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
	Group       GroupOffsets       `c:"signal_struct"`
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
	KernFS             KernFSOffsets        `c:"kernfs_node"`
	PerfEvent          PerfEventOffsets     `c:"perf_event"`
	TraceCall          TraceCallOffsets     `c:"trace_event_call"`
	Tracepoint         TracepointOffsets    `c:"tracepoint"`
	SkFilter           SkFilterOffsets      `c:"sk_filter"`
	XDP                XDPOffsets           `c:"net_device"`
	XDPMode            XDPModeOffsets       `c:"bpf_xdp_entity"`

	IDR    IDROffsets    `c:"idr"`
	XANode XANodeOffsets `c:"xa_node|radix_tree_node"`
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
}

// MMOffsets lays out struct mm_struct.
type MMOffsets struct {
	Size int // sizeof(struct mm_struct)
	PGD  int `c:"pgd"`
}

// PCPUHotOffsets lays out struct pcpu_hot.
type PCPUHotOffsets struct {
	CurrentTask int `c:"current_task"`
	CPUNumber   int `c:"cpu_number"`
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
func noOffsets() Offsets {
	var o Offsets
	// A source that knows nothing has nothing implausible.
	_ = fillOffsets(nothing{}, &o)
	return o
}

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
