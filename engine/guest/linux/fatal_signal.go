package linux

import (
	"errors"
	"fmt"

	"github.com/xen-hvi/hvi/engine/x86"
)

// TaskSignalOffsets lays out what of struct task_struct has to do with signals.
type TaskSignalOffsets struct {
	// Pending is the set of signals that wait for this thread alone, a word of 64.
	Pending int `c:"pending.signal"`
	Sighand int `c:"sighand"`
	// ThreadFlags is the word with what is to be done before user code runs again.
	ThreadFlags int `c:"thread_info.flags"`
}

// SighandOffsets lays out struct sighand_struct.
type SighandOffsets struct {
	// Lock is 4 bytes, 0 while nobody has siglock. A kernel with PREEMPT_RT has Owner
	// in its stead, 8 bytes, likewise.
	Lock  int `c:"siglock.rlock.raw_lock.val"`
	Owner int `c:"siglock.lock.owner"`
}

const (
	// sigKill is SIGKILL's bit in a set of signals.
	sigKill = 1 << (9 - 1)
	// signalPending are the bits of thread_info.flags that have the kernel look for
	// signals before it returns to user code. TIF_SIGPENDING was bit 2 on x86
	// (arch/x86/include/asm/thread_info.h) and is bit 1 since x86 has the numbers of
	// all architectures (include/asm-generic/thread_info_tif.h). No type information
	// has it, so both are set. The other one has the kernel look for work and find
	// none: bit 1 was TIF_NOTIFY_RESUME, bit 2 is TIF_NOTIFY_SIGNAL.
	signalPending = 1<<1 | 1<<2

	// Of task_struct.flags (include/linux/sched.h). The last two are threads that a
	// process has the kernel run for it, which end by themselves and not their process
	// (get_signal in kernel/signal.c); they have meanings of their own in kernels
	// without the function that makes them.
	pfExiting    = 0x0000_0004
	pfIOWorker   = 0x0000_0010 // since 5.12
	pfUserWorker = 0x0000_4000 // since 6.4

	// inInterrupt are the bits of preempt_count of which one is set while an
	// interrupt is served: NMI, hard, soft (include/linux/preempt.h). To keep soft
	// ones off, as code of a process does, adds 0x200.
	inInterrupt = 0x00f0_0000 | 0x000f_0000 | 0x100
)

// SparedError says why a task is not to be ended, or can't be.
type SparedError struct{ Reason string }

func (e *SparedError) Error() string { return e.Reason }

// ErrSignalsLocked: another processor is at the signals of the task right now. It is
// done within microseconds of the guest's time.
var ErrSignalsLocked = errors.New("the guest is changing the signals of that process right now")

// SetBits is a change of the guest's memory: to set bits of the 8 bytes at Addr, which
// is a multiple of 8. It can be made any number of times.
type SetBits struct {
	Addr x86.VirtAddr
	Bits uint64
}

