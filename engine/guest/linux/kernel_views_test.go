package linux

import (
	"encoding/binary"
	"errors"

	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/x86"
)

// variables are those of the kernel that its views begin at.
var variables = []string{
	"prb", "sys_call_table", "ia32_sys_call_table", "kprobe_table", "ftrace_ops_list", "ftrace_list_end", "ftrace_ops_trampoline_list",
	"bpf_kallsyms", "pack_list", "kprobe_insn_slots", "module_kset", "mod_tree", "module_bug_list", "security_hook_heads", "direct_functions",
	"aggr_pre_handler", "pre_handler_kretprobe", "log_buf", "log_buf_len", "log_first_idx", "log_next_idx", "log_first_seq",
	"real_mode_header", "real_mode_blob", "real_mode_blob_end", "hv_hypercall_pg", "kexec_image", "page_offset_base", "vmalloc_base", "vmemmap_base",
	"idt_table", "", "", "", "", "", "", "", "tainted_mask", "die_counter", "end_of_variables",
}

const (
	structures = linuxtest.Variables + 0x5000 // from the image's base, behind the variables
	listPoison = 0xdead_0000_0000_0122
)

// testOffsets is a layout of the kernel's structures, as small as can be.
func testOffsets(o *Offsets, arrays bool) {
	o.Module = ModuleOffsets{Size: 512, State: 0, List: 8, Name: 24, Init: 80, Exit: 88, Taints: 96, BugList: 104, Kallsyms: 120, SourceList: 128, Refcount: 144,
		CoreLayout: 160, InitLayout: 192, Mem: NoOffset, ITSPages: 456, ITSNumPages: 464}
	o.ModuleRegion = ModuleAreaOffsets{Size: 32, Base: 0, Bytes: 8, TextSize: 12, ROSize: 16, ROAfterInitSize: 20}
	o.ModuleMem = ModuleMemTypes{Text: 0, Data: 1, ROData: 2, ROAfterInit: 3, InitText: 4, InitData: 5, InitROData: 6}
	if arrays {
		o.Module.CoreLayout, o.Module.InitLayout, o.Module.Mem, o.Module.MemTypes = NoOffset, NoOffset, 160, 7
		o.ModuleRegion.TextSize, o.ModuleRegion.ROSize, o.ModuleRegion.ROAfterInitSize = NoOffset, NoOffset, NoOffset
	}
	o.ModuleUse = ModuleUseOffsets{SourceList: 0, Source: 32}
	o.ModuleKallsyms = ModuleKallsymsOffsets{Size: 32, Symtab: 0, Symbols: 8, Strtab: 16}
	o.Ring = RingOffsets{Size: 80, CountBits: 0, Descs: 8, Infos: 16, HeadID: 24, TailID: 32, TextBits: 40, TextData: 48}
	o.Desc = DescOffsets{Size: 24, State: 0, Begin: 8, Next: 16}
	o.LogInfo = LogInfoOffsets{Size: 32, Seq: 0, Time: 8, TextLen: 16, Facility: 18, Level: Bits{19, 5, 3}}
	o.OldLog = OldLogOffsets{Size: 16, Time: 0, Len: 8, TextLen: 10, Facility: 14, Level: Bits{15, 5, 3}}
	o.BPFSymbol = BPFSymbolOffsets{Size: 96, Start: 0, End: 8, Name: 16, Node: 80}
	o.BPFPack = BPFPackOffsets{List: 0, Ptr: 16}
	o.FtraceOps = FtraceOpsOffsets{Size: 72, Func: 0, Next: 8, Flags: 16, SavedFunc: 24, FuncHash: 32, Trampoline: 40, TrampolineSize: 48, List: 56}
	o.FtraceOpsHash = FtraceOpsHashOffsets{Filter: 8}
	o.FtraceHash = FtraceHashOffsets{Size: 24, SizeBits: 0, Buckets: 8, Count: 16}
	o.FtraceEntry = FtraceEntryOffsets{Size: 32, Hash: 0, IP: 16, Direct: 24}
	o.InsnCache = InsnCacheOffsets{Pages: 8}
	o.InsnPage = InsnPageOffsets{List: 0, Insns: 16}
	o.Kprobe = KprobeOffsets{Size: 80, Hash: 0, List: 16, Addr: 32, PreHandler: 40, PostHandler: 48, Flags: 56}
	o.Kretprobe = KretprobeOffsets{Kprobe: 0, Handler: 80, EntryHandler: 88}
	o.HookList = HookListOffsets{Size: 40, List: 0, Hook: 24}
	o.HookHeads = HookHeadsOffsets{Size: 64}
	o.Kset = KsetOffsets{List: 0}
	o.Kobject = KobjectOffsets{Entry: 8}
	o.ModuleKobject = ModuleKobjectOffsets{Kobj: 0, Module: 32}
	o.ModuleTree = ModuleTreeOffsets{Module: 0, Node: 8}
	o.LatchTree = LatchTreeOffsets{Sequence: 0, Trees: 8}
	o.RBNode = RBNodeOffsets{Size: 24, Parent: 0, Right: 8, Left: 16}
	o.Kimage = KimageOffsets{ControlCode: 8}
	o.Page = PageOffsets{Size: 64}
}

