package linux

import (
	"github.com/xen-hvi/hvi/engine/guest"
	"github.com/xen-hvi/hvi/engine/x86"
)

// Identify finds the Linux kernel that the vCPU with these registers runs.
func Identify(mem guest.Memory, regs x86.Registers) (*Kernel, error) {
	return nil, &IdentifyError{Stage: StageBase, Want: "a kernel"}
}
