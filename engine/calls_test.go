package engine_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

const (
	execve   = "__x64_sys_execve"
	userCode = x86.VirtAddr(0x40_0000)
	userJIT  = x86.VirtAddr(0x7100_0000)
	userSP   = x86.VirtAddr(0x7ffd_0000_1000)
)

// callWorld is a world whose guest's process executes programs.
type callWorld struct {
	*world
	process *linuxtest.Callers
}

// withCalls is a protected guest with guards of calls, on a release of Xen.
func withCalls(t *testing.T, minor int, decl engine.Declaration, cfg xentest.Spec) *callWorld {
	t.Helper()
	w := newWorldOf(t, linuxtest.CallersConfig(false), xentest.Config{Release: xen.Release{Major: 4, Minor: minor}, AltP2M: cfg.AltP2M == withViews.AltP2M}, cfg)
	w.decl = decl
	c := linuxtest.CallersOf(w.guest, false)
	c.MapUser(uint64(userCode), uint64(userCode)+0x1000, linuxtest.MapRead|linuxtest.MapExec, true)
	c.MapUser(uint64(userJIT), uint64(userJIT)+0x1000, linuxtest.MapRead|linuxtest.MapWrite|linuxtest.MapExec, false)
	c.MapUser(0x7ffd_0000_0000, 0x7ffd_0002_0000, linuxtest.MapRead|linuxtest.MapWrite|linuxtest.MapGrows, false)
	w.guest.Write(linuxtest.UserMemory, []byte("/bin/sh\x00"))
	w.copyMemory()
	w.appear()
	w.boot()
	return &callWorld{w, c}
}

// declareCalls is declare with enforce, guards' actions and processes that are listed.
func declareCalls(t testing.TB, childless []string, guards ...string) engine.Declaration {
	t.Helper()
	var b policy.Builder
	at := policy.Origin{Source: "test"}
	b.Mode("enforce", at)
	for _, g := range guards {
		b.GuardAssignment(g, at)
	}
	spec, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	named := &policy.Named{Name: "web", Origin: policy.Origin{Source: "web.toml"}}
	if childless != nil {
		named.Lists = []policy.ListSetting{{Name: policy.ListChildlessProcesses, Elements: childless}}
	}
	spec.Preset, spec.Named, spec.Origins.Preset = "web", named, at
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	return engine.Declaration{Spec: spec, Source: "test"}
}

// exec has the process come to execve, and returns the whole answer.
func (w *callWorld) exec(view uint16, rip x86.VirtAddr) []byte {
	w.t.Helper()
	regs := w.process.Call(execve, 59, rip, userSP, uint64(linuxtest.UserMemory))
	w.copyMemory()
	at, l := w.place(execve), &w.layout.VMEvent
	a := w.sendEvent(abi.VMEventReasonSoftwareBreakpoint, regs, func(put func(int, uint64)) {
		put(l.Regs.RSP, regs.RSP)
		put(l.Regs.RDI, regs.RDI)
		put(l.Regs.RBX, 0xb0b)
		put(l.Debug.GFN, uint64(at.GFN()))
		put(l.Debug.InsnLength, 1)
		put(l.OffAltP2MIdx, uint64(view))
	})
	if a == nil {
		w.t.Fatal("not answered")
	}
	return a
}

// refused checks that an answer has the function return EPERM.
func (w *callWorld) refused(a []byte) {
	w.t.Helper()
	d, sp := &w.layout.VMEvent.Regs, uint64(w.process.Stack-21*8-0x108)
	word := func(off int) uint64 { return binary.LittleEndian.Uint64(a[off:]) }
	if got := w.parse(a); got != (answer{flags: abi.VMEventFlagSetRegisters}) {
		w.t.Errorf("answered with %+v", got)
	}
	if word(d.RAX) != ^uint64(0) || word(d.RSP) != sp+8 || word(d.RIP) != uint64(w.guest.Base+linuxtest.Entry) || word(d.RBX) != 0xb0b {
		w.t.Errorf("leaves with rax %#x, rsp %#x, rip %#x, rbx %#x", word(d.RAX), word(d.RSP), word(d.RIP), word(d.RBX))
	}
}

