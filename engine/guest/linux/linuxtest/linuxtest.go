// Package linuxtest builds a small Linux guest for tests: memory and registers
// with a kernel image, symbol table, type information, page tables, per-CPU
// areas and tasks, all in the formats of the real ones and as small as they
// can be, with nothing that runs. It imports nothing of package linux, so that
// the two can't share a mistake.
//
// A [Guest] owns its memory; nothing is released.
package linuxtest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where things are. Offsets are from Config.Base and, for what is in the
// kernel's direct map, from DirectMap.
const (
	Entry    = 0x1080 // entry_SYSCALL_64
	TextSize = 0x5000 // _text to _etext
	// FirstFunction is where those of a Config begin.
	FirstFunction = 0x1a00

	ROData    = 0x20_0000 // .rodata
	Data      = 0x40_0000 // .data
	ImageSize = 0x60_0000

	DirectMap = x86.VirtAddr(0xffff_8880_0000_0000)
	PerCPU    = 0x30_0000 // of CPU 0; 64 KiB each
	Tasks     = 0x38_0000 // of CPU 0; 4 KiB each
	PokingMM  = 0x3c_0000
	PokingPGD = 0x3c_2000

	// Variables is where those of a Config are; behind them are 64 KiB that
	// nothing else uses.
	Variables    = Data + 0x4_0000
	variableSize = 0x200

	// Window is where the kernel maps what it patches.
	Window = x86.VirtAddr(0x7123_4567_8000)

	// Banner is the version text of a guest that asks for no other.
	Banner = "Linux version 6.1.0-99-test (hvi@test) (gcc 12.2.0) #1 SMP Test 6.1.99-1 (2025-01-01)"

	// What the kernel seals at the end of its boot, page-aligned: the end of its
	// read-only data, and parts of that, but for the table of interrupts.
	RODataEnd    = ROData + 0x18_0000
	SyscallTable = ROData + 0x1000
	ExTable      = ROData + 0x2000
	VDSO         = ROData + 0x3000
	VDSOSize     = 0xc00
	IDT          = Data + 0x5000
	exTableSize  = 0x100
	vdsoImage    = ROData + 0x2200

	physBase = 0x100_0000
	memSize  = 0x200_0000
)

// Offsets of the members in the guest's structures, in bytes.
const (
	TaskSize  = 3072
	TaskState = 24
	TaskFlags = 44
	TaskTasks = 1200
	TaskMM    = 1280
	TaskPID   = 1344
	TaskTGID  = 1348
	TaskComm  = 2048
	MMPGD     = 72
	HotTask   = 0
	HotNumber = 12
	HotCount  = 8
	Running   = 3

	ModuleList = 8
	ModuleName = 24
	// ModuleMem is core_layout, with init_layout behind it, before 6.4 and the
	// array mem from then on; RegionSize is the size of each.
	ModuleMem   = 320
	RegionBase  = 0
	RegionBytes = 8
	RegionText  = 12 // before 6.4
	RegionSize  = 80
	Regions     = 7

	currentTask  = 0x2_1c0
	cpuNumber    = 0x2_1a8
	preemptCount = 0x2_1b0
	hot          = 0x2_200
)

// Config chooses a guest. The zero value is a running 6.1 with one vCPU.
type Config struct {
	Layout Layout
	// Base is where the image is mapped; 0 is 0xffffffff81000000.
	Base x86.VirtAddr
	// FiveLevels chooses 5-level paging.
	FiveLevels bool
	// CPUs is the number of vCPUs; 0 is 1.
	CPUs int
	// Early is a guest at its first write to LSTAR: nothing is set up.
	Early bool
	// Banner is the version text; "" is the constant.
	Banner string
	// NoBTF leaves out the type information, NoData the symbols of data
	// (a kernel without KALLSYMS_ALL).
	NoBTF, NoData bool
	// BTF replaces the type information. Otherwise it has Types besides its
	// own, Task are more members of struct task_struct, and MM of struct mm_struct.
	BTF   []byte
	Types []btf.Type
	Task  []btf.Member
	MM    []btf.Member
	// Data are more symbols of data, with their offsets from Base.
	Data map[string]x86.VirtAddr
	// Symbols is the number of made-up functions; 0 is 1500.
	Symbols int
	// Functions are more functions, 64 bytes apart from FirstFunction on.
	Functions []string
	// Variables are more symbols of data, 512 bytes apart from Variables on.
	Variables []string
	// UserRoot puts the vCPUs on the user half of page-table isolation.
	UserRoot bool
}

