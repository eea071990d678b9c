package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
)

// SyscallTable protects the tables of system calls. Kernels since 6.9, and stable
// ones since April 2024, call the handlers from code and have the table for
// tracing alone; kernel-text has that code.
func SyscallTable() Guard {
	return sealed(policy.GuardSyscallTable, (*linux.Kernel).SyscallTables)
}
