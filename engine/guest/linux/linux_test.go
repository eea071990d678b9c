package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

func identified(t testing.TB, c linuxtest.Config) (*linuxtest.Guest, *Kernel) {
	t.Helper()
	g := linuxtest.New(c)
	k, err := Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	return g, k
}

// Every layout, byte for byte as its time wrote it, symbol for symbol.
func TestIdentifyLayouts(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		for _, n := range []int{300, 1500, 1501, 1502, 1503} { // every amount of padding
			g, k := identified(t, linuxtest.Config{Layout: l, Symbols: n, Base: 0xffff_ffff_9a20_0000})
			if k.Symbols.Len() != len(g.Syms) {
				t.Errorf("%v: %d symbols, want %d", l, k.Symbols.Len(), len(g.Syms))
				continue
			}
			i := 0
			for s := range k.Symbols.All() {
				w := g.Syms[i]
				if want := (Symbol{Addr: w.Addr, Absolute: w.Absolute, Type: w.Type, Name: w.Name}); s != want {
					t.Fatalf("%v: symbol %d: %+v, want %+v", l, i, s, want)
				}
				i++
			}
			if k.BTFError != nil {
				t.Errorf("%v: %v", l, k.BTFError)
			}
		}
	}
}

func TestIdentify(t *testing.T) {
	for name, c := range map[string]linuxtest.Config{
		"plain":       {Layout: linuxtest.Relative61},
		"early":       {Layout: linuxtest.Relative61, Early: true},
		"five levels": {Layout: linuxtest.After64, FiveLevels: true},
		"KASLR":       {Layout: linuxtest.Relative5, Base: 0xffff_ffff_b8e0_0000},
		"user root":   {Layout: linuxtest.Relative61, UserRoot: true},
	} {
		g, k := identified(t, c)
		if k.Release != "6.1.0-99-test" || k.Banner != linuxtest.Banner {
			t.Errorf("%s: release %q, banner %q", name, k.Release, k.Banner)
		}
		if k.Base != g.Base || k.PhysBase != g.PhysBase || k.TextStart != g.Base || k.TextEnd != g.Base+linuxtest.TextSize {
			t.Errorf("%s: base %v at %v, text %v to %v", name, k.Base, k.PhysBase, k.TextStart, k.TextEnd)
		}
		if as := k.AddressSpace(); as.Root() != g.Root {
			t.Errorf("%s: root %v, want %v", name, as.Root(), g.Root)
		}
		frames, err := k.TextFrames()
		want := []FrameRange{{First: g.PhysBase.GFN(), N: linuxtest.TextSize / x86.PageSize}}
		if err != nil || !reflect.DeepEqual(frames, want) {
			t.Errorf("%s: frames %v, %v, want %v", name, frames, err, want)
		}
	}
}

// The IDT leads to the kernel where LSTAR leads into a trampoline.
func TestIdentifyByIDT(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{Layout: linuxtest.Relative4})
	regs := g.Regs[0]
	regs.LSTAR = 0xffff_fe00_0000_6000
	regs.IDTBase = uint64(linuxtest.DirectMap + 0x10000)
	handler := uint64(g.Base + 0x2345)
	gate := linuxtest.DirectMap + 0x10000 + 14*16
	g.WriteUint64(gate, handler&0xffff|0x8e00_0010_0000|handler&0xffff_0000<<32)
	g.WriteUint64(gate+8, handler>>32)
	k, err := Identify(g.Memory(), regs)
	if err != nil || k.Base != g.Base {
		t.Fatalf("kernel %+v, %v", k, err)
	}
}

// leaving is memory of a page-table page whose process ends: from the second
// read of it on it is used for something else.
type leaving struct {
	guest.Memory
	table x86.PhysAddr
	reads int
	reuse func()
}

func (m *leaving) ReadPhys(pa x86.PhysAddr, buf []byte) error {
	if pa < m.table+x86.PageSize && m.table < pa+x86.PhysAddr(len(buf)) {
		if m.reads++; m.reads == 2 {
			m.reuse()
		}
	}
	return m.Memory.ReadPhys(pa, buf)
}

