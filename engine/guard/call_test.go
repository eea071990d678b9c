package guard_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/xen-hvi/hvi/engine/guard"
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Where the process of a callers' fixture has what.
const (
	text, data, anon, jit, heap, stack = 0x40_0000, 0x50_0000, 0x7000_0000, 0x7100_0000, 0x80_0000, 0x7ffd_0000_0000
	execve, execveat                   = 59, 322
)

// callers is a guest whose process has called the kernel, with guards of calls.
type callers struct {
	*linuxtest.Callers
	set *guard.Set
}

func armCalls(t testing.TB, actions map[policy.GuardName]policy.Action, lists ...policy.ListSetting) callers {
	t.Helper()
	g := linuxtest.NewCallers(false)
	for _, m := range []struct {
		start, n, flags uint64
		file            bool
	}{
		{text, 0x1000, linuxtest.MapRead | linuxtest.MapExec, true},
		{data, 0x1000, linuxtest.MapRead | linuxtest.MapWrite, true},
		{heap, 0x2_0000, linuxtest.MapRead | linuxtest.MapWrite, false},
		{anon, 0x1_0000, linuxtest.MapRead | linuxtest.MapWrite, false},
		{anon + 0x1_0000, 0x1000, linuxtest.MapRead | linuxtest.MapExec, true},
		{jit, 0x1000, linuxtest.MapRead | linuxtest.MapWrite | linuxtest.MapExec, false},
		{stack, 0x2_0000, linuxtest.MapRead | linuxtest.MapWrite | linuxtest.MapGrows, false},
	} {
		g.MapUser(m.start, m.start+m.n, m.flags, m.file)
	}
	g.Write(linuxtest.UserMemory, []byte("/bin/sh\x00rest"))
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	p := policy.Effective{Lists: lists}
	set, err := guard.NewSet(&guard.Target{Kernel: k, Now: g.Regs, Actions: actions, Policy: p}, g.Memory(), actions)
	if err != nil {
		t.Fatal(err)
	}
	return callers{g, set}
}

func list(name policy.ListName, elements ...string) policy.ListSetting {
	return policy.ListSetting{Name: name, Elements: elements}
}

// stop has the vCPU come to a function, with its registers.
func (c callers) stop(t testing.TB, function string, regs x86.Registers) (*vmevent.Event, vmevent.Verdict) {
	t.Helper()
	i := slices.IndexFunc(c.set.Places(), func(p *guard.Place) bool { return p.Symbol == function })
	if i < 0 {
		t.Fatalf("no guard judges at %s", function)
	}
	ev := &vmevent.Event{Reason: vmevent.ReasonSoftwareBreakpoint, Paused: true, Regs: regs}
	return ev, c.set.Places()[i].Judge(ev)
}

// brief is what matters of evidence.
func brief(e *guard.Evidence) string {
	if e == nil {
		return "no violation"
	}
	return fmt.Sprintf("%s, %s: %+v", e.Guard, e.Action, e.Call)
}

func (c callers) evidence() *guard.Evidence {
	select {
	case e := <-c.set.Violations():
		return &e
	case e := <-c.set.Kills():
		return &e
	default:
		return nil
	}
}

