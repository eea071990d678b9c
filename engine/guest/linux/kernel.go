package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Kernel is an identified Linux kernel. It is immutable; its methods read the
// guest's present memory.
type Kernel struct {
	// Banner is the whole version text, without the newline at its end:
	// "Linux version 6.1.0-32-cloud-amd64 (…) … SMP …".
	Banner string
	// Release is the word after "Linux version", as uname -r prints it.
	Release string
	// Base is where the kernel image is mapped (_text), PhysBase the
	// physical address behind it.
	Base     x86.VirtAddr
	PhysBase x86.PhysAddr
	// TextStart and TextEnd enclose the kernel's code: [_text, _etext).
	TextStart, TextEnd x86.VirtAddr
	// Symbols is the kernel's own symbol table, without modules.
	Symbols *Symbols
	// Offsets is the layout of the structures hvi reads, and Types where it is
	// from: the kernel's own BTF, a profile in ISF, a guess from init_task that
	// leaves most of it out, or nothing.
	Offsets Offsets
	Types   report.TypeSource
	// TypesNote says what is not known of the structures, and why; "" if all
	// that hvi needs is.
	TypesNote string
	// BTFError says why the kernel's own type information is not usable; nil
	// when it is. It is an *IdentifyError.
	BTFError error
	// Profile names this build of the kernel, the same for every guest that this
	// host's [Cache] has seen with it; "" without a cache. Cached says that the
	// build was known, and nothing was parsed.
	Profile string
	Cached  bool

	as   guest.AddressSpace
	addr addresses

	// profile is held for other guests with this build, which find it by a weak
	// pointer in the cache.
	profile *profile

	btfStart, btfEnd x86.VirtAddr
	key              *digestKey // of btfSum
	btfSum           digest
}

// addresses are the variables the methods read; 0 where the kernel has none.
type addresses struct {
	systemState  x86.VirtAddr
	modules      x86.VirtAddr // list_head
	pokingMM     x86.VirtAddr
	pokingAddr   x86.VirtAddr
	perCPUOffset x86.VirtAddr // __per_cpu_offset[]
	// Per-CPU addresses: added to a per-CPU base, so 0 is a legitimate one.
	currentTask, cpuNumber       x86.VirtAddr
	haveCurrentTask, haveCPUNumb bool
	preemptCount                 x86.VirtAddr
	havePreemptCount             bool
}

// AddressSpace is the kernel's own address space, over init_top_pgt
// (swapper_pg_dir), which stays valid as long as the guest's kernel runs,
// whatever process is on a vCPU.
func (k *Kernel) AddressSpace() guest.AddressSpace { return k.as }

// Lookup is k.Symbols.Lookup.
func (k *Kernel) Lookup(name string) (x86.VirtAddr, bool) { return k.Symbols.Lookup(name) }

// Symbolize is k.Symbols.Symbolize.
func (k *Kernel) Symbolize(va x86.VirtAddr) (name string, offset uint64, ok bool) {
	return k.Symbols.Symbolize(va)
}

// FrameRange is N consecutive guest frames from First on.
type FrameRange struct {
	First x86.GFN
	N     uint64
}

// TextFrames returns the frames behind [TextStart, TextEnd), in the order of
// their addresses, neighbours joined: one range for a kernel that its boot
// loader left in one piece.
func (k *Kernel) TextFrames() ([]FrameRange, error) {
	return frames(k.as, k.TextStart, k.TextEnd)
}

// frames translates [start, end) under the present page tables.
func frames(as guest.AddressSpace, start, end x86.VirtAddr) ([]FrameRange, error) {
	var out []FrameRange
	for va := start.Page(); va < end; {
		t, err := as.Translate(va)
		if err != nil {
			return nil, &ReadError{What: "kernel text frames", Err: err}
		}
		n := min(t.PageEnd(va), uint64(end-va+x86.PageMask)&^x86.PageMask)
		first := t.Phys.GFN()
		if last := len(out) - 1; last >= 0 && out[last].First+x86.GFN(out[last].N) == first {
			out[last].N += n >> x86.PageShift
		} else {
			out = append(out, FrameRange{First: first, N: n >> x86.PageShift})
		}
		va += x86.VirtAddr(n)
	}
	return out, nil
}

