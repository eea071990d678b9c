package linux

import (
	"errors"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestTextReaders tells who reads the kernel's code: by the code itself, and in functions
// that copy for anybody by who has called them, and by nothing else on the stack.
func TestTextReaders(t *testing.T) {
	g, k := identified(t, linuxtest.TextReadersConfig())
	g.SetTextReaders()
	r, err := k.NewTextReaders()
	if err != nil {
		t.Fatal(err)
	}
	const module = 0xffffffffc0001000
	stack := uint64(g.NewHeap().Alloc(0x400)) + 0x100
	at := func(name string) uint64 { return uint64(g.Addr(name)) + 8 }
	checker := at(linuxtest.TextChecker)
	for _, c := range []struct {
		name  string
		rip   uint64
		words map[uint64]uint64 // by their offset from the stack pointer
		bp    uint64
		cpl   uint8
		want  bool
	}{
		{name: "a checker", rip: checker, want: true},
		{name: "its cold part", rip: at(linuxtest.TextChecker + ".cold"), want: true},
		{name: "as a user", rip: checker, cpl: 3},
		{name: "another function", rip: at(linuxtest.TextOther)},
		{name: "a module", rip: module},
		{name: "user code", rip: 0x40_0000},
		{name: "a copier for a checker", rip: at(linuxtest.TextCopier), words: map[uint64]uint64{linuxtest.CopierFrame: checker}, want: true},
		{name: "at its first instruction", rip: at(linuxtest.TextCopier) - 8, words: map[uint64]uint64{0: checker}, want: true},
		{name: "for a module, which has left a checker's address", rip: at(linuxtest.TextCopier),
			words: map[uint64]uint64{0: checker, 8: checker, linuxtest.CopierFrame: module, linuxtest.CopierFrame + 8: checker}},
		{name: "for another function", rip: at(linuxtest.TextCopier), words: map[uint64]uint64{linuxtest.CopierFrame: at(linuxtest.TextOther)}},
		{name: "for a copier that is for a checker", rip: at(linuxtest.TextCopier),
			words: map[uint64]uint64{linuxtest.CopierFrame: at("bcmp"), linuxtest.CopierFrame + 8: checker}, want: true},
		{name: "for a copier that is for a module", rip: at(linuxtest.TextCopier),
			words: map[uint64]uint64{linuxtest.CopierFrame: at("bcmp"), linuxtest.CopierFrame + 8: module}},
		{name: "with a frame pointer", rip: at(linuxtest.TextFramed), bp: stack + 0x40, words: map[uint64]uint64{0x48: checker}, want: true},
		{name: "with a frame pointer that leads nowhere", rip: at(linuxtest.TextFramed), bp: 0x1000, words: map[uint64]uint64{0x48: checker}},
		{name: "with one below the stack", rip: at(linuxtest.TextFramed), bp: stack - 0x40, words: map[uint64]uint64{0x48: checker}},
		{name: "copiers without an end", rip: at("bcmp"), words: map[uint64]uint64{
			0: at("bcmp"), 8: at("bcmp"), 16: at("bcmp"), 24: at("bcmp"), 32: at("bcmp"), 40: at("bcmp"), 48: at("bcmp"),
			56: at("bcmp"), 64: at("bcmp"), 72: at("bcmp"), 80: at("bcmp"), 88: checker}},
		{name: "beside the stack", rip: at("bcmp"), words: map[uint64]uint64{}},
	} {
		g.Write(x86.VirtAddr(stack-0x100), make([]byte, 0x400))
		regs := x86.Registers{RIP: c.rip, RSP: stack, RBP: c.bp, CPL: c.cpl}
		for off, w := range c.words {
			g.WriteUint64(x86.VirtAddr(stack+off), w)
		}
		if got := r.Own(&regs); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if n := testing.AllocsPerRun(10, func() { r.Own(&regs) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
	for _, sp := range []uint64{0, 7, 0x1000, stack + 1, ^uint64(0) - 7, 0xffff_f000_0000_0000} {
		if regs := (x86.Registers{RIP: at("bcmp"), RSP: sp}); r.Own(&regs) {
			t.Errorf("with the stack at %#x it may read", sp)
		}
	}
}

// TestTextReadersWithout refuses kernels in which it can't be told.
func TestTextReadersWithout(t *testing.T) {
	if _, k := identified(t, linuxtest.Config{Functions: []string{linuxtest.TextChecker}}); k != nil {
		if _, err := k.NewTextReaders(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("without tables: %v", err)
		}
	}
	c := linuxtest.TextReadersConfig()
	c.Functions = c.Functions[2:]
	_, k := identified(t, c)
	if _, err := k.NewTextReaders(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without checkers: %v", err)
	}
}
