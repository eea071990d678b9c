package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/policy"
	"github.com/xen-hvi/hvi/engine/vmevent"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Processes protects the processes that the policy lists.
//
// Nobody from outside gets hold of one (protected_processes): neither by ptrace, nor by
// process_vm_writev, nor by opening /proc/PID/mem to write. Its own threads may, and to
// read is left alone: crash handlers and tracers of a healthy system do that. Whoever
// gets hold of a process must come through ptrace_attach or mm_access; a debugger that
// has started the program itself has it before it is that program.
//
// And one may start no other program (childless_processes): neither itself nor by its
// children, which bear its name until they execute something.
//
// One may be sealed, too (sealed_processes): it is not to be able to execute memory that
// is no file's, be it its stack, its heap or new pages, nor any that it can write. That
// is looked for, on every tier.
//
// What listed ones do may be recorded besides (reported_processes): each program that
// they execute, each process they make, and their end.
//
// A process is listed by its name (comm) or by that of its program's file, which it takes
// privileges to change.
func Processes() Guard {
	return Guard{
		Name:  policy.GuardProcesses,
		Needs: NeedCalls,
		Look:  &Look{Every: LookEvery, Begin: sealedProcesses},
		Calls: func(t *Target) ([]Call, error) {
			protected, _ := t.Policy.List(policy.ListProtectedProcesses)
			childless, _ := t.Policy.List(policy.ListChildlessProcesses)
			reported, _ := t.Policy.List(policy.ListReportedProcesses)
			if len(protected)+len(childless)+len(reported) == 0 {
				return nil, nil
			}
			callers, err := t.Kernel.NewCallers()
			if err != nil {
				return nil, err
			}
			var calls []Call
			if len(protected) > 0 {
				p := &processJudge{callers: callers, list: newNames(protected)}
				calls = append(calls, Call{Functions: []string{"ptrace_attach"}, Judge: p.traced}, Call{Functions: []string{"mm_access"}, Judge: p.reached})
			}
			if len(childless) > 0 {
				p := &processJudge{callers: callers, list: newNames(childless)}
				calls = append(calls, Call{Functions: execEntries, Judge: p.starts})
			}
			if len(reported) > 0 {
				p := &processJudge{callers: callers, list: newNames(reported)}
				calls = append(calls, Call{Functions: execEntries, Note: p.executes}, Call{Functions: []string{"wake_up_new_task"}, Note: p.forks},
					Call{Functions: []string{"do_exit"}, Note: p.exits})
			}
			return calls, nil
		},
	}
}

// sealedProcesses is the look of [Processes].
func sealedProcesses(p policy.Effective) Find {
	if sealed, _ := p.List(policy.ListSealedProcesses); len(sealed) == 0 {
		return nil
	}
	return func(r *linux.Reader) (report.Verdict, error) {
		return r.ForbiddenCode(func(q *report.Process) bool {
			return p.ListsProcess(policy.ListSealedProcesses, string(q.Comm), string(q.Exe))
		})
	}
}

func newNames(list []string) []name {
	out := make([]name, 0, len(list))
	for _, s := range list {
		out = append(out, newName(s))
	}
	return out
}

// processJudge judges what is done to, or by, listed processes. It is the ring
// goroutine's.
type processJudge struct {
	callers *linux.Callers
	list    []name
	task    linux.Task
	names   linux.ProcessNames
}

// lists reports whether a task is of a process that is listed.
func (p *processJudge) lists(t *linux.Task) bool {
	p.callers.Names(t, &p.names)
	for i := range p.list {
		if n := &p.list[i]; n.of(p.names.Comm[:]) || p.names.Program[0] != 0 && n.of(p.names.Program[:]) {
			return true
		}
	}
	return false
}

// victim reads whose task the first argument of a function is, and reports whether it
// is another's than the caller's, and listed.
func (p *processJudge) victim(ev *vmevent.Event, c *CallEvidence) bool {
	k := p.callers.Begin()
	if k.ReadTask(&ev.Regs, &p.task) != nil || k.ReadTaskAt(x86.VirtAddr(ev.Regs.RDI), &c.Victim) != nil {
		return false
	}
	c.HasVictim = true
	return c.Victim.TGID != p.task.TGID && p.lists(&c.Victim)
}

