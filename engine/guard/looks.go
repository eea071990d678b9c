package guard

import (
	"time"

	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/guest/report"
	"github.com/xen-hvi/hvi/engine/policy"
)

// Look is what is looked for in the guest, again and again, by a guard of what
// can't be trapped: what healthy kernels write all day, and what an attack brings
// out of order only together with something else. It needs nothing of the
// platform but the guest's memory and registers. What it finds has taken place.
type Look struct {
	// Checks are the names of the checks that are made, which
	// [linux.Reader.CheckNamed] knows.
	Checks []string
	// Begin is for a guard that looks for what its policy forbids, and has no Checks:
	// it returns what finds that, or nil if that is nothing.
	Begin func(policy.Effective) Find
	// Every is how much time passes between two looks, give or take a quarter.
	Every time.Duration
	// Bulk says that much is read that lies together.
	Bulk bool
}

// Find looks once. What it remembers is of one guest, and it belongs to one goroutine.
type Find func(*linux.Reader) (report.Verdict, error)

// Finding returns what looks for a guest under a policy, or nil.
func (l *Look) Finding(p policy.Effective) Find {
	if l.Begin != nil {
		return l.Begin(p)
	}
	return func(r *linux.Reader) (report.Verdict, error) { return r.CheckNamed(l.Checks...) }
}

// Intervals of looking. A look at the processes and modules of a Debian guest
// takes a processor of dom0 some milliseconds; one at all writable data of its
// kernel, up to 20 MiB, takes 20 to 30.
const (
	LookEvery      = 30 * time.Second
	DeepLookEvery  = time.Minute
	lookJitterPart = 4
)

// Jitter returns by how much the time between two looks differs at most, so that
// a guest can't be ahead of them.
func (l *Look) Jitter() time.Duration { return l.Every / lookJitterPart }

// HiddenObjects finds processes, threads and modules that were taken off the
// kernel's lists, so that the guest's own tools don't show them, and that live on:
// they are in other books of the kernel's still, or in its memory.
func HiddenObjects() Guard {
	return Guard{Name: policy.GuardHiddenObjects, Look: &Look{Checks: []string{"hidden-processes", "hidden-modules"}, Every: LookEvery}}
}

// Credentials finds processes with credentials that were not made for them.
// Linux never changes credentials in place, and shares them between the threads
// of one process alone (commit_creds, copy_creds): a process that has another's,
// or the kernel's own, was given them by writing into the kernel's memory.
func Credentials() Guard {
	return Guard{Name: policy.GuardCredentials, Look: &Look{Checks: []string{"credentials"}, Every: LookEvery}}
}

// FunctionPointers finds pointers in the kernel's writable memory that lead to
// code of neither the kernel, a module, an eBPF program nor a probe: security
// hooks, users of ftrace, kprobes, and every word of its data.
func FunctionPointers() Guard {
	return Guard{Name: policy.GuardFunctionPointers, Look: &Look{Checks: []string{"lsm-hooks", "ftrace-hooks", "kprobes", "function-pointers"}, Every: DeepLookEvery, Bulk: true}}
}

// ExecutableMemory finds memory that the kernel can execute and that is no code of
// its own, and code that it can write, by its page tables. Linux makes all else
// non-executable, and all code read-only, before it starts init, and from then on
// memory is executable only after it was made read-only. All tables are read each
// time: some hundreds in a small guest, and where one is changed nothing tells.
//
// Code among the modules that belongs to none is [HiddenObjects]'; what is mapped in
// one process's page tables alone is not seen.
func ExecutableMemory() Guard {
	return Guard{Name: policy.GuardKernelExec, Look: &Look{Checks: []string{"executable-memory"}, Every: LookEvery}}
}

// SegmentTable finds processors with a table of segments that is not the
// kernel's, and gates in one, through which user space could enter ring 0. Linux
// writes into the table at each change of process (its TLS segments), so that it
// can't be restricted.
func SegmentTable() Guard {
	return Guard{Name: policy.GuardSegmentTable, Look: &Look{Checks: []string{"segment-table"}, Every: LookEvery}}
}

// UsermodeHelpers finds that a program which the kernel starts by itself, as
// root, is one that nobody has installed: modprobe_path, core_pattern,
// poweroff_cmd, uevent_helper.
func UsermodeHelpers() Guard {
	return Guard{Name: policy.GuardUsermodeHelper, Look: &Look{Checks: []string{"usermode-helpers"}, Every: LookEvery}}
}

// Panic reports that the guest's kernel has crashed, with the end of its log, which
// the engine reads when the domain shuts down with that reason; and by looking, that it
// has met with an error and runs on (an oops).
func Panic() Guard {
	return Guard{Name: policy.GuardPanic, Look: &Look{Every: LookEvery, Begin: func(policy.Effective) Find { return (*linux.Reader).Oopses }}}
}
