package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
)

// VDSO protects the code that the kernel maps into every process. The same
// frames are in all of them, so that a write to one runs code in every process,
// root's included. (A debugger that sets a breakpoint there gets a copy of the
// page for its process.)
func VDSO() Guard { return sealed(policy.GuardVDSO, (*linux.Kernel).VDSO) }