// kernelGuest is a guest whose kernel has something to show.
type kernelGuest struct {
	*linuxtest.Guest
	k    *Kernel
	next x86.VirtAddr
}

func newKernelGuest(t testing.TB, arrays bool) *kernelGuest {
	return kernelGuestOf(t, linuxtest.Config{Variables: variables}, arrays)
}

// kernelGuestOf is one whose configuration has variables, and maybe more.
func kernelGuestOf(t testing.TB, c linuxtest.Config, arrays bool) *kernelGuest {
	g, k := identified(t, c)
	testOffsets(&k.Offsets, arrays)
	b := &kernelGuest{g, k, g.Base + structures}
	for _, name := range []string{"ftrace_ops_trampoline_list", "bpf_kallsyms", "pack_list", "module_bug_list", "modules"} {
		b.emptyList(g.Addr(name))
	}
	b.emptyList(g.Addr("kprobe_insn_slots") + 8)
	g.WriteUint64(g.Addr("ftrace_ops_list"), uint64(g.Addr("ftrace_list_end")))
	kset := b.alloc(16)
	b.emptyList(kset)
	g.WriteUint64(g.Addr("module_kset"), uint64(kset))
	return b
}

func (b *kernelGuest) alloc(n int) x86.VirtAddr {
	at := b.next
	b.next += x86.VirtAddr(n+15) &^ 15
	return at
}

func (b *kernelGuest) u32(at x86.VirtAddr, v uint32) {
	b.Write(at, binary.LittleEndian.AppendUint32(nil, v))
}

func (b *kernelGuest) pointer(at x86.VirtAddr, v x86.VirtAddr) { b.WriteUint64(at, uint64(v)) }

func (b *kernelGuest) emptyList(head x86.VirtAddr) {
	b.pointer(head, head)
	b.pointer(head+8, head)
}

func (b *kernelGuest) get(at x86.VirtAddr) x86.VirtAddr {
	as := b.AddressSpace()
	v, err := as.ReadPointer(at)
	if err != nil {
		panic(err)
	}
	return v
}

// link puts a node at the end of a list.
func (b *kernelGuest) link(head, node x86.VirtAddr) {
	last := b.get(head + 8)
	b.pointer(last, node)
	b.pointer(node, head)
	b.pointer(node+8, last)
	b.pointer(head+8, node)
}

// chain puts a node at the beginning of a hash chain.
func (b *kernelGuest) chain(head, node x86.VirtAddr) {
	first := b.get(head)
	b.pointer(node, first)
	b.pointer(node+8, head)
	b.pointer(head, node)
	if first != 0 {
		b.pointer(first+8, node)
	}
}

// function is the address of a function of the kernel's.
func (b *kernelGuest) function(i int) x86.VirtAddr { return b.Base + 0x2000 + x86.VirtAddr(i*2) }

