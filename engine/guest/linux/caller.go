package linux

import (
	"encoding/binary"
	"fmt"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// What a guard asks at a call of the kernel's, with the process held there: what it had
// in its registers, what memory they lead to, whose rights it has. None of it allocates
// where it succeeds, and each walk is bounded.

// CallerOffsets lays out what of struct task_struct is read of a process that has
// called the kernel.
type CallerOffsets struct {
	// AltStack and AltStackSize are the stack that it has set aside for its signals.
	AltStack     int `c:"sas_ss_sp"`
	AltStackSize int `c:"sas_ss_size"`
}

// VMATreeOffsets lays out where struct vm_area_struct hangs in its process' tree, to 6.0.
type VMATreeOffsets struct {
	Node int `c:"vm_rb"`
}

// MMTreeOffsets lays out that tree's root in struct mm_struct.
type MMTreeOffsets struct {
	Root int `c:"mm_rb"`
}

const (
	// kernelStack is THREAD_SIZE without KASAN, to which a stack is aligned
	// (arch/x86/include/asm/page_64_types.h, THREAD_ALIGN).
	kernelStack = 16 << 10
	// userRegs is sizeof(struct pt_regs), which lies at the top of the stack of a process
	// that has called the kernel; with FRED, since 6.9, there are 16 bytes above it
	// (TOP_OF_KERNEL_STACK_PADDING).
	userRegs    = 21 * 8
	fredPadding = 16

	// Members of struct pt_regs, which are pushed in that order since there is a 64-bit
	// kernel, the system call's number among them (arch/x86/include/asm/ptrace.h).
	regsCX, regsDX, regsSI, regsDI = 11 * 8, 12 * 8, 13 * 8, 14 * 8
	regsNumber                     = 15 * 8
	regsIP, regsCS, regsSP         = 16 * 8, 17 * 8, 19 * 8
	userCode64, userCode32         = 0x33, 0x23 // __USER_CS, __USER32_CS

	vmGrowsDown = 0x100 // VM_GROWSDOWN of include/linux/mm.h

	// mappingTries is how often a mapping is looked for again, which another thread may
	// be changing.
	mappingTries = 3
)

// UserRegs are the registers with which a process has called the kernel.
type UserRegs struct {
	RIP, RSP x86.VirtAddr
	// The first arguments; of 32-bit code RCX and RDX are the second and the third.
	RDI, RSI, RDX, RCX uint64
	// Call is the number of the system call.
	Call int64
	// Compat says that it is 32-bit code, whose numbers are others.
	Compat bool
}

// ReadUserRegs reads those of the process on a vCPU that is held in the kernel, on the
// stack of that process. It is an error where the kernel was not called by one.
func (k *Kernel) ReadUserRegs(regs *x86.Registers, u *UserRegs) error {
	top := (x86.VirtAddr(regs.RSP) | (kernelStack - 1)) + 1
	if regs.CPL != 0 || !x86.VirtAddr(regs.RSP).KernelHalf() {
		return &ReadError{What: "pt_regs", Got: "no stack of the kernel's", Err: ErrImplausible}
	}
	for _, padding := range [...]x86.VirtAddr{0, fredPadding} {
		at := top - padding - userRegs
		cs, err := k.as.ReadUint16(at + regsCS) // FRED keeps other things above it
		if err != nil {
			return &ReadError{What: "pt_regs", Err: err}
		}
		if cs != userCode64 && cs != userCode32 {
			continue
		}
		var v [7]uint64
		for i, off := range [...]x86.VirtAddr{regsIP, regsSP, regsDI, regsSI, regsDX, regsNumber, regsCX} {
			if v[i], err = k.as.ReadUint64(at + off); err != nil {
				return &ReadError{What: "pt_regs", Err: err}
			}
		}
		*u = UserRegs{
			RIP: x86.VirtAddr(v[0]), RSP: x86.VirtAddr(v[1]), RDI: v[2], RSI: v[3], RDX: v[4], RCX: v[6],
			Call: int64(int32(v[5])), Compat: cs == userCode32,
		}
		return nil
	}
	return &ReadError{What: "pt_regs", Got: "no registers of a process'", Err: ErrImplausible}
}

// Callers tells of processes that call the kernel. It is one goroutine's: what it reads
// is kept in it, so that reading needs no heap.
type Callers struct {
	// k reads with a cache of translations: what is read of a call is fifty words of
	// some ten pages.
	k    *Kernel
	tlb  *guest.TLB
	node [mapleNodeSize]byte
	vma  [5]uint64

	first     x86.VirtAddr // init_cred
	low, high x86.VirtAddr // where the kernel allocates credentials, 0 if unknown
}

// NewCallers returns it. It is an error where the kernel's types don't tell what it takes.
func (k *Kernel) NewCallers() (*Callers, error) {
	o := &k.Offsets
	if err := need("task_struct.mm", o.Task.MM, "task_struct.cred", o.Task.Cred, "task_struct.real_cred", o.Task.RealCred,
		"vm_area_struct.vm_start", o.VMA.Start, "vm_area_struct.vm_end", o.VMA.End, "vm_area_struct.vm_flags", o.VMA.Flags, "vm_area_struct.vm_file", o.VMA.File, "vm_area_struct.vm_mm", o.VMA.MM,
		"mm_struct.mm_mt", max(o.MM.Maple, o.MMTree.Root)); err != nil {
		return nil, err
	}
	if o.MM.Maple >= 0 {
		if err := need("maple_tree.ma_root", o.Maple.Root, "maple_node", o.MapleNode.Pivots, "maple_node", o.MapleNode.APivots, "enum maple_type", o.MapleTypes.Leaf); err != nil {
			return nil, err
		}
	} else if err := need("vm_area_struct.vm_rb", o.VMATree.Node, "rb_node.rb_left", o.RBNode.Left, "rb_node.rb_right", o.RBNode.Right); err != nil {
		return nil, err
	}
	c := &Callers{tlb: guest.NewTLB()}
	cached := *k
	cached.as = k.as.WithTLB(c.tlb)
	c.k = &cached
	r := k.NewReader(nil)
	c.low, c.high = r.directMap()
	var err error
	c.first, err = r.variable("init_cred")
	return c, err
}

// Begin is to be called when a call is to be read of, whose vCPU is held. It forgets where
// addresses led before, and returns the kernel by which to read.
func (c *Callers) Begin() *Kernel {
	c.tlb.Flush()
	return c.k
}

// Kernel is the kernel by which to read on.
func (c *Callers) Kernel() *Kernel { return c.k }

// Mapping is a piece of a process' memory.
type Mapping struct {
	Start, End x86.VirtAddr
	flags      uint64
	file       bool
	special    bool
}

// File says that it is of a file, be it one in memory only.
func (m *Mapping) File() bool { return m.file }

// Special says that the kernel itself made it: the vDSO.
func (m *Mapping) Special() bool { return m.special }

// Writable says that the process may write there now.
func (m *Mapping) Writable() bool { return m.flags&vmWrite != 0 }

// Executable says that the process may execute what is there now.
func (m *Mapping) Executable() bool { return m.flags&vmExec != 0 }

// Stack says that it grows downwards, as the stack of a process' first thread does.
func (m *Mapping) Stack() bool { return m.flags&vmGrowsDown != 0 }

// MM returns the memory of a task, 0 for one that has none.
func (c *Callers) MM(t *Task) (x86.VirtAddr, error) {
	return c.k.as.ReadPointer(t.Addr + x86.VirtAddr(c.k.Offsets.Task.MM))
}

// Find finds the mapping that an address of a process lies in; false if there is none.
// It is an error if that can't be told: another thread may be changing them.
func (c *Callers) Find(mm, va x86.VirtAddr, m *Mapping) (found bool, err error) {
	if !mm.KernelHalf() {
		return false, &ReadError{What: "mm_struct", Got: mm.String(), Err: ErrImplausible}
	}
	for range mappingTries {
		if c.k.Offsets.MM.Maple >= 0 {
			found, err = c.inMaple(mm, va, m)
		} else {
			found, err = c.inTree(mm, va, m)
		}
		if err == nil {
			return found, nil
		}
	}
	return false, err
}

func (c *Callers) u64(off int) uint64 {
	if off < 0 || off > len(c.node)-8 {
		return 0
	}
	return binary.LittleEndian.Uint64(c.node[off:])
}

// inMaple goes down a maple tree as mapleWalk does, to one index.
func (c *Callers) inMaple(mm, va x86.VirtAddr, m *Mapping) (bool, error) {
	k, o, kinds := c.k, &c.k.Offsets.MapleNode, &c.k.Offsets.MapleTypes
	enc, err := k.as.ReadPointer(mm + x86.VirtAddr(k.Offsets.MM.Maple+k.Offsets.Maple.Root))
	if err != nil {
		return false, err
	}
	if enc == 0 {
		return false, nil
	}
	if enc&3 != mapleRoot {
		return false, errTorn // an entry for index 0 and no node: no process' memory
	}
	index, first, last := uint64(va), uint64(0), ^uint64(0)
	for range maxMapleDepth {
		at, kind := enc&^(mapleNodeSize-1), int(enc>>mapleTypeShift&mapleTypeMask)
		if !at.KernelHalf() {
			return false, errTorn
		}
		if err := k.as.Read(at, c.node[:]); err != nil {
			return false, err
		}
		if x86.VirtAddr(c.u64(o.Parent))&^(mapleNodeSize-1) == at {
			return false, errTorn // it was taken out of the tree
		}
		pivots, npivots, slots, nslots := o.Pivots, o.PivotCount, o.Slots, o.SlotCount
		switch kind {
		case kinds.Leaf, kinds.Range:
		case kinds.ARange:
			pivots, npivots, slots, nslots = o.APivots, o.APivotCount, o.ASlots, o.ASlotCount
		default:
			return false, errTorn
		}
		var e x86.VirtAddr
		end := last
		for i := range min(nslots, mapleNodeSize/8) {
			end = last
			if i < npivots {
				if p := c.u64(pivots + 8*i); p != 0 || i == 0 {
					end = p
				}
			}
			if end < first || end > last {
				return false, errTorn
			}
			if index <= end {
				e = x86.VirtAddr(c.u64(slots + 8*i))
				break
			}
			if end == last {
				return false, errTorn
			}
			first = end + 1
		}
		last = end
		switch {
		case index < first || index > last:
			return false, errTorn
		case e == 0:
			return false, nil
		case kind == kinds.Leaf:
			if !e.KernelHalf() {
				return false, nil // a reservation
			}
			return c.isIn(e, mm, va, m)
		case e&7 != mapleInner:
			return false, errTorn
		}
		enc = e
	}
	return false, errTorn
}

// inTree goes down the red-black tree of a kernel to 6.0.
func (c *Callers) inTree(mm, va x86.VirtAddr, m *Mapping) (bool, error) {
	k, o := c.k, &c.k.Offsets
	node, err := k.as.ReadPointer(mm + x86.VirtAddr(o.MMTree.Root+max(o.RBRoot.Node, 0)))
	if err != nil {
		return false, err
	}
	for range maxRBDepth {
		if node == 0 {
			return false, nil
		}
		if !node.KernelHalf() || node&3 != 0 {
			return false, errTorn
		}
		vma := node - x86.VirtAddr(o.VMATree.Node)
		in, err := c.isIn(vma, mm, va, m)
		switch {
		case in || err != nil && m.Start == m.End:
			return in, err
		case va < m.Start:
			node, err = k.as.ReadPointer(node + x86.VirtAddr(o.RBNode.Left))
		default:
			node, err = k.as.ReadPointer(node + x86.VirtAddr(o.RBNode.Right))
		}
		if err != nil {
			return false, err
		}
	}
	return false, errTorn
}

// isIn reads a mapping and reports whether an address lies in it; errTorn where the
// kernel's tree said so and it does not.
func (c *Callers) isIn(vma, mm, va x86.VirtAddr, m *Mapping) (bool, error) {
	k, o := c.k, &c.k.Offsets.VMA
	*m = Mapping{}
	var err error
	for i, off := range [...]int{o.Start, o.End, o.Flags, o.File, o.MM} {
		if c.vma[i], err = k.as.ReadUint64(vma + x86.VirtAddr(off)); err != nil {
			return false, err
		}
	}
	start, end := x86.VirtAddr(c.vma[0]), x86.VirtAddr(c.vma[1])
	if start >= end || end.KernelHalf() || x86.VirtAddr(c.vma[4]) != mm {
		return false, errTorn
	}
	*m = Mapping{Start: start, End: end, flags: c.vma[2], file: c.vma[3] != 0}
	if !m.file && o.Ops >= 0 {
		ops, err := k.as.ReadPointer(vma + x86.VirtAddr(o.Ops))
		if err != nil {
			return false, err
		}
		m.special = ops != 0
	}
	if va >= start && va < end {
		return true, nil
	}
	return false, errTorn
}

// Heap reports whether an address lies in the memory that brk gives a process.
func (c *Callers) Heap(mm, va x86.VirtAddr) bool {
	o := &c.k.Offsets.MM
	if o.StartBrk < 0 || o.Brk < 0 {
		return false
	}
	start, err := c.k.as.ReadPointer(mm + x86.VirtAddr(o.StartBrk))
	if err != nil || va < start {
		return false
	}
	end, err := c.k.as.ReadPointer(mm + x86.VirtAddr(o.Brk))
	return err == nil && va < end
}

// FirstStack is where the stack of a process' first thread began, 0 if that is unknown.
func (c *Callers) FirstStack(mm x86.VirtAddr) x86.VirtAddr {
	o := &c.k.Offsets.MM
	if o.StartStack < 0 {
		return 0
	}
	at, err := c.k.as.ReadPointer(mm + x86.VirtAddr(o.StartStack))
	if err != nil {
		return 0
	}
	return at
}

// OnAltStack reports whether an address lies on the stack that a task has set aside for
// its signals, or whether that is unknown.
func (c *Callers) OnAltStack(t *Task, va x86.VirtAddr) bool {
	o := &c.k.Offsets.Caller
	if o.AltStack < 0 || o.AltStackSize < 0 {
		return true
	}
	at, err := c.k.as.ReadPointer(t.Addr + x86.VirtAddr(o.AltStack))
	if err != nil {
		return true
	}
	size, err := c.k.as.ReadUint64(t.Addr + x86.VirtAddr(o.AltStackSize))
	// RSP may be the end of it, with nothing on it.
	return err != nil || va >= at && uint64(va-at) <= size && size > 0
}

// CredFault is what is wrong with the credentials of a process.
type CredFault uint8

// What can be wrong.
const (
	CredFine CredFault = iota
	// CredFirst: they are those of the kernel's first task, which no process has.
	CredFirst
	// CredElsewhere: they lie where the kernel allocates none.
	CredElsewhere
	// CredTwo: those it acts with are not its own, which they are whenever it calls the
	// kernel: only within a call are they exchanged (override_creds).
	CredTwo
	// CredUser: its user's number is not that of the account they are charged to.
	CredUser
)

// String says it of a process.
func (f CredFault) String() string {
	switch f {
	case CredFirst:
		return "has the credentials of the kernel's first task (init_cred)"
	case CredElsewhere:
		return "has credentials in memory that the kernel allocates none in"
	case CredTwo:
		return "acts with credentials that are not its own"
	case CredUser:
		return "has a user's number that is not that of the account its credentials belong to"
	}
	return "has credentials of its own"
}

// Credentials says what is wrong with the credentials of a task that has just called
// the kernel. They are judged as the check "credentials" judges them, but for what takes
// a look at all processes: whether another has the same. What can't be read is fine.
func (c *Callers) Credentials(t *Task) CredFault {
	o, as := &c.k.Offsets, &c.k.as
	cred, err := as.ReadPointer(t.Addr + x86.VirtAddr(o.Task.RealCred))
	if err != nil {
		return CredFine
	}
	acts, err := as.ReadPointer(t.Addr + x86.VirtAddr(o.Task.Cred))
	switch {
	case err != nil:
		return CredFine
	case cred == c.first || acts == c.first:
		return CredFirst
	case c.high != 0 && (cred < c.low || cred >= c.high || acts < c.low || acts >= c.high):
		return CredElsewhere
	case cred != acts:
		return CredTwo
	case o.Cred.UID < 0 || o.Cred.User < 0 || o.User.UID < 0:
		return CredFine
	}
	uid, err := as.ReadUint32(cred + x86.VirtAddr(o.Cred.UID))
	if err != nil {
		return CredFine
	}
	account, err := as.ReadPointer(cred + x86.VirtAddr(o.Cred.User))
	if err != nil || !account.KernelHalf() {
		return CredFine
	}
	owner, err := as.ReadUint32(account + x86.VirtAddr(o.User.UID))
	if err != nil || owner == uid {
		return CredFine
	}
	return CredUser
}

// ReadTaskAt reads the task at an address, as [Kernel.ReadTask] reads the current one.
func (k *Kernel) ReadTaskAt(task x86.VirtAddr, t *Task) error {
	if !task.KernelHalf() || task&7 != 0 {
		return &ReadError{What: "task_struct", Got: task.String(), Err: ErrImplausible}
	}
	return k.readTask(task, t)
}

// ReturnOf is what a function that a vCPU is about to enter returns to: an address in
// the kernel's code, or a module's, on top of its stack.
func (k *Kernel) ReturnOf(regs *x86.Registers) (x86.VirtAddr, error) {
	to, err := k.as.ReadPointer(x86.VirtAddr(regs.RSP))
	if err != nil {
		return 0, &ReadError{What: "the return address", Err: err}
	}
	if !to.KernelHalf() {
		return 0, &ReadError{What: "the return address", Got: fmt.Sprint(to), Err: ErrImplausible}
	}
	return to, nil
}

// ProcessNames are the names by which a process is known.
type ProcessNames struct {
	// Comm is that of its first thread, NUL-padded, which it may change; Program that of
	// the file it was started from, without folders, NUL-terminated and shortened, which
	// it may not. The latter is empty where it can't be read.
	Comm    [commLen]byte
	Program [64]byte
}

// Names reads the names of a task's process.
func (c *Callers) Names(t *Task, n *ProcessNames) {
	k, o := c.k, &c.k.Offsets
	*n = ProcessNames{Comm: t.Comm}
	if t.PID != t.TGID && o.Task.Leader >= 0 {
		if leader, err := k.as.ReadPointer(t.Addr + x86.VirtAddr(o.Task.Leader)); err == nil && leader.KernelHalf() &&
			k.as.Read(leader+x86.VirtAddr(o.Task.Comm), n.Comm[:]) != nil {
			n.Comm = t.Comm
		}
	}
	if o.MM.ExeFile < 0 || o.File.Dentry < 0 || o.Dentry.Name < 0 {
		return
	}
	mm, err := c.MM(t)
	if err != nil || !mm.KernelHalf() {
		return
	}
	at := mm + x86.VirtAddr(o.MM.ExeFile)
	for _, off := range [...]int{o.File.Dentry, o.Dentry.Name, 0} {
		if at, err = k.as.ReadPointer(at); err != nil || !at.KernelHalf() {
			return
		}
		at += x86.VirtAddr(off)
	}
	// No further than its page: what follows it need not be there.
	last := len(n.Program) - 1
	size := min(last, int(x86.PageSize-at.Offset()))
	if k.as.Read(at, n.Program[:size]) != nil || size < last && n.Program[size-1] != 0 && k.as.Read(at+x86.VirtAddr(size), n.Program[size:last]) != nil {
		n.Program = [64]byte{}
	}
}