// Guest is a guest built.
type Guest struct {
	*guesttest.Builder
	Base     x86.VirtAddr
	PhysBase x86.PhysAddr
	// Regs are the registers of each vCPU, all in the kernel.
	Regs []x86.Registers
	// Syms is the symbol table, in its order.
	Syms []Sym
	// Kallsyms is where it starts, and KallsymsSize how long it is.
	Kallsyms     x86.VirtAddr
	KallsymsSize int
	// BTFStart is where the type information starts.
	BTFStart x86.VirtAddr
	// BTF is the type information.
	BTF []byte
}

// Addr returns the value of a symbol.
func (g *Guest) Addr(name string) x86.VirtAddr {
	for _, s := range g.Syms {
		if s.Name == name {
			return s.Addr
		}
	}
	panic("linuxtest: no symbol " + name)
}

// New builds a guest.
func New(c Config) *Guest {
	if c.Base == 0 {
		c.Base = 0xffff_ffff_8100_0000
	}
	c.CPUs = max(c.CPUs, 1)
	if c.Banner == "" {
		c.Banner = Banner
	}
	if c.Symbols == 0 {
		c.Symbols = 1500
	}
	levels := 4
	if c.FiveLevels {
		levels = 5
	}
	b := guesttest.New(levels, memSize)
	g := &Guest{Builder: b, Base: c.Base, PhysBase: physBase, BTF: c.BTF}
	switch {
	case g.BTF != nil:
	case c.Types != nil || c.Task != nil || c.MM != nil:
		g.BTF = types(c.Layout, c.Types, c.Task, c.MM)
	default:
		g.BTF = Types(c.Layout)
	}
	b.Map(c.Base, physBase, ImageSize, guest.Page2M, guesttest.Writable)
	b.Map(DirectMap, 0, 0x200000, guest.Page2M, guesttest.Writable|guesttest.NX)
	b.Map(DirectMap+0x200000, 0x200000, memSize-0x200000, guest.Page2M, guesttest.Writable|guesttest.NX)

	// The top-level table moves to where the kernel has its own.
	root := physBase + x86.PhysAddr(Data)
	copy(b.Mem[root:root+x86.PageSize], b.Mem[b.Root:b.Root+x86.PageSize])
	b.Root = root

	g.layOut(c)
	g.state(c)
	return g
}