// TestExploits is what dpi takes for an exploit, and what is next to it.
func TestExploits(t *testing.T) {
	healthy := func(c callers) x86.Registers {
		return c.Call("__x64_sys_execve", execve, text+0x123, stack+0x1000, uint64(linuxtest.UserMemory))
	}
	from := func(rip, rsp x86.VirtAddr) func(callers) x86.Registers {
		return func(c callers) x86.Registers {
			return c.Call("__x64_sys_execve", execve, rip, rsp, uint64(linuxtest.UserMemory))
		}
	}
	on := func(rsp x86.VirtAddr) func(callers) x86.Registers { return from(text+0x123, rsp) }
	for _, c := range []struct {
		name  string
		regs  func(callers) x86.Registers
		fault guard.CallFault // 0 for none
	}{
		{"a healthy process", healthy, 0},
		{"the last instruction of a file", from(text+0x1000, stack+0x1000), 0},
		{"new memory that can be executed", from(jit+0x10, stack+0x1000), guard.FaultCode},
		{"anonymous memory", from(anon+0x10, stack+0x1000), guard.FaultCode},
		{"no memory at all", from(0x1234_5678, stack+0x1000), guard.FaultCode},
		{"the vsyscall page", from(0xffff_ffff_ff60_0007, stack+0x1000), 0},
		{"a thread's stack", on(anon + 0x8000), 0},
		{"the end of a thread's stack", on(anon + 0x1_0000), 0},
		{"a stack that has to grow", on(stack - 0x8000), 0},
		{"far below the stack", on(stack - 0x80_0000), guard.FaultStack},
		{"the heap", on(heap + 0x100), guard.FaultStack},
		{"a file's data", on(data + 0x100), guard.FaultStack},
		{"a file's code", on(text + 0x100), guard.FaultStack},
		{"no stack at all", on(0x1234_5678), guard.FaultStack},
		{"signals' stack in the heap", func(c callers) x86.Registers {
			c.WriteUint64(c.Task+linuxtest.TaskAltStack, heap)
			c.WriteUint64(c.Task+linuxtest.TaskAltStackSize, 0x2000)
			return on(heap + 0x100)(c)
		}, 0},
		{"credentials of another user", func(c callers) x86.Registers {
			c.WriteUint32(c.Cred+linuxtest.CredUID, 0)
			return healthy(c)
		}, guard.FaultCredentials},
		{"the kernel's own", func(c callers) x86.Registers {
			r := healthy(c)
			c.WriteUint64(c.Stack-21*8+17*8, 0x10)
			return r
		}, 0},
		{"a tree that leads nowhere", func(c callers) x86.Registers {
			c.WriteUint64(c.MM+linuxtest.MMMaple+8, 0x1236)
			return healthy(c)
		}, 0},
	} {
		for _, action := range []policy.Action{policy.ActionAlert, policy.ActionBlock, policy.ActionKill} {
			t.Run(c.name+"/"+action.String(), func(t *testing.T) {
				g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardExploits: action})
				ev, v := g.stop(t, "__x64_sys_execve", c.regs(g))
				e := g.evidence()
				if c.fault == 0 {
					if v != vmevent.Continue || e != nil || g.set.Armed()[0].Passed.Load() != 1 {
						t.Fatalf("verdict %#x, %s", v, brief(e))
					}
					return
				}
				want := map[policy.Action]vmevent.Verdict{policy.ActionAlert: vmevent.Continue, policy.ActionBlock: vmevent.Skip, policy.ActionKill: vmevent.Hold}[action]
				if v != want || e == nil || e.Call.Fault != c.fault || e.Guard != policy.GuardExploits || e.Action != action || e.Task.TGID != 213 {
					t.Fatalf("verdict %#x, want %#x, %s", v, want, brief(e))
				}
				if got := string(e.Call.Program()); got != "/bin/sh" {
					t.Errorf("program %q", got)
				}
				leave := vmevent.Leave{RAX: ^uint64(0), RSP: ev.Regs.RSP + 8, RIP: uint64(g.Base + linuxtest.Entry)}
				if action != policy.ActionAlert && (ev.Leave != leave || e.Refusal() != vmevent.Skip) {
					t.Errorf("leaves with %+v, want %+v; refused with %#x", ev.Leave, leave, e.Refusal())
				}
			})
		}
	}
}

// TestRefused: what can't be refused takes place, and is said to.
func TestRefused(t *testing.T) {
	g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardExploits: policy.ActionKill})
	regs := g.Call("__x64_sys_execve", execve, jit, stack)
	g.WriteUint64(x86.VirtAddr(regs.RSP), text) // as no function of the kernel returns
	_, v := g.stop(t, "__x64_sys_execve", regs)
	if e := g.evidence(); v != vmevent.Continue || e == nil || e.Action != policy.ActionAlert || g.set.Armed()[0].Blocked.Load() != 0 {
		t.Errorf("verdict %#x, %s", v, brief(e))
	}
}

