package linux

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestPlaces tells whose an address is, outside the image.
func TestPlaces(t *testing.T) {
	b := newKernelGuest(t, false)
	mod := b.addModule("virtio", coreBase)

	kallsyms, symtab, strtab := b.alloc(32), b.alloc(24*4), b.alloc(64)
	b.pointer(mod+x86.VirtAddr(b.k.Offsets.Module.Kallsyms), kallsyms)
	b.pointer(kallsyms, symtab)
	b.u32(kallsyms+8, 4)
	b.pointer(kallsyms+16, strtab)
	b.Write(strtab, []byte("\x00first\x00sec\x1bond\x00undefined\x00"))
	for i, s := range []struct {
		name, section uint32
		value         x86.VirtAddr
	}{{0, 0, 0}, {7, 1, coreBase + 0x100}, {1, 1, coreBase + 0x10}, {15, 0, coreBase + 0x20}} {
		at := symtab + x86.VirtAddr(i)*24
		b.u32(at, s.name)
		b.u32(at+4, s.section<<16)
		b.pointer(at+8, s.value)
	}
	const bpf, trampoline, slots = coreBase + 0x8_0000, coreBase + 0x9_0000, coreBase + 0xa_0000
	ksym := b.alloc(96)
	b.pointer(ksym, bpf)
	b.pointer(ksym+8, bpf+0x80)
	b.Write(ksym+16, []byte("bpf_prog_6deef7357e7b4530\x00"))
	b.link(b.Addr("bpf_kallsyms"), ksym+80)
	ops := b.alloc(72)
	b.pointer(b.Addr("ftrace_ops_list"), ops)
	b.pointer(ops+8, b.Addr("ftrace_list_end"))
	b.pointer(ops+40, trampoline)
	b.WriteUint64(ops+48, 0x100)
	page := b.alloc(32)
	b.pointer(page+16, slots)
	b.link(b.Addr("kprobe_insn_slots")+8, page)
	// A page of the kernel's text where a processor enters it, and one of data.
	b.Map(cpuEntryArea+0x6000, b.PhysBase+0x1000, x86.PageSize, guest.Page4K, 0)
	b.Map(cpuEntryArea+0x7000, b.PhysBase+0x40_0000, x86.PageSize, guest.Page4K, guesttest.NX)

	r := b.reader()
	for va, want := range map[x86.VirtAddr]report.Place{
		0:                     {In: report.InNothing},
		b.Base + 0x1084:       {In: report.InKernel, Symbol: "entry_SYSCALL_64", Offset: 4},
		b.Addr("prb") + 1:     {In: report.InData, Symbol: "prb", Offset: 1},
		coreBase + 4:          {In: report.InModule, Module: "virtio", Offset: 4},
		coreBase + 0x12:       {In: report.InModule, Module: "virtio", Symbol: "first", Offset: 2},
		coreBase + 0x4fff:     {In: report.InModule, Module: "virtio", Symbol: `sec\x1bond`, Offset: 0x4eff},
		coreBase + 0x5000:     {In: report.InUnknown},
		bpf + 0x7f:            {In: report.InBPF, Symbol: "bpf_prog_6deef7357e7b4530", Offset: 0x7f},
		bpf + 0x80:            {In: report.InUnknown},
		trampoline + 8:        {In: report.InFtrace, Symbol: "ftrace_trampoline", Offset: 8},
		slots + 0xfff:         {In: report.InFtrace, Symbol: "kprobe_insn_page", Offset: 0xfff},
		cpuEntryArea + 0x6080: {In: report.InKernel, Symbol: "entry_SYSCALL_64"},
		cpuEntryArea + 0x7000: {In: report.InUnknown},
		cpuEntryArea + 0x8000: {In: report.InUnknown},
		0x1000:                {In: report.InUser},
		^x86.VirtAddr(0):      {In: report.InUnknown},
		0xffff_c900_0000_0000: {In: report.InUnknown},
		b.Base - 1:            {In: report.InUnknown},
	} {
		want.Addr = va
		if got := r.place(va); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if r.codeMaps > maxCodeMaps {
		t.Errorf("asked %d times where code is", r.codeMaps)
	}
}

func TestSyscalls(t *testing.T) {
	b := newKernelGuest(t, false)
	for i := range 60 { // of 64 entries that there is room for
		b.pointer(b.Addr("sys_call_table")+x86.VirtAddr(i)*8, b.function(i))
	}
	b.pointer(b.Addr("ia32_sys_call_table"), b.function(1))
	tables, err := b.reader().Syscalls()
	if err != nil || len(tables.Items) != 2 {
		t.Fatal(tables, err)
	}
	if n := len(tables.Items[0].Entries); n != 60 || tables.Items[0].Name != "sys_call_table" || tables.Items[0].TracingOnly {
		t.Errorf("%d entries of %s", n, tables.Items[0].Name)
	}
	if e := tables.Items[0].Entries[59]; e.Number != 59 || e.Handler.Symbol != "func_59_init" || e.Handler.In != report.InKernel {
		t.Errorf("%+v", e)
	}
	if len(tables.Items[1].Entries) != 1 {
		t.Errorf("%+v", tables.Items[1])
	}
}

// TestDescriptors decodes gates and segments as the processor does.
func TestDescriptors(t *testing.T) {
	b := newKernelGuest(t, false)
	idt := b.alloc(maxIDT)
	gates := []struct {
		low, high uint64
		want      report.Gate
		none      bool
	}{
		{0x8100_8e00_0010_1080, 0xffff_ffff, report.Gate{Type: "interrupt", Handler: report.Place{Addr: b.Base + 0x1080, Symbol: "entry_SYSCALL_64", In: report.InKernel}}, false},
		{0x8100_ef03_0010_1084, 0xffff_ffff, report.Gate{Type: "trap", DPL: 3, IST: 3, Handler: report.Place{Addr: b.Base + 0x1084, Symbol: "entry_SYSCALL_64", Offset: 4, In: report.InKernel}}, false},
		{0x8100_0e00_0010_1080, 0xffff_ffff, report.Gate{}, true},
		{0x0001_8500_0010_0002, 0, report.Gate{Type: "type-5", Handler: report.Place{Addr: 0x1_0002, In: report.InUser}}, false},
	}
	for i, g := range gates {
		b.WriteUint64(idt+x86.VirtAddr(i)*16, g.low)
		b.WriteUint64(idt+x86.VirtAddr(i)*16+8, g.high)
	}
	gdt := b.alloc(64)
	for i, d := range []uint64{0, 0x00af_9b00_0000_ffff, 0x00cf_f300_0000_ffff, 0x1200_8b34_5678_4087, 0xffff_fe00, 0x0000_1200_0000_0000, 0x0000_ec00_0010_0000, 0} {
		b.WriteUint64(gdt+x86.VirtAddr(i)*8, d)
	}
	b.Regs[0].IDTBase, b.Regs[0].IDTLimit = uint64(idt), 4*16-1
	b.Regs[0].GDTBase, b.Regs[0].GDTLimit = uint64(gdt), 63

	got, err := b.reader().Interrupts()
	if err != nil {
		t.Fatal(err)
	}
	var want []report.Gate
	for i, g := range gates {
		if g.want.Vector = i; !g.none {
			want = append(want, g.want)
		}
	}
	if !slices.Equal(got.Items, want) {
		t.Errorf("%+v, want %+v", got.Items, want)
	}
	segments, err := b.reader().Segments()
	if err != nil || !slices.Equal(segments.Items, []report.Segment{
		{Index: 1, Type: "code", Limit: 0xffff_ffff, Long: true},
		{Index: 2, Type: "data", Limit: 0xffff_ffff, DPL: 3},
		{Index: 3, Type: "tss", Base: 0xffff_fe00_1234_5678, Limit: 0x4087},
		{Index: 6, Type: "type-12", Base: 0x10, DPL: 3},
	}) {
		t.Errorf("%+v, %v", segments.Items, err)
	}
	// Registers that lead nowhere.
	b.Regs[0].IDTBase, b.Regs[0].GDTBase, b.Regs[0].GDTLimit = 0xffff_c900_0000_0000, 0xffff_c900_0000_0000, 0xffff_ffff
	if got, err := b.reader().Interrupts(); err == nil {
		t.Errorf("%+v", got)
	}
	if got, err := b.reader().Segments(); err == nil {
		t.Errorf("%+v", got)
	}
	// None at all: the kernel's own table, and said so.
	b.WriteUint64(b.Addr("idt_table"), gates[0].low)
	b.WriteUint64(b.Addr("idt_table")+8, gates[0].high)
	if got, err := b.k.NewReader(nil).Interrupts(); err != nil || len(got.Items) != 1 || len(got.Reading.Incomplete) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// addProbes registers a kprobe, two at one address and a kretprobe, and a user
// of ftrace. It returns the addresses of the first and of the last.
func (b *kernelGuest) addProbes() (kprobe, ops x86.VirtAddr) {
	probe := func(target, handler x86.VirtAddr, flags uint32) x86.VirtAddr {
		at := b.alloc(96)
		b.pointer(at+32, target)
		b.pointer(at+40, handler)
		b.u32(at+56, flags)
		return at
	}
	table := b.Addr("kprobe_table")
	kprobe = probe(b.function(10), b.function(11), 0)
	b.chain(table+5*8, kprobe)
	aggregate := probe(b.function(20), b.Addr("aggr_pre_handler"), 0)
	b.chain(table+5*8, aggregate)
	b.emptyList(aggregate + 16)
	b.link(aggregate+16, probe(b.function(20), b.function(21), 0)+16)
	post := probe(b.function(20), 0, kprobeDisabled)
	b.pointer(post+48, b.function(22))
	b.link(aggregate+16, post+16)
	ret := probe(b.function(30), b.Addr("pre_handler_kretprobe"), 0)
	b.pointer(ret+80, b.function(31))
	b.chain(table+63*8, ret)

	ops = b.alloc(72)
	hashes, hash, buckets, entry := b.alloc(16), b.alloc(24), b.alloc(16), b.alloc(32)
	b.pointer(b.Addr("ftrace_ops_list"), ops)
	b.pointer(ops, b.function(41))
	b.pointer(ops+8, b.Addr("ftrace_list_end"))
	b.WriteUint64(ops+16, ftraceEnabled)
	b.pointer(ops+32, hashes)
	b.pointer(hashes+8, hash)
	b.WriteUint64(hash, 1)
	b.pointer(hash+8, buckets)
	b.WriteUint64(hash+16, 1)
	b.chain(buckets+8, entry)
	b.pointer(entry+16, b.function(40))
	return kprobe, ops
}

func TestProbes(t *testing.T) {
	b := newKernelGuest(t, false)
	b.addProbes()
	probes, err := b.reader().Probes()
	if err != nil {
		t.Fatal(err)
	}
	type probe struct {
		kind, target, handler string
		disabled              bool
	}
	var got []probe
	for _, p := range probes.Items {
		got = append(got, probe{p.Kind, string(p.Target.Symbol), string(p.Handler.Symbol), p.Disabled})
	}
	want := []probe{
		{"kprobe", "func_20_init", "func_21_init", false}, {"kprobe", "func_20_init", "func_22_init", true}, {"kprobe", "func_10_init", "func_11_init", false},
		{"kretprobe", "func_30_init", "func_31_init", false}, {"ftrace", "func_40_init", "func_41_init", false},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestProbesHostile(t *testing.T) {
	for name, bend := range map[string]func(b *kernelGuest, kprobe, ops x86.VirtAddr){
		"chain to itself":     func(b *kernelGuest, kprobe, _ x86.VirtAddr) { b.pointer(kprobe, kprobe); b.pointer(kprobe+8, kprobe) },
		"chain to nowhere":    func(b *kernelGuest, kprobe, _ x86.VirtAddr) { b.pointer(kprobe, 0xffff_c900_0000_0000) },
		"user half":           func(b *kernelGuest, _, _ x86.VirtAddr) { b.pointer(b.Addr("kprobe_table"), 0x1000) },
		"ftrace to itself":    func(b *kernelGuest, _, ops x86.VirtAddr) { b.pointer(ops+8, ops) },
		"ftrace to nowhere":   func(b *kernelGuest, _, ops x86.VirtAddr) { b.pointer(ops+8, 0) },
		"many functions":      func(b *kernelGuest, _, ops x86.VirtAddr) { b.WriteUint64(b.get(b.get(ops+32)+8)+16, 1<<40) },
		"many buckets":        func(b *kernelGuest, _, ops x86.VirtAddr) { b.WriteUint64(b.get(b.get(ops+32)+8), 40) },
		"buckets are nowhere": func(b *kernelGuest, _, ops x86.VirtAddr) { b.pointer(b.get(b.get(ops+32)+8)+8, 0x1000) },
	} {
		b := newKernelGuest(t, false)
		kprobe, ops := b.addProbes()
		bend(b, kprobe, ops)
		if probes, err := b.reader().Probes(); err == nil {
			t.Errorf("%s: %+v", name, probes)
		}
	}
}

// checkOf runs a check by its name. Where the guest runs, wait is what happens
// between two looks.
func (b *kernelGuest) checkOf(t *testing.T, name string, wait func(time.Duration)) []report.Finding {
	t.Helper()
	i := slices.IndexFunc(kernelChecks, func(c check) bool { return c.name == name })
	r := b.reader()
	r.wait = wait
	_, found, err := kernelChecks[i].run(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return found
}

// TestCheckModules finds a module that is in the kernel's other books alone, and
// code that is nobody's; not one that is just being removed.
func TestCheckModules(t *testing.T) {
	build := func() (*kernelGuest, x86.VirtAddr) {
		b := newKernelGuest(t, false)
		mod := b.addModule("virtio", coreBase)
		b.Map(coreBase, 0x40_0000, 0x5000, guest.Page4K, 0)
		b.Mem[0x40_0000] = 0x55
		b.Mem[0x40_4000] = 0x55
		return b, mod
	}
	unlink := func(b *kernelGuest, node x86.VirtAddr) {
		b.pointer(b.get(node+8), b.get(node))
		b.pointer(b.get(node)+8, b.get(node+8))
	}
	b, mod := build()
	if found := b.checkOf(t, "hidden-modules", nil); len(found) != 0 {
		t.Errorf("a clean guest: %+v", found)
	}
	list, bugs := mod+x86.VirtAddr(b.k.Offsets.Module.List), mod+x86.VirtAddr(b.k.Offsets.Module.BugList)
	unlink(b, list)
	found := b.checkOf(t, "hidden-modules", nil)
	if len(found) != 1 || found[0].Object != "module virtio" || found[0].Place == nil || found[0].Place.Addr != coreBase {
		t.Errorf("off the list: %+v", found)
	}
	unlink(b, bugs)
	unlink(b, b.get(b.get(b.Addr("module_kset"))))
	found = b.checkOf(t, "hidden-modules", nil)
	if len(found) != 2 || found[0].Object != "4096 bytes of code at 0xffffffffc0200000" || found[1].Object != "4096 bytes of code at 0xffffffffc0204000" {
		t.Errorf("out of every book: %+v", found)
	}

	b, mod = build()
	unlink(b, mod+x86.VirtAddr(b.k.Offsets.Module.List))
	looks := 0
	found = b.checkOf(t, "hidden-modules", func(time.Duration) {
		if looks++; looks == 2 { // by now it has gone from everywhere
			unlink(b, mod+x86.VirtAddr(b.k.Offsets.Module.BugList))
			unlink(b, b.get(b.get(b.Addr("module_kset"))))
			for i := range x86.PhysAddr(5) {
				b.Put(b.Entry(coreBase+x86.VirtAddr(i)*x86.PageSize, 1), 0)
			}
		}
	})
	if len(found) != 0 || looks != 2 {
		t.Errorf("a module on its way out: %+v after %d more looks", found, looks)
	}

	b, mod = build()
	unlink(b, mod+x86.VirtAddr(b.k.Offsets.Module.List))
	looks = 0
	if found := b.checkOf(t, "hidden-modules", func(time.Duration) { looks++ }); len(found) != 1 || looks != persistLooks {
		t.Errorf("a module that stays: %+v after %d more looks", found, looks)
	}
	// One that is called something else in each look is the same.
	looks = 0
	found = b.checkOf(t, "hidden-modules", func(time.Duration) {
		looks++
		b.Write(mod+x86.VirtAddr(b.k.Offsets.Module.Name), fmt.Appendf(nil, "name%d\x00", looks))
	})
	if len(found) != 1 || found[0].Object != report.Text(fmt.Sprintf("module name%d", persistLooks)) {
		t.Errorf("a module that changes its name: %+v after %d more looks", found, looks)
	}
	// Of an image nobody can tell, unless it says that it is in use.
	b.u32(mod, 3)
	if found := b.checkOf(t, "hidden-modules", nil); len(found) != 0 {
		t.Errorf("perhaps a module on its way out: %+v", found)
	}
}

// TestCheckCodeThatMoves: code that is in other memory in each look is another's
// each time.
func TestCheckCodeThatMoves(t *testing.T) {
	b := newKernelGuest(t, false)
	b.Map(coreBase, 0x40_0000, 0x1000, guest.Page4K, 0)
	b.Mem[0x40_0000], b.Mem[0x40_1000] = 0x55, 0x55
	entry := b.Entry(coreBase, 1)
	looks := 0
	found := b.checkOf(t, "hidden-modules", func(time.Duration) {
		looks++
		b.Put(entry, b.Get(entry)^0x1000)
	})
	if len(found) != 0 || looks != 1 {
		t.Errorf("%+v after %d more looks", found, looks)
	}
}

// TestCheckNoModules: a kernel that never had a module has nothing mapped where
// they would be.
func TestCheckNoModules(t *testing.T) {
	if found := newKernelGuest(t, false).checkOf(t, "hidden-modules", nil); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

// TestCheckHooks finds handlers that are nobody's code.
func TestCheckHooks(t *testing.T) {
	b := newKernelGuest(t, false)
	kprobe, ops := b.addProbes()
	hook := b.alloc(40)
	b.chain(b.Addr("security_hook_heads")+3*8, hook)
	b.pointer(hook+24, b.function(50))
	for i := range 60 {
		b.pointer(b.Addr("sys_call_table")+x86.VirtAddr(i)*8, b.function(i))
	}
	gate := func(to x86.VirtAddr) {
		b.WriteUint64(b.Addr("idt_table"), uint64(to&0xffff|to>>16&0xffff<<48|0x8e00_0010_0000))
		b.WriteUint64(b.Addr("idt_table")+8, uint64(to>>32))
	}
	gate(b.function(7))
	b.Regs[0].IDTBase, b.Regs[0].IDTLimit = uint64(b.Addr("idt_table")), 15
	names := []string{"kprobes", "ftrace-hooks", "lsm-hooks", "syscall-table", "interrupt-table", "entry-points"}
	for _, name := range names {
		if found := b.checkOf(t, name, nil); len(found) != 0 {
			t.Errorf("a clean guest: %+v", found)
		}
	}
	evil := b.alloc(16 * (persistLooks + 1))
	set := func() {
		b.pointer(kprobe+40, evil)
		b.pointer(ops, evil)
		b.pointer(hook+24, evil)
		b.pointer(b.Addr("sys_call_table")+62/2*8, evil)
		gate(evil)
		b.Regs[0].LSTAR = uint64(evil)
	}
	set()
	for _, name := range names {
		if found := b.checkOf(t, name, nil); len(found) != 1 || found[0].Place == nil || found[0].Place.Addr != evil {
			t.Errorf("%s: %+v", name, found)
		}
		// One that leads elsewhere in each look is never right.
		first, looks := evil, 0
		found := b.checkOf(t, name, func(time.Duration) {
			looks++
			evil += 16
			set()
		})
		if len(found) != 1 || found[0].Place == nil || found[0].Place.Addr != evil || looks != persistLooks {
			t.Errorf("%s, moving: %+v after %d more looks", name, found, looks)
		}
		evil = first
		set()
	}
	// Without registers, or with those that a memory image holds, there are no
	// entry points to look at.
	for _, regs := range [][]x86.Registers{nil, {{CR3: b.Regs[0].CR3}}} {
		if _, _, err := b.k.NewReader(regs).checkEntryPoints(); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
	}
}

func TestNoCode(t *testing.T) {
	for _, c := range []struct {
		code string
		want bool
	}{
		{"", true}, {"\xcc\xcc\xcc", true}, {"\x00\x00", true}, {"\x41\xff\xe3\xcc\xff\xe0\xcc", true}, {"\xea\x75\xfd\xff\xe1\xcc", true},
		{"\x90", false}, {"\xff", false}, {"\xff\xd0", false}, {"\x41\xff", false}, {"\xcc\xcc\xe9\x00\x00\x00\x00", false}, {"\xea\x75", false},
	} {
		if got := noCode([]byte(c.code)); got != c.want {
			t.Errorf("%x: %v", c.code, got)
		}
	}
}

// FuzzKernelViews lets a guest write the memory of all structures that the views
// of the kernel read. Every view must end, without a panic.
func FuzzKernelViews(f *testing.F) {
	const size = 0x3000
	var guests [2]*kernelGuest
	for i := range guests {
		b := newKernelGuest(f, i == 1)
		b.addProbes()
		b.addModule("virtio", coreBase)
		b.writeLog(16, []testRecord{{state: 2, text: "first"}, {state: 2, text: "second"}})
		if b.next > b.Base+structures+size {
			f.Fatalf("structures to %v", b.next)
		}
		guests[i] = b
		from := b.PhysBase + structures
		f.Add(i == 1, slices.Clone(b.Mem[from:from+size]))
		f.Add(i == 1, slices.Concat(b.Mem[from:from+64], []byte("\xff\xff\xff\xff\xff\xff\xff\xff")))
	}
	f.Fuzz(func(t *testing.T, arrays bool, data []byte) {
		b := guests[0]
		if arrays {
			b = guests[1]
		}
		area := b.Mem[b.PhysBase+structures:][:size]
		clear(area)
		copy(area, data)
		r := b.reader()
		mods, err := r.Modules()
		if err == nil && len(mods.Items) > maxModules {
			t.Errorf("%d modules", len(mods.Items))
		}
		if log, err := r.Log(); err == nil && len(log.Items) > maxLogRecords {
			t.Errorf("%d records", len(log.Items))
		}
		_, _ = r.Probes()
		_, _ = r.Syscalls()
		_, _ = r.Interrupts()
		if frames, err := r.SealedModuleFrames(); err == nil && len(frames) > maxSealedFrames {
			t.Errorf("%d frames", len(frames))
		}
		for _, c := range kernelChecks {
			_, found, _ := c.run(r)
			if len(found) > 2*maxFindings {
				t.Errorf("%d findings", len(found))
			}
		}
	})
}