// layOut places code, read-only data and symbols.
func (g *Guest) layOut(c Config) {
	base := c.Base
	banner := base + ROData + 0x100
	g.Write(banner, append([]byte(c.Banner), '\n', 0))

	var syms []Sym
	text := func(off x86.VirtAddr, name string) { syms = append(syms, Sym{base + off, false, 'T', name}) }
	data := func(off x86.VirtAddr, name string) {
		if !c.NoData {
			syms = append(syms, Sym{base + off, false, 'D', name})
		}
	}
	perCPU := func(off x86.VirtAddr, name string) {
		if c.Layout.Absolute() {
			syms = append(syms, Sym{off, true, 'A', name})
		} else {
			syms = append(syms, Sym{base + Data + 0x10_0000 + off, false, 'D', name})
		}
	}
	text(0, "_text")
	text(0, "_stext")
	text(Entry, "entry_SYSCALL_64")
	for i, name := range c.Functions {
		text(FirstFunction+x86.VirtAddr(i)*0x40, name)
	}
	text(0x1f00, "load_module")
	text(TextSize, "_etext")
	for i := range c.Symbols {
		off := x86.VirtAddr(0x2000 + i*2)
		name := fmt.Sprintf("func_%d_init", i)
		switch {
		case i%100 == 7:
			name = "local_lock" // the same name many times
		case i == 333 && c.Layout >= Relative61:
			name = fmt.Sprintf("_R%0200d", i) // more than 127 codes
		}
		syms = append(syms, Sym{base + off, false, 't', name})
	}
	perCPU(0, "__per_cpu_start")
	if c.Layout >= Seqs62 && c.Layout.Absolute() {
		perCPU(hot, "pcpu_hot")
	} else {
		perCPU(cpuNumber, "cpu_number")
		perCPU(currentTask, "current_task")
		perCPU(preemptCount, "__preempt_count")
	}
	data(ROData+0x100, "linux_banner")
	data(Data, "init_top_pgt")
	data(Data+0x3000, "system_state")
	data(Data+0x2000, "init_task")
	data(Data+0x2f00, "modules")
	poking := [2]string{"poking_mm", "poking_addr"}
	if !c.Layout.Absolute() {
		poking = [2]string{"text_poke_mm", "text_poke_mm_addr"}
	}
	data(Data+0x3010, poking[0])
	data(Data+0x3018, poking[1])
	data(Data+0x3040, "__per_cpu_offset")
	for name, off := range map[string]x86.VirtAddr{
		"__start_rodata": ROData, "__end_rodata": RODataEnd, "sys_call_table": SyscallTable,
		"__start___ex_table": ExTable, "__stop___ex_table": ExTable + exTableSize,
		"vdso_image_64": vdsoImage, "idt_table": IDT,
	} {
		if _, moved := c.Data[name]; !moved && !slices.Contains(c.Variables, name) {
			data(off, name)
		}
	}
	g.WriteUint64(base+vdsoImage, uint64(base+VDSO))
	g.WriteUint64(base+vdsoImage+8, VDSOSize)
	for i, name := range c.Variables {
		data(Variables+x86.VirtAddr(i)*variableSize, name)
	}
	for name, off := range c.Data {
		data(off, name)
	}
	data(ImageSize-0x1000, "_end")
	g.BTFStart = base + ROData + 0x10_0000
	if !c.NoBTF {
		g.Write(g.BTFStart, g.BTF)
		data(g.BTFStart-base, "__start_BTF")
		data(g.BTFStart-base+x86.VirtAddr(len(g.BTF)), "__stop_BTF")
	}
	sort.SliceStable(syms, func(i, j int) bool { return syms[i].Addr < syms[j].Addr })
	g.Syms = syms
	g.Kallsyms = base + ROData + 0x4008
	table := Kallsyms(c.Layout, base, g.Kallsyms, syms)
	g.KallsymsSize = len(table)
	// Something that is no zero right before it.
	g.Write(g.Kallsyms-8, []byte("\xff\xff\xff\xff\xff\xff\xff\xff"))
	g.Write(g.Kallsyms, table)
}