// SystemState is the kernel's variable system_state: how far its boot has come.
// Its values have moved between releases; compare with
// Offsets.SystemStates.Running, or use [Kernel.Running].
type SystemState uint32

// SystemState reads system_state.
func (k *Kernel) SystemState() (SystemState, error) {
	if k.addr.systemState == 0 {
		return 0, &ReadError{What: "system_state", Err: ErrUnsupported}
	}
	v, err := k.as.ReadUint32(k.addr.systemState)
	if err != nil {
		return 0, &ReadError{What: "system_state", Err: err}
	}
	return SystemState(v), nil
}

// SystemStateAddr returns where in physical memory system_state lies: a store
// there that makes it Offsets.SystemStates.Running is the end of the kernel's boot.
func (k *Kernel) SystemStateAddr() (x86.PhysAddr, error) {
	if k.addr.systemState == 0 || k.Offsets.SystemStates.Running < 0 {
		return 0, &ReadError{What: "system_state", Err: ErrUnsupported}
	}
	t, err := k.as.Translate(k.addr.systemState)
	if err != nil {
		return 0, &ReadError{What: "system_state", Err: err}
	}
	return t.Phys, nil
}

// Running reports whether boot is over: system_state is SYSTEM_RUNNING or
// beyond (halting, rebooting, suspending). From there on kernel text and
// read-only data are sealed (mark_readonly comes before it in kernel_init) and
// init memory is freed.
func (k *Kernel) Running() (bool, error) {
	if k.Offsets.SystemStates.Running < 0 {
		return false, &ReadError{What: "system_state", Got: "no enum system_states", Err: ErrUnsupported}
	}
	s, err := k.SystemState()
	return int64(s) >= int64(k.Offsets.SystemStates.Running), err
}

// Patching reports whether a task has the lock under which the kernel patches its code:
// one that is preempted meanwhile keeps it. It is false of a kernel that doesn't tell.
func (k *Kernel) Patching() bool {
	mutex, ok := k.Lookup("text_mutex")
	if !ok {
		return false
	}
	// The owner comes first in struct mutex, with three flags (MUTEX_FLAGS in
	// kernel/locking/mutex.h). A real-time kernel's begins with a lock, which is 0 mostly.
	const flags = 7
	owner, err := k.as.ReadUint64(mutex)
	return err == nil && owner&^flags != 0
}

// Task is what an event says about the task that caused it.
type Task struct {
	// Addr is the address of the task_struct.
	Addr x86.VirtAddr
	// PID is the kernel's pid (a thread's own), TGID the process's.
	PID, TGID int32
	// Start is when it was made, in nanoseconds of the guest's boot clock; 0 where the
	// kernel's types don't say. Address, number and start tell a task from all others.
	Start uint64
	// Comm is the task's name, NUL-padded; any bytes at all.
	Comm [16]byte
}

// Is reports whether t and u are the same task, whatever its name is now.
func (t *Task) Is(u *Task) bool {
	return t.Addr == u.Addr && t.PID == u.PID && t.TGID == u.TGID && t.Start == u.Start
}

// Name is Comm up to its first NUL. Its bytes are the guest's: quote them.
func (t *Task) Name() string {
	if i := bytes.IndexByte(t.Comm[:], 0); i >= 0 {
		return string(t.Comm[:i])
	}
	return string(t.Comm[:])
}

// CurrentTask is [Kernel.ReadTask] for callers that don't count allocations.
func (k *Kernel) CurrentTask(regs *x86.Registers) (Task, error) {
	var t Task
	err := k.ReadTask(regs, &t)
	return t, err
}

// taskBufs lends ReadTask the memory that a read through an interface would
// otherwise allocate.
var taskBufs = sync.Pool{New: func() any { return new([16]byte) }}