// userRegs reads what the caller had in its registers, and reports whether it is a
// process.
func (p *processJudge) userRegs(ev *vmevent.Event, c *CallEvidence) bool {
	return p.callers.Kernel().ReadUserRegs(&ev.Regs, &c.User) == nil
}

// traced judges ptrace_attach(task, …).
func (p *processJudge) traced(ev *vmevent.Event, c *CallEvidence) bool {
	c.Fault = FaultTrace
	return p.victim(ev, c) && p.userRegs(ev, c)
}

// ptraceAttach is PTRACE_MODE_ATTACH (include/linux/ptrace.h): more than to look at what
// /proc shows of a process.
const ptraceAttach = 2

// reached judges mm_access(task, mode), by which process_vm_readv and process_vm_writev
// get at the memory of a process, and who opens /proc/PID/mem.
func (p *processJudge) reached(ev *vmevent.Event, c *CallEvidence) bool {
	if ev.Regs.RSI&ptraceAttach == 0 || !p.victim(ev, c) || !p.userRegs(ev, c) {
		return false
	}
	c.Fault = reaching(&c.User)
	return c.Fault != 0
}

// reaching says what a process does by a system call that gives it the memory of
// another; 0 if it can only read it then. What opens files in ways of which the flags
// are not to be seen here is taken to write.
func reaching(u *linux.UserRegs) CallFault {
	const (
		accessMode = 3          // O_ACCMODE; O_RDONLY is 0
		x32        = 0x40000000 // __X32_SYSCALL_BIT
	)
	var flags uint64
	if u.Compat {
		switch u.Call { // arch/x86/entry/syscalls/syscall_32.tbl
		case 347: // process_vm_readv
			return 0
		case 348: // process_vm_writev
			return FaultWrite
		case 5: // open
			flags = u.RCX
		case 295: // openat
			flags = u.RDX
		default:
			return FaultMemory
		}
	} else {
		switch u.Call &^ x32 {
		case 310, 539: // process_vm_readv, x32's
			return 0
		case 311, 540: // process_vm_writev, x32's
			return FaultWrite
		case 2: // open
			flags = u.RSI
		case 257: // openat
			flags = u.RDX
		default: // creat, openat2, io_uring_enter
			return FaultMemory
		}
	}
	if flags&accessMode == 0 {
		return 0
	}
	return FaultMemory
}

// starts judges who executes a program.
func (p *processJudge) starts(ev *vmevent.Event, c *CallEvidence) bool {
	c.Fault = FaultChild
	return p.callers.Begin().ReadTask(&ev.Regs, &p.task) == nil && p.lists(&p.task) && p.userRegs(ev, c)
}

// executes notes who executes a program.
func (p *processJudge) executes(ev *vmevent.Event, c *CallEvidence) bool {
	c.Fault = NoteExec
	return p.callers.Begin().ReadTask(&ev.Regs, &p.task) == nil && p.lists(&p.task) && p.userRegs(ev, c)
}

// forks notes, at wake_up_new_task(task), who has made a process; threads are none.
func (p *processJudge) forks(ev *vmevent.Event, c *CallEvidence) bool {
	c.Fault, c.HasVictim = NoteFork, true
	k := p.callers.Begin()
	return k.ReadTaskAt(x86.VirtAddr(ev.Regs.RDI), &c.Victim) == nil && c.Victim.PID == c.Victim.TGID &&
		k.ReadTask(&ev.Regs, &p.task) == nil && p.lists(&p.task) && p.userRegs(ev, c)
}

// exits notes, at do_exit(code), the end of a process' first thread.
func (p *processJudge) exits(ev *vmevent.Event, c *CallEvidence) bool {
	c.Fault, c.Code = NoteExit, uint32(ev.Regs.RDI)
	return p.callers.Begin().ReadTask(&ev.Regs, &p.task) == nil && p.task.PID == p.task.TGID && p.lists(&p.task) && p.userRegs(ev, c)
}