// addModule puts a module on the list and into the kernel's other books.
func (b *kernelGuest) addModule(name string, base x86.VirtAddr) x86.VirtAddr {
	o := &b.k.Offsets
	mod := b.alloc(o.Module.Size)
	b.Write(mod+x86.VirtAddr(o.Module.Name), append([]byte(name), 0))
	b.u32(mod+x86.VirtAddr(o.Module.Refcount), 1)
	b.emptyList(mod + x86.VirtAddr(o.Module.SourceList))
	b.link(b.Addr("modules"), mod+x86.VirtAddr(o.Module.List))
	b.link(b.Addr("module_bug_list"), mod+x86.VirtAddr(o.Module.BugList))
	if o.Module.Mem >= 0 {
		for i, size := range []uint32{0x2000, 0x1000, 0x1000, 0, 0, 0, 0} {
			at := mod + x86.VirtAddr(o.Module.Mem+i*o.ModuleRegion.Size)
			if size > 0 {
				b.pointer(at, base+x86.VirtAddr(i)*0x10000)
				b.u32(at+8, size)
			}
		}
	} else {
		at := mod + x86.VirtAddr(o.Module.CoreLayout)
		b.pointer(at, base)
		for i, v := range []uint32{0x5000, 0x2000, 0x3000, 0x3000} {
			b.u32(at+8+x86.VirtAddr(i)*4, v)
		}
	}
	kobj := b.alloc(40)
	b.link(b.get(b.Addr("module_kset")), kobj+8)
	b.pointer(kobj+32, mod)
	return mod
}

func (b *kernelGuest) reader() *Reader { return b.k.NewReader(b.Regs) }

// TestModules reads a list of modules in both shapes that they have had.
func TestModules(t *testing.T) {
	for _, arrays := range []bool{false, true} {
		b := newKernelGuest(t, arrays)
		o := &b.k.Offsets.Module
		used := b.addModule("virtio", coreBase)
		user := b.addModule("pwn\x1b", initBase)
		b.u32(used+x86.VirtAddr(o.Refcount), 2)
		b.u32(user, 1)
		b.WriteUint64(user+x86.VirtAddr(o.Taints), 1<<12|1<<13|1<<40)
		b.pointer(user+x86.VirtAddr(o.Init), initBase)
		use := b.alloc(48)
		b.link(used+x86.VirtAddr(o.SourceList), use)
		b.pointer(use+32, user)

		mods, err := b.reader().Modules()
		if err != nil || len(mods.Items) != 2 || len(mods.Reading.Incomplete) != 0 || mods.Reading.Retries != 0 {
			t.Fatalf("%+v, %v", mods, err)
		}
		regions := []report.ModuleArea{{Kind: "text", Base: coreBase, Size: 0x2000}, {Kind: "rodata", Base: coreBase + 0x2000, Size: 0x1000}, {Kind: "data", Base: coreBase + 0x3000, Size: 0x2000}}
		size := uint64(0x5000)
		if arrays {
			regions = []report.ModuleArea{{Kind: "text", Base: coreBase, Size: 0x2000}, {Kind: "data", Base: coreBase + 0x10000, Size: 0x1000}, {Kind: "rodata", Base: coreBase + 0x20000, Size: 0x1000}}
			size = 0x4000
		}
		want := report.Module{Name: "virtio", State: "live", Base: coreBase, Size: size, Regions: regions, Refcount: 1, UsedBy: []report.Text{`pwn\x1b`}, Addr: used}
		if got := mods.Items[0]; !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
		if m := mods.Items[1]; m.Name != `pwn\x1b` || m.State != "coming" || m.Taints != "OE?" || m.Refcount != 0 || !slices.Equal(m.UsedBy, []report.Text{"[permanent]"}) {
			t.Errorf("%+v", m)
		}
	}
}