// A process whose page tables the processor uses may end as soon as the first of
// them was looked at: a kernel is found none the less, and the same, from nothing
// and with its profile.
func TestIdentifyWhileProcessEnds(t *testing.T) {
	for name, c := range map[string]linuxtest.Config{
		"4 levels": {Layout: linuxtest.After64},
		"5 levels": {Layout: linuxtest.After64, FiveLevels: true},
	} {
		for what, fill := range map[string]byte{"cleared": 0, "filled": 0xff} {
			cache := openCache(t, t.TempDir())
			for _, cached := range []bool{false, true} {
				g := linuxtest.New(c)
				want, err := Identify(g.Memory(), g.Regs[0])
				if err != nil {
					t.Fatal(err)
				}
				table := g.AllocPage()
				page := g.Mem[table:][:x86.PageSize]
				copy(page, g.Mem[g.Root:])
				regs := g.Regs[0]
				regs.CR3 = uint64(table)
				m := &leaving{Memory: g.Memory(), table: table, reuse: func() {
					for i := range page {
						page[i] = fill
					}
				}}
				k, err := IdentifyWith(m, regs, Options{Cache: cache})
				if err != nil {
					t.Errorf("%s, %s, cached %v: %v", name, what, cached, err)
					continue
				}
				cache.Close()
				if k.Cached != cached {
					t.Errorf("%s, %s: cached %v, want %v", name, what, k.Cached, cached)
				}
				same(t, name+", "+what, k, want)
				if as := k.AddressSpace(); as.Root() != g.Root || as.Levels() != want.as.Levels() {
					t.Errorf("%s, %s: root %v of %d levels, want %v", name, what, as.Root(), as.Levels(), g.Root)
				}
			}
		}
	}
}

func TestIdentifyErrors(t *testing.T) {
	for _, c := range []struct {
		name   string
		stage  Stage
		config linuxtest.Config
		spoil  func(g *linuxtest.Guest, r *x86.Registers)
		is     error
	}{
		{name: "not in long mode", stage: StageRegisters, spoil: func(_ *linuxtest.Guest, r *x86.Registers) { r.EFER = x86.EFERSCE }},
		{name: "no entry point", stage: StageRegisters, spoil: func(_ *linuxtest.Guest, r *x86.Registers) { r.LSTAR = 0 }},
		{name: "another system", stage: StageRegisters, spoil: func(_ *linuxtest.Guest, r *x86.Registers) { r.LSTAR = 0xffff_f800_1234_5678 }},
		{name: "IDT not mapped", stage: StageRegisters, is: guest.ErrNotPresent, spoil: func(_ *linuxtest.Guest, r *x86.Registers) {
			r.LSTAR, r.IDTBase = 0, 0xffff_fe00_0000_0000
		}},
		{name: "IDT elsewhere", stage: StageRegisters, spoil: func(_ *linuxtest.Guest, r *x86.Registers) {
			r.LSTAR, r.IDTBase = 0, uint64(linuxtest.DirectMap)
		}},
		{name: "code not mapped", stage: StageBase, is: guest.ErrNotPresent, spoil: func(_ *linuxtest.Guest, r *x86.Registers) { r.LSTAR = 0xffff_ffff_bfff_f000 }},
		{name: "root outside memory", stage: StageBase, is: guest.ErrOutside, spoil: func(_ *linuxtest.Guest, r *x86.Registers) { r.CR3 = 1 << 40 }},
		{name: "everything is mapped", stage: StageBase, spoil: func(g *linuxtest.Guest, r *x86.Registers) {
			g.Map(imageLow, 0, 1<<30, guest.Page2M, 0)
			r.LSTAR = 0xffff_ffff_bfff_f000
		}},
		{name: "no symbol table", stage: StageKallsyms, is: errNoTable, spoil: func(g *linuxtest.Guest, _ *x86.Registers) {
			g.Write(g.Kallsyms, make([]byte, g.KallsymsSize))
		}},
		{name: "a stale table", stage: StageKallsyms, is: errNoTable, spoil: func(g *linuxtest.Guest, _ *x86.Registers) {
			g.Write(g.Kallsyms, linuxtest.Kallsyms(linuxtest.Relative61, g.Base-0x100_0000, g.Kallsyms, g.Syms))
		}},
		{name: "no banner", stage: StageBanner, config: linuxtest.Config{Banner: "Windows"}},
		{name: "a banner of control characters", stage: StageBanner, config: linuxtest.Config{Banner: "Linux version 6.1\x1b[2J (x)"}},
		{name: "symbols of code only", stage: StageBanner, config: linuxtest.Config{NoData: true}},
		{name: "another image behind the root", stage: StageRoot, spoil: func(g *linuxtest.Guest, r *x86.Registers) {
			// CR3 is a copy of the root; the kernel's own maps the image elsewhere.
			other := g.AllocPage()
			copy(g.Mem[other:other+4096], g.Mem[g.Root:g.Root+4096])
			r.CR3 = uint64(other)
			at := g.Root + x86.PhysAddr(uint64(g.Base)>>39&0x1ff*8)
			g.Put(at, 0)
			g.Map(g.Base, 0x40_0000, linuxtest.ImageSize, guest.Page2M, 0)
		}},
		{name: "an empty root", stage: StageRoot, is: guest.ErrNotPresent, spoil: func(g *linuxtest.Guest, r *x86.Registers) {
			other := g.AllocPage()
			copy(g.Mem[other:other+4096], g.Mem[g.Root:g.Root+4096])
			r.CR3 = uint64(other)
			clear(g.Mem[g.Root : g.Root+4096])
		}},
	} {
		c.config.Layout = linuxtest.Relative61
		g := linuxtest.New(c.config)
		regs := g.Regs[0]
		if c.spoil != nil {
			c.spoil(g, &regs)
		}
		k, err := Identify(g.Memory(), regs)
		var ie *IdentifyError
		if k != nil || !errors.As(err, &ie) || ie.Stage != c.stage || ie.Want == "" || !strings.Contains(err.Error(), string(c.stage)) {
			t.Errorf("%s: %v, %v, want an error of stage %q", c.name, k, err, c.stage)
			continue
		}
		if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v, want %v", c.name, err, c.is)
		}
	}
}

