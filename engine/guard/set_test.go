package guard_test

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

type fixture struct {
	guest  *linuxtest.Guest
	kernel *linux.Kernel
	set    *guard.Set
}

func arm(t testing.TB, actions map[policy.GuardName]policy.Action) fixture {
	t.Helper()
	g := linuxtest.New(linuxtest.Config{})
	g.SetTask(0, 214, 213, "insmod")
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	boot := g.Regs[0]
	boot.STAR, boot.CSTAR, boot.SysenterEIP = 0x23001000000000, uint64(g.Base)+0x2000, uint64(g.Base)+0x3000
	now := []x86.Registers{boot, boot}
	set, err := guard.NewSet(&guard.Target{Kernel: k, Boot: boot, Now: now}, g.Memory(), actions)
	if err != nil {
		t.Fatal(err)
	}
	return fixture{g, k, set}
}

func both(a policy.Action) map[policy.GuardName]policy.Action {
	return map[policy.GuardName]policy.Action{policy.GuardKernelText: a, policy.GuardSyscallEntry: a}
}

// write is a store into kernel text at off, by code at rip.
func (f fixture) write(off uint64, rip x86.VirtAddr) *vmevent.Event {
	pa := f.guest.PhysBase + x86.PhysAddr(off)
	ev := &vmevent.Event{
		Reason: vmevent.ReasonMemAccess, Paused: true, Regs: f.guest.Regs[0],
		Mem: vmevent.MemAccess{
			GFN: pa.GFN(), Offset: pa.Offset(), GLA: f.guest.Base + x86.VirtAddr(off),
			Flags: vmevent.AccessRead | vmevent.AccessWrite | vmevent.AccessGLAValid,
		},
	}
	ev.Regs.RIP = uint64(rip)
	return ev
}

// poke makes a store look like the kernel's own patching of that place.
func poke(ev *vmevent.Event) *vmevent.Event {
	ev.Regs.CR3 = uint64(linuxtest.PokingPGD)
	ev.Mem.GLA = linuxtest.Window + x86.VirtAddr(ev.Mem.Offset)
	return ev
}

func msr(f fixture, index uint32, value uint64) *vmevent.Event {
	return &vmevent.Event{
		Reason: vmevent.ReasonMovToMSR, Paused: true, Regs: f.guest.Regs[0],
		MSR: vmevent.MSRWrite{MSR: index, New: value, Old: 1},
	}
}

// module is an address where modules live.
const module = x86.VirtAddr(0xffffffffc0001000)