// TestModulesHostile gives the walk lists that a hostile guest can make.
func TestModulesHostile(t *testing.T) {
	for name, bend := range map[string]func(b *kernelGuest, node x86.VirtAddr){
		"to itself":     func(b *kernelGuest, node x86.VirtAddr) { b.pointer(node, node) },
		"a true circle": func(b *kernelGuest, node x86.VirtAddr) { b.pointer(node, node); b.pointer(node+8, node) },
		"unmapped":      func(b *kernelGuest, node x86.VirtAddr) { b.pointer(node, 0xffff_c900_0000_0000) },
		"user half":     func(b *kernelGuest, node x86.VirtAddr) { b.pointer(node, 0x1000) },
		"odd":           func(b *kernelGuest, node x86.VirtAddr) { b.pointer(node, node+1) },
		"poisoned":      func(b *kernelGuest, node x86.VirtAddr) { b.WriteUint64(node+8, listPoison) },
	} {
		b := newKernelGuest(t, false)
		mod := b.addModule("loop", coreBase)
		bend(b, mod+x86.VirtAddr(b.k.Offsets.Module.List))
		mods, err := b.reader().Modules()
		if !errors.Is(err, ErrImplausible) {
			t.Errorf("%s: %+v, %v", name, mods, err)
		}
	}
	// No types: unsupported, and said so.
	b := newKernelGuest(t, false)
	b.k.Offsets = noOffsets()
	if _, err := b.reader().Modules(); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

// restless is memory in which something happens at each read.
type restless struct {
	guest.Memory
	reads int
	f     func(read int)
}

func (m *restless) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	m.reads++
	m.f(m.reads)
	return m.Memory.ReadPhys(pa, buf)
}

// on lets the guest's memory be read through m from now on.
func (b *kernelGuest) on(m guest.Memory) {
	k := *b.k
	k.as = guest.NewAddressSpace(m, b.Regs[0].CR3, b.Regs[0].CR4, b.Regs[0].EFER)
	b.k = &k
}

// TestModulesMoving unlinks and links a module while the list is read: whatever
// the moment, what is reported was true at one.
func TestModulesMoving(t *testing.T) {
	for moment := 1; ; moment++ {
		b := newKernelGuest(t, false)
		mods := []x86.VirtAddr{b.addModule("first", coreBase), b.addModule("second", initBase), b.addModule("third", initBase+0x10_0000)}
		node := mods[1] + x86.VirtAddr(b.k.Offsets.Module.List)
		m := &restless{Memory: b.Memory(), f: func(n int) {
			if n == moment { // list_del_rcu, and the memory is used for something else
				prev, next := b.get(node+8), b.get(node)
				b.pointer(prev, next)
				b.pointer(next+8, prev)
				b.Write(mods[1], []byte(strings.Repeat("\xcc", b.k.Offsets.Module.Size)))
			}
		}}
		b.on(m)
		got, err := b.reader().Modules()
		if err != nil {
			t.Fatalf("moment %d: %v", moment, err)
		}
		var names []string
		for _, mod := range got.Items {
			names = append(names, string(mod.Name))
		}
		if s := strings.Join(names, " "); s != "first second third" && s != "first third" {
			t.Errorf("moment %d: %q", moment, s)
		}
		if m.reads < moment {
			if moment < 20 {
				t.Errorf("%d reads", m.reads)
			}
			return
		}
	}
}

// writeLog makes a ring of 8 descriptors and 256 bytes of text.
type testRecord struct {
	state byte // of the descriptor
	text  string
	lost  bool
}

func (b *kernelGuest) writeLog(first uint64, records []testRecord) (rb, descs, text x86.VirtAddr) {
	const count, size = 8, 256
	rb, descs = b.alloc(80), b.alloc(24*count)
	infos := b.alloc(32 * count)
	text = b.alloc(size)
	b.pointer(b.Addr("prb"), rb)
	b.u32(rb, 3)
	b.pointer(rb+8, descs)
	b.pointer(rb+16, infos)
	b.WriteUint64(rb+24, first+uint64(len(records))-1)
	b.WriteUint64(rb+32, first)
	b.u32(rb+40, 8)
	b.pointer(rb+48, text)
	pos := uint64(size - 40) // so that the second text has to go to the start
	for i, rec := range records {
		id := first + uint64(i)
		d, in := descs+x86.VirtAddr(id%count*24), infos+x86.VirtAddr(id%count*32)
		b.WriteUint64(d, uint64(rec.state)<<62|id)
		b.WriteUint64(in, 100+id)
		b.WriteUint64(in+8, 1000*id)
		b.Write(in+16, []byte{byte(len(rec.text)), 0, 3, 6 << 5})
		switch {
		case rec.lost:
			b.WriteUint64(d+8, 1)
			b.WriteUint64(d+16, 1)
			continue
		case rec.text == "":
			b.WriteUint64(d+8, 3)
			b.WriteUint64(d+16, 3)
			continue
		}
		need := uint64(8+len(rec.text)+7) &^ 7
		at := pos
		next := pos + need
		if pos/size != (next-1)/size {
			at = (pos/size + 1) * size
			next = at + need
		}
		b.WriteUint64(d+8, pos)
		b.WriteUint64(d+16, next)
		b.WriteUint64(text+x86.VirtAddr(at%size), id)
		b.Write(text+x86.VirtAddr(at%size+8), []byte(rec.text))
		pos = next
	}
	return rb, descs, text
}