// state sets the variables and the registers.
func (g *Guest) state(c Config) {
	root := g.Root
	if c.UserRoot {
		// The pair: kernel half at an even page, user half after it, with
		// the entry code only.
		root += x86.PageSize
		kernel := g.Root
		g.Root = root
		g.Map(g.Base, g.PhysBase, 0x200000, guest.Page2M, 0)
		g.Root = kernel
	}
	slot := x86.VirtAddr(0)
	if !c.Layout.Absolute() {
		slot = g.Base + Data + 0x10_0000 // per-CPU symbols are addresses in the image
	}
	for i := range c.CPUs {
		area := DirectMap + PerCPU + x86.VirtAddr(i)<<16 - slot
		task := DirectMap + Tasks + x86.VirtAddr(i)<<12
		r := x86.Registers{
			CR0: x86.CR0PG | x86.CR0WP | x86.CR0PE, CR3: uint64(root), CR4: g.CR4() | x86.CR4SMEP | x86.CR4SMAP,
			EFER: g.EFER(), LSTAR: uint64(g.Base + Entry),
		}
		if c.Early {
			g.Regs = append(g.Regs, r)
			break
		}
		r.GSBase, r.RIP = uint64(area), uint64(g.Base+0x2000)
		g.Regs = append(g.Regs, r)
		if !c.NoData {
			g.WriteUint64(g.Addr("__per_cpu_offset")+x86.VirtAddr(8*i), uint64(area))
		}
		if c.Layout >= Seqs62 && c.Layout.Absolute() {
			g.WriteUint64(area+hot+HotTask, uint64(task))
			g.Write(area+hot+HotNumber, binary.LittleEndian.AppendUint32(nil, uint32(i)))
		} else {
			g.WriteUint64(area+g.Addr("current_task"), uint64(task))
			g.Write(area+g.Addr("cpu_number"), binary.LittleEndian.AppendUint32(nil, uint32(i)))
		}
		g.SetTask(i, int32(100+i), int32(100), fmt.Sprintf("task-%d", i))
	}
	if c.Early || c.NoData {
		return
	}
	g.Write(g.Addr("system_state"), []byte{Running, 0, 0, 0})
	for i := range x86.VirtAddr(2) { // an empty list
		g.WriteUint64(g.Addr("modules")+8*i, uint64(g.Addr("modules")))
	}
	g.SetPoking(c.Layout, uint64(DirectMap+PokingMM), uint64(Window))
	g.WriteUint64(DirectMap+PokingMM+MMPGD, uint64(DirectMap+PokingPGD))
}

// SetTask sets what the current task of a vCPU is.
func (g *Guest) SetTask(cpu int, pid, tgid int32, comm string) {
	task := DirectMap + Tasks + x86.VirtAddr(cpu)<<12
	g.Write(task+TaskPID, binary.LittleEndian.AppendUint32(nil, uint32(pid)))
	g.Write(task+TaskTGID, binary.LittleEndian.AppendUint32(nil, uint32(tgid)))
	var name [16]byte
	copy(name[:15], comm)
	g.Write(task+TaskComm, name[:])
}

// SetPoking sets the kernel's variables for patching itself.
func (g *Guest) SetPoking(l Layout, mm, addr uint64) {
	names := [2]string{"poking_mm", "poking_addr"}
	if !l.Absolute() {
		names = [2]string{"text_poke_mm", "text_poke_mm_addr"}
	}
	g.WriteUint64(g.Addr(names[0]), mm)
	g.WriteUint64(g.Addr(names[1]), addr)
}

// Types returns the type information of a kernel of that time, made by a
// library that is not the code under test.
func Types(l Layout) []byte {
	typesOnce.Do(func() {
		for i := range typesOf {
			typesOf[i] = types(Layout(i), nil, nil, nil)
		}
	})
	return append([]byte(nil), typesOf[l]...)
}

var (
	typesOnce sync.Once
	typesOf   [NumLayouts][]byte
)