// A second table that the guest has put before its own is not believed unless
// it is relocated, ordered and complete; then it is the guest's own.
func TestIdentifyDecoys(t *testing.T) {
	for l := linuxtest.Addresses; l < linuxtest.NumLayouts; l++ {
		g := linuxtest.New(linuxtest.Config{Layout: l, Symbols: 700})
		decoy := bytes.Clone(g.Mem[g.PhysBase+linuxtest.ROData+0x4008:][:g.KallsymsSize])
		at := bytes.Index(decoy, digits)
		for _, change := range []func(b []byte){
			func(b []byte) { b[at+len(digits)+1] ^= 1 },   // no table of tokens
			func(b []byte) { b[at-40]++ },                 // neither, or other markers
			func(b []byte) { clear(b[:len(b)/8]) },        // other values or counts
			func(b []byte) { b[len(b)-len(b)/8] ^= 0x55 }, // another index or seqs
		} {
			b := bytes.Clone(decoy)
			change(b)
			g.Write(g.Base+0x10_0000, b)
			g.Write(g.Base+0x10_0000-8, make([]byte, 8))
		}
		k, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Errorf("%v: %v", l, err)
			continue
		}
		if got, _ := k.Lookup("func_500_init"); got != g.Addr("func_500_init") {
			t.Errorf("%v: func_500_init at %v, want %v", l, got, g.Addr("func_500_init"))
		}
	}
}

// Any one byte of the table that is wrong gives either an error or a table of
// the same shape, never a crash.
func TestIdentifyDamaged(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		g := linuxtest.New(linuxtest.Config{Layout: l, Symbols: 300})
		table := g.Mem[g.PhysBase+linuxtest.ROData+0x4008:][:g.KallsymsSize]
		refused := 0
		for i := 0; i < len(table); i += 97 {
			for _, x := range []byte{0x80, 0xff} {
				table[i] ^= x
				k, err := Identify(g.Memory(), g.Regs[0])
				var ie *IdentifyError
				switch {
				case err == nil && k.Symbols.Len() != len(g.Syms):
					t.Errorf("%v: byte %d: %d symbols", l, i, k.Symbols.Len())
				case err != nil && !errors.As(err, &ie):
					t.Errorf("%v: byte %d: %v", l, i, err)
				case err != nil:
					refused++
				}
				table[i] ^= x
			}
		}
		if refused == 0 {
			t.Errorf("%v: no damage was noticed", l)
		}
	}
}

// A guest can write names of which every fourth byte begins a whole table that
// is wrong only at its end. The work they cause is bounded.
func TestLookAlikes(t *testing.T) {
	const n = 0x4_0103 // as bytes a name of 3: the count before every candidate
	markers := (n + 255) / 256
	unit := []byte{3, 1, 4, 0}
	out := bytes.Repeat(unit, n+32<<10)
	out = append(out, make([]byte, 16-len(out)%8)...) // more than any padding
	for i := range markers {
		out = binary.LittleEndian.AppendUint32(out, uint32(i*1024))
	}
	out = append(out, make([]byte, -len(out)&7)...)
	const base = x86.VirtAddr(0xffff_ffff_8100_0000)
	b := guesttest.New(4, 16<<20)
	b.Map(base, 0, 8<<20, guest.Page2M, 0)
	var index []byte
	tokens := linuxtest.Tokens(nil)
	start := len(out)
	for _, token := range tokens {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(out)-start))
		out = append(append(out, token...), 0)
	}
	out = append(out, make([]byte, -len(out)&7)...)
	copy(b.Mem[0x1000:], append(out, index...))
	r := &imageReader{as: b.AddressSpace(), extents: []extent{{base, base + 8<<20}}}
	s, err := r.findKallsyms(base, base)
	if s != nil || !errors.Is(err, errTooMuch) {
		t.Errorf("%v, %v, want %v", s, err, errTooMuch)
	}
	if r.work > maxWork+maxSymbols*16 {
		t.Errorf("work %d of %d", r.work, maxWork)
	}
}