// TestCallRefused: an exploit's exec is refused, a healthy one steps on, on every
// release.
func TestCallRefused(t *testing.T) {
	for _, rel := range abi.Releases() {
		t.Run(rel.String(), func(t *testing.T) {
			w := withCalls(t, rel.Minor, declareCalls(t, nil, "dpi=block"), withViews)
			if g, p := w.guardStatus(policy.GuardExploits), w.guardStatus(policy.GuardProcesses); g.State != engine.GuardArmed || p.State != engine.GuardInactive || w.status().State != engine.StateProtecting {
				t.Fatalf("%+v, %+v, %s", g, p, w.status().State)
			}
			at := w.place(execve)
			shadow := w.dom.LeadsTo(runningView, at.GFN())
			if b := w.dom.Read(shadow.Addr()+x86.PhysAddr(at.Offset()), 1); shadow < 1<<20 || b[0] != 0xcc {
				t.Fatalf("frame %v, %#x", shadow, b)
			}
			if b := w.status().Breakpoints; len(b) != 0 {
				t.Errorf("shown as an admin's: %+v", b)
			}
			if got := w.parse(w.exec(runningView, userCode+0x10)); got != w.stepIn(steppingView) {
				t.Errorf("a healthy exec was answered with %+v", got)
			}
			if !w.layout.Has.FastSingleStep {
				w.endStep(steppingView)
			}
			w.refused(w.exec(runningView, userJIT+0x10))
			r := <-w.events.got
			c := r.Target.Call
			if r.Guard != "dpi" || r.Action != journal.Blocked || r.RIP.Symbol != execve || r.Process.TGID != 213 || c == nil || c.Program != "/bin/sh" || c.RIP != userJIT+0x10 || c.RSP != userSP || c.Victim != nil {
				t.Fatalf("record %+v, %+v", r, c)
			}
			const what = `dpi blocked: it executes a program from code that is in no file: anonymous memory from 0x71000000 to 0x71001000, writable, executable, program /bin/sh; rip 0x71000010, rsp 0x7ffd00001000, by "worker" (pid 214) at __x64_sys_execve`
			if s := r.Summary(); !strings.Contains(s, what) {
				t.Errorf("summary %q, want %q", s, what)
			}
			if g := w.guardStatus(policy.GuardExploits); g.Passed != 1 || g.Violations != 1 || g.Blocked != 1 {
				t.Errorf("%+v", g)
			}
			w.dom.Shutdown(abi.ShutdownPoweroff)
			w.engine.ShutDown(w.info)
			w.checkClean(1)
		})
	}
}

// TestCallKilled has the process of an exploit killed, and its exec refused.
func TestCallKilled(t *testing.T) {
	w := withCalls(t, 17, declareCalls(t, []string{"front"}, "process=kill"), withViews)
	w.checkSignal(false)
	w.refused(w.exec(runningView, userCode+0x10))
	r := <-w.events.got
	if r.Guard != "process" || r.Action != journal.Killed || r.Detail.Note != "" || r.Target.Call == nil || !strings.Contains(string(r.Target.Call.What), "may start none") {
		t.Errorf("record %+v", r)
	}
	w.checkSignal(true)
	// What it does before it is gone is refused.
	w.refused(w.exec(runningView, userCode+0x10))
	if r := <-w.events.got; r.Action != journal.Killed {
		t.Errorf("record %+v", r)
	}
}

// TestCallsBesideBreakpoints: an admin's breakpoint at a guard's place, and the guards
// exchanged beneath it.
func TestCallsBesideBreakpoints(t *testing.T) {
	w := withCalls(t, 17, declareCalls(t, nil, "dpi=block"), withViews)
	hits := func() uint64 {
		b := w.status().Breakpoints
		if len(b) != 1 || b[0].Symbol != execve {
			t.Fatalf("%+v", b)
		}
		return b[0].Hits
	}
	w.exec(runningView, userCode+0x10)
	w.set(execve)
	if n := hits(); n != 0 {
		t.Errorf("%d hits before there were any", n)
	}
	w.exec(runningView, userCode+0x10)
	w.refused(w.exec(runningView, userJIT))
	<-w.events.got
	if n := hits(); n != 2 {
		t.Errorf("%d hits, want 2", n)
	}
	w.clear(execve)
	w.refused(w.exec(runningView, userJIT+4))
	<-w.events.got
	w.set(execve)

	apply := func(guards ...string) {
		if err := w.engine.Apply(t.Context(), w.info, declareCalls(t, nil, guards...)); err != nil {
			t.Fatal(err)
		}
	}
	apply("dpi=off")
	if got := w.parse(w.exec(runningView, userJIT)); got != w.stepIn(steppingView) {
		t.Errorf("with the guard off it was answered with %+v", got)
	}
	if n := hits(); n != 1 {
		t.Errorf("%d hits, want 1", n)
	}
	apply("dpi=block")
	w.refused(w.exec(runningView, userJIT+8))
	<-w.events.got
	if n := hits(); n != 2 {
		t.Errorf("%d hits, want 2", n)
	}
	w.clear(execve)
	w.refused(w.exec(runningView, userJIT+12))
	<-w.events.got
	apply("dpi=off")
	if to := w.dom.LeadsTo(runningView, w.place(execve).GFN()); to != w.place(execve).GFN() {
		t.Errorf("with neither it leads to %v", to)
	}
}