// TestVerdicts is the guards' meaning: what is a violation, and what the
// policy's action makes of it.
func TestVerdicts(t *testing.T) {
	type step struct {
		name      string
		event     func(fixture) *vmevent.Event
		violation policy.GuardName // "" for none
	}
	steps := []step{
		{"module writes text", func(f fixture) *vmevent.Event { return f.write(0x1234, module) }, policy.GuardKernelText},
		{"kernel code writes text at its own address", func(f fixture) *vmevent.Event { return f.write(0x1234, f.guest.Base+0x100) }, policy.GuardKernelText},
		{"text_poke", func(f fixture) *vmevent.Event { return poke(f.write(0x1234, f.guest.Base+0x100)) }, ""},
		{"module through the poking window", func(f fixture) *vmevent.Event { return poke(f.write(0x1234, module)) }, policy.GuardKernelText},
		{"kernel code in the window of another page table", func(f fixture) *vmevent.Event {
			ev := poke(f.write(0x1234, f.guest.Base+0x100))
			ev.Regs.CR3 = f.guest.Regs[0].CR3
			return ev
		}, policy.GuardKernelText},
		{"the poking page table, outside the window", func(f fixture) *vmevent.Event {
			ev := poke(f.write(0x1234, f.guest.Base+0x100))
			ev.Mem.GLA = linuxtest.Window + 2*x86.PageSize
			return ev
		}, policy.GuardKernelText},
		{"window without a valid address", func(f fixture) *vmevent.Event {
			ev := poke(f.write(0x1234, f.guest.Base+0x100))
			ev.Mem.Flags &^= vmevent.AccessGLAValid
			return ev
		}, policy.GuardKernelText},
		{"a page nobody guards", func(f fixture) *vmevent.Event { return f.write(linuxtest.Data, module) }, ""},
		{"LSTAR", func(f fixture) *vmevent.Event { return msr(f, x86.MSRLSTAR, 0xffffffffc0000000) }, policy.GuardSyscallEntry},
		{"LSTAR, the boot value again", func(f fixture) *vmevent.Event { return msr(f, x86.MSRLSTAR, f.guest.Regs[0].LSTAR) }, ""},
		{"STAR", func(f fixture) *vmevent.Event { return msr(f, x86.MSRSTAR, 0) }, policy.GuardSyscallEntry},
		{"CSTAR", func(f fixture) *vmevent.Event { return msr(f, x86.MSRCSTAR, 5) }, policy.GuardSyscallEntry},
		{"SYSENTER_EIP", func(f fixture) *vmevent.Event { return msr(f, x86.MSRSysenterEIP, 5) }, policy.GuardSyscallEntry},
		{"another MSR", func(f fixture) *vmevent.Event { return msr(f, x86.MSRGSBase, 5) }, ""},
	}
	for _, action := range []policy.Action{policy.ActionAlert, policy.ActionBlock} {
		for _, s := range steps {
			t.Run(action.String()+"/"+s.name, func(t *testing.T) {
				f := arm(t, both(action))
				ev := s.event(f)
				want := vmevent.Continue
				if ev.Reason == vmevent.ReasonMemAccess {
					want = vmevent.Emulate
				}
				if s.violation != "" && action == policy.ActionBlock {
					want = map[policy.GuardName]vmevent.Verdict{
						policy.GuardKernelText: vmevent.Discard, policy.GuardSyscallEntry: vmevent.Deny,
					}[s.violation]
				}
				if got := f.set.HandleEvent(ev); got != want {
					t.Errorf("verdict %#x, want %#x", got, want)
				}
				select {
				case e := <-f.set.Violations():
					if e.Guard != s.violation || e.Action != action {
						t.Errorf("evidence for %q, %s; want %q, %s", e.Guard, e.Action, s.violation, action)
					}
					if !e.HasTask || e.Task.PID != 214 || e.Task.TGID != 213 || e.Task.Name() != "insmod" {
						t.Errorf("evidence names task %+v", e.Task)
					}
				default:
					if s.violation != "" {
						t.Errorf("no evidence of a violation of %s", s.violation)
					}
				}
			})
		}
	}
}

// TestRanges checks whose violation a write to a page is that has data of more
// than one guard, and that each page is restricted once.
func TestRanges(t *testing.T) {
	all := map[policy.GuardName]policy.Action{
		policy.GuardKernelROData: policy.ActionBlock, policy.GuardExceptionTable: policy.ActionBlock, policy.GuardSyscallTable: policy.ActionAlert,
		policy.GuardInterruptTable: policy.ActionBlock, policy.GuardVDSO: policy.ActionBlock,
	}
	without := maps.Clone(all)
	delete(without, policy.GuardKernelROData)
	const frames = (linuxtest.RODataEnd - linuxtest.ROData) / x86.PageSize
	for _, tt := range []struct {
		name    string
		actions map[policy.GuardName]policy.Action
		frames  uint64
		// owners of the guards' data, and of what lies beside it.
		beside policy.GuardName
	}{
		{"all", all, frames + 1, policy.GuardKernelROData},
		{"without kernel-rodata", without, 4, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := arm(t, tt.actions)
			n, seen := uint64(0), map[x86.GFN]bool{}
			for _, restricted := range f.set.Restrictions(func(policy.GuardName) bool { return true }) {
				for _, r := range restricted.Frames {
					for i := range x86.GFN(r.N) {
						if seen[r.First+i] {
							t.Errorf("frame %v restricted twice", r.First+i)
						}
						seen[r.First+i] = true
					}
					n += r.N
				}
			}
			if n != tt.frames {
				t.Errorf("%d frames restricted, want %d", n, tt.frames)
			}
			for _, w := range []struct {
				off   uint64
				owner policy.GuardName
			}{
				{linuxtest.SyscallTable, policy.GuardSyscallTable},
				{linuxtest.SyscallTable + 8, policy.GuardSyscallTable},
				{linuxtest.ExTable, policy.GuardExceptionTable},
				{linuxtest.ExTable + 0xff, policy.GuardExceptionTable},
				{linuxtest.ExTable + 0x100, tt.beside},
				{linuxtest.VDSO + linuxtest.VDSOSize - 1, policy.GuardVDSO},
				{linuxtest.VDSO + linuxtest.VDSOSize, tt.beside},
				{linuxtest.IDT + 0xff8, policy.GuardInterruptTable},
			} {
				want := vmevent.Discard
				if w.owner == "" || w.owner == policy.GuardSyscallTable {
					want = vmevent.Emulate
				}
				if got := f.set.HandleEvent(f.write(w.off, f.guest.Base+0x100)); got != want {
					t.Errorf("write at %#x: verdict %#x, want %#x", w.off, got, want)
				}
				owner := policy.GuardName("")
				select {
				case e := <-f.set.Violations():
					owner = e.Guard
				default:
				}
				if owner != w.owner {
					t.Errorf("write at %#x is a violation of %q, want %q", w.off, owner, w.owner)
				}
			}
		})
	}
}