// TestProgram reads the path where each system call has it.
func TestProgram(t *testing.T) {
	for function, call := range map[string]int64{"__x64_sys_execveat": execveat, "__ia32_compat_sys_execve": 11} {
		g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardExploits: policy.ActionAlert})
		regs := g.Call(function, call, jit, stack, 0xffff_ff9c, uint64(linuxtest.UserMemory))
		want := "/bin/sh"
		if call == 11 {
			g.WriteUint64(g.Stack-21*8+17*8, 0x23)
			want = "" // it is in another register
		}
		g.stop(t, function, regs)
		if e := g.evidence(); e == nil || string(e.Call.Program()) != want {
			t.Errorf("%s: %+v", function, e)
		}
	}
}

// TestProcesses is what process protects the listed ones from.
func TestProcesses(t *testing.T) {
	type step struct {
		name, function string
		call           int64
		mode           uint64   // of mm_access
		args           []uint64 // of the system call
		victim         string
		fault          guard.CallFault
		compat         bool
	}
	const attach, read = 2 | 0x10, 1 | 8
	steps := []step{
		{"ptrace", "ptrace_attach", 101, 0, nil, "sshd", guard.FaultTrace, false},
		{"ptrace of another", "ptrace_attach", 101, 0, nil, "bash", 0, false},
		{"process_vm_writev", "mm_access", 311, attach, nil, "sshd", guard.FaultWrite, false},
		{"process_vm_writev of x32", "mm_access", 0x4000_0000 | 540, attach, nil, "sshd", guard.FaultWrite, false},
		{"process_vm_writev of 32-bit code", "mm_access", 348, attach, nil, "sshd", guard.FaultWrite, true},
		{"process_vm_writev of another", "mm_access", 311, attach, nil, "bash", 0, false},
		{"process_vm_readv", "mm_access", 310, attach, nil, "sshd", 0, false},
		{"process_vm_readv of x32", "mm_access", 0x4000_0000 | 539, attach, nil, "sshd", 0, false},
		{"process_vm_readv of 32-bit code", "mm_access", 347, attach, nil, "sshd", 0, true},
		{"open to write", "mm_access", 2, attach, []uint64{0, 1}, "sshd", guard.FaultMemory, false},
		{"open to read", "mm_access", 2, attach, []uint64{0, 0x80000}, "sshd", 0, false},
		{"openat to read and write", "mm_access", 257, attach, []uint64{0, 0, 2}, "sshd", guard.FaultMemory, false},
		{"openat to read", "mm_access", 257, attach, []uint64{0, 2, 0}, "sshd", 0, false},
		{"openat2", "mm_access", 437, attach, nil, "sshd", guard.FaultMemory, false},
		{"io_uring", "mm_access", 426, attach, nil, "sshd", guard.FaultMemory, false},
		{"open of 32-bit code", "mm_access", 5, attach, []uint64{0, 0, 0, 2}, "sshd", guard.FaultMemory, true},
		{"open of 32-bit code to read", "mm_access", 5, attach, []uint64{0, 1, 1, 0}, "sshd", 0, true},
		{"openat of 32-bit code", "mm_access", 295, attach, []uint64{0, 0, 2, 0}, "sshd", guard.FaultMemory, true},
		{"creat of 32-bit code", "mm_access", 8, attach, nil, "sshd", guard.FaultMemory, true},
		{"a look at its mappings", "mm_access", 257, read, nil, "sshd", 0, false},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock}, list(policy.ListProtectedProcesses, "ssh*", "nginx"))
			regs := g.Call(s.function, s.call, text+0x123, stack+0x1000, s.args...)
			regs.RDI, regs.RSI = uint64(g.Other(300, s.victim)), s.mode
			if s.compat {
				g.WriteUint64(g.Stack-21*8+17*8, 0x23)
			}
			_, v := g.stop(t, s.function, regs)
			e := g.evidence()
			switch {
			case s.fault == 0:
				if v != vmevent.Continue || e != nil {
					t.Errorf("verdict %#x, %s", v, brief(e))
				}
			case v != vmevent.Skip || e == nil || e.Call.Fault != s.fault || !e.Call.HasVictim || e.Call.Victim.TGID != 300 || e.Call.Victim.Name() != s.victim || len(e.Call.Program()) != 0:
				t.Errorf("verdict %#x, %s", v, brief(e))
			}
		})
	}
	t.Run("its own thread", func(t *testing.T) {
		g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock}, list(policy.ListProtectedProcesses, "sshd"))
		regs := g.Call("mm_access", 311, text, stack)
		regs.RDI, regs.RSI = uint64(g.Other(213, "sshd")), attach
		if _, v := g.stop(t, "mm_access", regs); v != vmevent.Continue || g.evidence() != nil {
			t.Errorf("verdict %#x", v)
		}
	})
}

