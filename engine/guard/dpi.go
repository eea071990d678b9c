package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// execEntries are the functions by which processes execute programs: execve, execveat,
// and those of 32-bit code and of x32. What the kernel executes by itself comes through
// none of them.
var execEntries = []string{
	"__x64_sys_execve", "__x64_sys_execveat", "__ia32_compat_sys_execve", "__ia32_compat_sys_execveat",
	"__x64_compat_sys_execve", "__x64_compat_sys_execveat", "__x32_compat_sys_execve", "__x32_compat_sys_execveat",
}

// Exploits finds a process that executes a program while it is in the hands of an
// exploit: that is what most exploits end in. Three things give it away:
//
//   - The instruction that called lies in memory that no file is mapped in: it was
//     injected. Programs and libraries are mapped from files, what the dynamic linker
//     and the kernel's vDSO do is no exec, and compilers at run time call their
//     runtime, which is a library.
//   - Its stack pointer leads to what is no stack: to the memory of brk, of a file, to
//     what can't be written, or to nothing. Stacks are what grows downwards, and
//     anonymous memory that threads, coroutines, Go and posix_spawn take with mmap, and
//     what was set aside for signals. A stack that was moved to such anonymous memory is
//     not seen.
//   - Its credentials were not made for it.
//
// What unpacks itself into memory and executes from there, and programs whose coroutines
// have stacks of malloc, look the same: they need an exception.
func Exploits() Guard {
	return Guard{
		Name:  policy.GuardExploits,
		Needs: NeedCalls,
		Calls: func(t *Target) ([]Call, error) {
			callers, err := t.Kernel.NewCallers()
			if err != nil {
				return nil, err
			}
			x := &execJudge{callers: callers}
			return []Call{{Functions: execEntries, Judge: x.exploited}}, nil
		},
	}
}

// execJudge judges a process that executes a program. It is the ring goroutine's.
type execJudge struct {
	callers *linux.Callers
	task    linux.Task
	mm      x86.VirtAddr
}

// read reads who has called and what it had in its registers; false for what is no
// process', or can't be told.
func (x *execJudge) read(ev *vmevent.Event, c *CallEvidence) bool {
	k := x.callers.Begin()
	if k.ReadTask(&ev.Regs, &x.task) != nil || k.ReadUserRegs(&ev.Regs, &c.User) != nil {
		return false
	}
	var err error
	x.mm, err = x.callers.MM(&x.task)
	return err == nil && x.mm != 0
}

func (x *execJudge) exploited(ev *vmevent.Event, c *CallEvidence) bool {
	if !x.read(ev, c) {
		return false
	}
	switch {
	case x.injected(c):
		c.Fault = FaultCode
	case x.pivoted(c):
		c.Fault = FaultStack
	default:
		if c.Credentials = x.callers.Credentials(&x.task); c.Credentials == linux.CredFine {
			return false
		}
		c.Fault = FaultCredentials
	}
	return true
}

// injected reports whether the code that called is in no file.
func (x *execJudge) injected(c *CallEvidence) bool {
	// RIP is behind the instruction, which may be the last of its mapping.
	at := c.User.RIP - 1
	if at.KernelHalf() {
		return false // the vsyscall page
	}
	found, err := x.callers.Find(x.mm, at, &c.Mapping)
	if c.Mapped = found; err != nil {
		return false
	}
	return !found || !c.Mapping.File() && !c.Mapping.Special()
}

// belowStack is by how much the stack pointer of a healthy process may be below its
// stack, in bytes: the kernel makes it grow when it is written to.
const belowStack = 1 << 20

// pivoted reports whether its stack pointer leads to what is no stack.
func (x *execJudge) pivoted(c *CallEvidence) bool {
	sp := c.User.RSP
	if x.callers.OnAltStack(&x.task, sp) || x.stacked(c, sp) {
		return false
	}
	// With nothing on it, it is at the end of a stack, which may be where something else
	// begins.
	if sp.Offset() == 0 && x.stacked(c, sp-1) {
		return false
	}
	return !x.stacked(c, sp) // what there is at sp is the evidence
}

// stacked reports whether an address lies in what may be a stack, or whether that can't
// be told.
func (x *execJudge) stacked(c *CallEvidence, at x86.VirtAddr) bool {
	found, err := x.callers.Find(x.mm, at, &c.Mapping)
	if c.Mapped, c.Heap = found, false; err != nil {
		return true
	}
	if !found {
		first, err := x.callers.Find(x.mm, x.callers.FirstStack(x.mm), &c.Mapping)
		return err != nil || first && c.Mapping.Stack() && at < c.Mapping.Start && c.Mapping.Start-at <= belowStack
	}
	if c.Mapping.Stack() {
		return true
	}
	c.Heap = x.callers.Heap(x.mm, at)
	return !c.Heap && !c.Mapping.File() && !c.Mapping.Special() && c.Mapping.Writable()
}