// TestMoving checks the frames of modules: who may write, and what is let go of.
func TestMoving(t *testing.T) {
	const listed, other = module, module + 0x10_0000
	f := arm(t, map[policy.GuardName]policy.Action{policy.GuardModules: policy.ActionBlock, policy.GuardKernelText: policy.ActionBlock})
	if f.set.Moving() == nil || f.set.Moving().Guard.Name != policy.GuardModules {
		t.Fatalf("moving guard %+v", f.set.Moving())
	}
	// A list of one module.
	head, node := f.guest.Addr("modules"), f.guest.Base+linuxtest.Data+0x1_0000
	f.guest.WriteUint64(head, uint64(node+linuxtest.ModuleList))
	f.guest.WriteUint64(node+linuxtest.ModuleList, uint64(head))
	f.guest.Write(node+linuxtest.ModuleName, []byte("victim\x00"))
	f.guest.WriteUint64(node+linuxtest.ModuleMem+linuxtest.RegionBase, uint64(listed))
	f.guest.Write(node+linuxtest.ModuleMem+linuxtest.RegionBytes, []byte{0, 0x30, 0, 0})
	gfn := func(off uint64) x86.GFN { return (f.guest.PhysBase + x86.PhysAddr(off)).GFN() }
	f.guest.Map(listed, gfn(linuxtest.Data).Addr(), x86.PageSize, x86.PageSize, 0)
	// The module was there before, in another frame.
	f.set.UseMoving(map[x86.GFN]x86.VirtAddr{gfn(linuxtest.Data): listed, gfn(linuxtest.Data + 0x1000): other, gfn(linuxtest.Data + 0x3000): listed})
	rip := f.guest.Base + 0x100
	for _, tt := range []struct {
		name    string
		view    uint16
		event   *vmevent.Event
		verdict vmevent.Verdict
		gone    bool
	}{
		{"a module's page", 0, f.write(linuxtest.Data, rip), vmevent.Discard, false},
		{"by text_poke", 0, poke(f.write(linuxtest.Data, rip)), vmevent.Emulate, false},
		{"a page of no module", 0, f.write(linuxtest.Data+0x1000, rip), vmevent.Hold, true},
		{"a page of an earlier loading", 0, f.write(linuxtest.Data+0x3000, rip), vmevent.Hold, true},
		{"a page of an earlier loading, in a view", 1, f.write(linuxtest.Data+0x3000, rip), vmevent.Step, true},
		{"a page of no module, in a view", 1, f.write(linuxtest.Data+0x1000, rip), vmevent.Step, true},
		{"a page that is not watched", 0, f.write(linuxtest.Data+0x2000, rip), vmevent.Emulate, false},
	} {
		f.set.UseView(tt.view)
		tt.event.View = tt.view
		if got := f.set.HandleEvent(tt.event); got != tt.verdict {
			t.Errorf("%s: verdict %#x, want %#x", tt.name, got, tt.verdict)
		}
		gone := false
		select {
		case g := <-f.set.Gone():
			if gone = true; g.GFN != tt.event.Mem.GFN || g.VCPU != tt.event.VCPU {
				t.Errorf("%s: gone %+v", tt.name, g)
			}
		default:
		}
		if gone != tt.gone {
			t.Errorf("%s: let go of: %v", tt.name, gone)
		}
		select {
		case e := <-f.set.Violations():
			if tt.verdict != vmevent.Discard || e.MappedAt != listed || e.Target.Name() != "victim" || e.Guard != policy.GuardModules {
				t.Errorf("%s: evidence of %s at %v in %q", tt.name, e.Guard, e.MappedAt, e.Target.Name())
			}
		default:
			if tt.verdict == vmevent.Discard {
				t.Errorf("%s: no evidence", tt.name)
			}
		}
	}
	f.set.UseView(0)
	ev := poke(f.write(linuxtest.Data, rip))
	if n := testing.AllocsPerRun(100, func() { f.set.HandleEvent(ev) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestDataScan finds what changed in sealed data, and leaves to each guard its
// own.
func TestDataScan(t *testing.T) {
	f := arm(t, nil)
	target := &guard.Target{Kernel: f.kernel, Actions: map[policy.GuardName]policy.Action{policy.GuardVDSO: policy.ActionAlert}}
	for _, tt := range []struct {
		guard guard.Guard
		own   []x86.VirtAddr // where it finds a change
	}{
		{guard.ReadOnlyData(), []x86.VirtAddr{linuxtest.SyscallTable + 0x40, linuxtest.ExTable + 0x80}},
		{guard.SyscallTable(), []x86.VirtAddr{linuxtest.SyscallTable + 0x40}},
		{guard.ExceptionTable(), []x86.VirtAddr{linuxtest.ExTable + 0x80}},
		{guard.InterruptTable(), []x86.VirtAddr{linuxtest.IDT + 0x100}},
		{guard.VDSO(), []x86.VirtAddr{linuxtest.VDSO + 0x40}},
	} {
		scanner, err := tt.guard.Scan(target)
		if err != nil {
			t.Fatal(err)
		}
		changes := []x86.VirtAddr{linuxtest.SyscallTable + 0x40, linuxtest.ExTable + 0x80, linuxtest.IDT + 0x100, linuxtest.VDSO + 0x40}
		compare := func() (found []x86.VirtAddr) {
			r := f.kernel.NewReader(nil)
			for part := range scanner.Parts() {
				all, err := scanner.Compare(r, part)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range all {
					found = append(found, c.Addr-f.guest.Base)
					scanner.Accept(c)
				}
			}
			return found
		}
		if found := compare(); len(found) != 0 {
			t.Errorf("%s: found %v before anything changed", tt.guard.Name, found)
		}
		for _, off := range changes {
			f.guest.Write(f.guest.Base+off, []byte{0xcc, byte(off >> 8)})
		}
		if found := compare(); !slices.Equal(found, tt.own) {
			t.Errorf("%s: found %v, want %v", tt.guard.Name, found, tt.own)
		}
		if found := compare(); len(found) != 0 {
			t.Errorf("%s: found %v once more", tt.guard.Name, found)
		}
		for _, off := range changes {
			f.guest.Write(f.guest.Base+off, []byte{0, 0})
		}
	}
}

// TestLooksAreChecks holds that what guards look for is what can be looked for.
func TestLooksAreChecks(t *testing.T) {
	f := arm(t, nil)
	n := 0
	for _, g := range guard.All() {
		if g.Look == nil || g.Look.Begin != nil {
			continue
		}
		n++
		v, err := f.kernel.NewReader(nil).CheckNamed(g.Look.Checks...)
		if err != nil || len(v.Checks) != len(g.Look.Checks) || len(v.Checks) == 0 {
			t.Errorf("%s makes %d checks of %q, %v", g.Name, len(v.Checks), g.Look.Checks, err)
		}
	}
	if n == 0 {
		t.Error("no guard looks")
	}
	if _, err := f.kernel.NewReader(nil).CheckNamed("no-such"); err == nil {
		t.Error("a check that there is not is made")
	}
}

// TestEvidenceOfBytes checks that what is reported is what stood in memory
// when the vCPU was stopped.
func TestEvidenceOfBytes(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	at := f.guest.Base + 0x2000
	f.guest.Write(at, []byte{0x0f, 0x1f, 0x44, 0x00, 0x00})
	f.guest.Write(f.guest.Base+linuxtest.Data, []byte{0x88, 0x07}) // mov %al,(%rdi)
	ev := f.write(0x2000, f.guest.Base+linuxtest.Data)
	ev.Regs.RAX = 0xcc
	f.set.HandleEvent(ev)
	e := <-f.set.Violations()
	if got := e.Before(); len(got) < 5 || got[0] != 0x0f || got[2] != 0x44 {
		t.Errorf("bytes before: % x", got)
	}
	if got, err := e.Attempted(); err != nil || len(got) != 1 || got[0] != 0xcc {
		t.Errorf("bytes attempted: % x, %v", got, err)
	}
}

// TestCounters checks what status shows.
func TestCounters(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	f.set.HandleEvent(poke(f.write(0x1000, f.guest.Base)))
	f.set.HandleEvent(f.write(0x1000, module))
	f.set.HandleEvent(f.write(linuxtest.Data, module))
	a := f.set.Armed()[0]
	if a.Guard.Name != policy.GuardKernelText || a.Passed.Load() != 1 || a.Violations.Load() != 1 || a.Blocked.Load() != 1 || f.set.Stray() != 1 {
		t.Errorf("%s: passed %d, violations %d, blocked %d, stray %d", a.Guard.Name, a.Passed.Load(), a.Violations.Load(), a.Blocked.Load(), f.set.Stray())
	}
}

// TestOffGuardsStayOff checks that a guard that is off watches nothing.
func TestOffGuardsStayOff(t *testing.T) {
	f := arm(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: policy.ActionOff, policy.GuardSyscallEntry: policy.ActionBlock})
	if len(f.set.Armed()) != 1 || f.set.Armed()[0].Guard.Name != policy.GuardSyscallEntry {
		t.Fatalf("%d guards armed", len(f.set.Armed()))
	}
	if v := f.set.HandleEvent(f.write(0x1000, module)); v != vmevent.Emulate {
		t.Errorf("a write to unguarded text got verdict %#x", v)
	}
}

// TestStormIsBounded lets an attacker write more often than anybody reads: each
// is blocked, the queue is full, and the rest is counted.
func TestStormIsBounded(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	const storm = 1000
	for range storm {
		if v := f.set.HandleEvent(f.write(0x1000, module)); v != vmevent.Discard {
			t.Fatalf("verdict %#x", v)
		}
	}
	kept := uint64(len(f.set.Violations()))
	if kept == 0 || kept+f.set.Unrecorded() != storm {
		t.Errorf("%d kept and %d unrecorded, of %d", kept, f.set.Unrecorded(), storm)
	}
}

// TestStopIsDemanded: a violation for which the domain is to be stopped is answered
// as one that is blocked, and is told also when a flood of others has filled the queue.
func TestStopIsDemanded(t *testing.T) {
	for _, stop := range []policy.Action{policy.ActionPause, policy.ActionShutdown} {
		f := arm(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: policy.ActionAlert, policy.GuardSyscallEntry: stop})
		for range 1000 {
			f.set.HandleEvent(f.write(0x1000, module))
		}
		select {
		case <-f.set.Stops():
			t.Errorf("%s: demanded for what is only reported", stop)
		default:
		}
		kept := len(f.set.Violations())
		evil := msr(f, x86.MSRLSTAR, uint64(module))
		for range 2 {
			if v := f.set.HandleEvent(evil); v != vmevent.Deny {
				t.Errorf("%s: verdict %#x", stop, v)
			}
		}
		select {
		case <-f.set.Stops():
		default:
			t.Errorf("%s: not demanded", stop)
		}
		if n := len(f.set.Violations()); n != kept {
			t.Fatalf("the queue had room: %d, then %d", kept, n)
		}
		text, entry := f.set.Armed()[0], f.set.Armed()[1]
		if text.TakeStop() || !entry.TakeStop() || entry.TakeStop() {
			t.Errorf("%s: not demanded once, by the guard that asks for it", stop)
		}
		if n := entry.Blocked.Load(); n != 2 {
			t.Errorf("%s: %d blocked, want 2", stop, n)
		}
		if n := testing.AllocsPerRun(100, func() { f.set.HandleEvent(evil) }); n != 0 {
			t.Errorf("%s: %v allocations", stop, n)
		}
	}
}

// TestUnpreparedGuard checks that a guard which cannot be prepared is named,
// and does not keep the others from being armed.
func TestUnpreparedGuard(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{})
	g.SetPoking(linuxtest.Relative61, 0, 0) // as before poking_init
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	set, err := guard.NewSet(&guard.Target{Kernel: k, Boot: g.Regs[0]}, g.Memory(), both(policy.ActionBlock))
	var p *guard.PrepareError
	if !errors.As(err, &p) || p.Guard != policy.GuardKernelText {
		t.Errorf("error %v, want one of kernel-text", err)
	}
	if len(set.Armed()) != 1 || set.Armed()[0].Guard.Name != policy.GuardSyscallEntry {
		t.Errorf("the other guard was not armed: %d", len(set.Armed()))
	}
}

