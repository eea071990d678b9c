package linux

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the guest of these tests has its tables, from its base on.
const (
	orcIPs     = linuxtest.ROData + 0x1c_0000
	orcEntries = orcIPs + 0x1000
)

// orcLine is an entry of a table: from where on in the kernel's code it holds.
type orcLine struct {
	at                 x86.VirtAddr
	spReg, spOff       int
	bpReg, bpOff, kind int
	end                bool
}

// newOrcGuest is a guest whose kernel has that table, in the form with the member end
// or in the later one.
func newOrcGuest(t testing.TB, old bool, lines ...orcLine) (*linuxtest.Guest, *Kernel) {
	t.Helper()
	g, k := identified(t, linuxtest.Config{Data: map[string]x86.VirtAddr{
		"__start_orc_unwind_ip": orcIPs, "__stop_orc_unwind_ip": orcIPs + x86.VirtAddr(4*len(lines)),
		"__start_orc_unwind": orcEntries,
	}})
	o := &k.Offsets.Orc
	*o = OrcOffsets{
		Size: 6, SPOffset: 0, BPOffset: 2, SPReg: Bits{4, 0, 4}, BPReg: Bits{4, 4, 4}, Type: Bits{4, 8, 3}, End: Bits{NoOffset, 0, 0},
	}
	if old {
		o.Type, o.End = Bits{4, 8, 2}, Bits{4, 10, 1}
	}
	for i, l := range lines {
		at := x86.VirtAddr(orcIPs + 4*i)
		g.Write(g.Base+at, binary.LittleEndian.AppendUint32(nil, uint32(l.at-at)))
		e := binary.LittleEndian.AppendUint16(nil, uint16(l.spOff))
		e = binary.LittleEndian.AppendUint16(e, uint16(l.bpOff))
		flags := l.spReg | l.bpReg<<4 | l.kind<<8
		if l.end {
			flags |= 1 << 10
		}
		e = binary.LittleEndian.AppendUint16(e, uint16(flags))
		g.Write(g.Base+orcEntries+x86.VirtAddr(6*i), e)
	}
	return g, k
}

