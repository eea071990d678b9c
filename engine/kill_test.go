package engine_test

import (
	"encoding/binary"
	"strings"
	"syscall"
	"testing"

	"github.com/xen-hvi/hvi/engine"
	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/x86"
	"github.com/xen-hvi/hvi/engine/xen/abi"
	"github.com/xen-hvi/hvi/engine/xen/xentest"
)

const deniedWrite = abi.VMEventFlagVCPUPaused | abi.VMEventFlagDeny

var alone = []string{"kernel-rodata=off", "ex-table=off", "syscall-table=off", "idt=off", "vdso=off", "cr=off"}

// killer is a world whose guest has a process that can be killed, and a policy that
// does.
func killer(t *testing.T, cfg xentest.Config) *world {
	t.Helper()
	w := newWorldOf(t, linuxtest.SignalConfig(linuxtest.Relative5, 1), cfg, xentest.Spec{})
	w.guest.SetSignals(1)
	w.decl = declareGuards(t, append(alone, "kernel-text=kill", "syscall-entry=kill")...)
	return w
}

// word reads the guest's memory at an address of its direct map.
func (w *world) word(va x86.VirtAddr) uint64 {
	return binary.LittleEndian.Uint64(w.dom.Read(x86.PhysAddr(va-linuxtest.DirectMap), 8))
}

// checkSignal checks whether a SIGKILL waits for the guest's current task.
func (w *world) checkSignal(want bool) {
	w.t.Helper()
	pending, work := w.word(w.guest.CurrentTask(0)+linuxtest.TaskPending), w.word(w.guest.CurrentTask(0)+linuxtest.TaskWork)
	if want && (pending != 0x100 || work != 6) || !want && pending|work != 0 {
		w.t.Errorf("pending signals %#x, work %#x; a SIGKILL is wanted: %v", pending, work, want)
	}
}

// TestKill has processes killed for violations of both kinds, and the guest go on.
func TestKill(t *testing.T) {
	for name, c := range map[string]struct {
		attack func(*world) uint32
		flags  uint32
		guard  string
		what   string
	}{
		"memory": {(*world).writeText, blockedWrite, "kernel-text", "write to "},
		"register": {func(w *world) uint32 {
			return w.writeMSR(x86.MSRLSTAR, w.guest.Regs[0].LSTAR, 0xffffffffc0000000)
		}, deniedWrite, "syscall-entry", "write to "},
	} {
		t.Run(name, func(t *testing.T) {
			w := killer(t, xentest.Config{})
			w.appearRunning()
			w.checkSignal(false)
			w.xen.Log()
			if f := c.attack(w); f != c.flags {
				t.Errorf("answered with flags %#x", f)
			}
			r := <-w.events.got
			if r.Guard != c.guard || r.Action != journal.Killed || r.Process.PID != 214 || r.Detail.Note != "" {
				t.Errorf("record: %s, %s, %+v, %q", r.Guard, r.Action, r.Process, r.Detail.Note)
			}
			if s := r.Summary(); !strings.Contains(s, c.guard+" blocked and killed the process: "+c.what) || !strings.Contains(s, `by "insmod" (pid 214)`) {
				t.Errorf("summary %q", s)
			}
			w.checkSignal(true)
			if st := w.status(); w.dom.Pauses() != 0 || st.State != engine.StateProtecting || st.Held != "" {
				t.Errorf("%d pauses, %s, held %q", w.dom.Pauses(), st.State, st.Held)
			}
			pauses := func() (n int) {
				for _, call := range w.xen.Log() {
					if strings.HasPrefix(call, "domctl(pausedomain)") {
						n++
					}
				}
				return n
			}
			if n := pauses(); n != 1 {
				t.Errorf("paused %d times, want once, for a moment", n)
			}

			// It goes on in the kernel: what it does there is blocked, for nothing more.
			if f := c.attack(w); f != c.flags {
				t.Errorf("the second time: flags %#x", f)
			}
			w.settled(func() bool { return w.guardStatus(policy.GuardName(c.guard)).Blocked == 2 })
			if n := pauses(); n != 0 {
				t.Errorf("paused %d times for one who is killed already", n)
			}

			// Another process in the place of that one.
			w.guest.SetTask(0, 300, 300, "modprobe")
			w.copyMemory()
			w.checkSignal(false)
			c.attack(w)
			for r = <-w.events.got; r.Process.PID != 300; r = <-w.events.got {
				if r.Action != journal.Killed {
					t.Errorf("of the second time: %s", r.Action)
				}
			}
			if r.Action != journal.Killed {
				t.Errorf("another process: %s, %q", r.Action, r.Detail.Note)
			}
			w.checkSignal(true)
			if err := w.engine.Detach(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
			w.checkClean(0)
		})
	}
}

// TestKillSpares: where the process can't be killed, or must not be, the violation is
// blocked all the same, and the record says why.
func TestKillSpares(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		before func(*world)
		want   string
	}{
		"the first process": {func(w *world) { w.guest.SetTask(0, 1, 1, "init") }, nil, "first process"},
		"a kernel thread": {func(w *world) {
			w.guest.WriteUint64(w.guest.CurrentTask(0)+linuxtest.TaskMM, 0)
		}, nil, "thread of the kernel"},
		"its signals are locked": {func(w *world) { w.guest.Write(w.guest.Sighand(0)+linuxtest.SighandLock, []byte{1}) }, nil, "right now"},
		// An attacker who can't write there would have hvid do it.
		"in guarded memory": {func(w *world) {
			g, task := w.guest, w.guest.Base+0x3000
			g.WriteUint64(x86.VirtAddr(g.Regs[0].GSBase)+g.Addr("current_task"), uint64(task))
			g.Write(task+linuxtest.TaskFlags, make([]byte, 4))
			g.Write(task+linuxtest.TaskPID, []byte{7, 0, 0, 0, 7, 0, 0, 0})
			g.WriteUint64(task+linuxtest.TaskMM, uint64(linuxtest.DirectMap+linuxtest.PokingMM))
			g.WriteUint64(task+linuxtest.TaskSighand, uint64(g.Sighand(0)))
		}, nil, "memory that is guarded"},
		"the domain can't be paused": {func(*world) {}, func(w *world) { w.xen.FailNext("domctl(pausedomain)", syscall.EOVERFLOW) }, "pausedomain"},
	} {
		t.Run(name, func(t *testing.T) {
			w := killer(t, xentest.Config{})
			c.change(w)
			w.appearRunning()
			text := w.dom.Read(w.guest.PhysBase, linuxtest.TextSize)
			if c.before != nil {
				c.before(w)
			}
			if f := w.writeText(); f != blockedWrite {
				t.Errorf("answered with flags %#x", f)
			}
			if r := <-w.events.got; r.Action != journal.Blocked || !strings.HasPrefix(string(r.Detail.Note), "the process was not killed: ") || !strings.Contains(string(r.Detail.Note), c.want) {
				t.Errorf("record: %s, note %q; want %q", r.Action, r.Detail.Note, c.want)
			}
			w.checkSignal(false)
			if string(text) != string(w.dom.Read(w.guest.PhysBase, linuxtest.TextSize)) {
				t.Error("guarded memory was written to")
			}
			if n := w.dom.Pauses(); n != 0 {
				t.Errorf("%d pauses", n)
			}
			if err := w.engine.Detach(t.Context(), 7); err != nil {
				t.Fatal(err)
			}
			w.checkClean(0)
		})
	}
}