// TestKillIsHeld: a violation for which a process is to be killed holds its vCPU and is
// handed over by itself, also when a flood has filled the queue. Of a process of which
// it is decided already it is answered at once.
func TestKillIsHeld(t *testing.T) {
	f := arm(t, map[policy.GuardName]policy.Action{policy.GuardKernelText: policy.ActionAlert, policy.GuardSyscallEntry: policy.ActionKill})
	for range 1000 {
		f.set.HandleEvent(f.write(0x1000, module))
	}
	kept := len(f.set.Violations())
	evil := msr(f, x86.MSRLSTAR, uint64(module))
	if v := f.set.HandleEvent(evil); v != vmevent.Hold {
		t.Errorf("verdict %#x", v)
	}
	var e guard.Evidence
	select {
	case e = <-f.set.Kills():
	default:
		t.Fatal("not handed over")
	}
	if e.Action != policy.ActionKill || e.Task.PID != 214 || e.Fate != nil || e.Refusal() != vmevent.Deny || len(f.set.Violations()) != kept {
		t.Errorf("evidence %+v, refused with %#x", e.Task, e.Refusal())
	}
	// Nobody waits for the answer to an event that has not stopped its vCPU.
	free := msr(f, x86.MSRLSTAR, uint64(module))
	free.Paused = false
	if v := f.set.HandleEvent(free); v != vmevent.Deny {
		t.Errorf("of a vCPU that runs on: verdict %#x", v)
	}
	killed := &guard.Fate{Task: e.Task, Killed: true}
	f.set.UseFates([]*guard.Fate{killed})
	for len(f.set.Violations()) > 0 {
		<-f.set.Violations()
	}
	if v := f.set.HandleEvent(evil); v != vmevent.Deny {
		t.Errorf("of one who is killed: verdict %#x", v)
	}
	if e := <-f.set.Violations(); e.Fate != killed {
		t.Errorf("fate %+v", e.Fate)
	}
	if n := testing.AllocsPerRun(100, func() { f.set.HandleEvent(evil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	f.guest.SetTask(0, 215, 215, "insmod")
	if v := f.set.HandleEvent(evil); v != vmevent.Hold {
		t.Errorf("of another process: verdict %#x", v)
	}
	if n := f.set.Armed()[1].Blocked.Load(); n < 4 {
		t.Errorf("%d blocked", n)
	}
}

// TestHealthyPathDoesNotAllocate is the promise of the event path.
func TestHealthyPathDoesNotAllocate(t *testing.T) {
	f := arm(t, both(policy.ActionBlock))
	own, again, stray := poke(f.write(0x1000, f.guest.Base)), msr(f, x86.MSRLSTAR, f.guest.Regs[0].LSTAR), f.write(linuxtest.Data, module)
	if n := testing.AllocsPerRun(100, func() {
		f.set.HandleEvent(own)
		f.set.HandleEvent(again)
		f.set.HandleEvent(stray)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkPass(b *testing.B) {
	f := arm(b, both(policy.ActionBlock))
	ev := poke(f.write(0x1000, f.guest.Base))
	b.ReportAllocs()
	for b.Loop() {
		f.set.HandleEvent(ev)
	}
}

func BenchmarkViolation(b *testing.B) {
	f := arm(b, both(policy.ActionBlock))
	ev := f.write(0x1000, module)
	b.ReportAllocs()
	for b.Loop() {
		f.set.HandleEvent(ev)
		<-f.set.Violations()
	}
}