// TestChildless: by its name and by its program's.
func TestChildless(t *testing.T) {
	for listed, want := range map[string]guard.CallFault{"front": guard.FaultChild, "nginx": guard.FaultChild, "ngin*": guard.FaultChild, "worker": 0, "ngin": 0, "nginxx": 0} {
		g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock}, list(policy.ListChildlessProcesses, listed))
		_, v := g.stop(t, "__x64_sys_execve", g.Call("__x64_sys_execve", execve, text, stack, uint64(linuxtest.UserMemory)))
		e := g.evidence()
		if want == 0 && (v != vmevent.Continue || e != nil) || want != 0 && (v != vmevent.Skip || e == nil || e.Call.Fault != want || string(e.Call.Program()) != "/bin/sh") {
			t.Errorf("%s: verdict %#x, %s", listed, v, brief(e))
		}
	}
}

// TestPlaces: guards share a place, and who is given nothing to do has none.
func TestPlaces(t *testing.T) {
	both := map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionAlert, policy.GuardExploits: policy.ActionBlock}
	g := armCalls(t, both, list(policy.ListChildlessProcesses, "front"))
	exec := g.set.Places()[0]
	if len(g.set.Places()) != 3 || exec.Symbol != "__x64_sys_execve" || !slices.Equal(exec.Guards, []policy.GuardName{policy.GuardProcesses, policy.GuardExploits}) {
		t.Fatalf("%d places, %+v", len(g.set.Places()), exec)
	}
	// Both have something to say, and the one that blocks is heeded.
	if _, v := g.stop(t, exec.Symbol, g.Call(exec.Symbol, execve, jit, stack)); v != vmevent.Skip {
		t.Errorf("verdict %#x", v)
	}
	for _, want := range []policy.GuardName{policy.GuardProcesses, policy.GuardExploits} {
		if e := g.evidence(); e == nil || e.Guard != want {
			t.Errorf("%+v, want one of %s", e, want)
		}
	}
	g = armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock})
	if n := len(g.set.Places()); n != 0 || len(g.set.Armed()) != 1 {
		t.Errorf("without lists there are %d places", n)
	}
	g = armCalls(t, both, list(policy.ListProtectedProcesses, "a"), list(policy.ListChildlessProcesses, "b"))
	if n := len(g.set.Places()); n != 5 {
		t.Errorf("%d places", n)
	}
}

