package linux

// NoOffset is the offset of a member that this kernel does not have.
const NoOffset = -1

// Offsets is the layout of the structures hvi reads, in bytes from the start of
// each, taken from the kernel's BTF. A member is known by its presence, never
// by the kernel's version; [NoOffset] where it is absent.
type Offsets struct {
	Task TaskOffsets
	MM   MMOffsets
	// PCPUHot is struct pcpu_hot of 6.2 to 6.14, whose members replaced
	// per-CPU variables of their own.
	PCPUHot PCPUHotOffsets
	Module  ModuleOffsets
	// SystemRunning is enum system_states' SYSTEM_RUNNING, 0 if unknown.
	SystemRunning uint32
}

// TaskOffsets lays out struct task_struct.
type TaskOffsets struct {
	Size int // sizeof(struct task_struct)

	State      int // __state (5.14 on) or state
	Flags      int
	Tasks      int
	MM         int
	ActiveMM   int
	PID        int
	TGID       int
	RealParent int
	Parent     int
	Cred       int
	RealCred   int
	Comm       int
}

// MMOffsets lays out struct mm_struct, anonymous members included.
type MMOffsets struct {
	Size int // sizeof(struct mm_struct)
	PGD  int
}

// PCPUHotOffsets lays out struct pcpu_hot.
type PCPUHotOffsets struct {
	CurrentTask int
	CPUNumber   int
}

// noOffsets is the layout of a kernel without type information.
func noOffsets() Offsets {
	const n = NoOffset
	return Offsets{
		Task:    TaskOffsets{n, n, n, n, n, n, n, n, n, n, n, n, n},
		MM:      MMOffsets{n, n},
		PCPUHot: PCPUHotOffsets{n, n},
		Module:  ModuleOffsets{n, n, n, n, n, n, 0, n, n},
	}
}
