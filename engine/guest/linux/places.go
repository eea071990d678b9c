package linux

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// BPFSymbolOffsets lays out struct bpf_ksym (5.7): a stretch of code that the
// BPF compiler made, be it a program's, a trampoline's or a dispatcher's.
type BPFSymbolOffsets struct {
	Size  int
	Start int `c:"start"`
	End   int `c:"end"`
	Name  int `c:"name"`
	Node  int `c:"lnode"`
}

// BPFPackOffsets lays out struct bpf_prog_pack (5.18), a large page that many
// programs share.
type BPFPackOffsets struct {
	List int `c:"list"`
	Ptr  int `c:"ptr"`
}

// FtraceOpsOffsets lays out struct ftrace_ops, a user of ftrace.
type FtraceOpsOffsets struct {
	Size           int
	Func           int `c:"func"`
	Next           int `c:"next"`
	Flags          int `c:"flags"`
	SavedFunc      int `c:"saved_func"`
	FuncHash       int `c:"func_hash"`
	Trampoline     int `c:"trampoline"`
	TrampolineSize int `c:"trampoline_size"`
	List           int `c:"list"`
}

// InsnCacheOffsets lays out struct kprobe_insn_cache: pages for the
// instructions that kprobes displaced, or for optprobes' detours.
type InsnCacheOffsets struct {
	Pages int `c:"pages"`
}

// InsnPageOffsets lays out struct kprobe_insn_page.
type InsnPageOffsets struct {
	List  int `c:"list"`
	Insns int `c:"insns"`
}

// Bounds of what a guest may have of code outside its image.
const (
	maxBPFSymbols = 1 << 16
	maxBPFPacks   = 1 << 12
	maxBPFCode    = 16 << 20 // of one program
	maxFtraceOps  = 1 << 14
	maxTrampoline = 1 << 16 // of one ftrace user
	maxInsnPages  = 1 << 14
	maxITSPages   = 1 << 12 // of one module
	bpfNameLen    = 512     // KSYM_NAME_LEN since 6.1; 128 before
	maxModuleSyms = 1 << 16
	// maxAllSyms bounds the symbols of all modules whose places are named in
	// one reading, in memory 16 bytes each.
	maxAllSyms = 1 << 19
	// maxCodeMaps bounds how often one reading learns anew where code is.
	maxCodeMaps = 4
)

// cpuEntryArea is where the kernel maps what a processor needs while it
// enters the kernel, CPU_ENTRY_AREA_BASE: one entry of the top-level table.
const (
	cpuEntryArea    = x86.VirtAddr(0xffff_fe00_0000_0000)
	cpuEntryAreaEnd = x86.VirtAddr(0xffff_fe80_0000_0000)
)

// codeRegion is memory outside the kernel's image that has an owner.
type codeRegion struct {
	start, end x86.VirtAddr
	in         report.Region
	// base is what offsets are counted from where no symbol is known.
	base   x86.VirtAddr
	symbol report.Text
	mod    *moduleSymbols
}

// moduleSymbols names the places in a module. The table is read when it is
// first needed.
type moduleSymbols struct {
	name     report.Text
	kallsyms x86.VirtAddr
	read     bool
	syms     []moduleSymbol // by address
	strtab   x86.VirtAddr
}

type moduleSymbol struct {
	addr x86.VirtAddr
	name uint32 // in strtab
}

// codeMap is who owns what outside the kernel's image, by address. Regions may
// lie inside others; the one that starts last is the most telling.
type codeMap struct {
	regions []codeRegion
	// reach is the highest end of the regions up to each.
	reach []x86.VirtAddr
}

func (m *codeMap) add(start, end x86.VirtAddr, in report.Region, symbol report.Text) *codeRegion {
	m.regions = append(m.regions, codeRegion{start: start, end: end, in: in, base: start, symbol: symbol})
	return &m.regions[len(m.regions)-1]
}

func (m *codeMap) sort() {
	slices.SortStableFunc(m.regions, func(a, b codeRegion) int { return cmp.Compare(a.start, b.start) })
	m.reach = make([]x86.VirtAddr, len(m.regions))
	top := x86.VirtAddr(0)
	for i, g := range m.regions {
		top = max(top, g.end)
		m.reach[i] = top
	}
}

// find returns the region that holds an address, or nil.
func (m *codeMap) find(va x86.VirtAddr) *codeRegion {
	for i := sort.Search(len(m.regions), func(i int) bool { return m.regions[i].start > va }) - 1; i >= 0 && m.reach[i] > va; i-- {
		if va < m.regions[i].end {
			return &m.regions[i]
		}
	}
	return nil
}