// FatalSignal says how to end the process of a task as its own kernel does for kill -9:
// by a SIGKILL that waits for the task. The two changes are to be made in their order,
// with the guest paused since before FatalSignal was called, and the vCPU stopped where
// regs are from, with t on it.
//
// A SIGKILL that waits for the thread alone will do: get_signal finds it before any
// user code of the thread runs again, asks neither a handler nor a debugger, and ends
// the whole process by do_group_exit; a thread with one does not go to sleep any more
// (signal_pending_state), nor is it stopped. Were it put into what the process' threads
// share, fatal_signal_pending would not see it. No siginfo is queued for it:
// collect_signal does without, as for a sender that had no memory (kernel/signal.c).
//
// siglock, which is held by whoever changes these words, is free while the guest
// stands still, so this is as good as to have taken it.
//
// The error is a [*SparedError] for what must live on: what is no process, the first
// process, whose end would be the guest's, and who happens to run while an interrupt
// is served. It is [ErrSignalsLocked] if another attempt may do.
func (k *Kernel) FatalSignal(regs *x86.Registers, t *Task) ([2]SetBits, error) {
	var none [2]SetBits
	spare := func(format string, a ...any) ([2]SetBits, error) {
		return none, &SparedError{fmt.Sprintf(format, a...)}
	}
	o, of := &k.Offsets.Task, &k.Offsets.TaskSignal
	if err := need("task_struct.pending", of.Pending, "task_struct.sighand", of.Sighand, "thread_info.flags", of.ThreadFlags,
		"task_struct.flags", o.Flags, "task_struct.mm", o.MM, "task_struct.start_boottime", o.StartTime,
		"sighand_struct.siglock", max(k.Offsets.Sighand.Lock, k.Offsets.Sighand.Owner)); err != nil {
		return spare("%v", err)
	}
	var now Task
	switch err := k.ReadTask(regs, &now); {
	case err != nil:
		return spare("%v", err)
	case !now.Is(t):
		return spare("another task runs there now")
	case now.PID == 0:
		return spare("it is the processor's idle task")
	case now.TGID == 1:
		return spare("it is the guest's first process, whose end would be a panic")
	}
	flags, err := k.as.ReadUint32(t.Addr + x86.VirtAddr(o.Flags))
	if err != nil {
		return spare("%v", err)
	}
	mm, err := k.as.ReadUint64(t.Addr + x86.VirtAddr(o.MM))
	if err != nil {
		return spare("%v", err)
	}
	switch {
	case flags&pfExiting != 0:
		return spare("it is about to end by itself")
	case flags&pfKThread != 0 || mm == 0:
		return spare("it is a thread of the kernel")
	case k.has("create_io_thread") && flags&pfIOWorker != 0, k.has("vhost_task_create") && flags&pfUserWorker != 0:
		return spare("it is a thread that the kernel runs for a process")
	}
	switch interrupt, err := k.inInterrupt(regs); {
	case err != nil:
		return spare("%v", err)
	case interrupt:
		return spare("it was interrupted: what was done is no process'")
	}
	if err := k.signalsFree(t); err != nil {
		return none, err
	}
	pending, work := t.Addr+x86.VirtAddr(of.Pending), t.Addr+x86.VirtAddr(of.ThreadFlags)
	if (pending|work)&7 != 0 {
		return spare("implausible task_struct at %v", t.Addr)
	}
	return [2]SetBits{{pending, sigKill}, {work, signalPending}}, nil
}

func (k *Kernel) has(symbol string) bool {
	_, ok := k.Symbols.Lookup(symbol)
	return ok
}

// inInterrupt reports whether a vCPU serves an interrupt, be it a hard or a soft one.
func (k *Kernel) inInterrupt(regs *x86.Registers) (bool, error) {
	if !k.addr.havePreemptCount {
		return false, &ReadError{What: "preempt_count", Err: ErrUnsupported}
	}
	base, err := k.PerCPUBase(regs)
	if err != nil {
		return false, err
	}
	n, err := k.as.ReadUint32(base + k.addr.preemptCount)
	if err != nil {
		return false, &ReadError{What: "preempt_count", Err: err}
	}
	return n&inInterrupt != 0, nil
}

// signalsFree returns [ErrSignalsLocked] while somebody has the lock of a task's signals.
func (k *Kernel) signalsFree(t *Task) error {
	sighand, err := k.as.ReadPointer(t.Addr + x86.VirtAddr(k.Offsets.TaskSignal.Sighand))
	if err == nil && !sighand.KernelHalf() {
		err = &ReadError{What: "task_struct.sighand", Got: sighand.String(), Err: ErrImplausible}
	}
	if err != nil {
		return &SparedError{err.Error()}
	}
	var lock uint64
	if o := &k.Offsets.Sighand; o.Lock >= 0 {
		var v uint32
		v, err = k.as.ReadUint32(sighand + x86.VirtAddr(o.Lock))
		lock = uint64(v)
	} else {
		lock, err = k.as.ReadUint64(sighand + x86.VirtAddr(o.Owner))
	}
	switch {
	case err != nil:
		return &SparedError{err.Error()}
	case lock != 0:
		return ErrSignalsLocked
	}
	return nil
}
