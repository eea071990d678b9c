package report

import "github.com/xen-hvi/hvi/engine/x86"

// Process is a process, or one thread of it.
type Process struct {
	// PID is the kernel's pid (of a thread its own), TGID the process's, PPID
	// its parent's process. All are those of the first PID namespace.
	PID  int32 `json:"pid"`
	TGID int32 `json:"tgid"`
	PPID int32 `json:"ppid"`
	// Comm is the task's name, at most 15 bytes of the guest's.
	Comm Text `json:"comm"`
	// State is the letter that ps shows: R, S, D, T, t, Z, X, I, P, K or W.
	State string `json:"state"`
	// KernelThread says that it has no user memory by design (PF_KTHREAD).
	KernelThread bool `json:"kernel_thread"`
	// Threads is the number of threads in the process.
	Threads int `json:"threads"`
	// CPU is the processor that it runs on, or ran on last.
	CPU int `json:"cpu"`
	// Start is when it was started, in nanoseconds since boot.
	Start uint64 `json:"start_ns"`
	// Exe is the path of its program as its own root sees it; "" for a kernel
	// thread and where it can't be told.
	Exe Text `json:"exe,omitzero"`
	// Cgroup is its path in the unified hierarchy, or in the first one that
	// has a name.
	Cgroup Text `json:"cgroup,omitzero"`

	Cred       Credentials `json:"cred"`
	Namespaces Namespaces  `json:"namespaces"`

	// Task is the address of its task_struct, MM that of its mm_struct (0: no
	// user memory) and CR3 the physical address of its page tables.
	Task x86.VirtAddr `json:"task"`
	MM   x86.VirtAddr `json:"mm"`
	CR3  x86.PhysAddr `json:"cr3"`
}

// Credentials are a task's subjective credentials (task_struct.cred).
type Credentials struct {
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	SUID  uint32 `json:"suid"`
	SGID  uint32 `json:"sgid"`
	EUID  uint32 `json:"euid"`
	EGID  uint32 `json:"egid"`
	FSUID uint32 `json:"fsuid"`
	FSGID uint32 `json:"fsgid"`
	// Capabilities, a bit each, as in /proc/PID/status.
	Inheritable Hex `json:"cap_inheritable"`
	Permitted   Hex `json:"cap_permitted"`
	Effective   Hex `json:"cap_effective"`
	Bounding    Hex `json:"cap_bounding"`
	Ambient     Hex `json:"cap_ambient"`
	// Addr is the address of the struct cred.
	Addr x86.VirtAddr `json:"addr"`
}

// Namespaces are the inode numbers that /proc/PID/ns shows, 0 where unknown.
type Namespaces struct {
	Cgroup uint32 `json:"cgroup"`
	IPC    uint32 `json:"ipc"`
	Mount  uint32 `json:"mnt"`
	Net    uint32 `json:"net"`
	PID    uint32 `json:"pid"`
	Time   uint32 `json:"time"`
	User   uint32 `json:"user"`
	UTS    uint32 `json:"uts"`
}

// Mapping is a stretch of a process's memory, a line of /proc/PID/maps.
type Mapping struct {
	Start x86.VirtAddr `json:"start"`
	End   x86.VirtAddr `json:"end"`
	// Perm is as in /proc/PID/maps: "r-xp".
	Perm string `json:"perm"`
	// Offset, Device (major and minor number, decimal: "8:1") and Inode are
	// those of the file behind it.
	Offset uint64 `json:"offset"`
	Device string `json:"device,omitzero"`
	Inode  uint64 `json:"inode,omitzero"`
	// Path is the file's, or "[heap]", "[stack]", "[vdso]", "[vvar]".
	Path Text `json:"path,omitzero"`
}

// Mount is a line of /proc/PID/mountinfo, of the first process's namespace
// unless another was asked for.
type Mount struct {
	ID     int    `json:"id"`
	Parent int    `json:"parent"`
	Device string `json:"device"`
	// Root is the directory of the file system that is mounted, Point where.
	Root   Text `json:"root"`
	Point  Text `json:"mount_point"`
	Type   Text `json:"type"`
	Source Text `json:"source"`
	// Options are those of the mount: "ro,nosuid".
	Options string `json:"options"`
	// SuperOptions are those that every mount of the file system has, without
	// the ones that are its own: "rw,sync".
	SuperOptions string `json:"super_options,omitzero"`
}