// look is what one reading, or one look of a check, remembers and may spend.
type look struct {
	// code is who owns what outside the kernel's image, nil until it is asked
	// for; codeMaps counts how often it was learned.
	code     *codeMap
	codeMaps int
	// moduleSyms counts the symbols of modules that are in memory, steps the
	// entries of lists.
	moduleSyms, steps int
	// strayTargets are pages that a pointer leads to and that no part of the kernel owns:
	// whether the BPF compiler did not ask for them either.
	strayTargets map[x86.VirtAddr]bool
}

// beginLook forgets what was learned before.
func (r *Reader) beginLook() { r.look = look{} }

// place says what code or data an address belongs to.
func (r *Reader) place(va x86.VirtAddr) report.Place {
	p := report.Place{Addr: va, In: report.InUnknown}
	if va == 0 {
		p.In = report.InNothing
		return p
	}
	if !va.KernelHalf() {
		p.In = report.InUser
		return p
	}
	if r.placeInImage(va, &p) {
		return p
	}
	if va >= cpuEntryArea && va < cpuEntryAreaEnd {
		// With page-table isolation of 4.15 to 4.19 the entry code is mapped
		// here once more.
		if t, err := r.as.Translate(va); err == nil && !t.NX {
			if image, ok := r.k.ImageAddr(t.Phys); ok && r.placeInImage(image, &p) {
				return p
			}
		}
		return p
	}
	g := r.codeMap().find(va)
	if g == nil && r.codeMaps < maxCodeMaps {
		// Perhaps it has come since.
		r.code = nil
		g = r.codeMap().find(va)
	}
	if g == nil {
		return p
	}
	p.In, p.Symbol, p.Offset = g.in, g.symbol, uint64(va-g.base)
	if g.mod != nil {
		p.Module = g.mod.name
		if name, off, ok := r.moduleSymbol(g.mod, va); ok {
			p.Symbol, p.Offset = name, off
		}
	}
	return p
}

// inText reports whether an address is in the kernel's own code, for who need not know
// where: to find its name takes longer than most checks.
func (k *Kernel) inText(va x86.VirtAddr) bool {
	return va >= k.TextStart && va < k.TextEnd && va >= k.Symbols.base && va < k.Symbols.end
}

// placeInImage fills in a place in the kernel's image.
func (r *Reader) placeInImage(va x86.VirtAddr, p *report.Place) bool {
	name, off, ok := r.k.Symbols.Symbolize(va)
	if !ok {
		return false
	}
	p.Symbol, p.Offset, p.In = printable.Escape(name), off, report.InData
	if va >= r.k.TextStart && va < r.k.TextEnd {
		p.In = report.InKernel
	}
	return true
}

// codeMap returns who owns what outside the image, as of this reading. What
// can't be read of it is said to be missing.
func (r *Reader) codeMap() *codeMap {
	if r.code != nil {
		return r.code
	}
	r.codeMaps++
	m := &codeMap{}
	for _, part := range [...]struct {
		what string
		add  func(*codeMap) error
	}{
		{"the modules' memory", r.addModules},
		{"the BPF compiler's code", r.addBPF},
		{"ftrace's trampolines", r.addFtrace},
		{"the kprobes' code", r.addKprobes},
	} {
		n := len(m.regions)
		err := r.consistently(part.what, func() error {
			m.regions = m.regions[:n]
			return part.add(m)
		})
		if err != nil {
			m.regions = m.regions[:n]
			if r.codeMaps == 1 {
				r.missing("places in %s: %v", part.what, err)
			}
		}
	}
	m.sort()
	r.code = m
	return m
}

func (r *Reader) addModules(m *codeMap) error {
	return r.eachModule(func(mod x86.VirtAddr) error {
		info, o, err := r.copyModule(mod)
		if err != nil {
			return err
		}
		off := &r.k.Offsets.Module
		syms := &moduleSymbols{name: info.Name, kallsyms: o.pointer(off.Kallsyms)}
		for _, a := range info.Regions {
			g := m.add(a.Base, a.Base+x86.VirtAddr(a.Size), report.InModule, "")
			g.mod, g.base = syms, info.Base
			if g.start < g.base {
				g.base = g.start
			}
		}
		pages := o.pointer(off.ITSPages)
		for i := range min(o.u32(off.ITSNumPages), maxITSPages) {
			if page, err := r.as.ReadPointer(pages + x86.VirtAddr(i)*8); err == nil && page.KernelHalf() {
				g := m.add(page, page+x86.PageSize, report.InModule, "")
				g.mod = syms
			}
		}
		return nil
	})
}

