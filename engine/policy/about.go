package policy

import "slices"

// About is what is told of a guard, and what the presets make of it: one row for
// each guard, in the order of [Guards]. A new guard gets its row here.
type About struct {
	Guard GuardName `json:"guard"`
	// Server and Strict are the actions under mode enforce in the presets
	// linux-server and linux-strict, ServerWhy and StrictWhy the reasons: one
	// sentence each, without a full stop.
	Server    Action `json:"-"`
	ServerWhy string `json:"-"`
	Strict    Action `json:"-"`
	StrictWhy string `json:"-"`
	// Registers is what the guard can do on tier registers. On the better ones it
	// can do everything, but for those that only find ([Guard.Finds]), and on tier access
	// for those that need views ([Guard.Views]).
	Registers Ability `json:"registers"`
	// Severity is that of a violation that took place, in the journal's words.
	Severity string `json:"severity"`
	// Techniques are those of MITRE ATT&CK (Enterprise, Linux) that it is for.
	Techniques []Technique `json:"attack"`
}

// Technique is a technique of MITRE ATT&CK.
type Technique struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Ability is what a guard can do on a tier.
type Ability string

// Abilities.
const (
	// AbilityFull: it sees a violation when it takes place, and can block it.
	AbilityFull Ability = "full"
	// AbilityFinds: it finds a violation some time afterwards, and blocks none.
	AbilityFinds Ability = "finds"
	// AbilityNone: it can't be armed.
	AbilityNone Ability = "none"
)

// The techniques, by the names that ATT&CK gives them; those of a subtechnique are its
// technique's and its own, with a colon between. The numbers are the same in its
// versions 11 to 19.
var (
	techRootkit    = Technique{"T1014", "Rootkit"}
	techEscalation = Technique{"T1068", "Exploitation for Privilege Escalation"}
	techModules    = Technique{"T1547.006", "Boot or Logon Autostart Execution: Kernel Modules and Extensions"}
	techVDSO       = Technique{"T1055.014", "Process Injection: VDSO Hijacking"}
	techHijack     = Technique{"T1574", "Hijack Execution Flow"}
	techTriggered  = Technique{"T1546", "Event Triggered Execution"}
	techEscape     = Technique{"T1611", "Escape to Host"}
	techHide       = Technique{"T1564", "Hide Artifacts"}
	techInjection  = Technique{"T1055", "Process Injection"}
	techPtrace     = Technique{"T1055.008", "Process Injection: Ptrace System Calls"}
	techProcMemory = Technique{"T1055.009", "Process Injection: Proc Memory"}
	techShell      = Technique{"T1059.004", "Command and Scripting Interpreter: Unix Shell"}
	techClient     = Technique{"T1203", "Exploitation for Client Execution"}
	techCrash      = Technique{"T1499.004", "Endpoint Denial of Service: Application or System Exploitation"}
)

// The reasons that several guards have.
const (
	asServer = "as in linux-server"
	// onRequest is for a guard that no preset arms.
	onRequest = "it takes the tier views, and an event of the guest's for each program that is executed: ask for it"
	// onRequestToRead is for kernel-text-read.
	onRequestToRead = "it takes the tier views, and tools that read a kernel's code (/proc/kcore, some eBPF programs) are taken for attackers: ask for it"
	tooLate         = "it finds afterwards what has taken place, and can prevent nothing"
)

var abouts = []About{
	{
		Guard:  GuardKernelText,
		Server: ActionBlock, ServerWhy: "nothing in a healthy guest writes its kernel's code but the kernel's own patching, which is let through",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techModules},
	},
	{
		Guard:  GuardKernelTextRead,
		Server: ActionOff, ServerWhy: onRequestToRead,
		Strict: ActionOff, StrictWhy: onRequestToRead,
		Registers: AbilityNone, Severity: "high",
		Techniques: []Technique{techRootkit, techEscalation},
	},
	{
		Guard:  GuardModules,
		Server: ActionBlock, ServerWhy: "nothing in a healthy guest writes a loaded module's code and constants but the kernel's own patching, which is let through",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityNone, Severity: "critical",
		Techniques: []Technique{techRootkit, techModules},
	},
	{
		Guard:  GuardKernelROData,
		Server: ActionBlock, ServerWhy: "the kernel makes this memory read-only at the end of its boot, and never writes it again",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techHijack},
	},
	{
		Guard:  GuardExceptionTable,
		Server: ActionBlock, ServerWhy: "the kernel sorts this table while it boots, and never writes it again",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techHijack},
	},
	{
		Guard:  GuardSyscallTable,
		Server: ActionBlock, ServerWhy: "these tables are constants of the kernel's",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techHijack},
	},
	{
		Guard:  GuardInterruptTable,
		Server: ActionBlock, ServerWhy: "the kernel fills this table while it boots, and never writes it again",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techHijack},
	},
	{
		Guard:  GuardVDSO,
		Server: ActionBlock, ServerWhy: "the kernel prepares this code while it boots, and a debugger gets a copy of the page",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techVDSO, techEscalation},
	},
	{
		Guard:  GuardSegmentTable,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techEscalation},
	},
	{
		Guard:  GuardSyscallEntry,
		Server: ActionBlock, ServerWhy: "a kernel sets these registers once for each processor, and always to the same",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityFull, Severity: "critical",
		Techniques: []Technique{techRootkit},
	},
	{
		Guard:  GuardControlRegisters,
		Server: ActionAlert, ServerWhy: "a crash kernel (kdump) and kexec clear these bits on purpose, and a denied write may stop them",
		Strict: ActionBlock, StrictWhy: "for guests that need neither kdump, kexec, nested virtualization nor reboot=bios",
		Registers: AbilityFull, Severity: "high",
		Techniques: []Technique{techEscalation, techRootkit},
	},
	{
		Guard:  GuardFunctionPointers,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "high",
		Techniques: []Technique{techRootkit, techHijack},
	},
	{
		Guard:  GuardKernelExec,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techEscalation},
	},
	{
		Guard:  GuardEBPF,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "medium",
		Techniques: []Technique{techRootkit, techEscalation},
	},
	{
		Guard:  GuardUsermodeHelper,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "high",
		Techniques: []Technique{techTriggered, techEscalation, techEscape},
	},
	{
		Guard:  GuardCredentials,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techEscalation},
	},
	{
		Guard:  GuardHiddenObjects,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "critical",
		Techniques: []Technique{techRootkit, techHide, techModules},
	},
	{
		Guard:  GuardProcesses,
		Server: ActionBlock, ServerWhy: "it judges only what is done to, or by, the processes that the policy lists",
		Strict: ActionBlock, StrictWhy: asServer,
		Registers: AbilityNone, Severity: "high",
		Techniques: []Technique{techPtrace, techProcMemory, techShell},
	},
	{
		Guard:  GuardExploits,
		Server: ActionOff, ServerWhy: onRequest,
		Strict: ActionOff, StrictWhy: onRequest,
		Registers: AbilityNone, Severity: "critical",
		Techniques: []Technique{techClient, techInjection, techEscalation},
	},
	{
		Guard:  GuardPanic,
		Server: ActionAlert, ServerWhy: tooLate,
		Strict: ActionAlert, StrictWhy: asServer,
		Registers: AbilityFinds, Severity: "medium",
		Techniques: []Technique{techCrash},
	},
}

// Abouts returns what is told of each guard, in the order of [Guards].
func Abouts() []About { return slices.Clone(abouts) }

// LookupAbout finds what is told of a guard.
func LookupAbout(name GuardName) (About, bool) {
	for _, a := range abouts {
		if a.Guard == name {
			return a, true
		}
	}
	return About{}, false
}
