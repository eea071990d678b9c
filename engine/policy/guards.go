package policy

import "slices"

// GuardName is the name of a protection, as admins write it and as events
// carry it.
type GuardName string

// The guards of this version.
const (
	// GuardKernelText protects the guest kernel's code.
	GuardKernelText GuardName = "kernel-text"
	// GuardKernelTextRead keeps the guest kernel's code from being read.
	GuardKernelTextRead GuardName = "kernel-text-read"
	// GuardModules protects the code and the constants of loaded modules.
	GuardModules GuardName = "modules"
	// GuardKernelROData protects the guest kernel's read-only data.
	GuardKernelROData GuardName = "kernel-rodata"
	// GuardExceptionTable protects where the kernel goes on after a fault.
	GuardExceptionTable GuardName = "ex-table"
	// GuardSyscallTable protects the table of system calls.
	GuardSyscallTable GuardName = "syscall-table"
	// GuardInterruptTable protects where interrupts enter the kernel.
	GuardInterruptTable GuardName = "idt"
	// GuardVDSO protects the code that the kernel gives to every process.
	GuardVDSO GuardName = "vdso"
	// GuardSegmentTable watches the tables of segments.
	GuardSegmentTable GuardName = "gdt"
	// GuardFunctionPointers watches pointers to code in writable memory.
	GuardFunctionPointers GuardName = "function-pointers"
	// GuardKernelExec watches what memory the kernel can execute.
	GuardKernelExec GuardName = "kernel-exec"
	// GuardEBPF watches which eBPF programs are loaded.
	GuardEBPF GuardName = "ebpf"
	// GuardUsermodeHelper watches which programs the kernel starts by itself.
	GuardUsermodeHelper GuardName = "usermode-helper"
	// GuardCredentials watches what processes are allowed.
	GuardCredentials GuardName = "creds"
	// GuardHiddenObjects looks for processes and modules that were hidden.
	GuardHiddenObjects GuardName = "hidden-objects"
	// GuardProcesses protects the processes that the policy lists.
	GuardProcesses GuardName = "process"
	// GuardExploits watches who executes programs.
	GuardExploits GuardName = "dpi"
	// GuardPanic reports that the guest has crashed.
	GuardPanic GuardName = "panic"
	// GuardSyscallEntry protects where system calls enter the kernel.
	GuardSyscallEntry GuardName = "syscall-entry"
	// GuardControlRegisters protects the processor's own protections.
	GuardControlRegisters GuardName = "cr"
)

// Guard is one line of the table of protections: what a policy may name.
// How a guard works is the guard room's business.
type Guard struct {
	// Name is the word that names it.
	Name GuardName
	// Meaning is one sentence for people, without a full stop.
	Meaning string
	// Observe and Enforce are the actions taken under these modes when the
	// policy does not set one. Under learn it is Observe.
	Observe, Enforce Action
	// Memory says that the guard restricts the guest's memory, and so holds in views.
	Memory bool
	// Views says that the guard takes views: it judges what processes ask of the kernel,
	// or has pages that can be executed and not read.
	Views bool
	// Finds says that the guard finds violations afterwards, and so can't block.
	Finds bool
	// Over says that the guest has stopped by itself when there is a violation, and so
	// can't be stopped.
	Over bool
}

// Permits returns an error for an action that the guard can't take.
func (g Guard) Permits(a Action) error {
	switch {
	case g.Over && a.Prevents():
		return &Error{
			What: "guard", Value: string(g.Name), Reason: "is set to " + a.String() + ", but the guest has stopped when it tells of that",
			Hint: "set it to alert",
		}
	case g.Finds && (a == ActionBlock || a == ActionKill):
		return &Error{
			What: "guard", Value: string(g.Name), Reason: "is set to " + a.String() + ", but it finds afterwards what has taken place",
			Hint: "set it to alert, or to pause or shutdown, which stop the guest when something is found",
		}
	}
	return nil
}

