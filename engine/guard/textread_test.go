package guard_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/view"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
)

// armReads arms guards, among them the one that watches reads, in view 1 with 2 for steps.
func armReads(t testing.TB, actions map[policy.GuardName]policy.Action) (fixture, x86.VirtAddr) {
	t.Helper()
	g := linuxtest.New(linuxtest.TextReadersConfig())
	g.SetTextReaders()
	g.SetTask(0, 214, 213, "insmod")
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	set, err := guard.NewSet(&guard.Target{Kernel: k, Boot: g.Regs[0], Now: g.Regs}, g.Memory(), actions)
	if err != nil {
		t.Fatal(err)
	}
	set.UseView(1)
	set.UseReads(2)
	return fixture{g, k, set}, g.NewHeap().Alloc(0x400) + 0x100
}

// read is a load from kernel text at off, by code at rip.
func (f fixture) read(off uint64, rip, rsp x86.VirtAddr) *vmevent.Event {
	ev := f.write(off, rip)
	ev.Mem.Flags &^= vmevent.AccessWrite
	ev.Regs.RSP, ev.View = uint64(rsp), 1
	return ev
}

// TestTextRead is the guard's meaning, and what the policy's action makes of it.
func TestTextRead(t *testing.T) {
	const load, move = "\x48\x8b\x07", "\xf3\xa4" // mov (%rdi),%rax; rep movsb
	for _, c := range []struct {
		name      string
		rip       string // a function
		insn      string
		caller    string // of a copier
		write     bool
		violation policy.GuardName
		refused   vmevent.Verdict
	}{
		{name: "a checker", rip: linuxtest.TextChecker, insn: load},
		{name: "a copier for a checker", rip: linuxtest.TextCopier, insn: load, caller: linuxtest.TextChecker},
		{name: "a copier for another function", rip: linuxtest.TextCopier, insn: load, caller: linuxtest.TextOther, violation: policy.GuardKernelTextRead, refused: vmevent.ReadOnes},
		{name: "another function", rip: linuxtest.TextOther, insn: load, violation: policy.GuardKernelTextRead, refused: vmevent.ReadOnes},
		{name: "one that copies", rip: linuxtest.TextOther, insn: move, violation: policy.GuardKernelTextRead, refused: vmevent.Discard},
		{name: "a write", rip: linuxtest.TextOther, insn: load, write: true, violation: policy.GuardKernelText, refused: vmevent.Discard},
	} {
		for _, action := range []policy.Action{policy.ActionAlert, policy.ActionBlock} {
			t.Run(c.name+"/"+action.String(), func(t *testing.T) {
				f, stack := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: action, policy.GuardKernelTextRead: action})
				rip := f.guest.Addr(c.rip) + linuxtest.CopierSaved
				f.guest.Write(rip, []byte(c.insn))
				if c.caller != "" {
					f.guest.WriteUint64(stack+linuxtest.CopierFrame, uint64(f.guest.Addr(c.caller))+8)
				}
				ev := f.read(0x2234, rip, stack)
				want := vmevent.Step
				in := uint16(2)
				if c.write {
					ev.Mem.Flags |= vmevent.AccessWrite
					in = 0
				}
				if c.violation != "" && action == policy.ActionBlock {
					want = c.refused
				}
				got := f.set.HandleEvent(ev)
				if got != want || want == vmevent.Step && (ev.StepIn != in || ev.ReturnTo != 1) {
					t.Errorf("answered %#x, a step in %d and back to %d; want %#x, in %d", got, ev.StepIn, ev.ReturnTo, want, in)
				}
				select {
				case e := <-f.set.Violations():
					if e.Guard != c.violation || e.Action != action {
						t.Errorf("taken for a violation of %q, %s", e.Guard, e.Action)
					}
					if _, err := e.Attempted(); err == nil && !c.write {
						t.Error("a read is said to store something")
					}
				default:
					if c.violation != "" {
						t.Error("no violation")
					}
				}
			})
		}
	}
}

// TestTextReadAlone has no guard of writes beside: what writes may read as well.
func TestTextReadAlone(t *testing.T) {
	f, stack := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelTextRead: policy.ActionBlock})
	exchange := f.guest.Addr(linuxtest.TextOther)
	f.guest.Write(exchange, []byte("\x87\x07")) // xchg %eax,(%rdi)
	ev := f.read(0x2234, exchange, stack)
	ev.Mem.Flags |= vmevent.AccessWrite
	if v := f.set.HandleEvent(ev); v != vmevent.Discard {
		t.Errorf("answered %#x", v)
	}
	if e := <-f.set.Violations(); e.Guard != policy.GuardKernelTextRead {
		t.Errorf("a violation of %s", e.Guard)
	}
	ev.Regs.RIP = uint64(f.guest.Addr(linuxtest.TextChecker))
	if v := f.set.HandleEvent(ev); v != vmevent.Step || ev.StepIn != 0 {
		t.Errorf("what patches is answered %#x in %d", v, ev.StepIn)
	}
}