func TestLog(t *testing.T) {
	b := newKernelGuest(t, false)
	_, descs, text := b.writeLog(13, []testRecord{
		{state: 2, text: "first"}, {state: 2, text: "one that is at the start\nof the ring"}, {state: 2, text: ""}, {state: 2, lost: true},
		{state: 1, text: "committed"}, {state: 2, text: "\x1b[2J"}, {state: 0, text: "reserved"},
	})
	log, err := b.reader().Log()
	if err != nil || len(log.Reading.Incomplete) != 0 {
		t.Fatal(log.Reading, err)
	}
	want := []report.LogRecord{
		{Seq: 113, Nanoseconds: 13000, Level: 6, Facility: 3, Message: "first"},
		{Seq: 114, Nanoseconds: 14000, Level: 6, Facility: 3, Message: `one that is at the start\nof the ring`},
		{Seq: 115, Nanoseconds: 15000, Level: 6, Facility: 3},
		{Seq: 118, Nanoseconds: 18000, Level: 6, Facility: 3, Message: `\x1b[2J`},
	}
	if !slices.Equal(log.Items, want) {
		t.Errorf("%+v, want %+v", log.Items, want)
	}
	// A text that belongs to another record is none of this one.
	b.WriteUint64(text, 99)
	if log, err := b.reader().Log(); err != nil || len(log.Items) != 3 {
		t.Errorf("%+v, %v", log, err)
	}
	// A descriptor that was given to a newer record.
	b.WriteUint64(descs+13%8*24, 2<<62|(13+8))
	if log, err := b.reader().Log(); err != nil || len(log.Items) != 2 || len(log.Reading.Incomplete) != 1 {
		t.Errorf("%+v, %v", log, err)
	}
}

// TestLogMoving gives up a record while it is read: then it is not reported.
func TestLogMoving(t *testing.T) {
	for moment := 1; ; moment++ {
		b := newKernelGuest(t, false)
		_, descs, text := b.writeLog(16, []testRecord{{state: 2, text: "first"}, {state: 2, text: "second"}})
		m := &restless{Memory: b.Memory(), f: func(n int) {
			if n == moment {
				b.WriteUint64(descs, 3<<62|16)
				b.Write(text+256-40, []byte("\xff\xff\xff\xff\xff\xff\xff\xffwrong"))
			}
		}}
		b.on(m)
		log, err := b.reader().Log()
		if err != nil || len(log.Items) == 0 || log.Items[len(log.Items)-1].Message != "second" || len(log.Items) == 2 && log.Items[0].Message != "first" || len(log.Items) > 2 {
			t.Errorf("moment %d: %+v, %v", moment, log, err)
		}
		if m.reads < moment {
			return
		}
	}
}

