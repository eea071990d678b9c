package linux

import (
	"bytes"

	"github.com/xen-hvi/hvi/engine/x86"
)

const (
	// maxModules bounds the walk of a list the guest can make endless.
	maxModules = 4096
	// moduleNameLen is MODULE_NAME_LEN on 64-bit, 64 - sizeof(long).
	moduleNameLen = 56
	// maxModuleMem bounds MOD_MEM_NUM_TYPES, which is 7 in 6.4.
	maxModuleMem = 16
	// maxModuleSize bounds a module's region: the module area is 1.5 GiB.
	maxModuleSize = 1 << 30
)

// ModuleOffsets lays out struct module. Before 6.4 a module's memory is
// core_layout and init_layout, afterwards the array mem.
type ModuleOffsets struct {
	Size       int
	State      int `c:"state"`
	List       int `c:"list"`
	Name       int `c:"name"`
	Init       int `c:"init"`
	Exit       int `c:"exit"`
	Taints     int `c:"taints"`
	BugList    int `c:"bug_list"`
	Kallsyms   int `c:"kallsyms"`
	SourceList int `c:"source_list"`
	Refcount   int `c:"refcnt"`
	CoreLayout int `c:"core_layout"`
	InitLayout int `c:"init_layout"`
	Mem        int `c:"mem"`
	MemTypes   int `c:"mem[]"`
	// What of its code the kernel patches.
	JumpEntries    int `c:"jump_entries"`
	NumJumpEntries int `c:"num_jump_entries"`
	StaticCalls    int `c:"static_call_sites"`
	NumStaticCalls int `c:"num_static_call_sites"`
	// How its code is unwound, see orcOf.
	NumOrcs int `c:"arch.num_orcs"`
	OrcIPs  int `c:"arch.orc_unwind_ip"`
	Orcs    int `c:"arch.orc_unwind"`
	// Pages of thunks that a module's indirect jumps go through where the
	// processor predicts them badly (ITS, 6.15 and stable kernels since).
	ITSPages    int `c:"its_page_array|arch.its_pages.pages"`
	ITSNumPages int `c:"its_num_pages|arch.its_pages.num"`
}

// ModuleAreaOffsets lays out an element of mem, or one of the two layouts.
type ModuleAreaOffsets struct {
	Size  int
	Base  int `c:"base"`
	Bytes int `c:"size"`
	// The borders inside a layout, from its base; an element of mem has none.
	TextSize        int `c:"text_size"`
	ROSize          int `c:"ro_size"`
	ROAfterInitSize int `c:"ro_after_init_size"`
}

// ModuleMemTypes are constants of enum mod_mem_type: indices into mem.
type ModuleMemTypes struct {
	Text        int `c:"MOD_TEXT"`
	Data        int `c:"MOD_DATA"`
	ROData      int `c:"MOD_RODATA"`
	ROAfterInit int `c:"MOD_RO_AFTER_INIT"`
	InitText    int `c:"MOD_INIT_TEXT"`
	InitData    int `c:"MOD_INIT_DATA"`
	InitROData  int `c:"MOD_INIT_RODATA"`
}

// ModuleUseOffsets lays out struct module_use, a module's using another.
type ModuleUseOffsets struct {
	SourceList int `c:"source_list"`
	Source     int `c:"source"`
}

// ModuleKallsymsOffsets lays out struct mod_kallsyms.
type ModuleKallsymsOffsets struct {
	Size    int
	Symtab  int `c:"symtab"`
	Symbols int `c:"num_symtab"`
	Strtab  int `c:"strtab"`
}

// Module is a loaded module, or one that is being loaded or unloaded.
type Module struct {
	// RawName is the module's name, NUL-padded; any bytes at all.
	RawName [moduleNameLen]byte
	// Base is where the part of it begins that holds the address asked for.
	Base x86.VirtAddr
}

// Name is RawName up to its first NUL. Its bytes are the guest's: quote them.
func (m *Module) Name() string {
	if i := bytes.IndexByte(m.RawName[:], 0); i >= 0 {
		return string(m.RawName[:i])
	}
	return string(m.RawName[:])
}

// ModuleAt finds the module whose memory holds an address and reports whether
// there is one. It walks the kernel's list of modules, so a module that has
// taken itself off it is not found. It does not allocate.
func (k *Kernel) ModuleAt(va x86.VirtAddr, m *Module) bool {
	o := &k.Offsets.Module
	if o.Name < 0 {
		return false
	}
	mod, base := k.moduleOf(va)
	if mod == 0 {
		return false
	}
	m.Base = base
	return k.as.Read(mod+x86.VirtAddr(o.Name), m.RawName[:]) == nil
}

// Maps reports whether the kernel's page tables map a frame at an address at this moment.
func (k *Kernel) Maps(va x86.VirtAddr, gfn x86.GFN) bool {
	t, err := k.as.Translate(va)
	return err == nil && t.Phys.GFN() == gfn
}

// moduleOf returns the struct module of the module whose memory holds an address, and
// where that part of it begins; 0 if there is none. It does not allocate.
func (k *Kernel) moduleOf(va x86.VirtAddr) (mod, base x86.VirtAddr) {
	o := &k.Offsets.Module
	if k.addr.modules == 0 || o.List < 0 || k.Offsets.ModuleRegion.Base < 0 || k.Offsets.ModuleRegion.Bytes < 0 {
		return 0, 0
	}
	node, err := k.as.ReadPointer(k.addr.modules)
	for i := 0; err == nil && i < maxModules && node != k.addr.modules && node.KernelHalf(); i++ {
		mod := node - x86.VirtAddr(o.List)
		if base, ok := k.moduleRegion(mod, va); ok {
			return mod, base
		}
		node, err = k.as.ReadPointer(node)
	}
	return 0, 0
}

// moduleRegion returns the start of the module's region that holds va.
func (k *Kernel) moduleRegion(mod, va x86.VirtAddr) (x86.VirtAddr, bool) {
	o := &k.Offsets.Module
	if o.Mem >= 0 {
		for i := range min(o.MemTypes, maxModuleMem) {
			if base, ok := k.regionHolds(mod+x86.VirtAddr(o.Mem+i*k.Offsets.ModuleRegion.Size), va); ok {
				return base, true
			}
		}
		return 0, false
	}
	for _, layout := range [...]int{o.CoreLayout, o.InitLayout} {
		if layout < 0 {
			continue
		}
		if base, ok := k.regionHolds(mod+x86.VirtAddr(layout), va); ok {
			return base, true
		}
	}
	return 0, false
}

func (k *Kernel) regionHolds(region, va x86.VirtAddr) (x86.VirtAddr, bool) {
	base, err := k.as.ReadPointer(region + x86.VirtAddr(k.Offsets.ModuleRegion.Base))
	if err != nil {
		return 0, false
	}
	size, err := k.as.ReadUint32(region + x86.VirtAddr(k.Offsets.ModuleRegion.Bytes))
	if err != nil || size > maxModuleSize {
		return 0, false
	}
	return base, va >= base && va < base+x86.VirtAddr(size)
}

// ImageAddr returns the address at which the kernel image maps a physical
// address, and whether it lies in the kernel's text. A write may reach text
// through any mapping; this names the one its symbols speak of.
func (k *Kernel) ImageAddr(pa x86.PhysAddr) (x86.VirtAddr, bool) {
	va := k.Base + x86.VirtAddr(pa-k.PhysBase)
	return va, pa >= k.PhysBase && va >= k.TextStart && va < k.TextEnd
}
