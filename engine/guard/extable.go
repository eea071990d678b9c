package guard

import (
	"github.com/xen-hvi/hvi/engine/guest/linux"
	"github.com/xen-hvi/hvi/engine/policy"
)

// ExceptionTable protects the kernel's own table of exceptions: an entry says
// where the kernel goes on when an instruction faults. A changed one makes any
// fault of that instruction, which user space can bring about, a jump to code of
// the attacker's choice. Modules have tables of their own.
func ExceptionTable() Guard { return sealed(policy.GuardExceptionTable, exceptionTable) }

func exceptionTable(k *linux.Kernel) ([]linux.Range, error) {
	r, err := k.ExceptionTable()
	return []linux.Range{r}, err
}