func TestLookup(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	all := map[string][]x86.VirtAddr{}
	for _, s := range g.Syms {
		all[s.Name] = append(all[s.Name], s.Addr)
	}
	for name, want := range all {
		if got := k.Symbols.LookupAll(name); !reflect.DeepEqual(got, want) {
			t.Errorf("LookupAll(%q) = %v, want %v", name, got, want)
		}
		if got, ok := k.Lookup(name); !ok || got != want[0] {
			t.Errorf("Lookup(%q) = %v, %v", name, got, ok)
		}
	}
	if len(all["local_lock"]) != 15 {
		t.Errorf("%d symbols local_lock", len(all["local_lock"]))
	}
	for _, name := range []string{"", "t", "func_", "func_1_ini", "func_1_initt", "T_text", strings.Repeat("x", 4096)} {
		if got, ok := k.Lookup(name); ok {
			t.Errorf("Lookup(%q) = %v", name, got)
		}
	}
	var none *Symbols
	if _, ok := none.Lookup("x"); ok || none.Len() != 0 || none.LookupAll("x") != nil {
		t.Error("a nil table is not empty")
	}
	if _, _, ok := none.Symbolize(g.Base); ok {
		t.Error("a nil table symbolizes")
	}
	for range none.All() {
		t.Error("a nil table has symbols")
	}
}

func TestSymbolize(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	for _, c := range []struct {
		va   x86.VirtAddr
		name string
		off  uint64
	}{
		{g.Base, "_text", 0}, // _stext has the same address
		{g.Base + linuxtest.Entry, "entry_SYSCALL_64", 0},
		{g.Base + linuxtest.Entry + 0x7f, "entry_SYSCALL_64", 0x7f},
		{g.Base + 0x2000, "func_0_init", 0},
		{g.Base + 0x2001, "func_0_init", 1},
		{g.Base + 0x2002, "func_1_init", 0},
		{g.Addr("_end") - 1, "idt_table", uint64(g.Addr("_end") - 1 - g.Addr("idt_table"))},
	} {
		name, off, ok := k.Symbolize(c.va)
		if name != c.name || off != c.off || !ok {
			t.Errorf("Symbolize(%v) = %s+%#x, %v, want %s+%#x", c.va, name, off, ok, c.name, c.off)
		}
	}
	for _, va := range []x86.VirtAddr{0, g.Base - 1, g.Addr("_end"), 0x21c0, ^x86.VirtAddr(0)} {
		if name, off, ok := k.Symbolize(va); ok || name != "" || off != 0 {
			t.Errorf("Symbolize(%v) = %s+%#x", va, name, off)
		}
	}
	buf := make([]byte, 0, 64)
	var got []byte
	if n := testing.AllocsPerRun(100, func() { got, _, _ = k.Symbols.AppendSymbol(buf, g.Base+0x2345) }); n != 0 || len(got) == 0 {
		t.Errorf("AppendSymbol: %v allocations, %q", n, got)
	}
}

func TestRange(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	for name, want := range map[string][2]x86.VirtAddr{
		"_text":            {g.Base, g.Base + linuxtest.Entry}, // past _stext, at the same address
		"entry_SYSCALL_64": {g.Base + linuxtest.Entry, g.Base + 0x1f00},
		"func_0_init":      {g.Base + 0x2000, g.Base + 0x2002},
		"_end":             {g.Addr("_end"), g.Addr("_end")},
	} {
		start, end, ok := k.Symbols.Range(name)
		if !ok || start != want[0] || end != want[1] {
			t.Errorf("Range(%q) = %v, %v, %v, want %v", name, start, end, ok, want)
		}
	}
	for _, name := range []string{"cpu_number", "nothing"} {
		if start, end, ok := k.Symbols.Range(name); ok {
			t.Errorf("Range(%q) = %v, %v", name, start, end)
		}
	}
	if r := k.TextPokeCode(); len(r) != 0 {
		t.Errorf("patching code %v in a kernel without any", r)
	}
}

func TestBTFOffsets(t *testing.T) {
	want := noOffsets()
	task := &want.Task
	task.Size, task.State, task.Flags, task.Tasks = linuxtest.TaskSize, linuxtest.TaskState, linuxtest.TaskFlags, linuxtest.TaskTasks
	task.MM, task.ActiveMM, task.PID, task.TGID = linuxtest.TaskMM, linuxtest.TaskMM+8, linuxtest.TaskPID, linuxtest.TaskTGID
	task.RealParent, task.Comm = 1360, linuxtest.TaskComm
	want.MM.Size, want.MM.PGD = 1024, linuxtest.MMPGD
	want.Module.Size, want.Module.List, want.Module.Name = 1024, linuxtest.ModuleList, linuxtest.ModuleName
	want.ModuleRegion.Size, want.ModuleRegion.Base, want.ModuleRegion.Bytes = linuxtest.RegionSize, linuxtest.RegionBase, linuxtest.RegionBytes
	want.SystemStates.Running = linuxtest.Running
	want.VDSOImage = VDSOImageOffsets{Data: 0, Bytes: 8}
	for l := range linuxtest.NumLayouts {
		_, k := identified(t, linuxtest.Config{Layout: l})
		w := want
		if l >= linuxtest.Seqs62 && l.Absolute() {
			w.PCPUHot = PCPUHotOffsets{CurrentTask: linuxtest.HotTask, CPUNumber: linuxtest.HotNumber, PreemptCount: linuxtest.HotCount}
		}
		if l >= linuxtest.After64 {
			w.Module.Mem, w.Module.MemTypes = linuxtest.ModuleMem, linuxtest.Regions
			w.ModuleMem.Text = 0
		} else {
			w.ModuleRegion.TextSize = linuxtest.RegionText
			w.Module.CoreLayout, w.Module.InitLayout = linuxtest.ModuleMem, linuxtest.ModuleMem+linuxtest.RegionSize
		}
		if k.Offsets != w {
			t.Errorf("%v: %+v, want %+v", l, k.Offsets, w)
		}
	}
}