// TestCallsNeedTypes: a kernel whose types don't tell is no guard's.
func TestCallsNeedTypes(t *testing.T) {
	g := linuxtest.New(linuxtest.Config{})
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = guard.NewSet(&guard.Target{Kernel: k, Now: g.Regs}, g.Memory(), map[policy.GuardName]policy.Action{policy.GuardExploits: policy.ActionAlert})
	var p *guard.PrepareError
	if !errors.As(err, &p) || p.Guard != policy.GuardExploits || !errors.Is(err, linux.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestCallsAllocateNothing: an exec, and a look at a process, of a healthy guest.
func TestCallsAllocateNothing(t *testing.T) {
	g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock, policy.GuardExploits: policy.ActionBlock},
		list(policy.ListProtectedProcesses, "sshd"), list(policy.ListChildlessProcesses, "apache2"))
	for _, function := range []string{"__x64_sys_execve", "mm_access", "ptrace_attach"} {
		regs := g.Call(function, execve, text+0x123, stack)
		if function != "__x64_sys_execve" {
			regs.RDI, regs.RSI = uint64(g.Other(300, "bash")), 2
		}
		ev := &vmevent.Event{Reason: vmevent.ReasonSoftwareBreakpoint, Paused: true, Regs: regs}
		i := slices.IndexFunc(g.set.Places(), func(p *guard.Place) bool { return p.Symbol == function })
		if n := testing.AllocsPerRun(200, func() {
			if g.set.Places()[i].Judge(ev) != vmevent.Continue {
				t.Error(fmt.Sprint("refused at ", function))
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", function, n)
		}
	}
}

// TestSealed looks only where the policy seals processes.
func TestSealed(t *testing.T) {
	look := guard.Processes().Look
	if look.Finding(policy.Effective{}) != nil {
		t.Error("a look without a list")
	}
	p := policy.Effective{Lists: []policy.ListSetting{list(policy.ListSealedProcesses, "front")}}
	g := armCalls(t, nil)
	k, err := linux.Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	v, err := look.Finding(p)(k.NewReader(g.Regs))
	if err != nil || len(v.Checks) != 1 || v.Checks[0].Name != "sealed-processes" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestReported notes what listed processes do, in a queue of its own that may be full.
func TestReported(t *testing.T) {
	type step struct {
		function string
		rdi      func(callers) uint64
		fault    guard.CallFault
	}
	same := func(v uint64) func(callers) uint64 { return func(callers) uint64 { return v } }
	exec, fork, exit := "__x64_sys_execve", "wake_up_new_task", "do_exit"
	for name, c := range map[string]struct {
		listed string
		leader bool
		step
	}{
		"exec":            {"front", false, step{exec, same(0), guard.NoteExec}},
		"exec of another": {"back", false, step{exec, same(0), 0}},
		"fork":            {"*", false, step{fork, func(c callers) uint64 { return uint64(c.Other(300, "front")) }, guard.NoteFork}},
		"a thread is made": {"*", false, step{fork, func(c callers) uint64 {
			t := c.Other(300, "x")
			c.WriteUint32(t+linuxtest.TaskTGID, 213)
			return uint64(t)
		}, 0}},
		"exit":          {"nginx", true, step{exit, same(0x100), guard.NoteExit}},
		"a thread ends": {"nginx", false, step{exit, same(0x100), 0}},
	} {
		t.Run(name, func(t *testing.T) {
			g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock}, list(policy.ListReportedProcesses, c.listed))
			if c.leader {
				g.WriteUint32(g.Task+linuxtest.TaskPID, 213)
			}
			regs := g.Call(c.function, execve, text+0x123, stack+0x1000, uint64(linuxtest.UserMemory))
			regs.RDI = c.rdi(g)
			_, v := g.stop(t, c.function, regs)
			if a := g.set.Armed()[0]; v != vmevent.Continue || g.evidence() != nil || a.Violations.Load() != 0 {
				t.Fatalf("verdict %#x, a violation", v)
			}
			select {
			case e := <-g.set.Notes():
				if e.Call.Fault != c.fault || c.fault == guard.NoteExec && string(e.Call.Program()) != "/bin/sh" || c.fault == guard.NoteFork && e.Call.Victim.TGID != 300 || c.fault == guard.NoteExit && e.Call.Code != 0x100 {
					t.Errorf("%s", brief(&e))
				}
			default:
				if c.fault != 0 {
					t.Error("nothing was noted")
				}
			}
		})
	}
	g := armCalls(t, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionAlert}, list(policy.ListReportedProcesses, "*"))
	regs := g.Call(exec, execve, text+0x123, stack+0x1000)
	for range 300 {
		g.stop(t, exec, regs)
	}
	if n := g.set.Armed()[0].Unnoted.Load(); n != 300-256 || len(g.set.Notes()) != 256 {
		t.Errorf("%d without room, %d in the queue", n, len(g.set.Notes()))
	}
}

// BenchmarkExec is what a healthy exec takes the ring goroutine under both guards.
func BenchmarkExec(b *testing.B) {
	g := armCalls(b, map[policy.GuardName]policy.Action{policy.GuardProcesses: policy.ActionBlock, policy.GuardExploits: policy.ActionBlock},
		list(policy.ListChildlessProcesses, "apache2"))
	ev := &vmevent.Event{Reason: vmevent.ReasonSoftwareBreakpoint, Paused: true, Regs: g.Call("__x64_sys_execve", execve, text+0x123, stack)}
	b.ReportAllocs()
	for b.Loop() {
		if g.set.Places()[0].Judge(ev) != vmevent.Continue {
			b.Fatal("refused")
		}
	}
}