func TestLogHostile(t *testing.T) {
	for name, bend := range map[string]func(b *kernelGuest, rb, descs x86.VirtAddr){
		"no ring":              func(b *kernelGuest, _, _ x86.VirtAddr) { b.pointer(b.Addr("prb"), 0) },
		"too many descriptors": func(b *kernelGuest, rb, _ x86.VirtAddr) { b.u32(rb, 63) },
		"none":                 func(b *kernelGuest, rb, _ x86.VirtAddr) { b.u32(rb, 0) },
		"too much text":        func(b *kernelGuest, rb, _ x86.VirtAddr) { b.u32(rb+40, 255) },
		"more ids than room":   func(b *kernelGuest, rb, _ x86.VirtAddr) { b.WriteUint64(rb+24, 1<<40) },
		"user half":            func(b *kernelGuest, rb, _ x86.VirtAddr) { b.pointer(rb+8, 0x1000) },
	} {
		b := newKernelGuest(t, false)
		rb, descs, _ := b.writeLog(16, []testRecord{{state: 2, text: "first"}})
		bend(b, rb, descs)
		if log, err := b.reader().Log(); err == nil {
			t.Errorf("%s: %+v", name, log)
		}
	}
	// Positions of text that can't be.
	for _, p := range [][2]uint64{{1 << 60, 1}, {8, 8}, {8, 12}, {16, 8}, {0, 1 << 40}, {^uint64(7), 8}, {8, ^uint64(7)}, {2, 2}} {
		b := newKernelGuest(t, false)
		_, descs, _ := b.writeLog(16, []testRecord{{state: 2, text: "first"}})
		b.WriteUint64(descs+8, p[0])
		b.WriteUint64(descs+16, p[1])
		if log, err := b.reader().Log(); err != nil || len(log.Items) != 0 {
			t.Errorf("%v: %+v, %v", p, log, err)
		}
	}
}

// TestOldLog reads the log of the kernels before 5.10, with its wrap.
func TestOldLog(t *testing.T) {
	record := func(ns uint64, msg string) []byte {
		b := binary.LittleEndian.AppendUint64(nil, ns)
		n := (16 + len(msg) + 3) &^ 3
		b = binary.LittleEndian.AppendUint16(b, uint16(n))
		b = binary.LittleEndian.AppendUint16(b, uint16(len(msg)))
		b = append(b, 0, 0, 1, 4<<5)
		return append(append(b, msg...), make([]byte, n-16-len(msg))...)
	}
	third := record(30, "third")
	first, second := record(10, "first"), record(20, "second one")
	const size, from = 256, 128
	build := func() *kernelGuest {
		b := newKernelGuest(t, false)
		b.k.Symbols = withoutSymbol(b.k.Symbols, "prb")
		buf := b.alloc(size)
		b.pointer(b.Addr("log_buf"), buf)
		b.u32(b.Addr("log_buf_len"), size)
		b.u32(b.Addr("log_first_idx"), from)
		b.u32(b.Addr("log_next_idx"), uint32(len(third)))
		b.WriteUint64(b.Addr("log_first_seq"), 7)
		b.Write(buf, third)
		b.Write(buf+from, slices.Concat(first, second))
		return b
	}
	want := []report.LogRecord{
		{Seq: 7, Nanoseconds: 10, Level: 4, Facility: 1, Message: "first"}, {Seq: 8, Nanoseconds: 20, Level: 4, Facility: 1, Message: "second one"},
		{Seq: 9, Nanoseconds: 30, Level: 4, Facility: 1, Message: "third"},
	}
	b := build()
	log, err := b.reader().Log()
	if err != nil || !slices.Equal(log.Items, want) {
		t.Errorf("%+v, %v", log, err)
	}
	for name, bend := range map[string]func(b *kernelGuest){
		"beyond":            func(b *kernelGuest) { b.u32(b.Addr("log_first_idx"), size) },
		"too large":         func(b *kernelGuest) { b.u32(b.Addr("log_buf_len"), 1<<31) },
		"into a record":     func(b *kernelGuest) { b.u32(b.Addr("log_next_idx"), 3) },
		"length of nothing": func(b *kernelGuest) { b.Write(b.get(b.Addr("log_buf"))+8, []byte{1, 0}) },
		"no way out":        func(b *kernelGuest) { b.u32(b.Addr("log_next_idx"), size) },
	} {
		b := build()
		bend(b)
		if log, err := b.reader().Log(); err == nil {
			t.Errorf("%s: %+v", name, log)
		}
	}
}

// withoutSymbol is a table in which a name is not found.
func withoutSymbol(s *Symbols, name string) *Symbols {
	from := s.symbolTable
	table := symbolTable{off: from.off, nabs: from.nabs, tokens: from.tokens, names: from.names, markers: from.markers, index: from.index, src: from.src}
	table.index.entries = slices.Clone(table.index.entries)
	for i, e := range table.index.find(name) {
		table.index.find(name)[i] = e &^ indexNumber // of symbol 0, which has another name
	}
	out := *s
	out.symbolTable = &table
	return &out
}