func TestBTF(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	spec, err := k.BTF()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.AnyTypeByName("task_struct"); err != nil {
		t.Error(err)
	}
	g.Write(g.BTFStart+100, []byte{1, 2, 3})
	if _, err := k.BTF(); !errors.Is(err, ErrImplausible) {
		t.Errorf("changed BTF: %v, want %v", err, ErrImplausible)
	}
}

// Without type information a kernel is known, and what can't be is refused.
func TestNoBTF(t *testing.T) {
	good := linuxtest.Types(linuxtest.Relative61)
	for name, c := range map[string]linuxtest.Config{
		"none":              {NoBTF: true},
		"no header":         {BTF: make([]byte, 4096)},
		"cut off":           {BTF: good[:len(good)/2]},
		"empty":             {BTF: []byte{}},
		"wrong version":     {BTF: append([]byte{0x9f, 0xeb, 2}, good[3:]...)},
		"no task_struct":    {BTF: bytes.ReplaceAll(good, []byte("task_struct"), []byte("tusk_struct"))},
		"no comm":           {BTF: bytes.ReplaceAll(good, []byte("\x00comm\x00"), []byte("\x00komm\x00"))},
		"no pgd":            {BTF: bytes.ReplaceAll(good, []byte("\x00pgd\x00"), []byte("\x00pdg\x00"))},
		"section too long":  {BTF: patched(good, 12, 1<<31)},
		"sections overflow": {BTF: patched(good, 8, 1<<32-4)},
		"unknown kind":      {BTF: patched(good, 24+4, 31<<24)},
	} {
		c.Layout = linuxtest.Relative61
		g := linuxtest.New(c)
		k, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var ie *IdentifyError
		if !errors.As(k.BTFError, &ie) || ie.Stage != StageBTF || k.Offsets != noOffsets() {
			t.Errorf("%s: BTF error %v, offsets %+v", name, k.BTFError, k.Offsets)
		}
		if _, err := k.BTF(); err != k.BTFError {
			t.Errorf("%s: BTF: %v, want %v", name, err, k.BTFError)
		}
		if _, err := k.CurrentTask(&g.Regs[0]); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: CurrentTask: %v", name, err)
		}
		if _, err := k.TextPoke(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: TextPoke: %v", name, err)
		}
		if _, err := k.Running(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: Running: %v", name, err)
		}
		if s, err := k.SystemState(); err != nil || s != linuxtest.Running {
			t.Errorf("%s: SystemState: %v, %v", name, s, err)
		}
		if _, ok := k.Lookup("func_9_init"); !ok {
			t.Errorf("%s: no symbols", name)
		}
	}
}

func patched(b []byte, at int, v uint64) []byte {
	b = bytes.Clone(b)
	binary.LittleEndian.PutUint32(b[at:], uint32(v))
	return b
}

func TestRunning(t *testing.T) {
	for _, early := range []bool{true, false} {
		g, k := identified(t, linuxtest.Config{Layout: linuxtest.Relative61, Early: early})
		if got, err := k.Running(); err != nil || got == early {
			t.Errorf("early %v: running %v, %v", early, got, err)
		}
		g.Write(g.Addr("system_state"), []byte{linuxtest.Running + 2}) // powering off
		if got, err := k.Running(); err != nil || !got {
			t.Errorf("at power-off: running %v, %v", got, err)
		}
	}
}

