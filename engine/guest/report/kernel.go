package report

import "github.com/xen-hvi/hvi/engine/x86"

// Module is a loaded kernel module.
type Module struct {
	Name Text `json:"name"`
	// State is "live", "coming", "going" or "unformed".
	State string `json:"state"`
	// Base is where its code begins, Size the sum of its regions, both as
	// /proc/modules has them. Those for initialisation are gone once it is live.
	Base    x86.VirtAddr `json:"base"`
	Size    uint64       `json:"size"`
	Regions []ModuleArea `json:"regions"`
	// Refcount is the number of users that lsmod shows.
	Refcount int    `json:"refcount"`
	UsedBy   []Text `json:"used_by,omitempty"`
	// Taints are the letters of /proc/modules: "OE".
	Taints string `json:"taints,omitzero"`
	// Addr is the address of its struct module.
	Addr x86.VirtAddr `json:"addr"`
}

// ModuleArea is a stretch of a module's memory.
type ModuleArea struct {
	// Kind is "text", "rodata", "ro_after_init", "data", "init_text",
	// "init_rodata" or "init_data". Before 6.4 the kernel keeps the first four
	// in one piece, and the kinds are told from the borders inside it.
	Kind string       `json:"kind"`
	Base x86.VirtAddr `json:"base"`
	Size uint64       `json:"size"`
}

// Socket is an open socket.
type Socket struct {
	// Family is "inet", "inet6", "unix", "netlink", "packet" or "family-N",
	// Type "stream", "dgram", "raw", "seqpacket" or "type-N".
	Family string `json:"family"`
	Type   string `json:"type"`
	// Protocol is "tcp", "udp", ... or a number; "" for families without.
	Protocol string `json:"protocol,omitzero"`
	// State is "listen", "established", ...
	State string `json:"state,omitzero"`
	// Local and Remote are address and port, "192.0.2.1:22" or "[::1]:22", of
	// a unix socket its path ("@" begins an abstract name).
	Local  Text `json:"local,omitzero"`
	Remote Text `json:"remote,omitzero"`
	// Inode is the socket's number, as in /proc/net/tcp.
	Inode uint64 `json:"inode,omitzero"`
	UID   uint32 `json:"uid"`
	// Owners are the processes that hold it open, none for one that only the
	// kernel still has.
	Owners []Owner `json:"owners,omitempty"`
	// NetNS is the inode number of its network namespace.
	NetNS uint32 `json:"netns,omitzero"`
	// Addr is the address of its struct sock.
	Addr x86.VirtAddr `json:"addr"`
}

// Owner is a process that has something open.
type Owner struct {
	PID  int32 `json:"pid"`
	Comm Text  `json:"comm"`
	FD   int   `json:"fd"`
}

// Program is a loaded eBPF program.
type Program struct {
	ID   uint32 `json:"id"`
	Name Text   `json:"name,omitzero"`
	// Type is as bpftool calls it: "kprobe", "xdp", "cgroup_skb".
	Type string `json:"type"`
	// Tag is the hash over its instructions, as bpftool shows it.
	Tag string `json:"tag"`
	// UID loaded it, Loaded nanoseconds after boot.
	UID    uint32 `json:"uid"`
	Loaded uint64 `json:"loaded_ns"`
	// Instructions is the length after verification, Code where the compiled
	// code is (0 if it is interpreted) and CodeSize its size in bytes.
	Instructions int          `json:"instructions"`
	Code         x86.VirtAddr `json:"code"`
	CodeSize     int          `json:"code_size"`
	Attached     []Attachment `json:"attached,omitempty"`
	Addr         x86.VirtAddr `json:"addr"`
}

// Attachment is what an eBPF program is attached to.
type Attachment struct {
	// LinkID is the id of the BPF link, 0 where there is none.
	LinkID uint32 `json:"link_id,omitzero"`
	// Kind is "tracing", "kprobe", "cgroup", "xdp", "netns", "iter", ...
	Kind string `json:"kind"`
	// Target is a function, a cgroup's path or a device, where it can be told.
	Target Text `json:"target,omitzero"`
}

// SyscallTable is one of the kernel's tables of system calls.
type SyscallTable struct {
	// Name is the table's symbol: "sys_call_table".
	Name string       `json:"name"`
	Addr x86.VirtAddr `json:"addr"`
	// TracingOnly says that the kernel calls the handlers from code and keeps
	// the table for tracing, so that what stands in it is not what is called.
	TracingOnly bool      `json:"tracing_only,omitzero"`
	Entries     []Syscall `json:"entries"`
}

// Syscall is an entry of it.
type Syscall struct {
	Number  int   `json:"number"`
	Handler Place `json:"handler"`
}

// Gate is an entry of a processor's interrupt descriptor table.
type Gate struct {
	CPU     int   `json:"cpu"`
	Vector  int   `json:"vector"`
	Handler Place `json:"handler"`
	// Type is "interrupt", "trap" or "type-N"; DPL the least privilege that
	// may call it; IST the stack it switches to, 0 for none.
	Type string `json:"type"`
	DPL  int    `json:"dpl"`
	IST  int    `json:"ist"`
}

// Segment is an entry of a processor's global descriptor table.
type Segment struct {
	CPU   int `json:"cpu"`
	Index int `json:"index"`
	// Type is "code", "data", "tss", "ldt" or "type-N".
	Type  string `json:"type"`
	Base  Hex    `json:"base"`
	Limit uint64 `json:"limit"`
	DPL   int    `json:"dpl"`
	// Long says that it is 64-bit code.
	Long bool `json:"long,omitzero"`
}

// Probe is something that has itself called from the kernel's code.
type Probe struct {
	// Kind is "kprobe", "kretprobe" or "ftrace".
	Kind string `json:"kind"`
	// Target is where it is put; of an ftrace user that filters by hash it is
	// zero and Targets counts them.
	Target  Place `json:"target"`
	Targets int   `json:"targets,omitzero"`
	// Handler is what is called.
	Handler Place `json:"handler"`
	// Disabled says that it is registered only.
	Disabled bool         `json:"disabled,omitzero"`
	Addr     x86.VirtAddr `json:"addr"`
}
