package report

import (
	"github.com/xen-hvi/hvi/engine/printable"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Text is a string that the guest chose.
type Text = printable.Text

// Info is what a guest is.
type Info struct {
	Reading Reading `json:"reading"`

	// System is the operating system: "linux".
	System string `json:"system"`
	// Release is what uname -r prints, Banner what /proc/version does.
	Release Text `json:"release"`
	Banner  Text `json:"banner"`
	// Hostname is that of the first UTS namespace.
	Hostname Text `json:"hostname,omitzero"`
	// CommandLine is what the kernel was booted with.
	CommandLine Text `json:"command_line,omitzero"`
	// Uptime is the time since boot in seconds, as CLOCK_BOOTTIME counted it
	// at the guest's last timer tick.
	Uptime float64 `json:"uptime_seconds,omitzero"`
	// Taints are the letters of /proc/sys/kernel/tainted, "" for none.
	Taints string `json:"taints,omitzero"`

	// Base and PhysBase are where the kernel's image begins, virtually and
	// physically; Slide is how far KASLR moved it.
	Base     x86.VirtAddr `json:"base"`
	PhysBase x86.PhysAddr `json:"phys_base"`
	Slide    uint64       `json:"slide"`
	// PagingLevels is 4 or 5. Isolation says that user and kernel have page
	// tables of their own (KPTI).
	PagingLevels int  `json:"paging_levels"`
	Isolation    bool `json:"isolation"`

	// Symbols is the number of symbols in kallsyms.
	Symbols int `json:"symbols"`
	// Types says where the layout of structures is from, and TypesNote what
	// could not be known and why.
	Types     TypeSource `json:"types"`
	TypesNote string     `json:"types_note,omitzero"`
	// Profile is the key of the kernel's build, and Cached whether it was known
	// before.
	Profile string `json:"profile,omitzero"`
	Cached  bool   `json:"cached"`

	CPUs []CPU `json:"cpus"`
}

// TypeSource says where the layout of a kernel's structures is from.
type TypeSource string

// The sources.
const (
	TypesBTF   TypeSource = "btf"   // the kernel's own type information
	TypesISF   TypeSource = "isf"   // a profile in Volatility 3's format
	TypesGuess TypeSource = "guess" // found in the first tasks: pid and name alone
	TypesNone  TypeSource = "none"  // unknown: symbols alone
)

// CPU is a virtual processor: its registers and what it runs.
type CPU struct {
	ID int `json:"id"`
	// User says that it was in user mode.
	User bool `json:"user"`
	// PID and Comm are those of its current task; Task is its address, 0 where
	// it could not be told.
	PID  int32        `json:"pid"`
	Comm Text         `json:"comm,omitzero"`
	Task x86.VirtAddr `json:"task"`

	RIP Place `json:"rip"`
	// Control registers, and where FS and GS begin: KernelGSBase is what SWAPGS
	// would exchange with GSBase, so in kernel mode it is the process's.
	CR0          Hex `json:"cr0"`
	CR3          Hex `json:"cr3"`
	CR4          Hex `json:"cr4"`
	FSBase       Hex `json:"fs_base"`
	GSBase       Hex `json:"gs_base"`
	KernelGSBase Hex `json:"kernel_gs_base"`
	// MSRs: EFER, and those of SYSCALL and SYSENTER. Where the source has no MSRs,
	// as memory images have none, they are 0, and the reading is incomplete.
	EFER        Hex   `json:"efer"`
	STAR        Hex   `json:"star"`
	LSTAR       Place `json:"lstar"`
	CSTAR       Place `json:"cstar"`
	SFMask      Hex   `json:"sfmask"`
	SysenterCS  Hex   `json:"sysenter_cs"`
	SysenterESP Hex   `json:"sysenter_esp"`
	SysenterEIP Place `json:"sysenter_eip"`
	// Table registers.
	IDTBase  x86.VirtAddr `json:"idt_base"`
	IDTLimit uint32       `json:"idt_limit"`
	GDTBase  x86.VirtAddr `json:"gdt_base"`
	GDTLimit uint32       `json:"gdt_limit"`
}

// LogRecord is a message of the kernel's log.
type LogRecord struct {
	Seq uint64 `json:"seq"`
	// Nanoseconds since boot, as the kernel's local_clock counted them.
	Nanoseconds uint64 `json:"ns"`
	// Level is 0 (emergency) to 7 (debug); Facility 0 is the kernel's own.
	Level    uint8 `json:"level"`
	Facility uint8 `json:"facility"`
	// Message may hold several lines, with \n between them as Text writes it.
	Message Text `json:"message"`
	// Cut says that the message was longer than what is shown.
	Cut bool `json:"cut,omitzero"`
}