func TestCurrentTask(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		g, k := identified(t, linuxtest.Config{Layout: l, CPUs: 3})
		for i, regs := range g.Regs {
			want := Task{Addr: linuxtest.DirectMap + linuxtest.Tasks + x86.VirtAddr(i)<<12, PID: int32(100 + i), TGID: 100}
			copy(want.Comm[:], fmt.Sprintf("task-%d", i))
			user := regs
			user.CPL, user.GSBase, user.KernelGSBase = 3, 0, regs.GSBase
			// User space may have loaded the base of another CPU's area,
			// which passes every check: only CPL tells.
			forged := user
			forged.GSBase = g.Regs[(i+1)%3].GSBase
			// On entry, before SWAPGS, with whatever user space left.
			entry := user
			entry.CPL = 0
			wild := entry
			wild.GSBase = uint64(linuxtest.DirectMap + 0x12345)
			for name, r := range map[string]x86.Registers{"kernel": regs, "user": user, "forged": forged, "entry": entry, "wild": wild} {
				got, err := k.CurrentTask(&r)
				if err != nil || got != want {
					t.Errorf("%v: vCPU %d, %s: %+v, %v, want %+v", l, i, name, got, err, want)
				}
			}
		}
		if n := (&Task{Comm: [16]byte{'a', 'b'}}).Name(); n != "ab" {
			t.Errorf("Name() = %q", n)
		}
		if n := (&Task{Comm: [16]byte([]byte("0123456789abcdef"))}).Name(); n != "0123456789abcdef" {
			t.Errorf("Name() = %q", n)
		}
	}
}

func TestCurrentTaskErrors(t *testing.T) {
	g, _ := identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
	area := x86.VirtAddr(g.Regs[0].GSBase)
	for name, c := range map[string]struct {
		spoil func(*x86.Registers)
		is    error
	}{
		"no GS base": {func(r *x86.Registers) { r.GSBase = 0 }, ErrImplausible},
		"no such CPU": {func(*x86.Registers) {
			g.Write(area+g.Addr("cpu_number"), []byte{0xff, 0xff, 0xff, 0xff})
		}, ErrImplausible},
		"no task": {func(*x86.Registers) { g.WriteUint64(area+g.Addr("current_task"), 0) }, ErrImplausible},
		"task of the user half": {func(*x86.Registers) {
			g.WriteUint64(area+g.Addr("current_task"), 0x1000)
		}, ErrImplausible},
		"task not mapped": {func(*x86.Registers) {
			g.WriteUint64(area+g.Addr("current_task"), 0xffff_c900_0000_0000)
		}, guest.ErrNotPresent},
	} {
		var k *Kernel
		g, k = identified(t, linuxtest.Config{Layout: linuxtest.Relative61})
		regs := g.Regs[0]
		c.spoil(&regs)
		task := Task{PID: -1}
		err := k.ReadTask(&regs, &task)
		var re *ReadError
		if !errors.As(err, &re) || !errors.Is(err, c.is) || task != (Task{PID: -1}) {
			t.Errorf("%s: %+v, %v, want %v", name, task, err, c.is)
		}
	}
}

func TestReadTaskAllocations(t *testing.T) {
	g, k := identified(t, linuxtest.Config{Layout: linuxtest.After64})
	regs := &g.Regs[0]
	task := new(Task)
	var err error
	if n := testing.AllocsPerRun(200, func() { err = errors.Join(err, k.ReadTask(regs, task)) }); n != 0 || err != nil {
		t.Errorf("ReadTask: %v allocations, %v", n, err)
	}
}

func TestTextPoke(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		g, k := identified(t, linuxtest.Config{Layout: l})
		got, err := k.TextPoke()
		want := TextPoke{CR3: linuxtest.PokingPGD, Window: linuxtest.Window, WindowPages: 2}
		if err != nil || got != want {
			t.Errorf("%v: %+v, %v, want %+v", l, got, err, want)
		}
		for va, in := range map[x86.VirtAddr]bool{linuxtest.Window - 1: false, linuxtest.Window: true, linuxtest.Window + 0x1fff: true, linuxtest.Window + 0x2000: false} {
			if got.Contains(va) != in {
				t.Errorf("Contains(%v) = %v", va, !in)
			}
		}
		for _, c := range []struct {
			mm, addr uint64
			is       error
		}{
			{0, 0, ErrNotYet},
			{uint64(linuxtest.DirectMap + linuxtest.PokingMM), 0, ErrNotYet},
			{0x1000, 0x1000, ErrImplausible},
			{uint64(linuxtest.DirectMap + linuxtest.PokingMM), uint64(g.Base), ErrImplausible},
			{uint64(linuxtest.DirectMap + linuxtest.PokingMM), 0x1234, ErrImplausible},
			{uint64(linuxtest.DirectMap + linuxtest.PokingMM + 0x800), 0x1000, ErrImplausible}, // pgd 0
			{0xffff_c900_0000_0000, 0x1000, guest.ErrNotPresent},
		} {
			g.SetPoking(l, c.mm, c.addr)
			if got, err := k.TextPoke(); !errors.Is(err, c.is) {
				t.Errorf("%v: mm %#x, window %#x: %+v, %v, want %v", l, c.mm, c.addr, got, err, c.is)
			}
		}
	}
}