// TestKillTriedAgain: what failed for a moment does not save the process the next time.
func TestKillTriedAgain(t *testing.T) {
	w := killer(t, xentest.Config{})
	w.appearRunning()
	w.xen.FailNext("domctl(pausedomain)", syscall.EOVERFLOW)
	w.writeText()
	if r := <-w.events.got; r.Action != journal.Blocked {
		t.Errorf("record: %s", r.Action)
	}
	w.writeText()
	if r := <-w.events.got; r.Action != journal.Killed {
		t.Errorf("the next time: %s, %q", r.Action, r.Detail.Note)
	}
	w.checkSignal(true)
	if err := w.engine.Detach(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	w.checkClean(0)
}

// killing has hvi attach to a guest that runs, and kill a process for an attack.
func killing(l *living) {
	e := l.engine
	e.Gate(l.info, true)
	e.Appeared(l.info, "web")
	l.event(abi.VMEventReasonMovToMSR, 0xffffffffc0000000)
	if err := e.Close(); err != nil {
		l.t.Error(err)
	}
}

// TestKilledWhileKilling has hvid die with each call while it kills a process. The
// guest is free after recovery: of the pause nothing is left.
func TestKilledWhileKilling(t *testing.T) {
	w := newKilledWorldOf(t, linuxtest.SignalConfig(linuxtest.Relative5, 1), xentest.Config{AMD: true}, xentest.Spec{VCPUs: 2})
	w.guest.SetSignals(1)
	w.decl = declareGuards(t, append(alone, "kernel-text=off", "syscall-entry=kill")...)
	signalled := 0
	for _, after := range []bool{false, true} {
		w.copyMemory()
		for call := 1; w.live(killing, xentest.Death{Call: call, After: after}); call++ {
			w.late()
			w.comeBack(false, never)
			w.free("hvid died", 0)
			if w.word(w.guest.CurrentTask(0)+linuxtest.TaskPending) == 0x100 {
				signalled++
			}
			w.copyMemory()
		}
		w.free("it has ended in order", 0)
		w.checkSignal(true)
	}
	if signalled < 2 {
		t.Errorf("hvid died %d times with the signal written", signalled)
	}
}