func (r *Reader) addBPF(m *codeMap) error {
	o := &r.k.Offsets.BPFSymbol
	head, err := r.variable("bpf_kallsyms")
	if err == nil {
		err = need("bpf_ksym.start", o.Start, "bpf_ksym.end", o.End, "bpf_ksym.name", o.Name, "bpf_ksym.lnode", o.Node)
	}
	if errors.Is(err, ErrUnsupported) {
		if _, ok := r.k.Symbols.Lookup("bpf_prog_alloc"); !ok {
			return nil // a kernel without BPF
		}
	}
	if err != nil {
		return err
	}
	var sym object
	err = r.walk("BPF symbols", head, maxBPFSymbols, func(node x86.VirtAddr) error {
		if err := r.read(&sym, node-x86.VirtAddr(o.Node), o.Size); err != nil {
			return errTorn
		}
		start, end := sym.pointer(o.Start), sym.pointer(o.End)
		if start.KernelHalf() && end > start && end-start <= maxBPFCode {
			m.add(start, end, report.InBPF, sym.text(o.Name, min(bpfNameLen, o.Size-o.Name)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.addBPFPacks(m)
}

// addBPFPacks adds the pages that programs share. Those made of classic filters
// (seccomp's) have no name of their own.
func (r *Reader) addBPFPacks(m *codeMap) error {
	o := &r.k.Offsets.BPFPack
	head, err := r.variable("pack_list")
	if err != nil || o.List < 0 || o.Ptr < 0 {
		return nil // before 5.18
	}
	// BPF_PROG_PACK_SIZE: 2 MiB for each possible node.
	nodes := 1
	if states, err := r.variable("node_states"); err == nil {
		if mask, err := r.as.ReadUint64(states); err == nil { // N_POSSIBLE is the first
			nodes = max(bits.OnesCount64(mask), 1)
		}
	}
	return r.walk("BPF packs", head, maxBPFPacks, func(node x86.VirtAddr) error {
		at, err := r.as.ReadPointer(node + x86.VirtAddr(o.Ptr-o.List))
		if err != nil || !at.KernelHalf() {
			return errTorn
		}
		end := at
		for limit := at + x86.VirtAddr(nodes)*guest.Page2M; end < limit; {
			t, err := r.as.Translate(end)
			if err != nil || t.NX {
				break
			}
			end += x86.VirtAddr(t.PageEnd(end))
		}
		m.add(at, end, report.InBPF, "")
		return nil
	})
}

// addFtrace adds the trampolines of ftrace's users.
func (r *Reader) addFtrace(m *codeMap) error {
	if _, ok := r.k.Symbols.Lookup("ftrace_ops_list"); !ok {
		return nil // built without CONFIG_FUNCTION_TRACER
	}
	o := &r.k.Offsets.FtraceOps
	add := func(ops x86.VirtAddr) error {
		var f object
		if err := r.read(&f, ops, o.Size); err != nil {
			return errTorn
		}
		start, size := f.pointer(o.Trampoline), f.u64(o.TrampolineSize)
		if start.KernelHalf() && size > 0 && size <= maxTrampoline {
			m.add(start, start+x86.VirtAddr(size), report.InFtrace, "ftrace_trampoline")
		}
		return nil
	}
	if err := r.eachFtraceOps(add); err != nil {
		return err
	}
	// From 5.8 on a list of trampolines has those whose users are just coming
	// or going, too.
	head, err := r.variable("ftrace_ops_trampoline_list")
	if err != nil || o.List < 0 {
		return nil
	}
	return r.walk("ftrace's trampolines", head, maxFtraceOps, func(node x86.VirtAddr) error {
		return add(node - x86.VirtAddr(o.List))
	})
}

// eachFtraceOps walks the users of ftrace. The list is a chain that ends in
// ftrace_list_end, whose links go one way only; a walk that ends there saw a
// list that was whole at each of its steps.
func (r *Reader) eachFtraceOps(f func(ops x86.VirtAddr) error) error {
	o := &r.k.Offsets.FtraceOps
	if err := need("ftrace_ops.func", o.Func, "ftrace_ops.next", o.Next, "ftrace_ops.flags", o.Flags); err != nil {
		return err
	}
	head, err := r.variable("ftrace_ops_list")
	if err != nil {
		return err
	}
	end, err := r.variable("ftrace_list_end")
	if err != nil {
		return err
	}
	ops, err := r.as.ReadPointer(head)
	if err != nil {
		return &ReadError{What: "ftrace_ops_list", Err: err}
	}
	for n := 0; ops != end; n++ {
		if err := r.step(); err != nil {
			return err
		}
		if n >= maxFtraceOps {
			return &ReadError{What: "ftrace_ops_list", Got: fmt.Sprintf("more than %d entries", maxFtraceOps), Err: ErrImplausible}
		}
		if !ops.KernelHalf() || ops&7 != 0 {
			return errTorn
		}
		if err := f(ops); err != nil {
			return err
		}
		if ops, err = r.as.ReadPointer(ops + x86.VirtAddr(o.Next)); err != nil {
			return errTorn
		}
	}
	return nil
}

// addKprobes adds the pages that hold displaced instructions and detours.
func (r *Reader) addKprobes(m *codeMap) error {
	cache, page := &r.k.Offsets.InsnCache, &r.k.Offsets.InsnPage
	for _, name := range [...]string{"kprobe_insn_slots", "kprobe_optinsn_slots"} {
		at, err := r.variable(name)
		if err != nil {
			continue // built without CONFIG_KPROBES, or CONFIG_OPTPROBES
		}
		if err := need("kprobe_insn_cache.pages", cache.Pages, "kprobe_insn_page.list", page.List, "kprobe_insn_page.insns", page.Insns); err != nil {
			return err
		}
		symbol := report.Text("kprobe_insn_page")
		if name == "kprobe_optinsn_slots" {
			symbol = "kprobe_optinsn_page"
		}
		err = r.walk(name, at+x86.VirtAddr(cache.Pages), maxInsnPages, func(node x86.VirtAddr) error {
			insns, err := r.as.ReadPointer(node + x86.VirtAddr(page.Insns-page.List))
			if err != nil || !insns.KernelHalf() {
				return errTorn
			}
			m.add(insns, insns+x86.PageSize, report.InFtrace, symbol)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// moduleSymbol names a place in a module by the module's own symbol table.
func (r *Reader) moduleSymbol(m *moduleSymbols, va x86.VirtAddr) (name report.Text, off uint64, ok bool) {
	if !m.read {
		m.read = true
		r.readModuleSymbols(m)
	}
	i := sort.Search(len(m.syms), func(i int) bool { return m.syms[i].addr > va }) - 1
	if i < 0 {
		return "", 0, false
	}
	for i > 0 && m.syms[i-1].addr == m.syms[i].addr {
		i--
	}
	s, err := r.as.ReadCString(m.strtab+x86.VirtAddr(m.syms[i].name), maxNameLen)
	if err != nil || s == "" {
		return "", 0, false
	}
	return printable.Escape(s), uint64(va - m.syms[i].addr), true
}

// readModuleSymbols reads the symbol table of a module, as far as it can be.
// Without one, places in the module have no symbol.
func (r *Reader) readModuleSymbols(m *moduleSymbols) {
	o := &r.k.Offsets.ModuleKallsyms
	if m.kallsyms == 0 || need("symtab", o.Symtab, "num_symtab", o.Symbols, "strtab", o.Strtab) != nil {
		return
	}
	var head, table object
	if r.read(&head, m.kallsyms, o.Size) != nil {
		return
	}
	const entry = 24 // sizeof(Elf64_Sym)
	n := head.u32(o.Symbols)
	if r.moduleSyms += int(min(n, maxModuleSyms)); r.moduleSyms > maxAllSyms {
		return
	}
	if n == 0 || n > maxModuleSyms || r.read(&table, head.pointer(o.Symtab), int(n)*entry) != nil {
		return
	}
	m.strtab = head.pointer(o.Strtab)
	if !m.strtab.KernelHalf() {
		return
	}
	for i := range int(n) {
		e := table.b[i*entry:]
		const undefined = 0 // SHN_UNDEF
		name, section, value := le32(e), uint16(e[6])|uint16(e[7])<<8, le64(e[8:])
		if name != 0 && section != undefined && x86.VirtAddr(value).KernelHalf() {
			m.syms = append(m.syms, moduleSymbol{x86.VirtAddr(value), name})
		}
	}
	slices.SortStableFunc(m.syms, func(a, b moduleSymbol) int {
		return cmp.Compare(a.addr, b.addr)
	})
}
