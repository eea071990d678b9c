package linux

import (
	"bytes"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/guest/guesttest"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// The first bytes of a table as scripts/kallsyms.c of each time writes them:
// what is before num_syms, how wide it is, and what is behind the token index.
// The builder of all other tests is held against this.
func TestTableBytes(t *testing.T) {
	const (
		base = x86.VirtAddr(0xffff_ffff_8100_0000)
		at   = base + 0x20_0008
	)
	syms := []linuxtest.Sym{
		{Addr: 0x10, Absolute: true, Type: 'A', Name: "pc"},
		{Addr: base, Type: 'T', Name: "b"},
		{Addr: base + 0x345, Type: 't', Name: "a"},
	}
	plain := []linuxtest.Sym{{Addr: base, Type: 'T', Name: "pc"}, syms[1], syms[2]}
	var (
		rel    = "\x10\x00\x00\x00" + "\xff\xff\xff\xff" + "\xba\xfc\xff\xff" + "\x00\x00\x00\x00" // absolute, -1-0, -1-0x345, padding
		rbase  = "\x00\x00\x00\x81\xff\xff\xff\xff"
		names  = "\x03Apc\x02Tb\x02ta"
		count4 = "\x03\x00\x00\x00"
		count8 = count4 + "\x00\x00\x00\x00"
	)
	pad := func(s string, n int) string {
		for len(s)%n != 0 {
			s += "\x00"
		}
		return s
	}
	for l, want := range map[linuxtest.Layout]struct{ head, tail string }{
		linuxtest.Addresses: {"\x10\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\x81\xff\xff\xff\xff" + "\x45\x03\x00\x81\xff\xff\xff\xff" +
			count8 + pad(names, 8) + "\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		linuxtest.Relative4:  {rel + rbase + count8 + pad(names, 8) + "\x00\x00\x00\x00\x00\x00\x00\x00", ""},
		linuxtest.Relative5:  {rel + rbase + pad(count4, 8) + pad(names, 8) + pad("\x00\x00\x00\x00", 8), ""},
		linuxtest.Relative61: {rel + rbase + pad(count4, 8) + pad(names, 8) + pad("\x00\x00\x00\x00", 8), ""},
		// In the order of names: a, b, pc.
		linuxtest.Seqs62:  {rel + rbase + pad(count4, 8) + pad(names, 8) + pad("\x00\x00\x00\x00", 8) + pad("\x02\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00", 8), ""},
		linuxtest.Seqs63:  {rel + rbase + pad(count4, 8) + pad(names, 8) + pad("\x00\x00\x00\x00", 8) + pad("\x00\x00\x02\x00\x00\x01\x00\x00\x00", 8), ""},
		linuxtest.After64: {pad(count4, 8) + pad(names, 8) + pad("\x00\x00\x00\x00", 8), rel + rbase + pad("\x00\x00\x02\x00\x00\x01\x00\x00\x00", 8)},
		linuxtest.Unsigned615: {pad(count4, 8) + pad("\x03Tpc\x02Tb\x02ta", 8) + pad("\x00\x00\x00\x00", 8),
			"\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x45\x03\x00\x00" + "\x00\x00\x00\x00" + rbase + pad("\x00\x00\x02\x00\x00\x01\x00\x00\x00", 8)},
		linuxtest.Place72: {count4 + pad("\x03Tpc\x02Tb\x02ta", 4) + "\x00\x00\x00\x00", ""},
	} {
		s := syms
		if !l.Absolute() {
			s = plain
		}
		got := linuxtest.Kallsyms(l, base, at, s)
		if !bytes.HasPrefix(got, []byte(want.head)) || !bytes.HasSuffix(got, []byte(want.tail)) {
			t.Errorf("%v:\n% x\nwant\n% x … % x", l, got, want.head, want.tail)
		}
	}
}

// A kernel of 4.15 to 4.19 with page-table isolation, a vCPU in user mode: CR3 is
// the user half, in which the image is not mapped but for the entry code, and
// LSTAR is the trampoline in cpu_entry_area. The IDT, mapped in both halves, leads
// on. The same with five levels.
func TestIdentifyTrampoline(t *testing.T) {
	for _, five := range []bool{false, true} {
		for _, user := range []bool{false, true} {
			g := linuxtest.New(linuxtest.Config{Layout: linuxtest.Relative4, UserRoot: user, FiveLevels: five, Base: 0xffff_ffff_a3c0_0000})
			const entryArea = x86.VirtAddr(0xffff_fe00_0000_0000)
			idt := linuxtest.DirectMap + 0x10000
			roots := []x86.PhysAddr{g.Root}
			if user {
				roots = append(roots, g.Root+x86.PageSize)
			}
			for _, root := range roots {
				kernel := g.Root
				g.Root = root
				g.Map(entryArea, 0x10000, x86.PageSize, guest.Page4K, guesttest.NX)
				g.Root = kernel
			}
			handler := uint64(g.Base + 0x2345)
			g.WriteUint64(idt+14*16, handler&0xffff|0x8e00_0010_0000|handler&0xffff_0000<<32)
			g.WriteUint64(idt+14*16+8, handler>>32)
			regs := g.Regs[0]
			regs.LSTAR, regs.IDTBase, regs.CPL = uint64(entryArea)+0x6000, uint64(entryArea), 3
			regs.GSBase, regs.KernelGSBase = 0x7f00_0000_0000, regs.GSBase
			k, err := Identify(g.Memory(), regs)
			if err != nil {
				t.Errorf("five levels %v, user half %v: %v", five, user, err)
				continue
			}
			if as := k.AddressSpace(); k.Base != g.Base || as.Root() != g.Root || k.Symbols.Len() != len(g.Syms) {
				t.Errorf("five levels %v, user half %v: base %v, root %v, %d symbols", five, user, k.Base, as.Root(), k.Symbols.Len())
			}
			if task, err := k.CurrentTask(&regs); err != nil || task.PID != 100 {
				t.Errorf("five levels %v, user half %v: task %+v, %v", five, user, task, err)
			}
		}
	}
}

// What lies about in memory besides the genuine tables, before them and after:
// a whole table that was not relocated, as the boot loader left it; headers of
// BTF that have the genuine one's numbers and another body; tables of tokens.
// The genuine ones are found, or, once they are gone, nothing.
func TestDecoysBeside(t *testing.T) {
	const before, after = 0x10_0000, 0x38_0000 // offsets in the image
	for l := range linuxtest.NumLayouts {
		g := linuxtest.New(linuxtest.Config{Layout: l, Symbols: 700, Base: 0xffff_ffff_9a20_0000})
		unrelocated := make([]linuxtest.Sym, len(g.Syms))
		for i, s := range g.Syms {
			if unrelocated[i] = s; !s.Absolute {
				unrelocated[i].Addr = s.Addr - g.Base + 0xffff_ffff_8100_0000
			}
			// So that one can tell which was taken.
			if s.Name == "func_500_init" {
				unrelocated[i].Name = "func_decoy"
			}
		}
		for _, off := range []x86.VirtAddr{before, after} {
			at := g.Base + off + 8
			place := at
			if l == linuxtest.Place72 { // nothing in it is relocated, but it fits one place
				place = g.Kallsyms
			}
			g.Write(at, linuxtest.Kallsyms(l, 0xffff_ffff_8100_0000, place-g.Base+0xffff_ffff_8100_0000, unrelocated))
			decoy := bytes.Clone(g.BTF)
			for i := 24; i < len(decoy); i++ {
				decoy[i] ^= 0x5a
			}
			g.Write(g.Base+off+0x4_0000, decoy)
		}
		k, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Errorf("%v: %v", l, err)
			continue
		}
		if _, ok := k.Lookup("func_decoy"); ok || k.Symbols.Len() != len(g.Syms) || k.BTFError != nil || k.Offsets.Task.PID != linuxtest.TaskPID {
			t.Errorf("%v: decoys were taken: %d symbols, %v, %+v", l, k.Symbols.Len(), k.BTFError, k.Offsets.Task)
		}
		g.Write(g.Kallsyms, make([]byte, g.KallsymsSize))
		if k, err := Identify(g.Memory(), g.Regs[0]); err == nil {
			_, decoy := k.Lookup("func_decoy")
			t.Errorf("%v: without the genuine table: %d symbols, the decoy's %v", l, k.Symbols.Len(), decoy)
		}
	}
}