// ReadTask reads the current task of the vCPU whose registers are given, with
// no allocation when it succeeds. It uses GSBase, KernelGSBase and CPL. The
// vCPU must be held while it runs, or the answer may be another task's.
func (k *Kernel) ReadTask(regs *x86.Registers, t *Task) error {
	o := &k.Offsets.Task
	if o.PID < 0 || o.TGID < 0 || o.Comm < 0 || !k.addr.haveCurrentTask {
		return &ReadError{What: "current task", Err: ErrUnsupported}
	}
	base, err := k.PerCPUBase(regs)
	if err != nil {
		return err
	}
	task, err := k.as.ReadPointer(base + k.addr.currentTask)
	if err != nil {
		return &ReadError{What: "current_task", Err: err}
	}
	if !task.KernelHalf() || task&7 != 0 {
		return &ReadError{What: "current_task", Got: task.String(), Err: ErrImplausible}
	}
	return k.readTask(task, t)
}

// readTask reads the task at a plausible address.
func (k *Kernel) readTask(task x86.VirtAddr, t *Task) error {
	o := &k.Offsets.Task
	if o.PID < 0 || o.TGID < 0 || o.Comm < 0 {
		return &ReadError{What: "task_struct", Err: ErrUnsupported}
	}
	pid, err := k.as.ReadUint32(task + x86.VirtAddr(o.PID))
	if err != nil {
		return &ReadError{What: "task_struct.pid", Err: err}
	}
	tgid, err := k.as.ReadUint32(task + x86.VirtAddr(o.TGID))
	if err != nil {
		return &ReadError{What: "task_struct.tgid", Err: err}
	}
	var start uint64
	if o.StartTime >= 0 {
		if start, err = k.as.ReadUint64(task + x86.VirtAddr(o.StartTime)); err != nil {
			return &ReadError{What: "task_struct.start_boottime", Err: err}
		}
	}
	b := taskBufs.Get().(*[16]byte)
	err = k.as.Read(task+x86.VirtAddr(o.Comm), b[:])
	comm := *b
	taskBufs.Put(b)
	if err != nil {
		return &ReadError{What: "task_struct.comm", Err: err}
	}
	*t = Task{Addr: task, PID: int32(pid), TGID: int32(tgid), Start: start, Comm: comm}
	return nil
}

// PerCPUBase returns what a vCPU adds to a per-CPU symbol's address to find its
// own copy: the kernel's GS base. Which register holds it depends on whether
// the entry code has done its SWAPGS, and user space may load any value into
// the other one (WRGSBASE), so each candidate is checked against the kernel's
// own table, __per_cpu_offset.
func (k *Kernel) PerCPUBase(regs *x86.Registers) (x86.VirtAddr, error) {
	first, second := x86.VirtAddr(regs.GSBase), x86.VirtAddr(regs.KernelGSBase)
	if regs.CPL == 3 {
		first, second = second, first
	}
	if k.perCPUBaseOK(first) {
		return first, nil
	}
	if k.perCPUBaseOK(second) {
		return second, nil
	}
	return 0, &ReadError{What: "per-CPU base", Err: ErrImplausible,
		Got: fmt.Sprintf("GS base %v, kernel GS base %v", x86.VirtAddr(regs.GSBase), x86.VirtAddr(regs.KernelGSBase))}
}

// maxCPUs bounds a CPU number read from the guest: NR_CPUS with MAXSMP.
const maxCPUs = 8192

func (k *Kernel) perCPUBaseOK(base x86.VirtAddr) bool {
	if !base.KernelHalf() {
		return false
	}
	if k.addr.perCPUOffset == 0 || !k.addr.haveCPUNumb {
		return true
	}
	cpu, err := k.as.ReadUint32(base + k.addr.cpuNumber)
	if err != nil || cpu >= maxCPUs {
		return false
	}
	v, err := k.as.ReadPointer(k.addr.perCPUOffset + x86.VirtAddr(cpu)*8)
	return err == nil && v == base
}