// TestCallsFollowViews: they are judged in whatever view the domain runs.
func TestCallsFollowViews(t *testing.T) {
	decl := declareViews(t, twoViews...)
	decl.Spec.Guards = []policy.GuardSetting{{Name: policy.GuardExploits, Action: policy.ActionBlock}}
	w := withCalls(t, 17, decl, withViews)
	w.refused(w.exec(strictView, userJIT))
	<-w.events.got
	w.switchView("maintenance")
	<-w.events.got
	w.refused(w.exec(maintenanceView, userJIT+4))
	if r := <-w.events.got; r.Guard != "dpi" {
		t.Errorf("record %+v", r)
	}
	if p := w.guardStatus(policy.GuardProcesses); p.State != engine.GuardInactive || !strings.Contains(p.Reason, "lists no process") {
		t.Errorf("%+v", p)
	}
}

// TestCallsNeedViews: on the other tiers they are said not to be had, if they have
// anything to do.
func TestCallsNeedViews(t *testing.T) {
	w := withCalls(t, 17, declareCalls(t, nil, "dpi=block"), xentest.Spec{Pauses: 1})
	g, p := w.guardStatus(policy.GuardExploits), w.guardStatus(policy.GuardProcesses)
	if g.State != engine.GuardUnavailable || !strings.Contains(g.Reason, "tier views") || p.State != engine.GuardInactive || w.status().State != engine.StateDegraded {
		t.Errorf("%+v, %+v, %s", g, p, w.status().State)
	}
	if err := w.engine.Apply(t.Context(), w.info, declareCalls(t, nil)); err != nil {
		t.Fatal(err)
	}
	if st := w.status(); st.State != engine.StateProtecting || slices.ContainsFunc(st.Guards, func(g engine.GuardStatus) bool { return g.State == engine.GuardUnavailable }) {
		t.Errorf("%s, %+v", st.State, st.Guards)
	}
}

// TestCallsNoted records what a listed process does, as no violation, and counts what is
// too much.
func TestCallsNoted(t *testing.T) {
	decl := declareCalls(t, []string{})
	decl.Spec.Named.Lists = []policy.ListSetting{{Name: policy.ListReportedProcesses, Elements: []string{"*"}}}
	w := withCalls(t, 17, decl, withViews)
	if got := w.parse(w.exec(runningView, userCode+0x10)); got != w.stepIn(steppingView) {
		t.Errorf("answered with %+v", got)
	}
	r := <-w.events.got
	if r.Guard != "process" || r.Action != journal.Noted || r.Target.Call == nil || r.Target.Call.Program != "/bin/sh" || r.Process.TGID != 213 {
		t.Errorf("record %+v", r)
	}
	if s := r.Summary(); !strings.Contains(s, `process noted: it executes a program, program /bin/sh; rip 0x400010, rsp 0x7ffd00001000, by "worker" (pid 214) at __x64_sys_execve`) {
		t.Errorf("summary %q", s)
	}
	const many = 150 // of which 100 have records of their own
	for range many {
		w.exec(runningView, userCode+0x10)
	}
	n := uint64(0)
	for n < many {
		r := <-w.events.got
		if r.Action != journal.Noted {
			t.Fatalf("record %+v", r)
		}
		if n += max(r.Detail.Suppressed, 1); r.Detail.Suppressed > 0 && !strings.Contains(r.Summary(), "such events within a second") {
			t.Errorf("summary %q", r.Summary())
		}
	}
	if g := w.guardStatus(policy.GuardProcesses); n != many || g.Violations != 0 || g.State != engine.GuardArmed {
		t.Errorf("%d told, %+v", n, g)
	}
}

// TestCallPermitted: what an exception permits of a process takes place and is counted.
func TestCallPermitted(t *testing.T) {
	w := withCalls(t, 17, declareCalls(t, nil, "dpi=kill"), withViews)
	x := []policy.Exception{{Guard: policy.GuardExploits, Process: "work*", Symbol: execve}}
	w.permitted.Store(&x)
	w.engine.RefreshExceptions()
	if got := w.parse(w.exec(runningView, userJIT)); got != w.stepIn(steppingView) {
		t.Errorf("answered with %+v", got)
	}
	if g := w.guardStatus(policy.GuardExploits); g.Allowed != 1 || g.Violations != 0 {
		t.Errorf("%+v", g)
	}
}
