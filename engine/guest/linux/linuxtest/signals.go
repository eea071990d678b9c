package linuxtest

import (
	"encoding/binary"

	"github.com/cilium/ebpf/btf"

	"github.com/xen-hvi/hvi/engine/x86"
)

// Offsets of what has to do with signals, and where the current tasks' other
// structures are.
const (
	TaskPending = 2100 &^ 7
	TaskSighand = 2112
	TaskWork    = 16 // thread_info.flags
	SighandLock = 8
	sighands    = Variables + 0x1_0000 // of CPU 0; 64 bytes each
)

// SignalConfig is a guest whose tasks can be sent signals, with a vCPU for each.
func SignalConfig(l Layout, cpus int) Config {
	lock := structOf("spinlock", 4, member("rlock", 0, structOf("raw_spinlock", 4,
		member("raw_lock", 0, structOf("qspinlock", 4, member("val", 0, structOf("", 4, member("counter", 0, u32))))))))
	return Config{
		Layout: l, CPUs: cpus,
		Types: []btf.Type{structOf("sighand_struct", 64, member("siglock", SighandLock, lock))},
		Task: []btf.Member{
			member("thread_info", TaskWork-8, structOf("thread_info", 16, member("flags", 8, u64))),
			member("start_boottime", TaskStart, u64), member("sighand", TaskSighand, pointer),
			member("pending", TaskPending-16, structOf("sigpending", 24, member("signal", 16, structOf("", 8, member("sig", 0, array(u64, 1)))))),
		},
	}
}

// SetSignals gives the current tasks of a guest of SignalConfig what they need.
func (g *Guest) SetSignals(cpus int) {
	for i := range cpus {
		task := g.CurrentTask(i)
		g.WriteUint64(task+TaskMM, uint64(DirectMap+PokingMM))
		g.WriteUint64(task+TaskStart, uint64(1_000_000+i))
		g.WriteUint64(task+TaskSighand, uint64(g.Sighand(i)))
	}
}

// CurrentTask is the address of a vCPU's current task.
func (g *Guest) CurrentTask(cpu int) x86.VirtAddr {
	return DirectMap + Tasks + x86.VirtAddr(cpu)<<12
}

// Sighand is the address of that task's sighand_struct.
func (g *Guest) Sighand(cpu int) x86.VirtAddr {
	return g.Base + sighands + x86.VirtAddr(cpu)*64
}

// SetPreemptCount sets what a vCPU has for preempt_count.
func (g *Guest) SetPreemptCount(l Layout, cpu int, n uint32) {
	at := x86.VirtAddr(g.Regs[cpu].GSBase)
	if l >= Seqs62 && l.Absolute() {
		at += hot + HotCount
	} else {
		at += g.Addr("__preempt_count")
	}
	g.Write(at, binary.LittleEndian.AppendUint32(nil, n))
}