// TestUnwind goes through a function, one with a frame pointer, an interrupt and the
// first function of a thread, in the two forms that tables have.
func TestUnwind(t *testing.T) {
	const (
		leaf, framed, handler, interrupted, first = 0x1000, 0x1100, 0x1200, 0x1300, 0x1400
		stackAt                                   = 0xffffc90000000000
	)
	for _, c := range []struct {
		old bool
		reg orcNumbers
	}{{true, orcNumbersOld}, {false, orcNumbersOld}, {false, orcNumbersNew}} {
		old, orcSP, orcBP, orcPrevSP := c.old, int(c.reg.sp), int(c.reg.bp), int(c.reg.prevSP)
		call, regs, end := 2, 3, orcLine{at: first, kind: 1}
		if old {
			call, regs, end = 0, 1, orcLine{at: first, end: true}
		}
		g, k := newOrcGuest(t, old,
			orcLine{at: leaf, spReg: orcSP, spOff: 24, kind: call},
			orcLine{at: framed, spReg: orcBP, spOff: 16, bpReg: orcPrevSP, bpOff: -16, kind: call},
			orcLine{at: handler, spReg: orcSP, spOff: 8, kind: regs},
			orcLine{at: interrupted, spReg: orcSP, spOff: 8, kind: call},
			end,
		)
		stack := make([]byte, 0x400)
		put := func(off int, v uint64) { binary.LittleEndian.PutUint64(stack[off:], v) }
		code := func(at int) uint64 { return uint64(g.Base) + uint64(at) }
		put(16, code(framed+0x10))               // leaf's caller
		put(0x40, 0x1234)                        // framed's own frame pointer
		put(0x48, code(handler+0x10))            // framed's caller
		put(0x58+regsIP, code(interrupted+0x10)) // what the handler interrupted
		put(0x58+regsIP+iretCS, 0x10)
		put(0x58+regsIP+iretSP, stackAt+0x200)
		put(0x200, code(first+0x10))
		r := x86.Registers{RIP: code(leaf + 4), RSP: stackAt, RBP: stackAt + 0x40}
		want := fmt.Sprint([]x86.VirtAddr{
			x86.VirtAddr(code(framed + 0x10)), x86.VirtAddr(code(handler + 0x10)),
			x86.VirtAddr(code(interrupted + 0x10)), x86.VirtAddr(code(first + 0x10)),
		})
		got, _, whole := k.Unwind(&r, stack, 100)
		if !whole || fmt.Sprint(got) != want {
			t.Errorf("%+v: %v, whole %v, want %v", c, got, whole, want)
		}
		if got, _, whole := k.Unwind(&r, stack, 2); whole || len(got) != 2 {
			t.Errorf("two of them: %v, whole %v", got, whole)
		}
		if got, _, whole := k.Unwind(&r, stack[:0x60], 100); whole || len(got) != 2 {
			t.Errorf("with less of the stack: %v, whole %v", got, whole)
		}
		put(0x58+regsIP+iretCS, 0x33)
		if got, _, whole := k.Unwind(&r, stack, 100); !whole || len(got) != 2 {
			t.Errorf("a user's code interrupted: %v, whole %v", got, whole)
		}
		put(0x58+regsIP+iretCS, 0x10)
		put(0x58+regsIP+iretSP, stackAt)
		if got, _, whole := k.Unwind(&r, stack, 100); whole || len(got) != 2 {
			t.Errorf("a stack that goes back: %v, whole %v", got, whole)
		}
		put(0x48, 0xffffffffc0000010)
		if got, rest, whole := k.Unwind(&r, stack, 100); whole || len(got) != 2 || len(rest) != len(stack)-0x50 {
			t.Errorf("a caller that is gone: %v, %#x bytes are left, whole %v", got, len(rest), whole)
		}
		r.RIP = code(leaf) - 0x100
		if got, _, whole := k.Unwind(&r, stack, 100); whole || len(got) != 0 {
			t.Errorf("code before the table: %v, whole %v", got, whole)
		}
		r.RIP = 0xffffffffc0000000
		if got, _, whole := k.Unwind(&r, stack, 100); whole || len(got) != 0 {
			t.Errorf("code of nobody: %v, whole %v", got, whole)
		}
	}
}

// FuzzUnwind unwinds with tables, a stack and registers that a guest has made up.
func FuzzUnwind(f *testing.F) {
	orcSP, orcBP, orcPrevSP := int(orcNumbersOld.sp), int(orcNumbersOld.bp), int(orcNumbersOld.prevSP)
	lines := []orcLine{{at: 0x1000, spReg: orcSP, spOff: 8, kind: 2}, {at: 0x1100, spReg: orcBP, spOff: 16, bpReg: orcPrevSP, bpOff: -16, kind: 3}, {at: 0x1200, kind: 1}}
	g, k := newOrcGuest(f, false, lines...)
	f.Add([]byte{1, 2, 3}, uint16(0), []byte{4, 5, 6, 7, 8, 9, 10, 11}, uint64(0x1010), uint64(0), uint64(8))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(0x1000), []byte{}, uint64(0x1110), ^uint64(0), uint64(1))
	f.Fuzz(func(t *testing.T, table []byte, at uint16, stack []byte, rip, rsp, rbp uint64) {
		if len(table) > 0x1000 || len(stack) > 0x2000 {
			return
		}
		defer overwrite(g, g.Base+orcIPs+x86.VirtAddr(at%0x2000), table)()
		r := x86.Registers{RIP: uint64(g.Base) + rip%0x5000, RSP: rsp, RBP: rbp}
		got, _, _ := k.Unwind(&r, stack, 64)
		if len(got) > 64 || len(got) > len(stack)/8 {
			t.Errorf("%d calls on a stack of %d bytes", len(got), len(stack))
		}
	})
}
