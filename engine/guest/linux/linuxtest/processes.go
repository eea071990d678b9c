package linuxtest

import (
	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of the members of the structures that hang on a task, besides those of
// every guest's, in bytes.
const (
	TaskRealParent = 1360 // of every guest's
	TaskExit       = 1400
	TaskStart      = 1408
	TaskCred       = 1416
	TaskRealCred   = 1424
	TaskSignal     = 1432
	TaskThreadNode = 1440
	TaskThreadPID  = 1456
	TaskPIDLinks   = 1464
	TaskChildren   = 1536
	TaskSibling    = 1552
	TaskCGroups    = 1568
	TaskCGList     = 1576
	TaskFS         = 1592
	TaskNSProxy    = 1600
	TaskFairNode   = 1616

	SignalThreads = 8
	SignalHead    = 16
	CredUID       = 8
	CredCaps      = 40
	PIDTasks      = 16
	PIDNumbers    = 48
	CSSSetTasks   = 16
	CSSSetDefault = 8
	CGroupNode    = 0
	NodeParent    = 8
	NodeName      = 16

	MMMaple   = 0
	MMExe     = 128
	MMCount   = 136
	MMBrk     = 144
	MMSize    = 1024
	MapleSize = 256
	VMASize   = 152
	VMAStart  = 0
	VMAEnd    = 8
	VMAMM     = 16
	VMAFlags  = 32
	VMAFile   = 112

	FileMount    = 16
	FileDentry   = 24
	DentryParent = 24
	DentryLen    = 36
	DentryName   = 40
	DentryInode  = 48
	DentryHash   = 16
	DentrySize   = 192
	MountParent  = 16
	MountPoint   = 24
	MountVFS     = 32
	MountSuper   = 40
	MountID      = 128
	MountList    = 144
	MountSize    = 320

	NamespaceMounts = 16 // the list in struct mnt_namespace
	NamespaceCount  = 32

	runQueue     = Data + 0x10_4000 // in the per-CPU area of an Unsigned615 guest
	RunQueueFair = 64
	RunQueueIdle = 16
	RunQueueCurr = 8
)

func processTypes() []btf.Type {
	list := structOf("list_head", 16, member("next", 0, pointer), member("prev", 8, pointer))
	vfs := structOf("vfsmount", 32, member("mnt_root", 0, pointer), member("mnt_sb", 8, pointer), member("mnt_flags", 16, u32))
	at := structOf("path", 16, member("mnt", 0, pointer), member("dentry", 8, pointer))
	return append(IDRTypes(),
		structOf("signal_struct", 64, member("nr_threads", SignalThreads, u32), member("thread_head", SignalHead, list)),
		structOf("cred", 128, member("uid", CredUID, u32), member("cap_effective", CredCaps, u64)),
		structOf("pid", PIDNumbers, member("level", 4, u32), member("tasks", PIDTasks, array(pointer, 4)), member("numbers", PIDNumbers, array(structOf("upid", 16), 0))),
		structOf("upid", 16, member("nr", 0, u32), member("ns", 8, pointer)),
		structOf("pid_namespace", 64, member("idr", 0, structOf("idr", 24))),
		structOf("css_set", 64, member("dfl_cgrp", CSSSetDefault, pointer), member("tasks", CSSSetTasks, list)),
		structOf("cgroup", 64, member("kn", CGroupNode, pointer)),
		structOf("kernfs_node", 64, member("parent", NodeParent, pointer), member("name", NodeName, pointer)),
		structOf("nsproxy", 64, member("mnt_ns", 8, pointer)),
		structOf("mnt_namespace", 64, member("list", NamespaceMounts, list), member("mounts", NamespaceCount, u32)),
		structOf("fs_struct", 32, member("root", 0, at)),
		structOf("file", 64, member("f_path", FileMount, at)),
		structOf("dentry", DentrySize,
			member("d_hash", 8, structOf("hlist_bl_node", 16, member("next", 0, pointer), member("pprev", 8, pointer))),
			member("d_parent", DentryParent, pointer),
			member("d_name", 32, structOf("qstr", 16, member("len", 4, u32), member("name", 8, pointer))),
			member("d_inode", DentryInode, pointer)),
		structOf("mount", MountSize, member("mnt_parent", MountParent, pointer), member("mnt_mountpoint", MountPoint, pointer),
			member("mnt", MountVFS, vfs), member("mnt_id", MountID, u32), member("mnt_list", MountList, list)),
		structOf("maple_tree", 16, member("ma_root", 8, pointer)),
		structOf("maple_node", MapleSize, member("parent", 0, pointer), member("slot", 8, array(pointer, 31)),
			member("mr64", 0, structOf("maple_range_64", MapleSize, member("pivot", 8, array(u64, 15)), member("slot", 128, array(pointer, 16)))),
			member("ma64", 0, structOf("maple_arange_64", 248, member("pivot", 8, array(u64, 9)), member("slot", 80, array(pointer, 10))))),
		&btf.Enum{Name: "maple_type", Size: 4, Values: []btf.EnumValue{
			{Name: "maple_dense", Value: 0}, {Name: "maple_leaf_64", Value: 1}, {Name: "maple_range_64", Value: 2}, {Name: "maple_arange_64", Value: 3}}},
		structOf("rb_root", 8, member("rb_node", 0, pointer)),
		structOf("rb_node", 24, member("__rb_parent_color", 0, u64), member("rb_right", 8, pointer), member("rb_left", 16, pointer)),
		structOf("vm_area_struct", VMASize, member("vm_start", VMAStart, u64), member("vm_end", VMAEnd, u64), member("vm_mm", VMAMM, pointer),
			member("vm_flags", VMAFlags, u64), member("vm_file", VMAFile, pointer)),
		structOf("rq", 128, member("curr", RunQueueCurr, pointer), member("idle", RunQueueIdle, pointer), member("cfs_tasks", RunQueueFair, list)))
}

func taskMembers() []btf.Member {
	list := structOf("list_head", 16, member("next", 0, pointer), member("prev", 8, pointer))
	return []btf.Member{
		member("exit_state", TaskExit, u32), member("start_boottime", TaskStart, u64), member("cred", TaskCred, pointer),
		member("real_cred", TaskRealCred, pointer), member("signal", TaskSignal, pointer), member("thread_node", TaskThreadNode, list),
		member("thread_pid", TaskThreadPID, pointer), member("pid_links", TaskPIDLinks, array(structOf("hlist_node", 16), 4)),
		member("children", TaskChildren, list), member("sibling", TaskSibling, list), member("cgroups", TaskCGroups, pointer),
		member("cg_list", TaskCGList, list), member("fs", TaskFS, pointer), member("nsproxy", TaskNSProxy, pointer),
		member("se", TaskFairNode-16, structOf("sched_entity", 64, member("group_node", 16, list))),
	}
}

// Processes is a guest with processes: each has a thread, a number, a parent, a
// control group, credentials and, but for the first two, a place on the run
// queue of CPU 0.
type Processes struct {
	*Guest
	*Heap
	// Tasks are their task_structs, of pid 1 first.
	Tasks []x86.VirtAddr
	// Root is the root of all mounts: its struct mount and dentry.
	RootMount, RootDentry x86.VirtAddr
	// File is a struct file of /bin/tool, CSSSet the set of control groups all
	// are in: /system.slice.
	File, CSSSet x86.VirtAddr
	// Mounts is a struct mnt_namespace.
	Mounts x86.VirtAddr

	rootPath x86.VirtAddr // struct fs_struct
	proxy    x86.VirtAddr
	idle     x86.VirtAddr
	nodes    x86.VirtAddr // of the table of numbers
}

// NewProcesses builds it, with n processes numbered from 1.
func NewProcesses(n int) *Processes {
	g := New(Config{Layout: Unsigned615, Types: processTypes(), Task: taskMembers(), Data: map[string]x86.VirtAddr{
		"init_task": Data + 0x2_0000, "init_pid_ns": Data + 0x2_1000, "init_cred": Data + 0x2_1100, "runqueues": runQueue,
		"page_offset_base": Data + 0x2_1200, "vmalloc_base": Data + 0x2_1208, "rename_lock": Data + 0x2_1210, "mount_lock": Data + 0x2_1218,
		"boot_cpu_data": Data + 0x2_1300,
	}})
	p := &Processes{Guest: g, Heap: g.NewHeap()}
	g.WriteUint64(g.Addr("page_offset_base"), uint64(g.Base+HeapStart))
	g.WriteUint64(g.Addr("vmalloc_base"), uint64(g.Base+ImageSize))

	first := g.Addr("init_task")
	for _, off := range []x86.VirtAddr{TaskTasks, TaskChildren} {
		g.WriteList(first + off)
	}
	p.idle, p.nodes = first, p.Alloc(4*x86.PageSize)
	p.mounts()
	p.CSSSet = p.Alloc(64)
	group, root, node := p.Alloc(64), p.Alloc(64), p.Alloc(64)
	g.WriteUint64(p.CSSSet+CSSSetDefault, uint64(group))
	g.WriteUint64(group+CGroupNode, uint64(node))
	g.WriteUint64(node+NodeParent, uint64(root))
	g.WriteUint64(node+NodeName, uint64(p.String("system.slice")))
	for pid := 1; pid <= n; pid++ {
		p.Tasks = append(p.Tasks, p.task(uint32(pid)))
	}
	p.Link()
	return p
}

// mounts makes the root and the file.
func (p *Processes) mounts() {
	super := p.Alloc(64)
	p.RootMount, p.RootDentry = p.Alloc(MountSize), p.Dentry("/", 0)
	p.WriteUint64(p.RootMount+MountParent, uint64(p.RootMount))
	p.WriteUint64(p.RootMount+MountVFS, uint64(p.RootDentry))
	p.WriteUint64(p.RootMount+MountSuper, uint64(super))
	p.WriteUint32(p.RootMount+MountID, 21)
	p.File = p.Alloc(64)
	p.WriteUint64(p.File+FileMount, uint64(p.RootMount+MountVFS))
	p.WriteUint64(p.File+FileDentry, uint64(p.Dentry("tool", p.Dentry("bin", p.RootDentry))))
	p.rootPath = p.Alloc(32)
	p.WriteUint64(p.rootPath, uint64(p.RootMount+MountVFS))
	p.WriteUint64(p.rootPath+8, uint64(p.RootDentry))
	p.Mounts = p.Alloc(64)
	p.WriteList(p.Mounts+NamespaceMounts, p.RootMount+MountList)
	p.WriteUint32(p.Mounts+NamespaceCount, 1)
	p.proxy = p.Alloc(64)
	p.WriteUint64(p.proxy+8, uint64(p.Mounts))
}

// Dentry makes one; of the root of a file system parent is 0.
func (p *Processes) Dentry(name string, parent x86.VirtAddr) x86.VirtAddr {
	d := p.Alloc(DentrySize)
	if parent == 0 {
		parent = d
	}
	p.WriteUint64(d+DentryParent, uint64(parent))
	p.WriteUint64(d+DentryHash, uint64(d))
	p.WriteUint32(d+DentryLen, uint32(len(name)))
	p.WriteUint64(d+DentryName, uint64(p.String(name)))
	return d
}

// task makes a process of one thread with a program and memory.
func (p *Processes) task(pid uint32) x86.VirtAddr {
	t, signal, cred, number := p.Alloc(TaskSize), p.Alloc(64), p.Alloc(128), p.Alloc(PIDNumbers+16)
	p.WriteUint32(t+TaskPID, pid)
	p.WriteUint32(t+TaskTGID, pid)
	p.Write(t+TaskComm, []byte("worker"))
	p.WriteUint64(t+TaskRealParent, uint64(p.idle))
	p.WriteUint64(t+TaskStart, 1_000_000_000*uint64(pid))
	p.WriteUint64(t+TaskSignal, uint64(signal))
	p.WriteUint32(signal+SignalThreads, 1)
	p.WriteList(signal+SignalHead, t+TaskThreadNode)
	for _, off := range []x86.VirtAddr{TaskCred, TaskRealCred} {
		p.WriteUint64(t+off, uint64(cred))
	}
	p.WriteUint32(cred+CredUID, 1000+pid)
	p.WriteUint64(cred+CredCaps, 0x1ff_ffff_ffff)
	p.WriteUint64(t+TaskThreadPID, uint64(number))
	p.WriteUint64(number+PIDTasks, uint64(t+TaskPIDLinks))
	p.WriteList(t + TaskChildren)
	p.WriteUint64(t+TaskCGroups, uint64(p.CSSSet))
	p.WriteUint64(t+TaskFS, uint64(p.rootPath))
	p.WriteUint64(t+TaskNSProxy, uint64(p.proxy))
	p.WriteList(t + TaskFairNode)

	mm, pgd := p.Alloc(MMSize), (p.Alloc(2*x86.PageSize)+x86.PageMask)&^x86.PageMask
	p.WriteUint64(t+TaskMM, uint64(mm))
	p.WriteUint64(t+TaskMM+8, uint64(mm))
	p.WriteUint64(mm+MMPGD, uint64(pgd))
	return t
}

// Link puts all tasks on all lists.
func (p *Processes) Link() {
	at := func(off x86.VirtAddr, tasks []x86.VirtAddr) []x86.VirtAddr {
		var out []x86.VirtAddr
		for _, t := range tasks {
			out = append(out, t+off)
		}
		return out
	}
	p.WriteList(p.idle+TaskTasks, at(TaskTasks, p.Tasks)...)
	p.WriteList(p.idle+TaskChildren, at(TaskSibling, p.Tasks)...)
	p.WriteList(p.CSSSet+CSSSetTasks, at(TaskCGList, p.Tasks)...)
	rq := DirectMap + PerCPU + 0x4000
	p.WriteList(rq+RunQueueFair, at(TaskFairNode, p.Tasks[min(2, len(p.Tasks)):])...)
	p.WriteUint64(rq+RunQueueIdle, uint64(p.idle))
	p.WriteUint64(rq+RunQueueCurr, uint64(p.idle))
	p.WriteUint64(DirectMap+PerCPU+currentTask, uint64(p.idle))
	numbers := map[uint64]x86.VirtAddr{}
	for i, t := range p.Tasks {
		numbers[uint64(i+1)] = p.Load(t + TaskThreadPID)
	}
	p.WriteIDR(p.Addr("init_pid_ns"), p.nodes, numbers)
}

// Load reads a pointer.
func (p *Processes) Load(va x86.VirtAddr) x86.VirtAddr {
	as := p.AddressSpace()
	v, err := as.ReadPointer(va)
	if err != nil {
		panic("linuxtest: " + err.Error())
	}
	return v
}

// Unlink takes a node off its list as list_del_init does.
func (p *Processes) Unlink(node x86.VirtAddr) {
	next, prev := p.Load(node), p.Load(node+8)
	p.WriteUint64(prev, uint64(next))
	p.WriteUint64(next+8, uint64(prev))
	p.WriteList(node)
}