// Default is the guard's action under mode m when the policy does not set one.
func (g Guard) Default(m Mode) Action {
	switch m {
	case ModeLearn, ModeObserve:
		return g.Observe
	case ModeEnforce:
		return g.Enforce
	default:
		return ActionOff
	}
}

var guards = []Guard{
	{
		Name:    GuardKernelText,
		Meaning: "the kernel's code is written only by the kernel's own patching",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardKernelTextRead,
		Meaning: "the kernel's code is read only by what of the kernel checks or patches it",
		Observe: ActionOff,
		Enforce: ActionOff,
		Memory:  true,
		Views:   true,
	},
	{
		Name:    GuardModules,
		Meaning: "a loaded module's code and read-only data are written only by the kernel's own patching",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardKernelROData,
		Meaning: "the kernel's read-only data is never written",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardExceptionTable,
		Meaning: "the table of exceptions, which says where the kernel goes on after a fault, is never written",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardSyscallTable,
		Meaning: "the tables of system calls are never written",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardInterruptTable,
		Meaning: "the table of interrupts (idt_table) is never written",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardVDSO,
		Meaning: "the code that the kernel maps into every process (the vDSO) is never written",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Memory:  true,
	},
	{
		Name:    GuardSegmentTable,
		Meaning: "every processor uses the kernel's own table of segments, which has no gates",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardSyscallEntry,
		Meaning: "the registers that say where system calls enter the kernel (LSTAR, CSTAR, STAR, SYSENTER_EIP) stay as the kernel set them at boot",
		Observe: ActionAlert,
		Enforce: ActionBlock,
	},
	{
		Name:    GuardControlRegisters,
		Meaning: "the processor's protections (CR0.WP; CR4.SMEP, SMAP, UMIP, FSGSBASE, PKE, CET; EFER.NXE, SCE) stay on once the kernel has set them",
		Observe: ActionAlert,
		Enforce: ActionBlock,
	},
	{
		Name:    GuardFunctionPointers,
		Meaning: "no pointer in the kernel's writable memory leads to code that belongs to nobody",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardKernelExec,
		Meaning: "the kernel can execute its own code alone, and write none of it",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardEBPF,
		Meaning: "no eBPF program of a type that the policy forbids is loaded; if it says nothing, of those that trace",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardUsermodeHelper,
		Meaning: "the kernel starts by itself only programs that are installed",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardCredentials,
		Meaning: "no process has credentials that were not made for it",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardHiddenObjects,
		Meaning: "no process, thread or module is hidden from the guest's own tools",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
	},
	{
		Name:    GuardProcesses,
		Meaning: "nobody from outside gets hold of a process that the policy protects, one that it calls childless starts no program, and one that it seals has no code but that of files",
		Observe: ActionAlert,
		Enforce: ActionBlock,
		Views:   true,
	},
	{
		Name:    GuardExploits,
		Meaning: "no process executes a program from injected code, with its stack moved elsewhere, or with credentials that were not made for it",
		Observe: ActionOff,
		Enforce: ActionOff,
		Views:   true,
	},
	{
		Name:    GuardPanic,
		Meaning: "the guest's kernel does not crash, nor end a process for an error of its own (oops); if it does, the end of its log is kept",
		Observe: ActionAlert,
		Enforce: ActionAlert,
		Finds:   true,
		Over:    true,
	},
}

// Guards returns every known guard, in the order they are shown and armed.
func Guards() []Guard { return slices.Clone(guards) }

// LookupGuard finds a guard by name.
func LookupGuard(name GuardName) (Guard, bool) {
	for _, g := range guards {
		if g.Name == name {
			return g, true
		}
	}
	return Guard{}, false
}

// ParseGuardName reads the name of a known guard. Anything else is an [*Error].
func ParseGuardName(s string) (GuardName, error) {
	if _, ok := LookupGuard(GuardName(s)); ok {
		return GuardName(s), nil
	}
	return "", UnknownWord("guard", s, guardWords(), Origin{})
}

func guardWords() []string {
	words := make([]string, len(guards))
	for i, g := range guards {
		words[i] = string(g.Name)
	}
	return words
}