// A loader may scatter the image; frames are joined only where they follow.
func TestFrames(t *testing.T) {
	b := guesttest.New(4, 16<<20)
	base := x86.VirtAddr(0xffff_ffff_8100_0000)
	b.Map(base, 0x20_0000, 0x20_0000, guest.Page2M, 0)
	b.Map(base+0x20_0000, 0x40_0000, 0x3000, guest.Page4K, 0)
	b.Map(base+0x20_3000, 0x80_0000, 0x2000, guest.Page4K, 0)
	as := b.AddressSpace()
	got, err := frames(as, base+0x10_0000, base+0x20_4001)
	want := []FrameRange{{0x300, 0x103}, {0x800, 2}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("frames %v, %v, want %v", got, err, want)
	}
	if _, err := frames(as, base, base+0x30_0000); !errors.Is(err, guest.ErrNotPresent) {
		t.Errorf("frames of a hole: %v", err)
	}
}

func TestParseBanner(t *testing.T) {
	for _, c := range []struct{ in, banner, release string }{
		{"Linux version 6.1.0-32-cloud-amd64 (debian-kernel@lists.debian.org) #1\n\x00junk", "Linux version 6.1.0-32-cloud-amd64 (debian-kernel@lists.debian.org) #1", "6.1.0-32-cloud-amd64"},
		{"Linux version 5.10.0 x\x00", "Linux version 5.10.0 x", "5.10.0"},
		{"Linux version 5.10.0 x", "", ""},
		{"Linux version 5.10.0\x00", "", ""},
		{"Linux version  x\x00", "", ""},
		{"Linux version six y\x00", "", ""},
		{"Linux version 6." + strings.Repeat("1", 80) + " y\x00", "", ""},
		{"Linux version 6.1\xff y\x00", "", ""},
		{"Linux version 6.1 y\nz\x00", "", ""},
		{"linux version 6.1 y\x00", "", ""},
		{"", "", ""},
	} {
		banner, release, ok := parseBanner([]byte(c.in))
		if banner != c.banner || release != c.release || ok != (c.release != "") {
			t.Errorf("parseBanner(%q) = %q, %q, %v", c.in, banner, release, ok)
		}
	}
}

func TestErrorTexts(t *testing.T) {
	e := &IdentifyError{Stage: StageBase, Want: "a", Got: "b", Hint: "c", Err: ErrNotYet}
	if want := "identify Linux: kernel base: want a, got b: " + ErrNotYet.Error() + " (c)"; e.Error() != want {
		t.Errorf("%q, want %q", e, want)
	}
	r := &ReadError{What: "x", Got: "y", Err: ErrImplausible}
	if want := "read x: " + ErrImplausible.Error() + ": y"; r.Error() != want {
		t.Errorf("%q, want %q", r, want)
	}
}

func FuzzBanner(f *testing.F) {
	f.Add([]byte(linuxtest.Banner + "\n\x00"))
	f.Add([]byte("Linux version \x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		banner, release, ok := parseBanner(b)
		if !ok {
			return
		}
		if release == "" || len(release) > maxRelease || !strings.HasPrefix(banner, bannerStart+release+" ") {
			t.Fatalf("%q: %q, %q", b, banner, release)
		}
		for i := range len(banner) {
			if banner[i] < ' ' || banner[i] > '~' {
				t.Fatalf("%q holds byte %#x", banner, banner[i])
			}
		}
	})
}

// FuzzKallsyms lets the fuzzer write the memory around a symbol table. What is
// accepted must work: every symbol can be listed, found by name and by address.
func FuzzKallsyms(f *testing.F) {
	const base = x86.VirtAddr(0xffff_ffff_8100_0000)
	syms := linuxtest.New(linuxtest.Config{Symbols: 300, Layout: linuxtest.Relative5}).Syms
	for l := range linuxtest.NumLayouts {
		f.Add(append(make([]byte, 8), linuxtest.Kallsyms(l, base, base+8, syms)...))
	}
	const size = 1 << 16
	g := guesttest.New(4, 1<<20)
	g.Map(base, 0, size, guest.Page4K, 0)
	r := &imageReader{as: g.AddressSpace(), extents: []extent{{base, base + size}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		clear(g.Mem[:size])
		copy(g.Mem[:size], b)
		s, err := r.findKallsyms(base, base)
		if err != nil {
			if s != nil {
				t.Fatal("a table and an error")
			}
			return
		}
		s.end = base + size
		s.buildIndex(ownKey().names)
		checkTable(t, s)
	})
}

func checkTable(t *testing.T, s *Symbols) {
	n := 0
	for sym := range s.All() {
		if n++; n%64 != 1 || len(sym.Name) >= maxNameLen-1 {
			continue // too long to be given whole
		}
		if !bytes.ContainsRune([]byte(sym.Name), 0) && sym.Type != 0 {
			all := s.LookupAll(sym.Name)
			found := len(all) >= maxLookup
			for _, va := range all {
				found = found || va == sym.Addr
			}
			if !found {
				t.Fatalf("symbol %d, %q, is not found by its name", n-1, sym.Name)
			}
		}
		if sym.Absolute || sym.Addr >= s.end {
			continue
		}
		if _, off, ok := s.Symbolize(sym.Addr); !ok || off != 0 {
			t.Fatalf("symbol %d, %q, is not found by its address: +%#x, %v", n-1, sym.Name, off, ok)
		}
	}
	if n != s.Len() {
		t.Fatalf("%d symbols listed of %d", n, s.Len())
	}
}