// TestTextReadRestricts has each frame restricted once, by the guard that permits less
// where it holds.
func TestTextReadRestricts(t *testing.T) {
	f, _ := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: policy.ActionBlock, policy.GuardKernelTextRead: policy.ActionAlert})
	const all = linuxtest.TextSize / x86.PageSize
	first := f.guest.PhysBase.GFN()
	// The second has data.
	code := guard.Restriction{Guard: policy.GuardKernelTextRead, Access: xen.AccessX, Frames: []linux.FrameRange{{First: first, N: 1}, {First: first + 2, N: all - 2}}}
	text := guard.Restriction{Guard: policy.GuardKernelText, Access: xen.AccessRX, Frames: []linux.FrameRange{{First: first, N: all}}}
	data := guard.Restriction{Guard: policy.GuardKernelText, Access: xen.AccessRX, Frames: []linux.FrameRange{{First: first + 1, N: 1}}}
	for _, c := range []struct {
		holds []policy.GuardName
		want  []guard.Restriction
	}{
		{[]policy.GuardName{policy.GuardKernelText, policy.GuardKernelTextRead}, []guard.Restriction{code, data}},
		{[]policy.GuardName{policy.GuardKernelTextRead}, []guard.Restriction{code}},
		{[]policy.GuardName{policy.GuardKernelText}, []guard.Restriction{text}},
	} {
		got := f.set.Restrictions(func(name policy.GuardName) bool { return slices.Contains(c.holds, name) })
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %+v", c.holds, got)
		}
	}
	// Where it does not hold nobody judges reads.
	f.set.UseViews(map[uint16]func(policy.GuardName) bool{1: func(name policy.GuardName) bool { return name == policy.GuardKernelText }})
	if v := f.set.HandleEvent(f.read(0x2234, module, 0)); v != vmevent.Step || len(f.set.Violations()) != 0 {
		t.Errorf("answered %#x with %d violations", v, len(f.set.Violations()))
	}
}

// TestTextReadShadow judges reads of a page that has a hidden breakpoint, too.
func TestTextReadShadow(t *testing.T) {
	f, stack := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelTextRead: policy.ActionBlock})
	b := view.New(1, 2, 1, f.guest.Memory(), func(uint32, uint8) error { return nil })
	gfn := (f.guest.PhysBase + 0x2234).GFN()
	if err := b.Shadow(view.NewPage(gfn, 1<<20, make([]byte, x86.PageSize))); err != nil {
		t.Fatal(err)
	}
	f.set.UseBreakpoints(b)
	other := f.guest.Addr(linuxtest.TextOther)
	f.guest.Write(other, []byte("\x48\x8b\x07"))
	if v := f.set.HandleEvent(f.read(0x2234, other, stack)); v != vmevent.ReadOnes {
		t.Errorf("an attacker is answered %#x", v)
	}
	ev := f.read(0x2234, f.guest.Addr(linuxtest.TextChecker), stack)
	if v := f.set.HandleEvent(ev); v != vmevent.Step || ev.StepIn != 2 {
		t.Errorf("the kernel is answered %#x, in view %d", v, ev.StepIn)
	}
	// The shadow's own frame is nobody's to read.
	ev = f.read(0x2234, other, stack)
	ev.Mem.GFN = 1 << 20
	if v := f.set.HandleEvent(ev); v != vmevent.ReadOnes || len(f.set.Violations()) != 1 {
		t.Errorf("a read of the shadow page is answered %#x", v)
	}
}

// TestTextReadRefusals: what reads and writes elsewhere is not carried out with other
// bytes, since it would be carried out past all restrictions.
func TestTextReadRefusals(t *testing.T) {
	f, stack := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelTextRead: policy.ActionBlock})
	other := f.guest.Addr(linuxtest.TextOther)
	for insn, want := range map[string]vmevent.Verdict{
		"\x8b\x07": vmevent.ReadOnes, "\x0f\xb6\x07": vmevent.ReadOnes, "\xf3\x0f\x6f\x07": vmevent.ReadOnes, "\xc5\xfe\x6f\x07": vmevent.ReadOnes,
		"\xac": vmevent.ReadOnes, "\xf3\xa6": vmevent.ReadOnes, "\x3b\x07": vmevent.ReadOnes, "\x03\x07": vmevent.ReadOnes, "\xff\x27": vmevent.ReadOnes,
		"\x58": vmevent.ReadOnes, "\xc3": vmevent.ReadOnes, "\x8f\xe9\x78\x01\xc8": vmevent.ReadOnes,
		"\xa4": vmevent.Discard, "\xf3\x48\xa5": vmevent.Discard, "\xff\x37": vmevent.Discard, "\xff\x17": vmevent.Discard, "\x48\xff\x1f": vmevent.Discard,
		"\x8f\x07": vmevent.Discard, "\x41\x8f\x00": vmevent.Discard, "\xc8\x00\x00\x01": vmevent.Discard, "\x66\x0f\x38\xf8\x07": vmevent.Discard,
	} {
		f.guest.Write(other, append([]byte(insn), make([]byte, 15)...))
		if v := f.set.HandleEvent(f.read(0x2345, other, stack)); v != want {
			t.Errorf("% x is answered %#x, want %#x", insn, v, want)
		}
		<-f.set.Violations()
	}
}

// TestTextReadAllocations: a kernel that checks itself costs no memory.
func TestTextReadAllocations(t *testing.T) {
	f, stack := armReads(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: policy.ActionBlock, policy.GuardKernelTextRead: policy.ActionBlock})
	f.guest.WriteUint64(stack+linuxtest.CopierFrame, uint64(f.guest.Addr(linuxtest.TextChecker))+8)
	ev := f.read(0x2234, f.guest.Addr(linuxtest.TextCopier)+8, stack)
	if n := testing.AllocsPerRun(100, func() {
		if f.set.HandleEvent(ev) != vmevent.Step {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
