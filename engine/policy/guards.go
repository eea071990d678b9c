package policy

import "slices"

// GuardName is the name of a protection, as admins write it and as events
// carry it.
type GuardName string

// The guards of this version.
const (
	// GuardKernelText protects the guest kernel's code.
	GuardKernelText GuardName = "kernel-text"
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
	// policy does not set one.
	Observe, Enforce Action
}

// Default is the guard's action under mode m when the policy does not set one.
func (g Guard) Default(m Mode) Action {
	switch m {
	case ModeObserve:
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