// FuzzBTF lets the fuzzer write a BTF blob. Offsets that are accepted lie in
// their structures, and the full parser survives whatever ours lets through.
func FuzzBTF(f *testing.F) {
	for l := range linuxtest.NumLayouts {
		f.Add(linuxtest.Types(l))
	}
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		types, err := parseBTF(b, wanted())
		if err != nil {
			if !errors.Is(err, errBTF) {
				t.Fatal(err)
			}
			return
		}
		o, err := offsetsFrom(types)
		if err == nil {
			if o.Task.PID >= o.Task.Size || o.Task.TGID >= o.Task.Size || o.Task.Comm+16 > o.Task.Size || o.MM.PGD >= o.MM.Size || o.MM.PGD < 0 {
				t.Fatalf("offsets %+v", o)
			}
		}
		if spec, err := loadSpec(b); (spec == nil) == (err == nil) {
			t.Fatalf("spec %v, %v", spec, err)
		}
	})
}

// FuzzTask lets the fuzzer write a per-CPU area and choose the GS bases.
func FuzzTask(f *testing.F) {
	g, k := identified(f, linuxtest.Config{Layout: linuxtest.Relative61, CPUs: 2})
	variables := g.Mem[int(linuxtest.PerCPU)+0x2_1a8:][:0x100]
	saved := bytes.Clone(variables)
	f.Add(saved, g.Regs[0].GSBase, g.Regs[1].GSBase, uint8(0))
	f.Add([]byte{}, uint64(linuxtest.DirectMap), uint64(1), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, gs, kernelGS uint64, cpl uint8) {
		defer copy(variables, saved)
		copy(variables, b)
		task := Task{PID: -7}
		err := k.ReadTask(&x86.Registers{GSBase: gs, KernelGSBase: kernelGS, CPL: cpl & 3}, &task)
		if err != nil {
			var re *ReadError
			if !errors.As(err, &re) || task != (Task{PID: -7}) {
				t.Fatalf("%+v, %v", task, err)
			}
			return
		}
		if !task.Addr.KernelHalf() {
			t.Fatalf("task %+v", task)
		}
	})
}

// FuzzIdentify lets the fuzzer choose the registers and overwrite a piece of
// the guest, its top-level table and image included.
func FuzzIdentify(f *testing.F) {
	g := linuxtest.New(linuxtest.Config{Layout: linuxtest.After64, Symbols: 300})
	r := g.Regs[0]
	f.Add(r.CR3, r.CR4, r.LSTAR, uint64(0), uint32(0), []byte{})
	f.Add(r.CR3, r.CR4, uint64(0), uint64(linuxtest.DirectMap), uint32(0x1000), []byte{0xff})
	f.Add(r.CR3|x86.CR3KPTIUser, r.CR4, r.LSTAR, uint64(0), uint32(linuxtest.Data), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Fuzz(func(t *testing.T, cr3, cr4, lstar, idt uint64, at uint32, b []byte) {
		at %= linuxtest.ImageSize
		b = b[:min(len(b), linuxtest.ImageSize-int(at))]
		where := g.Mem[int(g.PhysBase)+int(at):]
		saved := bytes.Clone(where[:len(b)])
		copy(where, b)
		k, err := Identify(g.Memory(), x86.Registers{CR3: cr3, CR4: cr4, LSTAR: lstar, IDTBase: idt})
		copy(where, saved)
		var ie *IdentifyError
		if (k == nil) == (err == nil) || err != nil && !errors.As(err, &ie) {
			t.Fatalf("%v, %v", k, err)
		}
		if k != nil {
			checkTable(t, k.Symbols)
		}
	})
}

func BenchmarkSymbolize(b *testing.B) {
	g, k := identified(b, linuxtest.Config{Layout: linuxtest.Relative61})
	buf := make([]byte, 0, maxNameLen)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if _, _, ok := k.Symbols.AppendSymbol(buf, g.Base+0x2000+x86.VirtAddr(i&0xfff)); !ok {
			b.Fatal("no symbol")
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	_, k := identified(b, linuxtest.Config{Layout: linuxtest.Relative61})
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, ok := k.Lookup("func_777_init"); !ok {
			b.Fatal("no symbol")
		}
	}
}

func BenchmarkReadTask(b *testing.B) {
	g, k := identified(b, linuxtest.Config{Layout: linuxtest.Relative61})
	task := new(Task)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := k.ReadTask(&g.Regs[0], task); err != nil {
			b.Fatal(err)
		}
	}
}
