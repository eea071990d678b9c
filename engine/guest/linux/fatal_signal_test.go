package linux

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/xen-hvi/hvi/engine/guest/linux/linuxtest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// TestFatalSignal finds where a SIGKILL goes, in kernels of all times.
func TestFatalSignal(t *testing.T) {
	for l := range linuxtest.NumLayouts {
		g := linuxtest.New(linuxtest.SignalConfig(l, 2))
		g.SetSignals(2)
		g.SetPreemptCount(l, 1, 0x8000_0201) // no need to reschedule, a spinlock, soft interrupts off
		k, err := Identify(g.Memory(), g.Regs[0])
		if err != nil {
			t.Fatal(err)
		}
		task, err := k.CurrentTask(&g.Regs[1])
		if err != nil || task.Start != 1_000_001 {
			t.Fatalf("%v: %+v, %v", l, task, err)
		}
		got, err := k.FatalSignal(&g.Regs[1], &task)
		at := g.CurrentTask(1)
		if want := [2]SetBits{{at + linuxtest.TaskPending, 0x100}, {at + linuxtest.TaskWork, 6}}; err != nil || got != want {
			t.Errorf("%v: %+v, %v; want %+v", l, got, err, want)
		}
	}
}

// TestSpared: what is not to be ended, and is told why.
func TestSpared(t *testing.T) {
	const l = linuxtest.Relative61
	write32 := func(g *linuxtest.Guest, at x86.VirtAddr, n uint32) {
		g.Write(at, binary.LittleEndian.AppendUint32(nil, n))
	}
	for _, c := range []struct {
		name    string
		symbols []string
		change  func(g *linuxtest.Guest, task x86.VirtAddr)
		want    string
	}{
		{"idle", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetTask(0, 0, 0, "swapper/0") }, "idle"},
		{"the first process", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetTask(0, 1, 1, "init") }, "first process"},
		{"a thread of the first process", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetTask(0, 300, 1, "init") }, "first process"},
		{"a kernel thread", nil, func(g *linuxtest.Guest, at x86.VirtAddr) { write32(g, at+linuxtest.TaskFlags, 0x0020_0040) }, "thread of the kernel"},
		{"without user memory", nil, func(g *linuxtest.Guest, at x86.VirtAddr) { g.WriteUint64(at+linuxtest.TaskMM, 0) }, "thread of the kernel"},
		{"an io_uring worker", []string{"create_io_thread"}, func(g *linuxtest.Guest, at x86.VirtAddr) { write32(g, at+linuxtest.TaskFlags, 0x10) }, "runs for a process"},
		{"a vhost worker", []string{"vhost_task_create"}, func(g *linuxtest.Guest, at x86.VirtAddr) { write32(g, at+linuxtest.TaskFlags, 0x4000) }, "runs for a process"},
		{"exiting", nil, func(g *linuxtest.Guest, at x86.VirtAddr) { write32(g, at+linuxtest.TaskFlags, 4) }, "about to end"},
		{"an interrupt", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetPreemptCount(l, 0, 0x1_0001) }, "interrupted"},
		{"a soft interrupt", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetPreemptCount(l, 0, 0x100) }, "interrupted"},
		{"an NMI", nil, func(g *linuxtest.Guest, _ x86.VirtAddr) { g.SetPreemptCount(l, 0, 0x10_0000) }, "interrupted"},
		{"no sighand", nil, func(g *linuxtest.Guest, at x86.VirtAddr) { g.WriteUint64(at+linuxtest.TaskSighand, 0) }, "sighand"},
		{"sighand nowhere", nil, func(g *linuxtest.Guest, at x86.VirtAddr) {
			g.WriteUint64(at+linuxtest.TaskSighand, 0xffff_c000_0000_0000)
		}, "not present"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := linuxtest.SignalConfig(l, 1)
			config.Variables = c.symbols
			g := linuxtest.New(config)
			g.SetSignals(1)
			c.change(g, g.CurrentTask(0))
			k, err := Identify(g.Memory(), g.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			task, err := k.CurrentTask(&g.Regs[0])
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.FatalSignal(&g.Regs[0], &task)
			var spared *SparedError
			if !errors.As(err, &spared) || !strings.Contains(err.Error(), c.want) || got != [2]SetBits{} {
				t.Errorf("%+v, %v; want an error with %q", got, err, c.want)
			}
		})
	}

	// Flags that mean something else where there are no such threads.
	g := linuxtest.New(linuxtest.SignalConfig(l, 1))
	g.SetSignals(1)
	write32(g, g.CurrentTask(0)+linuxtest.TaskFlags, 0x4010)
	k, err := Identify(g.Memory(), g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	task, err := k.CurrentTask(&g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.FatalSignal(&g.Regs[0], &task); err != nil {
		t.Errorf("flags of other meanings: %v", err)
	}
	g.Write(g.Sighand(0)+linuxtest.SighandLock, []byte{1})
	if _, err := k.FatalSignal(&g.Regs[0], &task); !errors.Is(err, ErrSignalsLocked) {
		t.Errorf("with siglock held: %v", err)
	}
	// The number is another's now.
	g.Write(g.Sighand(0)+linuxtest.SighandLock, []byte{0})
	g.WriteUint64(g.CurrentTask(0)+linuxtest.TaskStart, 5)
	var spared *SparedError
	if _, err := k.FatalSignal(&g.Regs[0], &task); !errors.As(err, &spared) || !strings.Contains(err.Error(), "another task") {
		t.Errorf("another task: %v", err)
	}
}

// TestSignalsUnknown: a kernel whose types lack what it takes is not written to.
func TestSignalsUnknown(t *testing.T) {
	g, k := identified(t, linuxtest.Config{})
	task, err := k.CurrentTask(&g.Regs[0])
	if err != nil {
		t.Fatal(err)
	}
	var spared *SparedError
	if _, err := k.FatalSignal(&g.Regs[0], &task); !errors.As(err, &spared) {
		t.Error(err)
	}
}