func types(l Layout, more []btf.Type, members, ofMM []btf.Member) []byte {
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	long := &btf.Int{Name: "long unsigned int", Size: 8}
	pid := &btf.Typedef{Name: "pid_t", Type: integer}
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}
	list := &btf.Struct{Name: "list_head", Size: 16}
	list.Members = []btf.Member{{Name: "next", Type: &btf.Pointer{Target: list}}, {Name: "prev", Type: &btf.Pointer{Target: list}, Offset: 64}}
	mm := &btf.Struct{Name: "mm_struct", Size: 1024}
	mm.Members = []btf.Member{{Type: &btf.Struct{Size: 1024, Members: []btf.Member{
		{Name: "mmap_base", Type: long, Offset: 8 * 24},
		{Name: "pgd", Type: &btf.Pointer{Target: long}, Offset: 8 * MMPGD},
	}}}}
	mm.Members = append(mm.Members, ofMM...)
	state := "__state"
	if l < Relative5 {
		state = "state"
	}
	task := &btf.Struct{Name: "task_struct", Size: TaskSize}
	at := func(off uint32) btf.Bits { return btf.Bits(off * 8) }
	task.Members = []btf.Member{
		{Name: state, Type: integer, Offset: at(TaskState)},
		{Type: &btf.Struct{Size: TaskSize - 40, Members: []btf.Member{ // as randomize_layout makes it
			{Name: "flags", Type: integer, Offset: at(TaskFlags - 40)},
			{Name: "tasks", Type: list, Offset: at(TaskTasks - 40)},
			{Name: "mm", Type: &btf.Pointer{Target: mm}, Offset: at(TaskMM - 40)},
			{Name: "active_mm", Type: &btf.Pointer{Target: mm}, Offset: at(TaskMM + 8 - 40)},
			{Name: "pid", Type: pid, Offset: at(TaskPID - 40)},
			{Name: "tgid", Type: pid, Offset: at(TaskTGID - 40)},
			{Type: &btf.Union{Size: 4, Members: []btf.Member{{Name: "in_execve", Type: integer, BitfieldSize: 1}}}, Offset: at(1352 - 40)},
			{Name: "real_parent", Type: &btf.Pointer{Target: task}, Offset: at(1360 - 40)},
			{Name: "comm", Type: &btf.Array{Type: char, Index: integer, Nelems: 16}, Offset: at(TaskComm - 40)},
		}}, Offset: at(40)},
	}
	task.Members = append(task.Members, members...)
	states := &btf.Enum{Name: "system_states", Size: 4, Values: []btf.EnumValue{
		{Name: "SYSTEM_BOOTING", Value: 0}, {Name: "SYSTEM_SCHEDULING", Value: 1},
		{Name: "SYSTEM_FREEING_INITMEM", Value: 2}, {Name: "SYSTEM_RUNNING", Value: Running},
	}}
	region := &btf.Struct{Size: RegionSize, Members: []btf.Member{
		{Name: "base", Type: &btf.Pointer{Target: &btf.Void{}}, Offset: at(RegionBase)},
		{Name: "size", Type: integer, Offset: at(RegionBytes)},
	}}
	module := &btf.Struct{Name: "module", Size: 1024, Members: []btf.Member{
		{Name: "list", Type: list, Offset: at(ModuleList)},
		{Name: "name", Type: &btf.Array{Type: char, Index: integer, Nelems: 56}, Offset: at(ModuleName)},
	}}
	image := &btf.Struct{Name: "vdso_image", Size: 128, Members: []btf.Member{
		{Name: "data", Type: &btf.Pointer{Target: &btf.Void{}}, Offset: at(0)},
		{Name: "size", Type: long, Offset: at(8)},
	}}
	all := append([]btf.Type{task, mm, states, module, image}, more...)
	if l >= After64 {
		region.Name = "module_memory"
		module.Members = append(module.Members, btf.Member{
			Name: "mem", Type: &btf.Array{Type: region, Index: integer, Nelems: Regions}, Offset: at(ModuleMem),
		})
		all = append(all, &btf.Enum{Name: "mod_mem_type", Size: 4, Values: []btf.EnumValue{
			{Name: "MOD_TEXT", Value: 0}, {Name: "MOD_MEM_NUM_TYPES", Value: Regions},
		}})
	} else {
		region.Name = "module_layout"
		region.Members = append(region.Members, btf.Member{Name: "text_size", Type: integer, Offset: at(RegionText)})
		module.Members = append(module.Members,
			btf.Member{Name: "core_layout", Type: region, Offset: at(ModuleMem)},
			btf.Member{Name: "init_layout", Type: region, Offset: at(ModuleMem + RegionSize)})
	}
	if l >= Seqs62 && l.Absolute() {
		all = append(all, &btf.Struct{Name: "pcpu_hot", Size: 64, Members: []btf.Member{
			{Type: &btf.Union{Size: 64, Members: []btf.Member{{Type: &btf.Struct{Size: 16, Members: []btf.Member{
				{Name: "current_task", Type: &btf.Pointer{Target: task}, Offset: at(HotTask)},
				{Name: "preempt_count", Type: integer, Offset: at(HotCount)},
				{Name: "cpu_number", Type: integer, Offset: at(HotNumber)},
			}}}}}},
		}})
	}
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		panic(err)
	}
	blob, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		panic(err)
	}
	return blob
}