// TextPoke is where the kernel itself may write code once it is running: in an
// address space of its own, through a window at a user-half address, so that
// neither CR3 nor address is the one an attacker's plain store would have
// (__text_poke in arch/x86/kernel/alternative.c, since 5.1; the variables are
// poking_mm and poking_addr to 6.15, text_poke_mm and text_poke_mm_addr from
// 6.16). Jump labels, static calls, ftrace, kprobes, livepatch and BPF all end
// there. Before poking_init the kernel writes its code directly
// (text_poke_early).
type TextPoke struct {
	// CR3 is the root of that address space; compare after masking with
	// x86.CR3AddrMask (and without the KPTI bit).
	CR3 x86.PhysAddr
	// Window is the page-aligned linear address of the first page, and
	// WindowPages how many there are: a patch may straddle two pages.
	Window      x86.VirtAddr
	WindowPages int
}

// Contains reports whether a linear address lies in the window.
func (p TextPoke) Contains(va x86.VirtAddr) bool {
	return va >= p.Window && va < p.Window+x86.VirtAddr(p.WindowPages)<<x86.PageShift
}

// TextPoke reads where the kernel patches its own code. It is [ErrNotYet]
// before poking_init (late in start_kernel, before the first user process), and
// [ErrUnsupported] for kernels that patch through the fixmap (before 5.1).
func (k *Kernel) TextPoke() (TextPoke, error) {
	if k.addr.pokingMM == 0 || k.addr.pokingAddr == 0 {
		return TextPoke{}, &ReadError{What: "poking_mm", Err: ErrUnsupported}
	}
	if k.Offsets.MM.PGD < 0 {
		return TextPoke{}, &ReadError{What: "mm_struct.pgd", Err: ErrUnsupported}
	}
	mm, err := k.as.ReadPointer(k.addr.pokingMM)
	if err != nil {
		return TextPoke{}, &ReadError{What: "poking_mm", Err: err}
	}
	window, err := k.as.ReadPointer(k.addr.pokingAddr)
	if err != nil {
		return TextPoke{}, &ReadError{What: "poking_addr", Err: err}
	}
	if mm == 0 || window == 0 {
		return TextPoke{}, &ReadError{What: "poking_mm", Err: ErrNotYet}
	}
	if !mm.KernelHalf() || window.KernelHalf() || window.Offset() != 0 {
		return TextPoke{}, &ReadError{What: "poking_mm", Err: ErrImplausible,
			Got: fmt.Sprintf("mm %v, window %v", mm, window)}
	}
	pgd, err := k.as.ReadPointer(mm + x86.VirtAddr(k.Offsets.MM.PGD))
	if err != nil {
		return TextPoke{}, &ReadError{What: "poking_mm->pgd", Err: err}
	}
	if !pgd.KernelHalf() || pgd.Offset() != 0 {
		return TextPoke{}, &ReadError{What: "poking_mm->pgd", Got: pgd.String(), Err: ErrImplausible}
	}
	// The direct map is part of the kernel's page tables, so the walk is
	// the conversion; page_offset_base need not be trusted.
	t, err := k.as.Translate(pgd)
	if err != nil {
		return TextPoke{}, &ReadError{What: "poking_mm->pgd", Err: err}
	}
	return TextPoke{CR3: t.Phys, Window: window, WindowPages: 2}, nil
}

// textPokeCode are the functions whose stores are __text_poke's. It calls
// memcpy and memset, which alternatives turn into one of several bodies by what
// the processor has: memcpy_orig on one without REP_GOOD and ERMS, as seen in
// an emulator. From 5.19 on (set: 5.19, copy: 6.0) it does so through
// text_poke_memcpy and text_poke_memset, which have the stores themselves since
// LASS; the compiler may put either into __text_poke.
var textPokeCode = []string{
	"__text_poke", "text_poke_memcpy", "text_poke_memset",
	"memcpy", "__memcpy", "memcpy_orig", "memcpy_erms",
	"memset", "__memset", "memset_orig", "memset_erms",
}

// TextPokeCode returns the code from which the kernel's own stores through the
// [TextPoke] window come. Anyone can jump to memcpy, so a RIP in here proves
// nothing by itself: a guard asks for the CR3 and the address first.
func (k *Kernel) TextPokeCode() []Range {
	var out []Range
	for _, name := range textPokeCode {
		if start, end, ok := k.Symbols.Range(name); ok && start >= k.TextStart && end <= k.TextEnd {
			r := Range{start, end}
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
