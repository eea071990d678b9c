package linuxtest

import (
	"encoding/binary"
	"slices"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of what has to do with processes that call the kernel, besides those of
// [Processes].
const (
	TaskLeader       = 1640
	TaskAltStack     = 1648
	TaskAltStackSize = 1656
	MMTree           = 176
	VMANode          = 120
	CredUser         = 96
	UserUID          = 24

	// UserMemory is what the process has of memory that can be read: a page.
	UserMemory = x86.VirtAddr(0x60_0000)

	kernelStack = 16 << 10
	userRegs    = 21 * 8
	callerData  = Data + 0x2_1000
)

// Mapping flags.
const (
	MapRead  = 1
	MapWrite = 2
	MapExec  = 4
	MapGrows = 0x100
)

// CallersConfig is a guest whose current task is a process that has called the kernel.
// A kernel to 6.0 has its mappings in a red-black tree.
func CallersConfig(tree bool) Config {
	c := SignalConfig(Relative61, 1)
	types := slices.DeleteFunc(processTypes(), func(t btf.Type) bool {
		return t.TypeName() == "vm_area_struct" || t.TypeName() == "cred"
	})
	node := structOf("rb_node", 24, member("__rb_parent_color", 0, u64), member("rb_right", 8, pointer), member("rb_left", 16, pointer))
	types = append(types,
		structOf("vm_area_struct", VMASize, member("vm_start", VMAStart, u64), member("vm_end", VMAEnd, u64), member("vm_mm", VMAMM, pointer),
			member("vm_flags", VMAFlags, u64), member("vm_file", VMAFile, pointer), member("vm_rb", VMANode, node)),
		structOf("cred", 128, member("uid", CredUID, u32), member("cap_effective", CredCaps, u64), member("user", CredUser, pointer)),
		structOf("user_struct", 64, member("uid", UserUID, u32)))
	c.Types = append(c.Types, types...)
	c.Task = append(c.Task,
		member("cred", TaskCred, pointer), member("real_cred", TaskRealCred, pointer), member("group_leader", TaskLeader, pointer),
		member("sas_ss_sp", TaskAltStack, u64), member("sas_ss_size", TaskAltStackSize, u64))
	c.MM = []btf.Member{
		member("exe_file", MMExe, pointer), member("start_brk", MMBrk, u64), member("brk", MMBrk+8, u64), member("start_stack", MMBrk+16, u64),
	}
	if tree {
		c.MM = append(c.MM, member("mm_rb", MMTree, structOf("rb_root", 8, member("rb_node", 0, pointer))))
	} else {
		c.MM = append(c.MM, member("mm_mt", MMMaple, structOf("maple_tree", 16, member("ma_root", 8, pointer))))
	}
	c.Functions = []string{"mm_access", "ptrace_attach", "__x64_sys_execve", "__x64_sys_execveat", "__ia32_compat_sys_execve", "wake_up_new_task", "do_exit"}
	c.Data = map[string]x86.VirtAddr{
		"init_cred": callerData, "page_offset_base": callerData + 0x200, "vmalloc_base": callerData + 0x208,
	}
	return c
}

// Callers is a guest of CallersConfig.
type Callers struct {
	*Guest
	*Heap
	// Task is the current task, 214 of process 213 (named as its first thread is), MM its
	// memory, Cred its credentials, of user 1000.
	Task, Leader, MM, Cred, User x86.VirtAddr
	// Stack is the top of the kernel's stack, below which there are the registers of the
	// process.
	Stack x86.VirtAddr

	tree bool
	vmas []vma
}

type vma struct {
	start, end, flags uint64
	file              bool
}

// NewCallers builds it, without mappings.
func NewCallers(tree bool) *Callers { return CallersOf(New(CallersConfig(tree)), tree) }

// CallersOf makes it of a guest that was built.
func CallersOf(g *Guest, tree bool) *Callers {
	g.SetSignals(1)
	c := &Callers{Guest: g, Heap: g.NewHeap(), tree: tree, Task: g.CurrentTask(0)}
	g.WriteUint64(g.Addr("page_offset_base"), uint64(g.Base+HeapStart))
	g.WriteUint64(g.Addr("vmalloc_base"), uint64(g.Base+ImageSize))
	g.SetTask(0, 214, 213, "worker")
	c.MM, c.Cred, c.User = c.Alloc(MMSize), c.Alloc(128), c.Alloc(64)
	c.Leader = c.Alloc(TaskSize)
	c.Write(c.Leader+TaskComm, []byte("front"))
	c.WriteUint64(c.Task+TaskMM, uint64(c.MM))
	c.WriteUint64(c.Task+TaskCred, uint64(c.Cred))
	c.WriteUint64(c.Task+TaskRealCred, uint64(c.Cred))
	c.WriteUint64(c.Task+TaskLeader, uint64(c.Leader))
	c.WriteUint32(c.Cred+CredUID, 1000)
	c.WriteUint64(c.Cred+CredUser, uint64(c.User))
	c.WriteUint32(c.User+UserUID, 1000)
	c.SetProgram("nginx")
	c.SetBrk(0x80_0000, 0x82_0000)
	c.Map(UserMemory, 0x180_0000, x86.PageSize, guest.Page4K, guesttest.Writable)
	c.Stack = (c.Alloc(2*kernelStack) + kernelStack - 1) &^ (kernelStack - 1)
	c.Stack += kernelStack
	return c
}

// SetProgram names the file that the process was started from.
func (c *Callers) SetProgram(name string) {
	file, dentry := c.Alloc(64), c.Alloc(DentrySize)
	c.WriteUint64(dentry+DentryName, uint64(c.String(name)))
	c.WriteUint64(file+FileDentry, uint64(dentry))
	c.WriteUint64(c.MM+MMExe, uint64(file))
}

// SetBrk says where its memory of brk is.
func (c *Callers) SetBrk(start, end uint64) {
	c.WriteUint64(c.MM+MMBrk, start)
	c.WriteUint64(c.MM+MMBrk+8, end)
}

// Other is another process' task, with memory and a program of its own.
func (c *Callers) Other(tgid uint32, comm string) x86.VirtAddr {
	task, mm := c.Alloc(TaskSize), c.Alloc(MMSize)
	c.WriteUint32(task+TaskPID, tgid)
	c.WriteUint32(task+TaskTGID, tgid)
	c.Write(task+TaskComm, []byte(comm))
	c.WriteUint64(task+TaskMM, uint64(mm))
	return task
}

// Call has the vCPU stand at a function that the process has come to, by the number of
// its system call, with what it had in its registers.
func (c *Callers) Call(function string, number int64, rip, rsp x86.VirtAddr, args ...uint64) x86.Registers {
	at := c.Stack - userRegs
	for i, v := range append([]uint64{uint64(number), uint64(rip), 0x33, 0x202, uint64(rsp), 0x2b}, args...) {
		off := []x86.VirtAddr{15, 16, 17, 18, 19, 20, 14, 13, 12, 11}[i] // orig_ax … ss, di, si, dx, cx
		c.WriteUint64(at+8*off, v)
	}
	r := c.Regs[0]
	r.RIP, r.RSP = uint64(c.Addr(function)), uint64(at-0x108)
	c.WriteUint64(x86.VirtAddr(r.RSP), uint64(c.Base+Entry))
	r.RDI = uint64(at)
	return r
}

// MapUser adds a piece of the process' memory: at most seven, in the order of their
// addresses.
func (c *Callers) MapUser(start, end, flags uint64, file bool) {
	c.vmas = append(c.vmas, vma{start, end, flags, file})
	var at []x86.VirtAddr
	for _, v := range c.vmas {
		if v.flags&MapGrows != 0 {
			c.WriteUint64(c.MM+MMBrk+16, v.end-8)
		}
		a := c.Alloc(VMASize)
		c.WriteUint64(a+VMAStart, v.start)
		c.WriteUint64(a+VMAEnd, v.end)
		c.WriteUint64(a+VMAMM, uint64(c.MM))
		c.WriteUint64(a+VMAFlags, v.flags)
		if v.file {
			c.WriteUint64(a+VMAFile, uint64(c.Task))
		}
		at = append(at, a)
	}
	if c.tree {
		c.WriteUint64(c.MM+MMTree, uint64(c.branch(at)))
		return
	}
	leaf := (c.Alloc(2*MapleSize) + MapleSize - 1) &^ (MapleSize - 1)
	c.Write(leaf, make([]byte, MapleSize))
	c.WriteUint64(leaf, uint64(c.MM)|1)
	slot, last := x86.VirtAddr(0), uint64(0)
	for i, v := range c.vmas {
		if v.start != last { // a gap
			c.WriteUint64(leaf+8+8*slot, v.start-1)
			slot++
		}
		c.WriteUint64(leaf+8+8*slot, v.end-1)
		c.WriteUint64(leaf+128+8*slot, uint64(at[i]))
		slot, last = slot+1, v.end
	}
	c.Write(c.MM+MMMaple+8, binary.LittleEndian.AppendUint64(nil, uint64(leaf)|1<<3|4|2))
}

// branch makes a red-black tree of mappings in order and returns its top.
func (c *Callers) branch(at []x86.VirtAddr) x86.VirtAddr {
	if len(at) == 0 {
		return 0
	}
	mid := len(at) / 2
	node := at[mid] + VMANode
	c.WriteUint64(node+16, uint64(c.branch(at[:mid])))
	c.WriteUint64(node+8, uint64(c.branch(at[mid+1:])))
	return node
}
